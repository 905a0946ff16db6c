"""A feature version's rows, folded from the log anew: the pure core that rebuild, verify and history share, and the rebuild itself.

A browser's sign-in reaches its person by a record that carries the browser's state (see `features.events.Handover`), written by the agents
for the versions that there were. A version made later finds none of its own in older records, so its rows take two passes: the first folds
only browsers that signed in (their rows depend on their own partition alone) and keeps the states they handed over, by the id of the
handover; the second folds everything, and puts those states where a record lacks one.

What a rebuild put in so is part of what its rows hold: it notes up to which offset it did (`given_upto`), and whoever folds the same rows
again does the same. Beyond, states come from the records alone, as they do for the agents.

While a rebuild runs its version is registered as being rebuilt, and the agents leave it alone: rows, folded-up-to offsets and item-updates
of a version have one writer at a time. Then it is activated, and the agents go on from the folded-up-to offsets.
"""

import asyncio
import copy
import fcntl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import structlog

from features.events import Event, Handover
from features.feature_set import FeatureSet, load_feature_set, to_text
from features.fold import Fold, Said
from features.registry import FeatureRegistry
from features.rows import ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.errors import ConflictError, UnavailableError
from liveshelf.settings import Settings
from streams.folder import Delivery, FeatureFolder, HandedOver, handover_events
from streams.partition_log import PartitionLog, Raw
from streams.processes import Progress, in_processes
from streams.producer import EventProducer, Message
from streams.records import decode, encode
from streams.topics import CLICKSTREAM, ITEM_UPDATES, item_update_key

log = structlog.get_logger()

DIRTY_ROWS_MAX = 50_000
"""Changed rows kept before they are written: popular items and busy shoppers are written once for many events. About 100 MB."""
ROWS_MAX = 400_000
"""Rows of one partition in memory, at about 2 kB. Beyond, the rebuild writes them and goes on batch by batch from the store."""
STORE_TIMEOUT_S = 30.0
INFLIGHT_MAX = 1_000_000

States = dict[str, ShopperRow]
"""Handover id → the browser's state."""
Watched = tuple[str, str]
"""("shopper" | "item", id)."""


class PartitionFold:
    """Rows of one partition and feature version, folded in memory from the beginning of its log.

    `given` are states for handover records without one, in records up to `given_upto` inclusive. When the record at a watched offset is
    folded, `reached` is called with each row that `watch` names there.
    """

    def __init__(self, features: FeatureSet, partition: int, given: States | None = None, given_upto: int = -1) -> None:
        self.features, self.partition = features, partition
        self.shoppers: dict[str, ShopperRow] = {}
        self.items: dict[str, ItemRow] = {}
        self.changed_shoppers: set[str] = set()
        self.changed_items: set[str] = set()
        self.handed_over: dict[str, HandedOver] = {}
        self.events = 0
        self.watch: dict[int, list[Watched]] = {}
        self.reached: Callable[[int, Watched, ShopperRow | ItemRow | None], None] = lambda *_: None
        self.changed: Callable[[ShopperRow, list[ItemRow]], None] | None = None
        """Called after every record with the rows that it changed."""
        self._fold = Fold(features)
        self._given, self._given_upto = given or {}, given_upto

    def fold(self, records: Iterable[Raw]) -> None:
        """Fold `records`, which follow those folded before."""
        shoppers, items, partition = self.shoppers, self.items, self.partition
        fold_shopper, fold_item, weigh = self._fold.shopper, self._fold.item, self._fold.item_weights
        changed_shoppers, changed_items = self.changed_shoppers, self.changed_items
        empty_shopper, empty_item, watch, tell = self.features.shopper, self.features.item, self.watch, self.changed
        for raw in records:
            try:
                event = decode(Event, raw.value)
            except msgspec.DecodeError:  # refused when it was first delivered
                continue
            self.events += 1
            offset, shopper = raw.offset, event.shopper
            row = shoppers.get(shopper)
            if row is None:
                row = shoppers[shopper] = empty_shopper(shopper)
            said = fold_shopper(row, event, partition, offset) if event.handover is None else self._take_over(row, event, offset)
            if said is None:
                continue
            changed_shoppers.add(shopper)
            if said.state is not None:
                handover = HandedOver(said.to, f"{partition}@{offset}", event.time_ms, said.state)
                self.handed_over[handover.id] = handover
            if said.touches:
                weights, name = weigh(event), event.event_name
                for touch in said.touches:
                    item = touch.item
                    into = items.get(item)
                    if into is None:
                        into = items[item] = empty_item(item, partition)
                    fold_item(into, touch, name, weights, offset)
                    changed_items.add(item)
            if offset in watch:
                for kind, key in watch[offset]:
                    self.reached(offset, (kind, key), (shoppers if kind == "shopper" else items).get(key))  # type: ignore[attr-defined]
            if tell is not None:
                tell(row, [items[touch.item] for touch in said.touches])

    def _take_over(self, row: ShopperRow, event: Event, offset: int) -> Said | None:
        """Fold a handover; None when its state fits no row: such a record was refused when first delivered, and changed nothing."""
        kept = copy.deepcopy(row)
        try:
            return self._fold.shopper(
                row, complete(event, self.features.version, offset, self._given, self._given_upto), self.partition, offset
            )
        except Exception as error:
            log.warning("passed over a handover that cannot be folded", partition=self.partition, offset=offset, error=str(error))
            if kept.offset < 0:
                del self.shoppers[row.shopper]
            else:
                self.shoppers[row.shopper] = kept
            return None


