"""The topics, their keys, partitions and retention, in one place; and how to make them."""

from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from liveshelf.errors import ConflictError, UnavailableError
from liveshelf.settings import Settings

CLICKSTREAM = "clickstream"
CLICKSTREAM_REJECTED = "clickstream-rejected"
CATALOG = "catalog"
IMPRESSIONS = "impressions"
TRAINING_EXAMPLES = "training-examples"
ITEM_UPDATES = "item-updates"
MODEL_RELEASES = "model-releases"

DAY_MS = 24 * 3_600_000

# librdkafka's own default partitioner differs from the Java client's and aiokafka's; with this one a shopper's events, impressions
# and examples meet in the same partition number whoever produced them.
PARTITIONER = "murmur2_random"


class Topic(NamedTuple):
    name: str
    partitions: int
    config: dict[str, str]


def topics(settings: Settings) -> list[Topic]:
    """Every topic. Those that hold events use LogAppendTime: a replayed event of 2014 would be older than any retention."""
    kept = {
        "retention.ms": str(settings.clickstream_retention_h * 3_600_000),
        "message.timestamp.type": "LogAppendTime",
    }
    compacted = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.2", "segment.ms": str(DAY_MS)}
    n = settings.partitions
    return [
        Topic(CLICKSTREAM, n, kept),
        Topic(CLICKSTREAM_REJECTED, 1, kept | {"retention.ms": str(30 * DAY_MS)}),
        Topic(CATALOG, 1, compacted),
        Topic(IMPRESSIONS, n, kept | {"retention.ms": str(30 * DAY_MS)}),
        Topic(TRAINING_EXAMPLES, n, kept | {"retention.ms": str(30 * DAY_MS)}),
        # Record key: feature version and item. Partition: the clickstream partition that the row's contributions come from.
        Topic(ITEM_UPDATES, n, compacted),
        Topic(MODEL_RELEASES, 1, {"retention.ms": "-1"}),
    ]


def item_update_key(version: str, item: str) -> str:
    """The key in `item-updates`: versions stand side by side, so that compaction keeps the latest row of each."""
    return f"{version}/{item}"


def item_update_version(key: bytes) -> str:
    return key.partition(b"/")[0].decode(errors="replace")


def kafka_config(settings: Settings) -> dict[str, Any]:
    """librdkafka's connection properties."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_address,
        "security.protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_sasl_mechanism:
        config |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_sasl_username,
            "sasl.password": settings.kafka_sasl_password,
        }
    if settings.kafka_ssl_ca:
        config["ssl.ca.location"] = settings.kafka_ssl_ca
    if settings.kafka_ssl_cert:
        config |= {"ssl.certificate.location": settings.kafka_ssl_cert, "ssl.key.location": settings.kafka_ssl_key}
    return config


def missing_topics(settings: Settings, timeout_s: float = 10.0) -> set[str]:
    """Names of the topics that are not there; none while Kafka does not answer."""
    admin = AdminClient(kafka_config(settings) | {"log_level": 2})
    try:
        # Asked for all topics: asking for one by name would make some brokers create it, with their own partition count.
        existing = admin.list_topics(timeout=timeout_s).topics
    except KafkaException:
        return set()
    return {topic.name for topic in topics(settings) if topic.name not in existing}


def ensure_topics(settings: Settings, timeout_s: float = 30.0) -> dict[str, int]:
    """Create the topics that are missing; return name → partition count.

    Raises:
        UnavailableError: Kafka does not answer in `timeout_s`.
        ConflictError: a topic exists with another partition count, so that shoppers' keys would move.
    """
    admin = AdminClient(kafka_config(settings) | {"log_level": 2})
    try:
        existing = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise UnavailableError(
            f"Kafka at {settings.kafka_address} does not answer: {error}. Is it up? Try `liveshelf doctor`."
        ) from error
    wanted = topics(settings)
    for topic in wanted:
        found = existing.get(topic.name)
        if found is not None and len(found.partitions) != topic.partitions:
            raise ConflictError(
                f"topic {topic.name} has {len(found.partitions)} partitions, the settings want {topic.partitions}. Shoppers would move "
                f"between partitions and their rows be folded twice. Set LIVESHELF_PARTITIONS={len(found.partitions)}, or use a new data_dir."
            )
    missing = [topic for topic in wanted if topic.name not in existing]
    new = [NewTopic(t.name, t.partitions, settings.kafka_replication, config=t.config) for t in missing]
    for name, future in (admin.create_topics(new, operation_timeout=timeout_s) if new else {}).items():
        try:
            future.result(timeout=timeout_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise UnavailableError(f"Kafka refused topic {name}: {error}") from error
    return {topic.name: topic.partitions for topic in wanted}
