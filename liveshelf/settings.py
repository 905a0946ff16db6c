"""Every setting of Liveshelf, read once at the entry point into a frozen object.

Order of precedence: environment (`LIVESHELF_` + the name in capitals), then the TOML file named by `LIVESHELF_SETTINGS`, then
the defaults below. Every setting is one flat key; units stand last in the name.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from liveshelf.errors import SettingsError

PREFIX = "LIVESHELF_"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. An empty address means: `liveshelf up` runs that part itself, on loopback, at the port given."""

    # where things are kept
    data_dir: str = ".liveshelf"
    """Log, store, models, checkpoints, key and run state."""
    cache_dir: str = "~/.cache/liveshelf"
    """Kafka's jars, shared by every data directory of this user."""
    maven_repository: str = ""
    """Base URL of the repository that Kafka's jars come from; empty: the public Maven repository."""
    host: str = "127.0.0.1"
    """Address that every part listens on."""

    # other people's parts: set the address to use yours
    kafka: str = ""
    kafka_port: int = 19092
    kafka_security_protocol: str = "PLAINTEXT"
    kafka_sasl_mechanism: str = ""
    kafka_sasl_username: str = ""
    kafka_sasl_password: str = ""
    kafka_ssl_ca: str = ""
    kafka_ssl_cert: str = ""
    """PEM file of our certificate, with `kafka_ssl_key`: for a Kafka that asks its clients for one."""
    kafka_ssl_key: str = ""
    kafka_replication: int = 1
    store: str = ""
    """Feast's Redis connection string: host:port[,password=…,ssl=true]."""
    store_port: int = 16379
    model_server: str = ""
    """host:port of a TensorFlow Serving gRPC endpoint."""
    model_server_tls_ca: str = ""
    """PEM file: whom callers of the model server trust; when set they use TLS (the server's side: its `--ssl_config_file`)."""
    model_server_tls_cert: str = ""
    """PEM file, with `model_server_tls_key`: the certificate that they show, where the model server asks for one."""
    model_server_tls_key: str = ""
    model_server_base_path: str = ""
    """Where that server sees the model directory; empty: where we see it. `liveshelf models` tells it which versions to serve from there."""
    model_server_port: int = 18500
    collector: str = ""
    """host:port of a collector elsewhere, for what calls one: simulated shoppers, replays, the freshness probe. Empty: our own."""
    scoring: str = ""
    """host:port of a scoring service elsewhere, for what calls one; the service itself must not have it."""

    # our roles
    collector_port: int = 18080
    scoring_port: int = 18090
    agents_metrics_port: int = 18081
    joiner_metrics_port: int = 18083
    scoring_metrics_port: int = 18091
    scoring_http_port: int = 18092
    """The scoring API as JSON over HTTP."""
    trainer_port: int = 18082
    """HTTP of the trainer: health, metrics, and a step on demand."""
    model_server_metrics_port: int = 18501

    # features
    features_file: str = ""
    """The shop's feature declarations (YAML); empty: those that Liveshelf ships. See `liveshelf features --help`."""

    # the log
    partitions: int = 4
    """Of clickstream, impressions, training-examples and item-updates alike: a shopper's records meet in one partition number."""
    clickstream_retention_h: int = 24 * 90

    # limits
    event_body_bytes_max: int = 1_000_000
    events_per_request_max: int = 500
    events_inflight_max: int = 10_000
    event_future_tolerance_s: int = 3600
    """Events and catalog records whose own time is later than this from now are refused: a browser's clock that is wrong."""
    event_age_max_h: Annotated[int, msgspec.Meta(ge=0)] = 24 * 90
    """Events that happened longer ago are refused; by default as long as the log keeps them. 0: no limit, for archives."""

    # serving
    recommend_deadline_ms: int = 200
    """Used when the caller sets none; a caller's shorter deadline wins."""
    scoring_concurrency_max: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Requests that one scorer works on at once; more are refused at once (RESOURCE_EXHAUSTED). At 400 requests/s, 64 are 160 ms of work:
    what is admitted still meets a deadline of 200 ms."""
    scoring_sessions_max: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    """The latest sessions that a scorer holds in memory, to show what shoppers went on to in those that resemble the one at hand; some 50 MB a
    hundred thousand. 0: none."""
    scoring_token: str = ""
    """When set, callers of the scoring API send it (`authorization: Bearer …`); health and reflection need none."""
    scoring_tls_cert: str = ""
    """PEM file of the scoring API's certificate chain; with `scoring_tls_key` the API is served over TLS, gRPC and HTTP alike."""
    scoring_tls_key: str = ""
    scoring_tls_client_ca: str = ""
    """PEM file: when set, callers need a certificate signed by this authority."""
    scoring_tls_ca: str = ""
    """PEM file: whom our own callers of the scoring API trust (`liveshelf recommend`); when set they use TLS."""
    scoring_tls_client_cert: str = ""
    """PEM file, with `scoring_tls_client_key`: the certificate that our own callers show where `scoring_tls_client_ca` asks for one."""
    scoring_tls_client_key: str = ""
    store_timeout_ms: int = 50
    model_timeout_ms: int = 100
    rules_file: str = ""
    """The shop's pins, boosts and exclusions (YAML), read again whenever it changes; empty: none. See serving/rules.py."""
    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """How much variety of category and brand a shelf trades for relevance; 0: none, 1: an item's like must be far better to stand beside it."""
    explore_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """How often each position of a shelf's last fifth shows something else than the best, new items above all; 0: never."""
    price_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """How much an item's price counts in the value of a cart or purchase; 0: not at all, 1: in proportion."""
    freshness_probe_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """How often a synthetic shopper measures the time from an event to the shelf that it changes; 0: never."""

    # learning
    model_name: str = "shelf"
    feedback_window_s: int = 300
    """How long after an impression (event time) a click, cart or purchase still labels it."""
    late_purchase_h: Annotated[int, msgspec.Meta(ge=0, le=24 * 30)] = 24
    """How long after an impression a purchase of what was clicked on it in time is still learnt from, when its example is made already; 0: not."""
    train_interval_s: int = 60
    train_examples_max: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    """Examples that one step reads at most; what is left over waits for the next. A step holds them in memory, encoded: about 5 kB each."""
    train_items_max: Annotated[int, msgspec.Meta(ge=1)] = 200_000
    """Items that have a vector of their own; when there are more, those unseen longest lose theirs. 100,000 are some 40 MB while learning."""
    train_item_sightings_min: Annotated[int, msgspec.Meta(ge=1)] = 2
    """How often an item is seen before it gets a vector of its own; until then its catalog embedding stands for it, if it has one."""
    train_item_unused_days_max: Annotated[int, msgspec.Meta(ge=1)] = 90
    """Days without being seen, by the time of the events, after which an item loses its vector."""
    canary_automatic: bool = False
    """Whether a canary is promoted or rolled back by the trainer, as soon as what shoppers did tells it apart; if not, people decide."""
    model_memory_mb_max: Annotated[int, msgspec.Meta(ge=1)] = 2_048
    """What a model server with one version may take; a larger model is refused. While versions swap, a server holds two."""
    tensorboard_dir: str = ""
    """Where each release's metrics are also written for TensorBoard (`tensorboard --logdir`); empty: nowhere."""
    seed: int = 7

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().resolve()

    @property
    def cache_path(self) -> Path:
        return Path(self.cache_dir).expanduser().resolve()

    @property
    def model_path(self) -> Path:
        """Directory of numbered versions that the model server watches."""
        return self.data_path / "models" / self.model_name

    @property
    def model_base_path(self) -> str:
        """The same directory, as the model server sees it."""
        return self.model_server_base_path or str(self.model_path)

    @property
    def kafka_address(self) -> str:
        return self.kafka or f"{self.host}:{self.kafka_port}"

    @property
    def store_address(self) -> str:
        return self.store or f"{self.host}:{self.store_port}"

    @property
    def model_server_address(self) -> str:
        return self.model_server or f"{self.host}:{self.model_server_port}"

    @property
    def collector_url(self) -> str:
        return f"http://{self.collector or f'{self.host}:{self.collector_port}'}"

    @property
    def scoring_address(self) -> str:
        return self.scoring or f"{self.host}:{self.scoring_port}"

    @property
    def trainer_url(self) -> str:
        return f"http://{self.host}:{self.trainer_port}"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings once.

    Raises:
        SettingsError: an unknown key, or a value of the wrong type; the message names the key and where it stood.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, object] = {}
    file = environ.get(PREFIX + "SETTINGS")
    if file:
        try:
            values.update(tomllib.loads(Path(file).expanduser().read_text()))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{PREFIX}SETTINGS={file}: {error}. Name a readable TOML file, or unset it.") from error
    for name in Settings.__struct_fields__:
        if (value := environ.get(PREFIX + name.upper())) is not None:
            values[name] = value
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{error} (from {file or 'the environment'}; see liveshelf/settings.py for names and types)") from error
