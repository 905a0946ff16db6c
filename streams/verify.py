"""Whether the store's rows, and the features that were served, are what the log says: both are folded again from it and compared.

Nothing of the fold goes through the store. Each row is compared at the offset that the store's row carries: one that the agents moved on
meanwhile is folded on to that offset first. Shopper and item rows come from one partition each, so they must be equal bit for bit.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from features.encoder import Encoder, look_at
from features.feature_set import FeatureSet, to_text
from features.items import ItemTable
from features.registry import FeatureRegistry
from features.rows import CatalogItem, FeaturesAsServed, ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.errors import NotFoundError
from liveshelf.settings import Settings
from streams.partition_log import PartitionLog
from streams.processes import Progress, in_processes
from streams.rebuild import (
    STORE_TIMEOUT_S,
    HandedOverBy,
    Part,
    PartitionFold,
    States,
    Watched,
    given_states,
    given_upto,
    hand_over_all,
)
from streams.records import Impression, decode
from streams.topics import CATALOG, IMPRESSIONS

READ_ROWS = 2_000
DIFFERENCES_MAX = 10  # told of each partition; the rest is counted
SERVED = ("recent_items", "recent_events", "recent_age", "shopper_features", "candidates", "candidate_features")
"""What the model read; the rest of FeaturesAsServed says where it came from."""


class Difference(NamedTuple):
    """One row that is not what the log says."""

    row: str
    partition: int
    offset: int
    """Of the store's row; -1 when it has none."""
    what: list[str]


class Compared(NamedTuple):
    """One partition's rows against the store."""

    partition: int
    events: int
    shoppers: int
    items: int
    moved_on: int
    """Rows that the agents wrote while this ran, compared at the later offset."""
    different: int
    unverifiable: int
    """Rows that differ where retention has deleted the beginning of the log: they may hold events that nobody can fold again."""
    differences: list[Difference]


class Verified(NamedTuple):
    """What a verification of one feature version found."""

    version: str
    partitions: list[Compared]
    handovers: int
    handovers_different: int
    """Records whose state is not what the browser's events fold into."""
    deleted: dict[int, int]
    """Partition → first offset that the log still holds, where its beginning is gone."""
    behind: int
    """Records that the store does not hold yet, and that were not compared."""

    def total(self, what: str) -> int:
        return sum(getattr(partition, what) for partition in self.partitions)


class VerifyPart(NamedTuple):
    part: Part
    given: States
    given_upto: int


def verify(settings: Settings, features: FeatureSet, progress: Progress, begin: Progress) -> Verified:
    """Fold the log again up to where the store says it is, and compare every row.

    `begin` is told how many records there are to read, `progress` how many were.

    Raises:
        UnavailableError: store or broker does not answer.
    """
    rows, reader = FeatureRows(settings, STORE_TIMEOUT_S), PartitionLog(settings)
    held = rows.folded(features.version)
    spans = {p: reader.ends(p) for p in range(settings.partitions)}
    lows = {p: low for p, (low, _) in spans.items()}
    highs = {p: high for p, (_, high) in spans.items()}
    begin(sum(highs[p] - lows[p] + max(held[p] + 1 - lows[p], 0) for p in spans))
    handed_over = hand_over_all(settings, features, lows, highs, progress)
    given, upto = given_states(handed_over), given_upto(rows, features.version)
    parts = [
        VerifyPart(Part(settings, to_text(features), p, lows[p], held[p] + 1), given, upto[p]) for p in range(settings.partitions)
    ]
    compared = in_processes(verify_partition, parts, progress)
    checked, different = _check_handovers(handed_over, given, held, lows)
    return Verified(
        features.version,
        compared,
        checked,
        different,
        {p: low for p, low in lows.items() if low > 0},
        sum(max(high - held[p] - 1, 0) for p, high in highs.items()),
    )


