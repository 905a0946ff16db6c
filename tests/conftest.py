"""Real parts for tests: one Kafka and one Valkey a session, on free ports, in a temporary directory, gone at the end.

The jars come from the user's cache; LIVESHELF_CACHE_DIR and LIVESHELF_MAVEN_REPOSITORY are honoured, other settings are not.
"""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import prometheus_client  # noqa: F401 - before Feast, which some tests import themselves (see `features/__init__.py`)
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling

from liveshelf.local.kafka import kafka_command
from liveshelf.local.process import OWN_SESSION, dying_with_parent
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings

HOST = "127.0.0.1"
START_DEADLINE_S = 60
STOP_DEADLINE_S = 20
# A broker that lives for seconds is not worth optimising: 3 s of processor time until it answers, and not 5.
QUICK_JVM = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}

# A property holds or it does not; how long an example takes is the machine's affair.
hypothesis_settings.register_profile("liveshelf", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("liveshelf")


# In an order of this run's own, so that runs side by side do not meet, each port once, since a part may take its port long after it was
# chosen, and by one of the run's workers only; below the range that the kernel takes outgoing connections' ports from (32768 up), so that
# none of those sits on one before.
_WORKER, _WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_SHARE = range(20_000 + _WORKER, 32_000, _WORKERS)
_PORTS = iter(random.sample(_SHARE, len(_SHARE)))


class PartsScheduling(LoadScopeScheduling):
    """A file's tests share its parts, those of tests/e2e a whole stack: each goes to one worker, in its order."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/e2e" if file.startswith("tests/e2e/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return PartsScheduling(config, log)


def free_port() -> int:
    """A loopback port that nobody listens on right now and that nobody in this run was given."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise RuntimeError("this run has used up its ports between 20000 and 31999")


def local_settings(data_dir: Path, **changes: object) -> Settings:
    """Settings in `data_dir` with every port free, so that no test meets another or a running Liveshelf."""
    ports = {name: free_port() for name in Settings.__struct_fields__ if name.endswith("_port")}
    kept = {
        name: os.environ[key] for name in ("cache_dir", "maven_repository") if (key := f"LIVESHELF_{name.upper()}") in os.environ
    }
    return msgspec.structs.replace(Settings(), **{"data_dir": str(data_dir), **ports, **kept, **changes})


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone when the block ends, or when pytest dies."""
    with log.open("ab") as output:
        environment = (os.environ if env is None else env) | QUICK_JVM
        process = subprocess.Popen(dying_with_parent(command), stdout=output, stderr=output, env=environment, **OWN_SESSION)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"nothing listens on {port}; its log ends:\n{log.read_text()[-2000:]}")


@contextmanager
def broker(home: Path) -> Iterator[Settings]:
    """Settings of a real broker with every topic of the loop. `data_dir` is `home`; other ports are free ones."""
    from streams.topics import ensure_topics

    settings = local_settings(home)
    log = home / "kafka.log"
    with running(kafka_command(settings), log) as process:
        wait_for_port(settings.kafka_port, process, log)
        settings = msgspec.structs.replace(settings, kafka=settings.kafka_address)
        ensure_topics(settings, START_DEADLINE_S)
        yield settings


def read_all(settings: Settings, topic: str) -> list[tuple[int, int, bytes, bytes]]:
    """(partition, offset, key, value) of everything that stands in `topic` now."""
    from confluent_kafka import Consumer, TopicPartition

    from streams.topics import kafka_config

    consumer = Consumer(kafka_config(settings) | {"group.id": "test", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in partitions}
        consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
        records: list[tuple[int, int, bytes, bytes]] = []
        while any(tp.offset < ends[tp.partition] for tp in consumer.position(consumer.assignment()) if ends[tp.partition]):
            for m in consumer.consume(1000, 1.0):
                assert m.error() is None
                records.append((m.partition(), m.offset(), m.key(), m.value()))
        return records
    finally:
        consumer.close()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """One broker for the whole session; its topics hold what all tests sent."""
    with broker(tmp_path_factory.mktemp("kafka")) as settings:
        yield settings


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real, empty Valkey: what `Settings.store` takes. One a module: the store remembers how far a log is folded, and
    another module's broker has another log."""
    home = tmp_path_factory.mktemp("store")
    settings = local_settings(home)
    log = home / "valkey.log"
    with running(valkey_command(settings), log) as process:
        wait_for_port(settings.store_port, process, log)
        yield settings.store_address