def complete(event: Event, version: str, offset: int, given: States, given_upto: int) -> Event:
    """A handover with the state given for `version`, where its record is of before that version."""
    handover = event.handover
    if handover is None or version in handover.states or offset > given_upto or handover.id not in given:
        return event
    return msgspec.structs.replace(event, handover=Handover(id=handover.id, states=handover.states | {version: given[handover.id]}))


def fold_partition(features: FeatureSet, partition: int, records: Iterable[Raw]) -> PartitionFold:
    """The rows that `records` of one partition fold into, from nothing."""
    folded = PartitionFold(features, partition)
    folded.fold(records)
    return folded


# First pass: what browsers handed over


class Part(NamedTuple):
    """One partition's share of a task for a process of its own."""

    settings: Settings
    declarations: str
    partition: int
    start: int
    end: int

    def features(self) -> FeatureSet:
        return load_feature_set(self.declarations, "the feature version")


class HandedOverBy(NamedTuple):
    """What the browsers of one partition handed over, and which handovers its persons received."""

    states: dict[str, HandedOver]
    received: list[tuple[int, str, ShopperRow | None]]
    """(offset, handover id, the state that the record carries for the version)."""


def hand_over(part: Part, progress: Progress) -> HandedOverBy:
    """First pass over one partition: find the browsers that signed in, then fold these alone."""
    features, reader = part.features(), PartitionLog(part.settings)
    browsers: set[bytes] = set()
    received: list[tuple[int, str, ShopperRow | None]] = []
    for batch in reader.read(part.partition, part.start, part.end):
        for raw in batch:
            # A word of the JSON: a few events of other kinds may name it too, and are decoded in vain.
            if b'"link_to"' not in raw.value and b'"handover"' not in raw.value:
                continue
            try:
                event = decode(Event, raw.value)
            except msgspec.DecodeError:
                continue
            if event.link_to:
                browsers.add(event.shopper.encode())
            if event.handover is not None:
                received.append((raw.offset, event.handover.id, event.handover.states.get(features.version)))
        progress(len(batch))
    folded = PartitionFold(features, part.partition)
    if browsers:
        for batch in reader.read(part.partition, part.start, part.end):
            folded.fold(raw for raw in batch if raw.key in browsers)
    return HandedOverBy(folded.handed_over, received)


def hand_over_all(
    settings: Settings, features: FeatureSet, lows: dict[int, int], ends: dict[int, int], progress: Progress
) -> dict[int, HandedOverBy]:
    """The first pass, by partition.

    Raises:
        UnavailableError: Kafka does not answer.
    """
    parts = [Part(settings, to_text(features), p, lows[p], end) for p, end in ends.items()]
    return dict(zip(ends, in_processes(hand_over, parts, progress), strict=True))


def given_states(handed_over: dict[int, HandedOverBy]) -> States:
    return {handover.id: handover.state for of_partition in handed_over.values() for handover in of_partition.states.values()}


def given_upto(rows: FeatureRows, version: str) -> dict[int, int]:
    """Partition → offset up to which a rebuild of `version` put in states; -1 where none did.

    It stands in the store beside the rows: a store that was emptied has neither, and its rows are folded again without.
    """
    return rows.folded(_given_key(version))