def _check_handovers(
    handed_over: dict[int, HandedOverBy], given: States, held: dict[int, int], lows: dict[int, int]
) -> tuple[int, int]:
    """(handover records with a state of this version, those that differ from the recomputed one)."""
    checked = different = 0
    for p, of_partition in handed_over.items():
        for offset, id_, state in of_partition.received:
            source, _, at = id_.partition("@")
            if state is None or offset > held[p] or lows.get(int(source) if source.isdigit() else -1, 0):
                continue
            if not at.isdigit() or int(at) > held.get(int(source), -1):
                continue
            checked += 1
            different += state != given.get(id_)
    return checked, different


def verify_partition(task: VerifyPart, progress: Progress) -> Compared:
    """Fold one partition and compare it with the store."""
    part, given, upto = task
    features, rows, reader = part.features(), FeatureRows(part.settings, STORE_TIMEOUT_S), PartitionLog(part.settings)
    folded = PartitionFold(features, part.partition, given, upto)
    for batch in reader.read(part.partition, part.start, part.end):
        folded.fold(batch)
        progress(len(batch))
    found = _Comparison(features, part.partition, incomplete=part.start > 0)
    later: dict[Watched, ShopperRow | ItemRow] = {}
    for key, expected, stored in _pairs(folded, rows):
        if stored is not None and stored.offset > expected.offset and stored.offset >= part.end:
            later[key] = stored
        else:
            found.compare(key, expected, stored)
    counts = (folded.events, len(folded.shoppers), len(folded.items))
    if later:
        _compare_later(folded, later, found, reader, part)
    return Compared(part.partition, *counts, len(later), found.different, found.unverifiable, found.differences)


def _pairs(folded: PartitionFold, rows: FeatureRows) -> Iterator[tuple[Watched, Any, Any]]:
    """(row's name, as the log gives it, as the store holds it), as many at a time as are read at once."""
    features, partition = folded.features, folded.partition
    shoppers = iter(sorted(folded.shoppers))
    while some := list(islice(shoppers, READ_ROWS)):
        stored = rows.read_shoppers(some, features)
        yield from ((("shopper", s), folded.shoppers[s], stored.get(s)) for s in some)
    items = iter(sorted(folded.items))
    while some := list(islice(items, READ_ROWS)):
        held = rows.read_items([(item, partition) for item in some], features)
        yield from ((("item", item), folded.items[item], held.get((item, partition))) for item in some)


def _compare_later(
    folded: PartitionFold, later: dict[Watched, ShopperRow | ItemRow], found: "_Comparison", reader: PartitionLog, part: Part
) -> None:
    """Fold on, and compare each of these rows when its offset is reached."""
    waiting = dict(later)
    for key, stored in later.items():
        folded.watch.setdefault(stored.offset, []).append(key)

    def reached(offset: int, key: Watched, row: ShopperRow | ItemRow | None) -> None:
        found.compare(key, row, waiting.pop(key))

    folded.reached = reached
    end = min(max(folded.watch) + 1, reader.ends(part.partition)[1])
    for batch in reader.read(part.partition, part.end, end):
        folded.fold(batch)
    for key, stored in waiting.items():
        found.compare(key, None, stored)


class _Comparison:
    def __init__(self, features: FeatureSet, partition: int, incomplete: bool) -> None:
        self._features, self._partition, self._incomplete = features, partition, incomplete
        self.different = self.unverifiable = 0
        self.differences: list[Difference] = []

    def compare(self, key: Watched, expected: Any, stored: Any) -> None:
        if expected == stored:
            return
        if self._incomplete:
            self.unverifiable += 1
            return
        self.different += 1
        if len(self.differences) < DIFFERENCES_MAX:
            offset = -1 if stored is None else stored.offset
            self.differences.append(Difference(" ".join(key), self._partition, offset, self._told(key, expected, stored)))

    def _told(self, key: Watched, expected: Any, stored: Any) -> list[str]:
        if stored is None:
            return [f"the log gives a row folded up to offset {expected.offset}, the store has none"]
        if expected is None:
            return [f"the store's row says offset {stored.offset}, where the log changes no such row"]
        shopper = key[0] == "shopper"
        view = self._features.shopper_view if shopper else self._features.item_view
        values = self._features.shopper_values if shopper else self._features.item_values
        return [
            f"{name}: the log gives {_short(mine)}, the store holds {_short(theirs)}"
            for (name, *_), mine, theirs in zip(view.fields, values(expected), values(stored), strict=True)
            if mine != theirs
        ] or ["equal as stored, different in memory: a field that the store does not keep"]


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 160 else text[:157] + "…"


