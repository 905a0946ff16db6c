"""The item side, held in memory: `catalog` and `item-updates` read from their beginning and followed.

Both topics are compacted, so they are the whole latest state: the scorer starts without asking the store for items it cannot list,
and stays fresh within a poll.
"""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import msgspec
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from features.items import ItemTable
from liveshelf.settings import Settings
from streams.records import CatalogItem, ItemRow, decode
from streams.topics import CATALOG, ITEM_UPDATES, kafka_config

log = structlog.get_logger()

POLL_S = 0.05  # longest wait for a first record; records that are there come at once
BATCH_MAX = 500  # rows applied between two requests: about 10 ms of the event loop
RETRY_S = 1.0


class ItemMemory:
    """Keeps `table` fresh. The table is only touched on the event loop; a thread does the waiting for Kafka."""

    def __init__(self, settings: Settings) -> None:
        self.table = ItemTable()
        self.loaded = asyncio.Event()
        """Set once all that stood in the topics at start is applied."""
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="item-memory", daemon=True)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join)

    def _follow(self) -> None:
        consumer = Consumer(
            kafka_config(self._settings)
            | {
                "group.id": "liveshelf-scorer",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 20,
                "enable.partition.eof": False,
                "log_level": 2,
            }
        )
        try:
            behind = self._assign(consumer)
            while not self._stop.is_set():
                records = [
                    (m.topic(), m.partition(), m.offset(), m.value()) for m in consumer.consume(BATCH_MAX, POLL_S) if not m.error()
                ]
                if records:
                    self._on_loop(partial(self._apply, records))
                if behind:
                    position = {(tp.topic, tp.partition): tp.offset for tp in consumer.position(consumer.assignment())}
                    behind = {tp: end for tp, end in behind.items() if position.get(tp, -1) < end}
                    if not behind:
                        self._on_loop(self.loaded.set)
                        log.info("item memory loaded")
        finally:
            consumer.close()

    def _assign(self, consumer: Consumer) -> dict[tuple[str, int], int]:
        """Assign every partition from its beginning; return those with records and the end to reach for `loaded`."""
        while not self._stop.is_set():
            try:
                topics = consumer.list_topics(timeout=RETRY_S).topics
                found = [(name, p) for name in (CATALOG, ITEM_UPDATES) if name in topics for p in topics[name].partitions]
                if len({name for name, _ in found}) == 2:
                    ends = {tp: consumer.get_watermark_offsets(TopicPartition(*tp), timeout=RETRY_S) for tp in found}
                    consumer.assign([TopicPartition(*tp, OFFSET_BEGINNING) for tp in found])
                    # A compacted partition may hold nothing although its offsets run: `position` still reaches the end.
                    behind = {tp: high for tp, (low, high) in ends.items() if high > low}
                    if not behind:
                        self._on_loop(self.loaded.set)
                    return behind
            except KafkaException as error:
                log.warning("item memory waits for Kafka", error=str(error))
            self._stop.wait(RETRY_S)
        return {}

    def _apply(self, records: list[tuple[str, int, int, bytes | None]]) -> None:
        for topic, partition, offset, value in records:
            if value is None:
                continue
            try:
                if topic == CATALOG:
                    self.table.apply_catalog(decode(CatalogItem, value))
                else:
                    self.table.apply(decode(ItemRow, value))
            except msgspec.DecodeError as error:
                log.warning("record passed over", topic=topic, partition=partition, offset=offset, error=str(error))

    def _on_loop(self, call: Callable[[], Any]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)
