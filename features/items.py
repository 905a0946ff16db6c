"""The item side in memory: every item's decayed counts, catalog record and neighbours, as columns.

The scorer reads candidates' features here (loaded from `item-updates` at start, and kept fresh from it); the trainer fills one from the
replayed log. Item rows come one per source partition; an item's features are their sum in the order of partitions, taken when a row
comes, so the result does not depend on how partitions interleave.

n items, K = features.item_numbers. Counts and weights are held in single precision (a third of a scorer's memory is theirs) and summed in
double: both sides of the loop read them through this class, so they round alike.
"""

from collections.abc import Sequence
from functools import partial
from math import exp2
from typing import Any

import numpy as np
import numpy.typing as npt

from features import declarations as d
from features.catalog import UNKNOWN, Catalog, Rows, grown
from features.contributions import NEIGHBOUR, Held, Layout
from features.decay import Floats, base_ms
from features.events import ENGAGEMENT
from features.feature_set import FeatureSet
from features.rows import CandidateColumns, CatalogItem, ItemRow, ShopperRow

COVISIT_RECENT = (
    3  # latest items whose neighbours count, weighted 1, 1/2, 1/3: beyond the third they no longer helped (measured on Yoochoose)
)
REBASE_HALF_LIVES = 400.0  # popularity is kept as multiples of 2^400 at most; float64 ends at 2^1024


