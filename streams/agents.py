"""EVENT → FEATURE: the Faust agents that fold `clickstream` and `catalog` into the online store. `python -m streams.agents`.

A batch goes in this order, and may be repeated from the start at any point without changing the outcome:

1. read the rows that the batch touches and memory does not hold
2. fold every event into its shopper's row, then what it says about items into the item rows (a redelivered event is a no-op)
3. send the item rows to `item-updates` (before the store holds them: a repeated batch would find nothing left to send)
4. write the item rows, then the shopper rows (see `fold_shopper` for why in this order)
5. acknowledge the batch, so that Faust commits past it
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import faust
import msgspec
import structlog
from prometheus_client import Counter, Gauge, Histogram

from features.events import Event
from features.fold import ItemDelta, fold_item, fold_shopper
from features.rows import CatalogItem, ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings, load_settings
from streams.faust_app import create_app, run_worker
from streams.health import serve_health
from streams.logs import configure_logs
from streams.producer import EventProducer, Message
from streams.records import Rejected, decode, encode
from streams.topics import CATALOG, CLICKSTREAM, CLICKSTREAM_REJECTED, ITEM_UPDATES

log = structlog.get_logger()

BATCH_MAX = 1_000  # events a batch, and as many waiting behind it; larger ones fold better but answer later
ROWS_CACHED_MAX = 100_000  # rows of each kind in memory, at about 2 kB
RETRY_S = 0.5  # between attempts to write to a store that is down; the batch waits, nothing is lost
STORE_TIMEOUT_S = 5.0
UPDATES_INFLIGHT_MAX = 1_000_000  # above what one batch can touch: its own items, at most 200 an event, and their neighbours

EVENTS = Counter("liveshelf_agent_events_total", "Events by what became of them", ["outcome"])
BATCH_SECONDS = Histogram("liveshelf_agent_batch_seconds", "Time of a batch by stage", ["stage"])
EVENT_DELAY = Histogram(
    "liveshelf_agent_event_delay_seconds",
    "From an event's append to the log to its row in the store",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
APPLIED = Gauge("liveshelf_agent_applied_offset", "Clickstream offset folded and stored", ["partition"])

Delivery = tuple[Event, int, int]
"""(event, clickstream partition, offset)."""


class Folded(NamedTuple):
    """The rows that a batch changed."""

    shoppers: list[ShopperRow]
    items: list[ItemRow]


class FeatureFolder:
    """Rows in memory, folded and stored in batches. Owned by one worker, called from one task at a time."""

    def __init__(self, rows: FeatureRows) -> None:
        self._rows = rows
        self._shoppers: OrderedDict[str, ShopperRow] = OrderedDict()
        self._items: OrderedDict[tuple[str, int], ItemRow] = OrderedDict()
        self._stale = False

    def forget(self) -> None:
        """Before the next batch, drop what memory holds: another worker may have written, or a batch was not stored and comes again."""
        self._stale = True

    def fold(self, deliveries: Sequence[Delivery]) -> Folded:
        """Fold one batch, in offset order within each partition.

        Raises:
            UnavailableError: the store does not answer.
        """
        if self._stale:
            self._shoppers.clear()
            self._items.clear()
            self._stale = False
        self._load(self._shoppers, {event.shopper for event, _, _ in deliveries}, self._rows.read_shoppers)
        shoppers: dict[str, ShopperRow] = {}
        owed: list[tuple[tuple[str, int], int, list[ItemDelta]]] = []
        for event, partition, offset in deliveries:
            row = self._shoppers.setdefault(event.shopper, ShopperRow(shopper=event.shopper))
            shoppers[event.shopper] = row
            by_item: dict[str, list[ItemDelta]] = {}
            for delta in fold_shopper(row, event, partition, offset):
                by_item.setdefault(delta.item, []).append(delta)
            owed += [((item, partition), offset, deltas) for item, deltas in by_item.items()]
        self._load(self._items, {key for key, _, _ in owed}, self._rows.read_items)
        items: dict[tuple[str, int], ItemRow] = {}
        for key, offset, deltas in owed:
            item_row = self._items.setdefault(key, ItemRow(item=key[0], partition=key[1]))
            if fold_item(item_row, deltas, offset):
                items[key] = item_row
        return Folded(list(shoppers.values()), list(items.values()))

    def store(self, folded: Folded) -> None:
        """Write what was folded.

        Raises:
            UnavailableError: the store does not answer; part of it may be written.
        """
        self._rows.write_items(folded.items)
        self._rows.write_shoppers(folded.shoppers)
        self._trim(self._shoppers)
        self._trim(self._items)

    @staticmethod
    def _load(cache: OrderedDict[Any, Any], keys: set[Any], read: Any) -> None:
        missing = sorted(keys - cache.keys())
        if missing:
            cache.update(read(missing))
        for key in keys & cache.keys():
            cache.move_to_end(key)

    @staticmethod
    def _trim(cache: OrderedDict[Any, Any]) -> None:
        while len(cache) > ROWS_CACHED_MAX:
            cache.popitem(last=False)


class Progress:
    """What readiness is judged by: a worker that holds events for long without finishing a batch is not ready."""

    STALLED_S = 30.0

    def __init__(self) -> None:
        self.waiting_since: float | None = None
        self.assigned: set[int] = set()
        self.applied: dict[int, int] = {}

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        stalled = self.waiting_since is not None and time.monotonic() - self.waiting_since > self.STALLED_S
        detail = {
            "partitions": sorted(self.assigned),
            "applied": {str(p): o for p, o in sorted(self.applied.items())},
            "stalled": stalled,
        }
        return bool(self.assigned) and not stalled, detail


def create(settings: Settings) -> faust.App:
    """The app with its agents. Opens the store and registers the feature definitions when it starts."""
    app = create_app("liveshelf-features", settings)
    clickstream = app.topic(CLICKSTREAM, value_type=bytes, key_type=bytes)
    catalog = app.topic(CATALOG, value_type=bytes, key_type=bytes)
    rejected = app.topic(CLICKSTREAM_REJECTED, value_type=bytes, key_type=bytes)
    rows = FeatureRows(settings, STORE_TIMEOUT_S)
    folder = FeatureFolder(rows)
    progress = Progress()
    pending: list[faust.EventT] = []
    arrived, drained = asyncio.Event(), asyncio.Event()

    @app.task
    async def start() -> None:
        await asyncio.to_thread(rows.apply)
        await serve_health(settings.host, settings.agents_metrics_port, progress.readiness)

    @app.on_partitions_assigned.connect
    async def assigned(sender: faust.App, assigned: set[Any], **_: Any) -> None:
        folder.forget()
        progress.assigned = {tp.partition for tp in assigned if tp.topic == CLICKSTREAM}
        log.info("partitions assigned", partitions=sorted(progress.assigned))

    @app.on_partitions_revoked.connect
    async def revoked(sender: faust.App, revoked: set[Any], **_: Any) -> None:
        pending.clear()
        drained.set()
        progress.assigned = set()

    @app.agent(clickstream)
    async def receive(stream: faust.StreamT) -> None:
        async for event in stream.noack().events():
            while len(pending) >= BATCH_MAX:
                drained.clear()
                await drained.wait()
            pending.append(event)
            arrived.set()

    @app.task
    async def fold() -> None:
        async with EventProducer(settings, UPDATES_INFLIGHT_MAX) as producer:
            while not app.should_stop:
                await arrived.wait()
                arrived.clear()
                batch = pending.copy()
                pending.clear()
                drained.set()
                if not batch:
                    continue
                progress.waiting_since = time.monotonic()
                await _fold_or_reject(batch, folder, producer, rejected)
                for event in batch:
                    event.ack()
                    progress.applied[event.message.partition] = event.message.offset
                for partition, offset in progress.applied.items():
                    APPLIED.labels(partition).set(offset)
                EVENT_DELAY.observe(max(0.0, time.time() - batch[0].message.timestamp))
                progress.waiting_since = None

    @app.agent(catalog)
    async def keep_catalog(stream: faust.StreamT) -> None:
        async for event in stream.noack().events():
            try:
                item = decode(CatalogItem, event.value)
            except msgspec.DecodeError as error:
                await _reject(rejected, event, "undecodable_record", error)
            else:
                await _until_stored(partial(asyncio.to_thread, rows.write_catalog, [item]))
            event.ack()

    return app


async def _fold_or_reject(
    batch: list[faust.EventT], folder: FeatureFolder, producer: EventProducer, rejected: faust.TopicT
) -> None:
    """Fold and store a batch; an event that cannot be applied goes to `clickstream-rejected`, and the others do without it."""
    deliveries: list[Delivery] = []
    decoded: list[faust.EventT] = []
    for event in batch:
        try:
            deliveries.append((decode(Event, event.value), event.message.partition, event.message.offset))
            decoded.append(event)
        except msgspec.DecodeError as error:
            await _reject(rejected, event, "undecodable_record", error)
    try:
        await _until_stored(partial(_apply, folder, deliveries, producer))
        EVENTS.labels("folded").inc(len(deliveries))
    except Exception as error:
        if len(decoded) == 1:
            await _reject(rejected, decoded[0], "unfoldable_event", error)
            return
        log.exception("a batch cannot be folded as a whole, going event by event", events=len(decoded))
        for event in decoded:
            await _fold_or_reject([event], folder, producer, rejected)


async def _reject(rejected: faust.TopicT, event: faust.EventT, reason: str, error: Exception) -> None:
    EVENTS.labels("rejected").inc()
    message = event.message
    record = Rejected(
        reason=reason,
        detail=f"{message.topic}/{message.partition}@{message.offset}: {error}",
        source="agent",
        time_ms=int(message.timestamp * 1000),
        original=event.value or b"",
    )
    await (await rejected.send(key=event.key, value=encode(record)))


async def _apply(folder: FeatureFolder, deliveries: list[Delivery], producer: EventProducer) -> None:
    try:
        with BATCH_SECONDS.labels("fold").time():
            folded = await asyncio.to_thread(folder.fold, deliveries)
        with BATCH_SECONDS.labels("publish").time():
            updates = [Message(ITEM_UPDATES, row.item, encode(row), row.partition) for row in folded.items]
            for outcome in await producer.send_all(updates):
                if isinstance(outcome, UnavailableError):
                    raise outcome
        with BATCH_SECONDS.labels("store").time():
            await asyncio.to_thread(folder.store, folded)
    except BaseException:
        folder.forget()
        raise


async def _until_stored(write: Callable[[], Awaitable[None]]) -> None:
    """Repeat `write` until store and broker take it."""
    while True:
        try:
            return await write()
        except UnavailableError as error:
            EVENTS.labels("retried_batch").inc()
            log.warning("store or broker unavailable, the batch waits", error=str(error))
            await asyncio.sleep(RETRY_S)


def main() -> None:
    configure_logs()
    settings = load_settings()
    run_worker(lambda: create(settings))


if __name__ == "__main__":
    main()
