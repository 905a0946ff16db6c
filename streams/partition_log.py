"""One partition of the clickstream or of another topic, read from one offset to another: for catching up, rebuilding and verifying. No consumer group."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings
from streams.topics import CLICKSTREAM, kafka_config

BATCH_MAX = 2_000
TIMEOUT_S = 10.0
SILENCE_S_MAX = 30.0  # a broker restart takes less


class Raw(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes


class PartitionLog:
    """Reads partitions of one topic.

    Raises (every method):
        UnavailableError: Kafka does not answer, or fell silent for SILENCE_S_MAX seconds.
    """

    def __init__(self, settings: Settings, topic: str = CLICKSTREAM) -> None:
        self._address, self._topic = settings.kafka_address, topic
        self._config = kafka_config(settings) | {
            "group.id": "liveshelf-partition-log",  # librdkafka wants a name even where no group is joined
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "log_level": 2,
        }

    def ends(self, partition: int) -> tuple[int, int]:
        """(first offset held, next offset to be written)."""
        consumer = Consumer(self._config)
        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=TIMEOUT_S)
            return low, high
        except KafkaException as error:
            raise UnavailableError(f"{self._topic}/{partition} in Kafka at {self._address} does not answer: {error}") from error
        finally:
            consumer.close()

    def offset_at(self, partition: int, time_ms: int) -> int:
        """The first record that the broker took at `time_ms` or later; below 0 where there is none."""
        consumer = Consumer(self._config)
        try:
            found: list[TopicPartition] = consumer.offsets_for_times(
                [TopicPartition(self._topic, partition, time_ms)], timeout=TIMEOUT_S
            )
            return int(found[0].offset)
        except KafkaException as error:
            raise UnavailableError(f"{self._topic}/{partition} in Kafka at {self._address} does not answer: {error}") from error
        finally:
            consumer.close()

    def committed(self, group: str, partitions: Iterable[int]) -> dict[int, int]:
        """The next offset that the consumer group `group` would read, by partition; 0 where it committed none."""
        consumer = Consumer(self._config | {"group.id": group})
        try:
            found = consumer.committed([TopicPartition(self._topic, p) for p in partitions], timeout=TIMEOUT_S)
            return {tp.partition: max(tp.offset, 0) for tp in found}
        except KafkaException as error:
            raise UnavailableError(f"group {group} in Kafka at {self._address} does not answer: {error}") from error
        finally:
            consumer.close()

    def read(self, partition: int, start: int, end: int) -> Iterator[list[Raw]]:
        """Records from `start` (or the first held) up to and without `end`, in batches; tombstones are left out."""
        consumer = Consumer(self._config)
        try:
            consumer.assign([TopicPartition(self._topic, partition, start if start > 0 else OFFSET_BEGINNING)])
            at, heard = start, time.monotonic()
            while at < end:
                messages = consumer.consume(min(BATCH_MAX, end - at), timeout=1.0)
                batch = []
                for message in messages:
                    if message.error():
                        raise KafkaException(message.error())
                    offset = message.offset()
                    assert offset is not None, "a consumed message has an offset"
                    at = offset + 1
                    value = message.value()
                    if offset < end and value is not None:
                        batch.append(Raw(offset, message.key(), value))
                if messages:
                    heard = time.monotonic()
                    yield batch
                elif time.monotonic() - heard > SILENCE_S_MAX:
                    raise UnavailableError(
                        f"{self._topic}/{partition}: Kafka sent nothing for {SILENCE_S_MAX:.0f} s at offset {at}"
                    )
        except KafkaException as error:
            raise UnavailableError(f"reading {self._topic}/{partition} at Kafka {self._address}: {error}") from error
        finally:
            consumer.close()