class ItemTable:
    """Growable columns of items, by the catalog's row numbers. Not thread-safe: one owner applies and reads.

    `catalog` may be shared by the tables of several feature versions; whoever shares it applies records to it only once.
    """

    def __init__(self, features: FeatureSet, catalog: Catalog | None = None) -> None:
        self.features = features
        self.records = Catalog() if catalog is None else catalog
        capacity = len(self.records.available)
        self._folded = np.zeros(capacity, dtype=bool)  # rows that an item row came for
        self._total = np.zeros((capacity, features.item_numbers), dtype=np.float32)  # summed over partitions
        self._latest_ms = np.zeros(
            capacity, dtype=np.int64
        )  # the latest event of any partition: what totals are as from the base of
        self._parts = np.full(capacity, b"", dtype=object)  # as Held has them, like the next
        self._near = np.full(capacity, b"", dtype=object)
        self._partitions = 0
        self._weight = np.zeros(capacity)  # scratch: all zero between calls
        self._place = np.full(capacity, UNKNOWN, dtype=np.int32)  # likewise, all UNKNOWN
        self._half_lives = features.item_half_lives
        slots = [slot for of_feature in features.item_slots.values() for slot in of_feature]
        self._half_life_of = np.array([slot.half_life for slot in slots])  # [K]
        demand = next(f for f in features.declared.features if isinstance(f, d.DecayedCount) and f.entity == "item")
        counted = [
            s for s in features.item_slots[demand.name][: len(demand.events)] if s.event in ENGAGEMENT
        ]  # the first half-life's
        self._demand = np.array([slot.at for slot in counted])
        self._intent = np.array([ENGAGEMENT[slot.event] for slot in counted])
        self._purchase = next((slot.at for slot in features.item_slots[demand.name] if slot.event == "purchase"), None)
        self._demand_half_life = counted[0].half_life if counted else 0
        covisit = features.half_life_at(self._half_lives, features.covisit.half_life)
        self._covisit_half_life_ms = self._half_lives.ms[covisit]
        self._layout = Layout(self._half_lives, self._half_life_of, covisit)
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
        at = self.records.row(row.item)
        neighbours = self.records.rows_made(row.neighbours)
        self._grow()
        held = self._layout.replaced(Held(self._parts[at], self._near[at], int(self._latest_ms[at])), row, neighbours)
        if held is None:
            return False
        self._parts[at], self._near[at], self._latest_ms[at] = held
        self._total[at] = self._layout.total(held.parts)
        self._partitions = max(self._partitions, row.partition + 1)
        self._folded[at] = True
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
        return self.columns_at(self.records.rows(items), shopper, time_ms, items)

    def columns_at(self, rows: Rows, shopper: ShopperRow, time_ms: int, items: Sequence[str] = ()) -> CandidateColumns:
        """As `columns`, of known `rows`; where some are UNKNOWN, `items` must name them all."""
        self._grow()
        known = rows >= 0
        if known.all():
            return self._columns(rows, self.records.wire.take(rows), shopper, time_ms)
        ids = np.array([*map(str.encode, items), b""], object)[:-1]
        columns = self._columns(np.where(known, rows, 0), ids, shopper, time_ms, np.where(known, self._parts[rows], b""))
        unknown = np.flatnonzero(~known).tolist()
        columns.numbers[:, unknown] = columns.covisit[unknown] = 0.0
        for at in unknown:
            columns.recent[at] = shopper.recent_items.index(items[at]) if items[at] in shopper.recent_items else UNKNOWN
        return columns._replace(catalog=self.records.columns(rows))

    def _columns(
        self,
        rows: Rows,
        ids: npt.NDArray[np.object_],
        shopper: ShopperRow,
        time_ms: int,
        parts: npt.NDArray[np.object_] | None = None,
    ) -> CandidateColumns:
        near, weights = self._led_to(shopper.recent_items[:COVISIT_RECENT], time_ms)
        np.add.at(self._weight, near, weights)
        covisit = self._weight.take(rows)
        self._weight[near] = 0.0
        recent = self.records.rows(shopper.recent_items)
        seen = np.flatnonzero(recent >= 0)[::-1]  # of an item that stands there twice, the first place stays
        self._place[recent[seen]] = seen
        places = self._place.take(rows)
        self._place[recent[seen]] = UNKNOWN
        leading = {
            i: self._parts[at] for i, at in zip(shopper.recent_items, recent[:COVISIT_RECENT].tolist(), strict=False) if at >= 0
        }
        return CandidateColumns(
            ids=ids,
            recent=places,
            numbers=self._numbers_at(rows, time_ms),
            covisit=covisit,
            catalog=self.records.columns(rows),
            offsets=partial(self._offsets_of, ids, self._parts.take(rows) if parts is None else parts, leading, self._partitions),
        )

    def _offsets_of(
        self,
        ids: npt.NDArray[np.object_],
        parts: npt.NDArray[np.object_],
        leading: dict[str, bytes],
        partitions: int,
        places: Sequence[int],
    ) -> dict[str, list[int]]:
        at = np.array(places, dtype=np.intp)
        names = [*leading, *(item.decode() for item in ids.take(at).tolist())]
        held = [*leading.values(), *parts.take(at).tolist()]
        return dict(zip(names, self._layout.offsets(held, partitions), strict=True))

    def neighbours(self, item: str, time_ms: int) -> list[tuple[str, float]]:
        """Items looked at together with `item` and their weights at `time_ms`, heaviest first; ties by id."""
        rows, weights = self.led_to([item], time_ms)
        pairs = zip(self.records.items(rows), weights.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))

    def led_to(self, recent: Sequence[str], time_ms: int) -> tuple[Rows, Floats]:
        """Rows, ascending, that `recent` items lead to, and with what weight: the n-th item's neighbours count 1/n."""
        self._grow()
        near, weights = self._led_to(recent, time_ms)
        if not len(near):
            return near, weights
        np.add.at(self._weight, near, weights)
        rows = np.sort(near[self.records.distinct(near)])
        summed = self._weight.take(rows)
        self._weight[rows] = 0.0
        return rows, summed

    def _led_to(self, recent: Sequence[str], time_ms: int) -> tuple[Rows, Floats]:
        """As `led_to`, in no order and some rows several times: their weights are to be added."""
        near: list[bytes] = []
        scales: list[float] = []
        counts: list[int] = []
        half_life_ms = self._covisit_half_life_ms
        for rank, item in enumerate(recent):
            at = self.records.find(item)
            if 0 <= at < len(self._near) and (held := self._near[at]):
                latest = int(self._latest_ms[at])
                near.append(held)
                scales.append(exp2((base_ms(latest, half_life_ms) - max(time_ms, latest)) / half_life_ms) / (1 + rank))
                counts.append(len(held) // NEIGHBOUR.itemsize)
        if not near:
            return np.zeros(0, dtype=np.int32), np.zeros(0)
        pairs = np.frombuffer(b"".join(near), NEIGHBOUR)
        return pairs["row"], pairs["weight"] * np.repeat(scales, counts)

    def popular(self, time_ms: int, n: int) -> list[tuple[str, float]]:
        """The `n` available items with the most engagement, and its decayed amount at `time_ms`, heaviest first.

        Items without any engagement come last, in the order they became known: a new shop's catalog fills a shelf too.
        """
        rows = self.popular_rows(n)
        scale = 2.0 ** min((self._epoch_ms - time_ms) / self._half_lives.ms[self._demand_half_life], REBASE_HALF_LIVES)
        return list(zip(self.records.items(rows), (self._popularity[rows] * scale).tolist(), strict=True))

    def popular_rows(self, n: int, among: Rows | None = None) -> Rows:
        """Rows of the `n` available items with the most engagement, heaviest first; `among` these rows, ascending, where given."""
        self._grow()
        self._revalue()
        rows = slice(len(self.records)) if among is None else among
        weight = np.where(self.records.available[rows] & self._known_at(rows), self._popularity[rows], -1.0)
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
        self._grow()
        self._revalue()
        scale = 2.0 ** min((self._epoch_ms - time_ms) / self._half_lives.ms[self._demand_half_life], REBASE_HALF_LIVES)
        result: Floats = self._popularity[rows] * scale
        return result

    def purchases(self, rows: Rows, time_ms: int) -> Floats:
        """[len(rows)] decayed number of purchases of known `rows` at `time_ms`; zeros where the features do not count them."""
        self._grow()
        if self._purchase is None:
            return np.zeros(len(rows))
        result: Floats = self._total[rows, self._purchase] * self._scale(self._latest_ms.take(rows), time_ms)[self._purchase]
        return result

    def _known(self) -> npt.NDArray[np.bool_]:
        """[n] rows of which something is known: others are only named as somebody's neighbour."""
        self._grow()
        return self._known_at(slice(len(self.records)))

    def _known_at(self, rows: Any) -> npt.NDArray[np.bool_]:
        known: npt.NDArray[np.bool_] = (self.records.since_ms[rows] >= 0) | self._folded[rows]
        return known

    def _grow(self) -> None:
        """Make room for every row of the catalog."""
        capacity = len(self.records.available)
        if capacity <= len(self._folded):
            return
        for name in ("_folded", "_popularity", "_total", "_latest_ms", "_weight"):
            setattr(self, name, grown(getattr(self, name), capacity))
        self._parts, self._near = grown(self._parts, capacity, b""), grown(self._near, capacity, b"")
        self._place = grown(self._place, capacity, UNKNOWN)

    def _numbers_at(self, at: Rows, time_ms: int) -> Floats:
        """[K, len(at)] decayed counts summed over partitions, valued at `time_ms`."""
        result: Floats = np.multiply(self._total.take(at, 0).T, self._scale(self._latest_ms.take(at), time_ms), order="C")
        return result

    def _scale(self, times: npt.NDArray[np.int64], time_ms: int) -> Floats:
        """What stored numbers are to be multiplied by: [K, 1] where the rows share their bases, as almost all do, else [K, len(times)]."""
        if len(times) and (latest := int(times.max())) <= time_ms:
            # A row without events holds zeros, whatever its base.
            earliest = int(times.min()) or int(times.min(where=times > 0, initial=latest))
            if self._half_lives.share_bases(earliest, latest):
                return self._half_lives.scale_of(latest, time_ms).take(self._half_life_of)[:, None]
        of_row: Floats = self._half_lives.scale(times, time_ms).T[self._half_life_of]
        return of_row

    def _revalue(self) -> None:
        """Value the engagement of items touched since the last call at the epoch; move that along before 2^x runs out of range."""
        if not self._stale:
            return
        at = np.fromiter(self._stale, dtype=np.int64)
        self._stale.clear()
        if not len(self._demand):
            return
        times = self._latest_ms[at]
        half_life, latest = self._half_lives.ms[self._demand_half_life], int(times.max())
        if latest - self._epoch_ms > REBASE_HALF_LIVES * half_life:
            self._popularity *= np.exp2((self._epoch_ms - latest) / half_life)
            self._epoch_ms = latest
        scale = self._half_lives.scale(times, 0)[:, self._demand_half_life]
        own = self._total[at][:, self._demand].astype(np.float64) @ self._intent * scale
        self._popularity[at] = own * np.exp2((times - self._epoch_ms) / half_life)
