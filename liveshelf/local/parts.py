"""The table of parts: what `liveshelf up` starts, in which order, where each listens and how its health is asked.

    kafka ─▶ (topics) ─▶ collector
      │                  joiner
      │                  agents ◀─ store
      └─────────────────▶ model-server, scoring, trainer

A part whose address is a setting of yours (LIVESHELF_KAFKA, LIVESHELF_STORE, LIVESHELF_MODEL_SERVER) is not started, only asked.
"""

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import liveshelf
from liveshelf.local import probes
from liveshelf.local.kafka import KAFKA_VERSION, kafka_command
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import PREFIX, Settings


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the loop, or one of somebody else's that the loop needs."""

    name: str
    address: str
    health: probes.Probe
    """Returns when the part answers; raises UnavailableError saying why it does not. Bounded by itself."""
    command: Callable[[], list[str]] | None = None
    """Makes the command line, doing what must come first (jars, storage); may block and raise. None: somebody else's part."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Setting → port that the part listens on: free before it starts, or the setting is named in the complaint."""
    after: tuple[str, ...] = ()
    """Names of the parts that must be healthy before this one starts."""
    when_ready: Callable[[], object] | None = None
    """Run once after the part's first healthy answer and before those that wait for it start; may block and raise."""
    version: Callable[[], str] = lambda: liveshelf.__version__
    """May block; asked once, after the first healthy answer."""


def role_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a role: the very settings of this process, as variables, and this very code on the path."""
    kept = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    values = {name: str(getattr(settings, name)) for name in Settings.__struct_fields__}
    values |= {"data_dir": str(settings.data_path), "cache_dir": str(settings.cache_path)}
    root = str(Path(liveshelf.__file__).parents[1])
    path = [root] if root != sysconfig.get_path("purelib") else []
    if inherited := kept.get("PYTHONPATH"):
        path.append(inherited)
    return (
        kept
        | {PREFIX + name.upper(): value for name, value in values.items()}
        | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})
    )


def _role(module: str) -> Callable[[], list[str]]:
    # -P: a folder named `features` or `streams` where the user happens to stand must not be imported in place of ours.
    return lambda: [sys.executable, "-P", "-m", module]


def parts(settings: Settings) -> list[Part]:
    """Every part, in start order."""
    return [*_bought_parts(settings), *_our_parts(settings)]


def _bought_parts(settings: Settings) -> list[Part]:
    def make_topics() -> None:
        from streams.topics import ensure_topics

        ensure_topics(settings)

    kafka = Part(
        name="kafka",
        address=settings.kafka_address,
        command=None if settings.kafka else lambda: kafka_command(settings),
        ports={} if settings.kafka else {"kafka_port": settings.kafka_port},
        health=probes.kafka_probe(settings),
        when_ready=make_topics,
        version=lambda: "yours" if settings.kafka else f"Kafka {KAFKA_VERSION}",
    )
    store = Part(
        name="store",
        address=settings.store_address.split(",")[0],  # what follows is the password
        command=None if settings.store else lambda: valkey_command(settings),
        ports={} if settings.store else {"store_port": settings.store_port},
        health=probes.store_probe(settings),
        version=lambda: probes.store_version(settings),
    )
    model_ports = {"model_server_port": settings.model_server_port, "model_server_metrics_port": settings.model_server_metrics_port}
    model_server = Part(
        name="model-server",
        address=settings.model_server_address,
        command=None if settings.model_server else _role("serving.model_server"),
        ports={} if settings.model_server else model_ports,
        # TensorFlow Serving has no standard health service: there, an open channel must do.
        health=(probes.grpc_channel_probe if settings.model_server else probes.grpc_health_probe)(settings.model_server_address),
        version=lambda: "yours" if settings.model_server else f"TensorFlow {probes.distribution_version('tensorflow')}",
    )
    return [kafka, store, model_server]


def _our_parts(settings: Settings) -> list[Part]:
    def url(port: int, path: str) -> str:
        return f"http://{settings.host}:{port}{path}"

    collector = Part(
        name="collector",
        address=settings.collector_url,
        command=_role("streams.collector"),
        ports={"collector_port": settings.collector_port},
        health=probes.http_probe(url(settings.collector_port, "/readyz")),
        after=("kafka",),
    )
    agents = Part(
        name="agents",
        address=url(settings.agents_metrics_port, "/metrics"),
        command=_role("streams.agents"),
        ports={"agents_metrics_port": settings.agents_metrics_port},
        health=probes.http_probe(url(settings.agents_metrics_port, "/readyz")),
        after=("kafka", "store"),
    )
    joiner = Part(
        name="joiner",
        address=url(settings.joiner_metrics_port, "/metrics"),
        command=_role("streams.joiner"),
        ports={"joiner_metrics_port": settings.joiner_metrics_port},
        health=probes.http_probe(url(settings.joiner_metrics_port, "/readyz")),
        after=("kafka",),
    )
    scoring = Part(
        name="scoring",
        address=settings.scoring_address,
        command=_role("serving.service"),
        ports={name: getattr(settings, name) for name in ("scoring_port", "scoring_metrics_port", "scoring_http_port")},
        health=probes.grpc_health_probe(settings.scoring_address),
        after=("kafka", "store"),  # not the model server: until that has a model, scoring answers a fallback shelf
    )
    trainer = Part(
        name="trainer",
        address=settings.trainer_url,
        command=_role("trainer.service"),
        ports={"trainer_port": settings.trainer_port},
        health=probes.http_probe(url(settings.trainer_port, "/healthz")),
        after=("kafka",),
    )
    return [collector, agents, joiner, scoring, trainer]
