"""Tells the log what became of each model version (`model-releases`), and reads it back."""

from typing import Any

from confluent_kafka import KafkaException, Producer

from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings
from streams.records import Release, encode
from streams.topics import MODEL_RELEASES, PARTITIONER, kafka_config
from trainer.log import LogReader

ACKNOWLEDGE_S_MAX = 15.0  # one small record; beyond a broker's restart the step's release is published at the next one


def publish(settings: Settings, release: Release) -> None:
    """Write `release` and wait until Kafka has it.

    Raises:
        UnavailableError: Kafka did not acknowledge in time.
    """
    failed: list[Any] = []
    config = {"acks": "all", "enable.idempotence": True, "partitioner": PARTITIONER, "log_level": 2}
    producer = Producer(kafka_config(settings) | config | {"delivery.timeout.ms": int(ACKNOWLEDGE_S_MAX * 1000)})
    try:
        producer.produce(
            MODEL_RELEASES,
            encode(release),
            key=release.model.encode(),
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
        unsent = producer.flush(ACKNOWLEDGE_S_MAX)
    except KafkaException as error:
        raise UnavailableError(f"{MODEL_RELEASES}: {error}") from error
    if unsent or failed:
        reason = failed[0] if failed else f"no answer in {ACKNOWLEDGE_S_MAX:.0f} s"
        raise UnavailableError(f"Kafka at {settings.kafka_address} did not take the release of version {release.version}: {reason}")


def history(settings: Settings) -> list[Release]:
    """Every release of this model, oldest first.

    Raises:
        UnavailableError: Kafka does not answer.
    """
    reader = LogReader(settings, MODEL_RELEASES, Release)
    return [logged.record for batch in reader for logged in batch if logged.record.model == settings.model_name]
