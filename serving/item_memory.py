"""The item side, held in memory: `catalog` and `item-updates` read from their beginning and followed.

Both topics are compacted, so they are the whole latest state: the scorer starts without asking the store for items it cannot list,
and stays fresh within a poll. A thread waits for Kafka and decodes; tables are only touched on the event loop, a few rows at a time.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import msgspec
import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from prometheus_client import Gauge

from features.catalog import Catalog
from features.feature_set import FeatureSet
from features.items import ItemTable
from liveshelf.settings import Settings
from serving.feed import FOLLOWING, Feed
from streams.records import CatalogItem, ItemRow, decode
from streams.topics import CATALOG, ITEM_UPDATES, item_update_version, kafka_config

log = structlog.get_logger()

POLL_S = 0.05  # longest wait for a first record; records that are there come at once
BATCH_MAX = 500  # records decoded at a time
RETRY_S = 1.0
LOOK_S = 1.0  # how often the ends of the topics are asked for
STALE_S = 5.0  # a look or two may fail; after that the shelf says that its items may be old

AGE = Gauge("liveshelf_scoring_items_age_seconds", "Time for which the item memory was last known to be complete")


class _RowUpdate(NamedTuple):
    version: str
    row: ItemRow


class ItemMemory:
    """Keeps a table of every feature version fresh, over one catalog.

    `feature_set` finds the declarations of a version that is seen for the first time, None when nobody knows it.
    """

    def __init__(self, settings: Settings, feature_set: Callable[[str], FeatureSet | None]) -> None:
        self.tables: dict[str, ItemTable] = {}
        self.catalog = Catalog()
        self.loaded = asyncio.Event()
        """Set once all that stood in the topics at start is applied."""
        self._settings = settings
        self._feature_set = feature_set
        self._unknown: set[str] = set()
        self._feed = Feed(self._apply)
        self._complete_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="item-memory", daemon=True)
        AGE.set_function(lambda: self.age_s)

    @property
    def age_s(self) -> float:
        """How long ago everything that stood in the topics was applied."""
        return time.monotonic() - self._complete_s

    def state(self) -> str:
        """What is wrong, as a degraded reason; empty when the items are fresh."""
        if not self.loaded.is_set():
            return "items_loading"
        return "items_stale" if self.age_s > STALE_S else ""

    def table(self, version: str) -> ItemTable | None:
        """The items of one feature version, empty when none were folded yet; None when nobody knows that version."""
        table = self.tables.get(version)
        if table is None and (features := self._feature_set(version)) is not None:
            table = self.tables[version] = ItemTable(features, self.catalog)
        return table

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self._feed.stop()
        await asyncio.to_thread(self._thread.join)

    def _follow(self) -> None:
        consumer = Consumer(kafka_config(self._settings) | FOLLOWING | {"fetch.wait.max.ms": 20})
        try:
            ends = self._assign(consumer)
            asked_s = time.monotonic()
            while not self._stop.is_set():
                records = [_decoded(m) for m in consumer.consume(BATCH_MAX, POLL_S) if not m.error()]
                if records:
                    self._feed.hand_over([record for record in records if record is not None])
                now_s = time.monotonic()
                if ends is None:
                    if now_s - asked_s >= LOOK_S:
                        asked_s, ends = now_s, self._ends(consumer)
                elif self._reached(consumer, ends):
                    self._complete_s, ends = asked_s, None
                    if not self.loaded.is_set():
                        self._feed.on_loop(self._set_loaded)
        finally:
            consumer.close()

    def _assign(self, consumer: Consumer) -> dict[tuple[str, int], int] | None:
        """Assign every partition from its beginning; return the ends to reach for `loaded`."""
        while not self._stop.is_set():
            try:
                topics = consumer.list_topics(timeout=RETRY_S).topics
                found = [(name, p) for name in (CATALOG, ITEM_UPDATES) if name in topics for p in topics[name].partitions]
                if len({name for name, _ in found}) == 2:
                    consumer.assign([TopicPartition(*tp, OFFSET_BEGINNING) for tp in found])
                    if (ends := self._ends(consumer)) is not None:
                        return ends
            except KafkaException as error:
                log.warning("item memory waits for Kafka", error=str(error))
            self._stop.wait(RETRY_S)
        return None

    def _ends(self, consumer: Consumer) -> dict[tuple[str, int], int] | None:
        """End offset of each partition that has records; None when Kafka does not say."""
        try:
            marks = {
                (tp.topic, tp.partition): consumer.get_watermark_offsets(tp, timeout=RETRY_S, cached=False)
                for tp in consumer.assignment()
            }
        except KafkaException:
            return None
        # A compacted partition may hold nothing although its offsets run: `position` still reaches the end.
        return {tp: high for tp, (low, high) in marks.items() if high > low}

    def _reached(self, consumer: Consumer, ends: dict[tuple[str, int], int]) -> bool:
        position = {(tp.topic, tp.partition): tp.offset for tp in consumer.position(consumer.assignment())}
        return all(position.get(tp, -1) >= end for tp, end in ends.items())

    def _apply(self, record: CatalogItem | _RowUpdate) -> None:
        if isinstance(record, CatalogItem):
            self.catalog.apply(record)
        else:
            self._apply_row(record)

    def _apply_row(self, update: _RowUpdate) -> None:
        of_version = self.table(update.version)
        if of_version is not None:
            of_version.apply(update.row)
        elif update.version not in self._unknown:
            self._unknown.add(update.version)
            log.warning("item rows of an unknown feature version are passed over", feature_version=update.version)

    def _set_loaded(self) -> None:
        self.loaded.set()
        log.info("item memory loaded", items=len(self.catalog))


def _decoded(message: Any) -> CatalogItem | _RowUpdate | None:
    key, value = message.key(), message.value()
    if key is None or value is None:
        return None
    try:
        if message.topic() == CATALOG:
            return decode(CatalogItem, value)
        return _RowUpdate(item_update_version(key), decode(ItemRow, value))
    except msgspec.DecodeError as error:
        log.warning(
            "record passed over", topic=message.topic(), partition=message.partition(), offset=message.offset(), error=str(error)
        )
        return None