# Impressions: the features as served


class Served(NamedTuple):
    """What became of the impressions that were looked at."""

    impressions: int
    different: int
    unverifiable: dict[str, int]
    """Reason → how many could not be recomputed."""
    differences: list[str]


class SnapshotPart(NamedTuple):
    part: Part
    given: States
    given_upto: int
    watch: dict[int, list[Watched]]


def verify_impressions(settings: Settings, count: int, progress: Progress, begin: Progress) -> Served:
    """Recompute the features of the `count` latest impressions from the log and the catalog, and compare them with those served.

    Raises:
        UnavailableError: store or broker does not answer.
    """
    impressions = latest_impressions(settings, count)
    registry = FeatureRegistry(settings)
    catalog = _catalog(settings)
    served = Served(len(impressions), 0, {}, [])
    different, differences = 0, list[str]()
    by_version: dict[str, list[Impression]] = {}
    for impression in impressions:
        by_version.setdefault(impression.features.version, []).append(impression)
    for version, of_version in by_version.items():
        features = registry.feature_set(version)
        if features is None:
            _count(served, f"feature version {version} is retired", len(of_version))
            continue
        snapshots = _snapshots(settings, features, of_version, progress, begin)
        for impression in of_version:
            reason, what = _recompute(features, impression, snapshots, catalog)
            if reason:
                _count(served, reason)
            elif what:
                different += 1
                differences.append(f"impression {impression.request_id}: {', '.join(what)} differ")
    return served._replace(different=different, differences=differences[:DIFFERENCES_MAX])


def _count(served: Served, reason: str, count: int = 1) -> None:
    served.unverifiable[reason] = served.unverifiable.get(reason, 0) + count


def latest_impressions(settings: Settings, count: int) -> list[Impression]:
    """The `count` latest of all partitions, newest first; records that are none are passed over."""
    reader = PartitionLog(settings, IMPRESSIONS)
    found: list[Impression] = []
    for partition in range(settings.partitions):
        low, high = reader.ends(partition)
        for batch in reader.read(partition, max(low, high - count), high):
            for raw in batch:
                try:
                    found.append(decode(Impression, raw.value))
                except msgspec.DecodeError:
                    continue
    return sorted(found, key=lambda i: -i.time_ms)[:count]


def _catalog(settings: Settings) -> dict[tuple[str, int], CatalogItem]:
    """(item, time_ms) → record, as far as compaction left them."""
    reader = PartitionLog(settings, CATALOG)
    records: dict[tuple[str, int], CatalogItem] = {}
    low, high = reader.ends(0)
    for batch in reader.read(0, low, high):
        for raw in batch:
            try:
                item = decode(CatalogItem, raw.value)
            except msgspec.DecodeError:
                continue
            records[item.item_id, item.time_ms] = item
    return records


Snapshots = dict[tuple[str, str, int, int], ShopperRow | ItemRow | None]
"""(kind, id, partition, offset) → the row as it was."""


def _wanted(served: FeaturesAsServed, shopper: str) -> Iterator[tuple[str, str, int, int]]:
    """The rows that went into an impression."""
    if served.offset >= 0:
        yield "shopper", shopper, served.partition, served.offset
    for item, offsets in served.item_offsets.items():
        for partition, offset in enumerate(offsets):
            if offset >= 0:
                yield "item", item, partition, offset


