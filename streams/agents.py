"""EVENT → FEATURE: the Faust agents that fold `clickstream` and `catalog` into the online store. `python -m streams.agents`.

Rows carry the offset up to which they were folded, and the store refuses one that is older than what it holds: a redelivered event, a
worker that lost its partition and does not know it yet, or a batch repeated after a crash change nothing. The store also keeps how far
each partition is folded. Whatever lies between that and the first event delivered is folded from the log first (`catch up`): after an
assignment, when the store lost its last writes, and when a feature version is new. Faust's commits only bound how much is read twice.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import faust
import msgspec
import structlog
from faust.types import TP
from prometheus_client import Counter, Gauge, Histogram

from features.events import Event
from features.rows import CatalogItem
from features.store import FeatureRows, StoreBehindError
from liveshelf.errors import LiveshelfError, UnavailableError
from liveshelf.settings import Settings, load_settings
from streams.faust_app import create_app, end_of, run_worker
from streams.folder import Delivery, FeatureFolder, Folded, handover_events
from streams.health import serve_health
from streams.logs import configure_logs
from streams.partition_log import PartitionLog
from streams.producer import EventProducer, Message
from streams.records import Rejected, decode, encode
from streams.topics import CATALOG, CLICKSTREAM, CLICKSTREAM_REJECTED, ITEM_UPDATES, ensure_topics, item_update_key
from streams.tracing import Tracing, open_tracing

log = structlog.get_logger()

GROUP = "liveshelf-features"
BATCH_MAX = 2_000  # events a batch, and as many waiting behind it; larger ones fold better but answer later
CATALOG_BATCH_MAX = 1_000  # records; a whole catalog that comes at once must not keep events waiting
RETRY_S = 0.5  # between attempts to write to a store that is down; the batch waits, nothing is lost
VERSIONS_S = 5.0  # how often new feature versions are looked for
STORE_TIMEOUT_S = 5.0
UPDATES_INFLIGHT_MAX = 1_000_000  # above what one batch can touch: its own items, at most 200 an event, and their neighbours

EVENTS = Counter("liveshelf_agent_events_total", "Events by what became of them", ["outcome"])
BATCH_SECONDS = Histogram("liveshelf_agent_batch_seconds", "Time of a batch by stage", ["stage"])
BATCH_EVENTS = Histogram("liveshelf_agent_batch_events", "Events in a batch", buckets=(1, 3, 10, 30, 100, 300, 1000, 3000))
EVENT_DELAY = Histogram(
    "liveshelf_agent_event_delay_seconds",
    "From an event's append to the log to its row in the store",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
EVENT_AGE = Histogram(
    "liveshelf_agent_event_age_seconds",
    "From when an event happened to its row in the store",
    buckets=(0.1, 0.5, 1, 5, 30, 60, 600, 3600, 86400),
)
ROWS = Counter("liveshelf_agent_rows_total", "Rows written", ["view"])
BYTES = Counter("liveshelf_agent_row_bytes_total", "Bytes of rows sent to the store, as packed", ["view"])
APPLIED = Gauge("liveshelf_agent_applied_offset", "Clickstream offset folded and stored", ["partition"])
LAG = Gauge("liveshelf_agent_lag_events", "Clickstream events not yet folded", ["partition"])
CAUGHT_UP = Counter("liveshelf_agent_caught_up_events_total", "Events folded from the log because the store did not hold them")


class Gathered:
    """Events between the agent that receives them and the task that works on them in batches of what is there; never more than `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._events: list[faust.EventT] = []
        self.arrived, self._drained = asyncio.Event(), asyncio.Event()

    async def put(self, event: faust.EventT) -> None:
        while len(self._events) >= self._most:
            self._drained.clear()
            await self._drained.wait()
        self._events.append(event)
        self.arrived.set()

    async def wait(self, seconds: float) -> None:
        """Until something arrived, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.arrived.wait(), seconds)
        self.arrived.clear()

    def take(self) -> list[faust.EventT]:
        batch, self._events = self._events, []
        self._drained.set()
        return batch


class FeatureWriter:
    """Folds deliveries into the store for every feature version, from wherever the store stands."""

    def __init__(self, settings: Settings, rows: FeatureRows, producer: EventProducer) -> None:
        self._rows, self._producer = rows, producer
        self._log = PartitionLog(settings)
        self._folders: list[FeatureFolder] = []

    def look_for_versions(self) -> bool:
        """Fold what is registered, and nothing else; True when there is a version that was not there before."""
        known = {folder.features.version: folder for folder in self._folders}
        sets = self._rows.feature_sets()
        if sets.keys() != known.keys():
            log.info("feature versions", versions=list(sets))
            self._folders = [known.get(version) or FeatureFolder(self._rows, features) for version, features in sets.items()]
        return bool(sets.keys() - known.keys())

    def forget(self) -> None:
        for folder in self._folders:
            folder.forget()

    async def write(self, deliveries: Sequence[Delivery], spans: dict[int, tuple[int, int]]) -> dict[str, int]:
        """Fold and store one batch; return what became of its events. `spans` are the first and last offset by partition, those of
        records that are no events included.

        Raises:
            UnavailableError: store or broker does not answer; nothing is lost, call again.
        """
        try:
            for folder in self._folders:
                for partition, (first, _) in spans.items():
                    await self._catch_up(folder, partition, first)
            upto = {partition: last for partition, (_, last) in spans.items()}
            with BATCH_SECONDS.labels("fold").time():
                folded = [(folder, await asyncio.to_thread(folder.fold, deliveries, upto)) for folder in self._folders]
            await self._store(folded)
        except StoreBehindError as error:
            log.warning("the store lost writes, folding them again from the log", error=str(error))
            self.forget()
            return await self.write(deliveries, spans)
        except BaseException:
            self.forget()
            raise
        return folded[0][1].outcomes if folded else {}

    async def catch_up(self, partitions: set[int], applied: dict[int, int]) -> None:
        """Bring the store to where these partitions were committed or `applied`, whether or not new events come.

        Raises:
            UnavailableError: store or broker does not answer, or the store holds more than the log.
        """
        committed = await asyncio.to_thread(self._log.committed, GROUP, partitions)
        try:
            for folder in self._folders:
                for partition in sorted(partitions):
                    await asyncio.to_thread(self._refuse_another_log, folder, partition)
                    await self._catch_up(folder, partition, max(committed[partition], applied.get(partition, -1) + 1))
        except BaseException:
            self.forget()
            raise

    def _refuse_another_log(self, folder: FeatureFolder, partition: int) -> None:
        """New events would take offsets that the store takes for folded, and nobody would miss them."""
        held, (_, end) = folder.held(partition), self._log.ends(partition)
        if held >= end:
            raise UnavailableError(
                f"the store holds {CLICKSTREAM}/{partition} up to offset {held}, but that log ends at {end}: is it another Kafka, or was "
                "the topic made anew? Give the store that belongs to this log, or an empty one: its rows are folded again from the log"
            )

    async def _catch_up(self, folder: FeatureFolder, partition: int, first: int) -> None:
        """Fold what stands in the log between what the store holds and `first`."""
        held = await asyncio.to_thread(folder.held, partition)
        if held + 1 >= first:
            return
        log.info("catching up", partition=partition, start=held + 1, end=first, feature_version=folder.features.version)
        batches = self._log.read(partition, held + 1, first)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            if not batch:
                continue
            deliveries: list[Delivery] = []
            for raw in batch:
                with contextlib.suppress(msgspec.DecodeError):  # refused when it was first delivered
                    deliveries.append((decode(Event, raw.value), partition, raw.offset))
            try:
                await self._store([(folder, await asyncio.to_thread(folder.fold, deliveries, {partition: batch[-1].offset}))])
            except LiveshelfError:
                raise
            except Exception:
                await self._catch_up_singly(folder, deliveries)
            CAUGHT_UP.inc(len(deliveries))

    async def _catch_up_singly(self, folder: FeatureFolder, deliveries: Sequence[Delivery]) -> None:
        """The same without the events that cannot be folded: those were refused when first delivered."""
        for delivery in deliveries:
            _, partition, offset = delivery
            folder.forget()
            try:
                folded = await asyncio.to_thread(folder.fold, [delivery], {partition: offset})
            except LiveshelfError:
                raise
            except Exception as error:
                log.warning("passed over an event that cannot be folded", partition=partition, offset=offset, error=str(error))
                folder.forget()
                folded = await asyncio.to_thread(folder.fold, [], {partition: offset})
            await self._store([(folder, folded)])

    async def _store(self, folded: list[tuple[FeatureFolder, Folded]]) -> None:
        with BATCH_SECONDS.labels("publish").time():
            messages = [
                Message(ITEM_UPDATES, item_update_key(folder.features.version, row.item), encode(row), row.partition)
                for folder, of_version in folded
                for row in of_version.items
            ]
            pairs = [(folder.features.version, h) for folder, of_version in folded for h in of_version.handovers]
            messages += [Message(CLICKSTREAM, event.shopper, encode(event)) for event in handover_events(pairs)]
            for outcome in await self._producer.send_all(messages):
                if isinstance(outcome, UnavailableError):
                    raise outcome
        with BATCH_SECONDS.labels("store").time():
            for folder, of_version in folded:
                for kind, written in (await asyncio.to_thread(folder.store, of_version)).items():
                    ROWS.labels(kind).inc(written.written)
                    BYTES.labels(kind).inc(written.size)


class Progress:
    """What readiness is judged by: a worker that has events to fold and finishes no batch for long is not ready, alive or not."""

    STALLED_S = 30.0

    def __init__(self) -> None:
        self.waiting_since: float | None = None
        self.assigned: set[int] = set()
        self.applied: dict[int, int] = {}
        self.end: Callable[[int], int | None] = lambda _: None
        """Partition → next offset to be written, None while that is not known."""
        self._moved_at = time.monotonic()
        self._seen: dict[int, int] = {}

    def lag(self) -> dict[int, int]:
        """Events not yet folded, by partition, as far as Kafka has said how many there are."""
        lags = {}
        for partition in sorted(self.assigned):
            end = self.end(partition)
            if end is not None:
                lags[partition] = max(end - 1 - self.applied.get(partition, end - 1), 0)
        return lags

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        now = time.monotonic()
        lag = self.lag()
        if self.applied != self._seen or not any(lag.values()):
            self._seen, self._moved_at = dict(self.applied), now
        waiting = self.waiting_since is not None and now - self.waiting_since > self.STALLED_S
        stalled = waiting or now - self._moved_at > self.STALLED_S
        for partition, events in lag.items():
            LAG.labels(partition).set(events)
        detail = {
            "partitions": sorted(self.assigned),
            "applied": {str(p): o for p, o in sorted(self.applied.items())},
            "lag": {str(p): events for p, events in lag.items()},
            "stalled": stalled,
        }
        return bool(self.assigned) and not stalled, detail


def create(settings: Settings, tracing: Tracing | None = None) -> faust.App:
    """The app with its agents. Opens the store and registers the feature definitions when it starts."""
    app = create_app(GROUP, settings, CLICKSTREAM, CATALOG)
    clickstream = app.topic(CLICKSTREAM, value_type=bytes, key_type=bytes)
    catalog = app.topic(CATALOG, value_type=bytes, key_type=bytes)
    rejected = app.topic(CLICKSTREAM_REJECTED, value_type=bytes, key_type=bytes)
    rows = FeatureRows(settings, STORE_TIMEOUT_S)
    progress = Progress()
    events, records = Gathered(BATCH_MAX), Gathered(CATALOG_BATCH_MAX)
    assigned_anew: set[int] = set()

    @app.task
    async def start() -> None:
        await serve_health(settings.host, settings.agents_metrics_port, progress.readiness)

    @app.on_partitions_assigned.connect
    async def assigned(sender: faust.App, assigned: set[Any], **_: Any) -> None:
        progress.assigned = {tp.partition for tp in assigned if tp.topic == CLICKSTREAM}
        progress.end = lambda partition: end_of(app, TP(CLICKSTREAM, partition))
        assigned_anew.update(progress.assigned)
        events.arrived.set()
        log.info("partitions assigned", partitions=sorted(progress.assigned))

    @app.on_partitions_revoked.connect
    async def revoked(sender: faust.App, revoked: set[Any], **_: Any) -> None:
        events.take()
        records.take()
        assigned_anew.clear()
        progress.assigned = set()
        progress.applied.clear()

    @app.agent(clickstream)
    async def receive(stream: faust.StreamT) -> None:
        async for event in stream.noack().events():
            await events.put(event)

    @app.task
    async def fold() -> None:
        async with EventProducer(settings, UPDATES_INFLIGHT_MAX) as producer:
            writer = FeatureWriter(settings, rows, producer)
            looked_at = 0.0
            while not app.should_stop:
                await events.wait(VERSIONS_S)
                if time.monotonic() - looked_at > VERSIONS_S:
                    if await _until_done(lambda: asyncio.to_thread(writer.look_for_versions), app):
                        assigned_anew.update(progress.assigned)  # a new version is caught up also where no events come
                    looked_at = time.monotonic()
                if assigned_anew:
                    anew = set(assigned_anew)
                    assigned_anew.clear()
                    writer.forget()  # another worker may have written meanwhile
                    await _until_done(partial(writer.catch_up, anew, dict(progress.applied)), app)
                batch = events.take()
                if not batch:
                    continue
                progress.waiting_since, began_ns = time.monotonic(), time.time_ns()
                await _fold_or_reject(batch, writer, rejected, app)
                if tracing is not None:
                    _trace(batch, tracing, began_ns)
                for event in batch:
                    event.ack()
                    progress.applied[event.message.partition] = event.message.offset
                _observe(batch, progress)
                progress.waiting_since = None

    @app.agent(catalog)
    async def receive_catalog(stream: faust.StreamT) -> None:
        async for event in stream.noack().events():
            await records.put(event)

    @app.task
    async def keep_catalog() -> None:
        while not app.should_stop:
            await records.wait(VERSIONS_S)
            batch, items = records.take(), []
            for event in batch:
                try:
                    items.append(decode(CatalogItem, event.value or b""))
                except msgspec.DecodeError as error:
                    await _reject(rejected, event, "undecodable_record", error)
            if items:
                await _until_done(partial(asyncio.to_thread, rows.write_catalog, items), app)
            for event in batch:
                event.ack()

    return app


def _trace(batch: Sequence[faust.EventT], tracing: Tracing, began_ns: int) -> None:
    for event in batch:
        message = event.message
        headers = message.headers or ()
        tracing.consumed(
            "fold", list(headers.items() if isinstance(headers, Mapping) else headers), began_ns, message.partition, message.offset
        )


def _observe(batch: Sequence[faust.EventT], progress: Progress) -> None:
    now = time.time()
    BATCH_EVENTS.observe(len(batch))
    EVENT_DELAY.observe(max(0.0, now - batch[0].message.timestamp))
    for partition, offset in progress.applied.items():
        APPLIED.labels(partition).set(offset)
    for partition, events in progress.lag().items():
        LAG.labels(partition).set(events)


def _spans(batch: Sequence[faust.EventT]) -> dict[int, tuple[int, int]]:
    spans: dict[int, tuple[int, int]] = {}
    for event in batch:
        partition, offset = event.message.partition, event.message.offset
        spans[partition] = (spans.get(partition, (offset, offset))[0], offset)
    return spans


async def _fold_or_reject(batch: list[faust.EventT], writer: FeatureWriter, rejected: faust.TopicT, app: faust.App) -> None:
    """Fold and store a batch; an event that cannot be applied goes to `clickstream-rejected`, and the others do without it."""
    deliveries: list[Delivery] = []
    decoded: list[faust.EventT] = []
    for event in batch:
        try:
            deliveries.append((decode(Event, event.value or b""), event.message.partition, event.message.offset))
            decoded.append(event)
        except msgspec.DecodeError as error:
            await _reject(rejected, event, "undecodable_record", error)
    try:
        for outcome, count in (await _until_done(partial(writer.write, deliveries, _spans(batch)), app)).items():
            EVENTS.labels(outcome).inc(count)
        if deliveries:
            EVENT_AGE.observe(max(0.0, time.time() - deliveries[0][0].time_ms / 1000))
    except LiveshelfError:
        raise
    except Exception as error:
        if len(batch) == 1:
            await _reject(rejected, batch[0], "unfoldable_event", error)
            await _until_done(partial(writer.write, [], _spans(batch)), app)
            return
        log.exception("a batch cannot be folded as a whole, going event by event", events=len(decoded))
        for event in decoded:
            await _fold_or_reject([event], writer, rejected, app)
        await _until_done(partial(writer.write, [], _spans(batch)), app)


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


async def _until_done(action: Callable[[], Awaitable[Any]], app: faust.App) -> Any:
    """Repeat `action` until store and broker take it."""
    while True:
        try:
            return await action()
        except UnavailableError as error:
            if app.should_stop:
                raise
            EVENTS.labels("retried_batch").inc()
            log.warning("store or broker unavailable, the batch waits", error=str(error))
            await asyncio.sleep(RETRY_S)


def main() -> None:
    configure_logs()
    settings = load_settings()
    ensure_topics(settings)  # a changed number of partitions would move shoppers: better not to start at all
    FeatureRows(settings, STORE_TIMEOUT_S).register_first()
    tracing = open_tracing(os.environ, "liveshelf-agents")  # what is left when the process ends, the SDK exports
    run_worker(lambda: create(settings, tracing))


if __name__ == "__main__":
    main()
