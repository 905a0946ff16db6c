"""The item side in memory: every item's decayed counts, catalog record and neighbours, as columns.

The scorer reads candidates' features here (loaded from `item-updates` at start, and kept fresh from it); the trainer fills one from the
replayed log. Item rows come one per source partition; an item's features are their sum, taken when read, so the result does not
depend on how partitions interleave.

P partitions, n items, K = features.item_numbers. Counts and weights are held in single precision (a third of a scorer's memory is
theirs) and summed in double: both sides of the loop read them through this class, so they round alike.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features import declarations as d
from features.catalog import Catalog, Rows, grown
from features.decay import Floats
from features.events import ENGAGEMENT
from features.feature_set import FeatureSet
from features.rows import CandidateColumns, CatalogItem, ItemRow, ShopperRow

COVISIT_RECENT = (
    3  # latest items whose neighbours count, weighted 1, 1/2, 1/3: beyond the third they no longer helped (measured on Yoochoose)
)
REBASE_HALF_LIVES = 400.0  # popularity is kept as multiples of 2^400 at most; float64 ends at 2^1024
NO_NEIGHBOURS = b""


class ItemTable:
    """Growable columns of items, by the catalog's row numbers. Not thread-safe: one owner applies and reads.

    `catalog` may be shared by the tables of several feature versions; whoever shares it applies records to it only once.
    """

    def __init__(self, features: FeatureSet, catalog: Catalog | None = None) -> None:
        self.features = features
        self.records = Catalog() if catalog is None else catalog
        capacity = len(self.records.available)
        self._folded = np.zeros(capacity, dtype=bool)  # rows that an item row came for
        self._numbers: list[npt.NDArray[np.float32]] = []  # P of [n, K], as rows hold them
        self._time_ms = np.zeros((0, capacity), dtype=np.int64)  # [P, n]
        self._offset = np.full((0, capacity), -1, dtype=np.int64)  # [P, n]
        self._neighbours: list[list[bytes]] = []  # P lists by row, no longer than needed: int32 rows, then float32 weights
        self._half_lives = features.item_half_lives
        slots = [slot for of_feature in features.item_slots.values() for slot in of_feature]
        self._half_life_of = np.array([slot.half_life for slot in slots])  # [K]
        demand = next(f for f in features.declared.features if isinstance(f, d.DecayedCount) and f.entity == "item")
        counted = [
            s for s in features.item_slots[demand.name][: len(demand.events)] if s.event in ENGAGEMENT
        ]  # the first half-life's
        self._demand = np.array([slot.at for slot in counted])
        self._intent = np.array([ENGAGEMENT[slot.event] for slot in counted])
        self._purchase = [slot.at for slot in features.item_slots[demand.name] if slot.event == "purchase"][:1]
        self._demand_half_life = counted[0].half_life if counted else 0
        self._covisit_half_life = features.half_life_at(self._half_lives, features.covisit.half_life)
        self._popularity = np.zeros(capacity)  # valued at _epoch_ms: decay never changes the order, only the scale
        self._epoch_ms = 0
        self._stale: set[int] = set()  # rows whose popularity is to be valued again

    def __len__(self) -> int:
        """Items of which something is known."""
        return int(self._known().sum())

    def __contains__(self, item: str) -> bool:
        at = self.records.find(item)
        return at >= 0 and bool((at < len(self._folded) and self._folded[at]) or self.records.since_ms[at] >= 0)

    def apply(self, row: ItemRow) -> bool:
        """Take `row` as what its partition contributes to its item; False when a row at least as new is held already."""
        at, p = self.records.row(row.item), row.partition
        self._grow(p + 1)
        if row.offset <= self._offset[p, at]:
            return False
        self._offset[p, at], self._time_ms[p, at] = row.offset, row.time_ms
        self._numbers[p][at] = row.numbers
        self._folded[at] = True
        self._keep_neighbours(p, at, row.neighbours)
        self._stale.add(at)
        return True

    def apply_catalog(self, item: CatalogItem) -> bool:
        """Take the catalog's word on one item; False when a newer record is held already."""
        return self.records.apply(item)

    def catalog(self, item: str) -> CatalogItem | None:
        """The catalog record held for `item`; None when none came."""
        at = self.records.find(item)
        return None if at < 0 else self.records.record(at)

    def available(self, item: str) -> bool:
        """False only when the catalog says so: an item seen in events may be shown before its catalog record comes."""
        at = self.records.find(item)
        return at < 0 or bool(self.records.available[at])

    def columns(self, items: list[str], shopper: ShopperRow, time_ms: int) -> CandidateColumns:
        """Features of `items` as they are at `time_ms` for `shopper`; an unknown item has zeros and no record."""
        return self.columns_at(self.records.rows(items), items, shopper, time_ms)

    def columns_at(self, rows: Rows, items: list[str], shopper: ShopperRow, time_ms: int) -> CandidateColumns:
        """As `columns`, of `items` whose `rows` are known already (UNKNOWN where there is none)."""
        self._grow(len(self._numbers))
        known = rows >= 0
        at = np.where(known, rows, 0)
        near, weights = self.led_to(shopper.recent_items[:COVISIT_RECENT], time_ms)
        covisit = np.zeros(len(rows))
        if len(near):
            place = np.minimum(np.searchsorted(near, rows), len(near) - 1)
            covisit = np.where(near[place] == rows, weights[place], 0.0)
        return CandidateColumns(
            items=items,
            numbers=self._numbers_at(at, time_ms) * known[:, None],
            covisit=covisit,
            catalog=self.records.columns(rows),
            offsets=np.where(known[:, None], self._offset[:, at].T, -1),
        )

    def offsets(self, item: str) -> list[int]:
        """[P] up to where each partition's contribution to `item` was folded."""
        at = self.records.find(item)
        return [] if not 0 <= at < len(self._folded) else self._offset[:, at].tolist()

    def neighbours(self, item: str, time_ms: int) -> list[tuple[str, float]]:
        """Items looked at together with `item` and their weights at `time_ms`, heaviest first; ties by id."""
        rows, weights = self.led_to([item], time_ms)
        pairs = zip(self.records.items(rows), weights.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    def led_to(self, recent: Sequence[str], time_ms: int) -> tuple[Rows, Floats]:
        """Rows, ascending, that `recent` items lead to, and with what weight: the n-th item's neighbours count 1/n."""
        rows: list[Rows] = []
        weights: list[Floats] = []
        for rank, item in enumerate(recent):
            at = self.records.find(item)
            if not 0 <= at < len(self._folded) or not self._folded[at]:
                continue
            scale = self._half_lives.scale(self._time_ms[:, at], time_ms)[:, self._covisit_half_life].tolist()
            for p, of_partition in enumerate(self._neighbours):
                packed = of_partition[at] if at < len(of_partition) else NO_NEIGHBOURS
                if packed:
                    count = len(packed) // 8
                    rows.append(np.frombuffer(packed, np.int32, count))
                    weights.append(np.frombuffer(packed, np.float32, count, 4 * count) * (scale[p] / (1 + rank)))
        if not rows:
            return np.zeros(0, dtype=np.int32), np.zeros(0)
        unique, inverse = np.unique(np.concatenate(rows), return_inverse=True)
        summed: Floats = np.bincount(inverse, np.concatenate(weights), len(unique)).astype(np.float64, copy=False)
        return unique, summed

    def popular(self, time_ms: int, n: int) -> list[tuple[str, float]]:
        """The `n` available items with the most engagement, and its decayed amount at `time_ms`, heaviest first.

        Items without any engagement come last, in the order they became known: a new shop's catalog fills a shelf too.
        """
        rows = self.popular_rows(n)
        scale = 2.0 ** min((self._epoch_ms - time_ms) / self._half_lives.ms[self._demand_half_life], REBASE_HALF_LIVES)
        return list(zip(self.records.items(rows), (self._popularity[rows] * scale).tolist(), strict=True))

    def popular_rows(self, n: int, among: Rows | None = None) -> Rows:
        """Rows of the `n` available items with the most engagement, heaviest first; `among` these rows, ascending, where given."""
        self._grow(len(self._numbers))
        self._revalue()
        size = len(self.records)
        weight = np.where(self.records.available[:size] & self._known(), self._popularity[:size], -1.0)
        if among is not None:
            weight = weight[among]
        n = min(n, len(weight))
        if n <= 0:
            return np.zeros(0, dtype=np.int32)
        least = np.partition(weight, len(weight) - n)[len(weight) - n]
        above = np.flatnonzero(weight > least)
        at = np.concatenate([above, np.flatnonzero(weight == least)[: n - len(above)]])
        at = at[np.argsort(-weight[at], kind="stable")]
        at = at[weight[at] >= 0]
        found: Rows = (at if among is None else among[at]).astype(np.int32)
        return found

    def engagement(self, rows: Rows, time_ms: int) -> Floats:
        """[len(rows)] decayed engagement of known `rows` at `time_ms`."""
        self._grow(len(self._numbers))
        self._revalue()
        scale = 2.0 ** min((self._epoch_ms - time_ms) / self._half_lives.ms[self._demand_half_life], REBASE_HALF_LIVES)
        result: Floats = self._popularity[rows] * scale
        return result

    def purchases(self, rows: Rows, time_ms: int) -> Floats:
        """[len(rows)] decayed number of purchases of known `rows` at `time_ms`; zeros where the features do not count them."""
        self._grow(len(self._numbers))
        result: Floats = self._numbers_at(rows, time_ms)[:, self._purchase].sum(axis=1)
        return result

    def _known(self) -> npt.NDArray[np.bool_]:
        """[n] rows of which something is known: others are only named as somebody's neighbour."""
        size = len(self.records)
        known: npt.NDArray[np.bool_] = self.records.since_ms[:size] >= 0
        folded = self._folded[:size]
        known[: len(folded)] |= folded
        return known

    def _keep_neighbours(self, p: int, at: int, neighbours: dict[str, float]) -> None:
        of_partition = self._neighbours[p]
        if neighbours:
            row = self.records.row
            rows = np.array([row(item) for item in neighbours], dtype=np.int32)
            packed = rows.tobytes() + np.array(list(neighbours.values()), dtype=np.float32).tobytes()
        elif at < len(of_partition):
            packed = NO_NEIGHBOURS
        else:
            return
        if at >= len(of_partition):
            of_partition.extend([NO_NEIGHBOURS] * (at + 1 - len(of_partition)))
        of_partition[at] = packed

    def _grow(self, partitions: int) -> None:
        """Make room for every row of the catalog, and for `partitions`."""
        capacity = len(self.records.available)
        if capacity > len(self._folded):
            self._folded, self._popularity = grown(self._folded, capacity), grown(self._popularity, capacity)
            self._numbers = [grown(numbers, capacity) for numbers in self._numbers]
            self._time_ms = grown(self._time_ms.T, capacity).T.copy()
            self._offset = grown(self._offset.T, capacity, -1).T.copy()
        while len(self._numbers) < partitions:
            self._numbers.append(np.zeros((capacity, self.features.item_numbers), dtype=np.float32))
            self._neighbours.append([])
            self._time_ms = np.vstack([self._time_ms, np.zeros((1, capacity), dtype=np.int64)])
            self._offset = np.vstack([self._offset, np.full((1, capacity), -1, dtype=np.int64)])

    def _numbers_at(self, at: npt.NDArray[np.int32], time_ms: int) -> Floats:
        """[len(at), K] decayed counts summed over partitions, valued at `time_ms`."""
        total = np.zeros((len(at), self.features.item_numbers))
        for numbers, times in zip(self._numbers, self._time_ms, strict=True):
            total += numbers[at] * self._scale(times[at], time_ms)
        return total

    def _scale(self, times: npt.NDArray[np.int64], time_ms: int) -> Floats:
        """What stored numbers are to be multiplied by: [K] where the rows share their bases, as almost all do, else [len(times), K]."""
        if len(times) and (latest := int(times.max())) <= time_ms:
            earliest = int(
                times.min(where=times > 0, initial=latest)
            )  # a row without a contribution holds zeros, whatever its base
            ends = self._half_lives.scale(np.array([earliest, latest]), time_ms)
            if (ends[0] == ends[1]).all():
                shared: Floats = ends[0][self._half_life_of]
                return shared
        factors: Floats = self._half_lives.scale(times, time_ms)[:, self._half_life_of]
        return factors

    def _revalue(self) -> None:
        """Value the engagement of items touched since the last call at the epoch; move that along before 2^x runs out of range."""
        if not self._stale:
            return
        at = np.fromiter(self._stale, dtype=np.int64)
        self._stale.clear()
        times = self._time_ms[:, at]  # [P, touched]
        if not times.size or not len(self._demand):
            return
        half_life, latest = self._half_lives.ms[self._demand_half_life], int(times.max())
        if latest - self._epoch_ms > REBASE_HALF_LIVES * half_life:
            self._popularity *= np.exp2((self._epoch_ms - latest) / half_life)
            self._epoch_ms = latest
        for p in range(len(times)):
            scale = self._half_lives.scale(times[p], 0)[:, self._demand_half_life]
            own = self._numbers[p][at][:, self._demand].astype(np.float64) @ self._intent * scale
            late = np.exp2((times[p] - self._epoch_ms) / half_life)
            self._popularity[at] = own * late + (self._popularity[at] if p else 0.0)