def _given_key(version: str) -> str:
    return f"{version}:given"


# Second pass: every row


class Rebuilt(NamedTuple):
    """What the rebuild of one partition did."""

    partition: int
    start: int
    end: int
    events: int
    shoppers: int
    items: int
    """Rows written; one that was written more than once counts as often."""
    decode_fold_s: float


class RebuildPart(NamedTuple):
    part: Part
    given: States


def rebuild_partition(task: RebuildPart, progress: Progress) -> Rebuilt:
    """Second pass over one partition: fold it from where the store stands, and store it.

    Raises:
        UnavailableError: store or broker does not answer. What was stored stays, and the next attempt goes on from there.
    """
    part, given = task
    features, rows = part.features(), FeatureRows(part.settings, STORE_TIMEOUT_S)
    held = rows.folded(features.version).get(part.partition, -1)
    writer = _Writer(part.settings, rows, features, part.partition, held)
    start = max(held + 1, part.start)
    batches = PartitionLog(part.settings).read(part.partition, start, part.end)
    began, events = time.monotonic(), 0
    if held < 0:
        folded = PartitionFold(features, part.partition, given, part.end - 1)
        for batch in batches:
            folded.fold(batch)
            progress(len(batch))
            if len(folded.changed_shoppers) + len(folded.changed_items) > DIRTY_ROWS_MAX:
                writer.write(folded, batch[-1].offset)
                if len(folded.shoppers) + len(folded.items) > ROWS_MAX:
                    break
        else:
            writer.write(folded, part.end - 1)
        events = folded.events
    # What is left, if anything: rows are in the store now, and are read from there.
    folder = FeatureFolder(rows, features)
    for batch in batches:
        events += writer.write_batch(
            folder, _deliveries(batch, part.partition, features.version, given, part.end - 1), batch[-1].offset
        )
        progress(len(batch))
    if writer.held < part.end - 1:
        writer.note(part.end - 1)
    return Rebuilt(
        part.partition, start, part.end, events, writer.shoppers, writer.items, time.monotonic() - began - writer.seconds
    )


def _deliveries(batch: Sequence[Raw], partition: int, version: str, given: States, upto: int) -> list[Delivery]:
    out: list[Delivery] = []
    for raw in batch:
        try:
            event = decode(Event, raw.value)
        except msgspec.DecodeError:
            continue
        out.append((complete(event, version, raw.offset, given, upto), partition, raw.offset))
    return out


class _Writer:
    """Publishes and writes rows in the agents' order (see `streams.folder`): item-updates, item rows, shopper rows, offset."""

    def __init__(self, settings: Settings, rows: FeatureRows, features: FeatureSet, partition: int, held: int) -> None:
        self._settings, self._rows, self._features, self._partition = settings, rows, features, partition
        self.held = held
        self.shoppers = self.items = 0
        self.seconds = 0.0

    def write(self, folded: PartitionFold, upto: int) -> None:
        """Write what changed since the last call, which is everything up to offset `upto`."""
        self._write(
            [folded.shoppers[key] for key in sorted(folded.changed_shoppers) if key in folded.shoppers],
            [folded.items[key] for key in sorted(folded.changed_items)],
            upto,
        )
        folded.changed_shoppers.clear()
        folded.changed_items.clear()

    def write_batch(self, folder: FeatureFolder, deliveries: Sequence[Delivery], upto: int) -> int:
        """Fold a batch into rows of the store, and write them; return its events."""
        try:
            folded = folder.fold(deliveries, {self._partition: upto})
        except UnavailableError:
            raise
        except Exception as error:
            if len(deliveries) > 1:  # without the one that cannot be folded: it was refused when first delivered
                folder.forget()
                for delivery in deliveries:
                    self.write_batch(folder, [delivery], delivery[2])
                return len(deliveries)
            log.warning("passed over an event that cannot be folded", partition=self._partition, offset=upto, error=str(error))
            folder.forget()
            self.note(upto)
            return 0
        self._write(folded.shoppers, folded.items, upto)
        return len(deliveries)

    def note(self, upto: int) -> None:
        self._rows.advance(self._features.version, {self._partition: (self.held, upto)})
        self.held = upto

    def _write(self, shoppers: list[ShopperRow], items: list[ItemRow], upto: int) -> None:
        began = time.monotonic()
        version = self._features.version
        publish(
            self._settings,
            [Message(ITEM_UPDATES, item_update_key(version, row.item), encode(row), row.partition) for row in items],
        )
        self._rows.write_items(items, self._features)
        self._rows.write_shoppers(shoppers, self._features)
        self.note(upto)
        self.shoppers += len(shoppers)
        self.items += len(items)
        self.seconds += time.monotonic() - began