def _snapshots(
    settings: Settings, features: FeatureSet, impressions: Sequence[Impression], progress: Progress, begin: Progress
) -> Snapshots:
    """Every row that went into `impressions`, as it was. Absent: the log does not lead to it any more, or not yet."""
    rows, reader = FeatureRows(settings, STORE_TIMEOUT_S), PartitionLog(settings)
    watch: dict[int, dict[int, list[Watched]]] = {p: {} for p in range(settings.partitions)}
    for kind, key, partition, offset in {w for i in impressions for w in _wanted(i.features, i.shopper)}:
        watch.setdefault(partition, {}).setdefault(offset, []).append((kind, key))
    spans = {p: reader.ends(p) for p in range(settings.partitions)}
    lows, highs = {p: low for p, (low, _) in spans.items()}, {p: high for p, (_, high) in spans.items()}
    begin(sum(highs[p] - lows[p] for p in spans))
    handed_over = hand_over_all(settings, features, lows, highs, progress)
    given, upto = given_states(handed_over), given_upto(rows, features.version)
    tasks = [
        SnapshotPart(Part(settings, to_text(features), p, low, min(max(watch[p]) + 1, high)), given, upto[p], watch[p])
        for p, (low, high) in spans.items()
        if watch.get(p) and not low  # rows of a log without its beginning cannot be folded
    ]
    begin(sum(task.part.end for task in tasks))
    found: Snapshots = {}
    for of_partition in in_processes(snapshot_partition, tasks, progress):
        found |= of_partition
    return found


def snapshot_partition(task: SnapshotPart, progress: Progress) -> Snapshots:
    """Fold one partition, and keep the watched rows as they are when they are reached."""
    part, given, upto, watch = task
    found: Snapshots = {}
    folded = PartitionFold(part.features(), part.partition, given, upto)
    folded.watch = watch

    def reached(offset: int, key: Watched, row: ShopperRow | ItemRow | None) -> None:
        if row is not None and row.offset == offset:
            found[*key, part.partition, offset] = copy.deepcopy(row)

    folded.reached = reached
    for batch in PartitionLog(part.settings).read(part.partition, part.start, part.end):
        folded.fold(batch)
        progress(len(batch))
    return found


def _recompute(
    features: FeatureSet,
    impression: Impression,
    snapshots: Snapshots,
    catalog: dict[tuple[str, int], CatalogItem],
) -> tuple[str, list[str]]:
    """(why it cannot be recomputed, what differs): one or neither is empty."""
    served = impression.features
    table = ItemTable(features)
    for wanted in _wanted(served, impression.shopper):
        if wanted not in snapshots:
            return "a row's events are no longer in the log", []
        row = snapshots[wanted]
        if isinstance(row, ItemRow):
            table.apply(row)
    for item, time_ms in zip(served.candidates, served.catalog_ms, strict=True):
        if time_ms < 0:
            continue
        record = catalog.get((item, time_ms))
        if record is None:
            return "a catalog record was replaced and compacted away", []
        table.apply_catalog(record)
    shopper = features.shopper(impression.shopper)
    if served.offset >= 0:
        found = snapshots["shopper", impression.shopper, served.partition, served.offset]
        assert isinstance(found, ShopperRow)
        shopper = copy.deepcopy(found)
    look_at(shopper, impression.context_items, served.time_ms, features.sequence.n)
    encoder = Encoder(features)
    columns = table.columns(served.candidates, shopper, served.time_ms)
    inputs = encoder.shopper(shopper, served.time_ms) | encoder.candidates(shopper, columns, served.time_ms)
    again = encoder.served(shopper, inputs, columns, served.time_ms, range(len(served.candidates)))
    return "", [name for name in SERVED if getattr(again, name) != getattr(served, name)]


def version_sets(settings: Settings, version: str) -> list[FeatureSet]:
    """The feature set of `version`, or every one that is kept up to date when it is empty.

    Raises:
        NotFoundError: nobody registered it.
    """
    registry = FeatureRegistry(settings)
    sets = registry.feature_sets()
    if not version:
        if not registry.registered():
            raise NotFoundError("no feature version is registered yet: the agents do this when they start (`liveshelf up`)")
        return list(sets.values())
    if version not in sets:
        being = " (it is being rebuilt)" if version in registry.rebuilding() else ""
        raise NotFoundError(f"feature version {version!r} is not kept up to date{being}; there are: {', '.join(sets)}")
    return [sets[version]]
