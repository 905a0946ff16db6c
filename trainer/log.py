"""Reads the log from known offsets up to where it ends now. Thin: which offsets, and what becomes of the records, is the caller's."""

import time
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import msgspec
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from liveshelf.errors import NotFoundError, UnavailableError
from liveshelf.settings import Settings
from streams.records import decode
from streams.topics import kafka_config

log = structlog.get_logger()

BATCH_RECORDS_MAX = 1_000  # an example with its features is about 10 kB: some 10 MB at a time
METADATA_TIMEOUT_S = 10.0
SILENCE_S_MAX = 30.0  # a broker restart takes less; beyond it the step gives up and is tried again from the same offsets

Offsets = dict[str, int]
"""`topic/partition` → next offset to read."""
Record = TypeVar("Record")


class Logged(NamedTuple, Generic[Record]):
    partition: int
    offset: int
    record: Record


def key(topic: str, partition: int) -> str:
    """The name of a partition in `Offsets`."""
    return f"{topic}/{partition}"


def offsets_at(settings: Settings, topic: str, time_ms: int) -> Offsets:
    """Of each partition, the first record that the broker took at `time_ms` or later; the end where there is none.

    Raises:
        UnavailableError: Kafka does not answer.
    """
    reader: LogReader[object] = LogReader(settings, topic, object)
    consumer = reader._consumer()
    try:
        marks = reader._watermarks(consumer)
        wanted = [TopicPartition(topic, p, time_ms) for p in marks]
        found = consumer.offsets_for_times(wanted, timeout=METADATA_TIMEOUT_S)
    except KafkaException as error:
        raise UnavailableError(f"Kafka at {settings.kafka_address} does not answer: {error}") from error
    finally:
        consumer.close()
    return {key(topic, one.partition): one.offset if one.offset >= 0 else marks[one.partition][1] for one in found}


class LogReader(Generic[Record]):
    """Iterates over batches of one topic's records, from `offsets` up to the high watermark at the start of the iteration.

    One partition after the other, so that the same log gives the same order on every run, however the broker's answers come in.
    Partitions absent from `offsets` are read from their beginning; `latest` bounds the records read of each partition to its newest
    ones, `oldest` to its next ones; `until` ends each where a read before did, which makes the same read again. After the iteration `offsets` holds the next ones, and `undecodable` how many records were not of `kind` and were skipped.
    Partitions are assigned by hand: no consumer group, nothing is committed to Kafka.

    Raises (when iterated):
        UnavailableError: Kafka or the topic is not there, or fell silent for SILENCE_S_MAX seconds before the end was reached.
        NotFoundError: a read is to be made again, and the log no longer holds its records.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        kind: type[Record],
        offsets: Offsets | None = None,
        latest: int | None = None,
        oldest: int | None = None,
        until: Offsets | None = None,
    ) -> None:
        self._settings, self._topic, self._kind = settings, topic, kind
        self._latest, self._oldest, self._until = latest, oldest, until
        self.offsets: Offsets = {name: at for name, at in (offsets or {}).items() if name.rpartition("/")[0] == topic}
        self.undecodable = 0

    def __iter__(self) -> Iterator[list[Logged[Record]]]:
        consumer = self._consumer()
        try:
            for partition, (start, end) in self._ranges(consumer).items():
                at = TopicPartition(self._topic, partition, start if start > 0 else OFFSET_BEGINNING)
                consumer.assign([at])
                yield from self._batches(consumer, partition, end)
        except KafkaException as error:
            raise UnavailableError(f"reading {self._topic} from Kafka at {self._settings.kafka_address}: {error}") from error
        finally:
            consumer.close()

    def lag(self) -> int:
        """How many records stand in the topic beyond `offsets`."""
        consumer = self._consumer()
        try:
            marks = self._watermarks(consumer)
        except KafkaException as error:
            raise UnavailableError(f"Kafka at {self._settings.kafka_address} does not answer: {error}") from error
        finally:
            consumer.close()
        return sum(max(high - max(self.offsets.get(key(self._topic, p), 0), low), 0) for p, (low, high) in marks.items())

    def _consumer(self) -> Consumer:
        return Consumer(
            kafka_config(self._settings)
            | {
                "group.id": "liveshelf-trainer",  # librdkafka wants a name even where no group is joined
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "log_level": 2,
            }
        )

    def _watermarks(self, consumer: Consumer) -> dict[int, tuple[int, int]]:
        """Partition → (first offset held, next offset to be written)."""
        found = consumer.list_topics(self._topic, timeout=METADATA_TIMEOUT_S).topics[self._topic]
        if found.error is not None or not found.partitions:
            raise UnavailableError(
                f"topic {self._topic} is not in Kafka at {self._settings.kafka_address} ({found.error}). `liveshelf up` creates it."
            )
        return {
            p: consumer.get_watermark_offsets(TopicPartition(self._topic, p), timeout=METADATA_TIMEOUT_S)
            for p in sorted(found.partitions)
        }

    def _ranges(self, consumer: Consumer) -> dict[int, tuple[int, int]]:
        """Partition → (first offset wanted, offset at which to stop), of those that hold anything wanted."""
        ranges = {}
        for p, (low, high) in self._watermarks(consumer).items():
            name = key(self._topic, p)
            start = self.offsets.get(name, low)
            if self._until is not None:
                until = self._until.get(name, start)
                gone = start < min(low, until) if name in self.offsets else low > until > 0
                if gone:
                    raise NotFoundError(f"{name} begins at offset {low}, and was read up to {until}: that is no longer in the log")
                high = min(high, until)
            if start < low or start > high:
                log.warning("log_gap", partition=name, wanted=start, first=low, next=high)  # deleted by retention, or a new cluster
                start = low
            if self._latest is not None:
                start = max(start, high - self._latest)
            if self._oldest is not None:
                high = min(high, start + self._oldest)
            self.offsets[name] = start
            if start < high:
                ranges[p] = (start, high)
        return ranges

    def _batches(self, consumer: Consumer, partition: int, end: int) -> Iterator[list[Logged[Record]]]:
        name, heard = key(self._topic, partition), time.monotonic()
        while self.offsets[name] < end:
            # No more than are left: the call would wait for others that may never come.
            messages = consumer.consume(min(BATCH_RECORDS_MAX, end - self.offsets[name]), timeout=0.2)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S_MAX:
                raise UnavailableError(f"{self._topic}: Kafka sent nothing for {SILENCE_S_MAX:.0f} s before the end was reached.")
            batch = [logged for message in messages if (logged := self._take(message, name, end)) is not None]
            if batch:
                yield batch

    def _take(self, message: Message, name: str, end: int) -> Logged[Record] | None:
        """Advance past one message; its record, unless it is beyond the end, a tombstone or not decodable."""
        p, offset, error = message.partition(), message.offset(), message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:  # compaction may leave nothing at the very end
                self.offsets[name] = end
                return None
            raise KafkaException(error)
        assert p is not None, "a consumed message has a partition"
        assert offset is not None, "a consumed message has an offset"
        self.offsets[name] = min(offset + 1, end)
        value = message.value()
        if offset >= end or value is None:
            return None
        try:
            return Logged(p, offset, decode(self._kind, value))
        except msgspec.DecodeError as fault:
            self.undecodable += 1
            log.warning("undecodable_record", partition=name, offset=offset, reason=str(fault))
            return None