def publish(settings: Settings, messages: Sequence[Message]) -> None:
    """Send `messages` and wait until Kafka has them.

    Raises:
        UnavailableError: it did not take one of them.
    """

    async def send() -> None:
        async with EventProducer(settings, INFLIGHT_MAX) as producer:
            for outcome in await producer.send_all(messages):
                if isinstance(outcome, UnavailableError):
                    raise outcome

    if messages:
        asyncio.run(send())


# The whole


class Outcome(NamedTuple):
    """What a rebuild did."""

    version: str
    already: bool
    """The version was complete before; nothing was done."""
    partitions: list[Rebuilt]
    handovers: int
    """Sign-ins whose states were put in, and those published for the agents."""
    deleted: dict[int, int]
    """Partition → first offset that the log still holds, where retention has deleted its beginning."""
    seconds: float


def rebuild(
    settings: Settings, features: FeatureSet, progress: Progress = lambda _: None, begin: Callable[[int], None] = lambda _: None
) -> Outcome:
    """Make `features` a registered version whose rows hold the whole log, beside those there are. Interrupted, it goes on when called again.

    `begin` is told how many records there are to read, `progress` how many were.

    Raises:
        ConflictError: another rebuild runs.
        UnavailableError: store or broker does not answer; call again.
    """
    registry, rows = FeatureRegistry(settings), FeatureRows(settings, STORE_TIMEOUT_S)
    began, version = time.monotonic(), features.version
    with _alone(registry):
        if registry.registered() and version in registry.feature_sets():
            return Outcome(version, True, [], 0, {}, 0.0)
        registry.register(features, rebuilding=True)
        reader = PartitionLog(settings)
        spans = {p: reader.ends(p) for p in range(settings.partitions)}
        lows, ends = {p: low for p, (low, _) in spans.items()}, {p: high for p, (_, high) in spans.items()}
        # Read after the ends: whatever handover stands before them, its sign-in stands before these.
        after = {p: reader.ends(p)[1] for p in ends}
        held = rows.folded(version)
        begin(sum(after[p] - lows[p] + max(ends[p] - max(held[p] + 1, lows[p]), 0) for p in ends))
        handed_over = hand_over_all(settings, features, lows, after, progress)
        given = given_states(handed_over)
        parts = [RebuildPart(Part(settings, to_text(features), p, lows[p], ends[p]), given) for p in ends]
        done = in_processes(rebuild_partition, parts, progress)
        _publish_on_their_way(settings, version, handed_over, ends)
        noted = given_upto(rows, version)
        rows.advance(_given_key(version), {p: (noted[p], end - 1) for p, end in ends.items()})
        registry.activate(version)
    deleted = {p: low for p, low in lows.items() if low > 0}
    return Outcome(version, False, done, len(given), deleted, time.monotonic() - began)


def _publish_on_their_way(settings: Settings, version: str, handed_over: dict[int, HandedOverBy], ends: dict[int, int]) -> None:
    """Handovers of folded sign-ins whose record lies beyond the ends, or nowhere: that one carries no state of this version."""
    received = {id_ for p, of_partition in handed_over.items() for offset, id_, _ in of_partition.received if offset < ends[p]}
    owed = [
        (version, handover)
        for p, of_partition in handed_over.items()
        for handover in of_partition.states.values()
        if handover.id not in received and int(handover.id.partition("@")[2]) < ends[p]
    ]
    publish(settings, [Message(CLICKSTREAM, event.shopper, encode(event)) for event in handover_events(owed)])


@contextmanager
def _alone(registry: FeatureRegistry) -> Iterator[None]:
    """Held while a rebuild runs; the system lets go of it when the process ends, however that happens."""
    with registry.path.with_name("rebuild.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                "another `liveshelf features rebuild` runs on this data directory; wait for it, or stop it"
            ) from None
        yield
