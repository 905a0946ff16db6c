"""The item side in memory: every item's counts, catalog fields and neighbours, as columns.

The scorer reads candidates' features here (loaded from the store at start, kept fresh from `item-updates`); the trainer fills one from
the replayed log. Item rows come one per source partition; an item's features are their sum, taken when read, so the result does not
depend on how partitions interleave.

P partitions, n items, E = len(EVENT_NAMES).
"""

import numpy as np
import numpy.typing as npt

from features.events import ENGAGEMENT, EVENT_INDEX, EVENT_NAMES
from features.fold import ITEM_HALF_LIFE_MS, decay
from features.rows import CatalogItem, ItemColumns, ItemRow, ShopperRow

ROWS_AT_FIRST = 1024  # doubled whenever full
COVISIT_RECENT = (
    3  # latest items whose neighbours count, weighted 1, 1/2, 1/3: beyond the third they no longer help (fold.COVISIT_LOOKBACK)
)
EARLIER_MAX_MS = ITEM_HALF_LIFE_MS
"""Counts are not valued further back than this before a row's latest event. Events stand at most the collector's tolerance (an hour)
ahead of now, so a larger gap is a wrong clock, and 2^(gap / half-life) would overflow."""
REBASE_HALF_LIVES = 400.0  # trend weights are kept as multiples of 2^400 at most; float64 ends at 2^1024

_INTENT = np.array([ENGAGEMENT.get(name, 0.0) for name in EVENT_NAMES])

Floats = npt.NDArray[np.float64]


class ItemTable:
    """Growable columns of items; ids map to row numbers, which never move. Not thread-safe: one owner applies and reads."""

    def __init__(self) -> None:
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._category: list[str] = []
        self._brand: list[str] = []
        self._title: list[str] = []
        self._price = np.zeros(ROWS_AT_FIRST)
        self._available = np.ones(ROWS_AT_FIRST, dtype=bool)
        self._catalog_ms = np.full(ROWS_AT_FIRST, -1, dtype=np.int64)
        self._counts = np.zeros((0, ROWS_AT_FIRST, len(EVENT_NAMES)))  # [P, n, E], each row valued at _time_ms
        self._time_ms = np.zeros((0, ROWS_AT_FIRST), dtype=np.int64)  # [P, n]
        self._offset = np.full((0, ROWS_AT_FIRST), -1, dtype=np.int64)  # [P, n]
        self._neighbours: list[dict[int, dict[str, float]]] = []  # by row: partition -> neighbour -> weight, valued at _time_ms
        self._trend = np.zeros(ROWS_AT_FIRST)  # engagement valued at _trend_epoch_ms: decay never changes the order, only the scale
        self._trend_epoch_ms = 0
        self._stale: set[int] = set()  # rows whose trend is to be valued again

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item: str) -> bool:
        return item in self._row_of

    def apply(self, row: ItemRow) -> bool:
        """Take `row` as what its partition contributes to its item; False when a row at least as new is held already."""
        at, p = self._row(row.item), row.partition
        self._grow_partitions(p + 1)
        if row.offset <= self._offset[p, at]:
            return False
        self._offset[p, at], self._time_ms[p, at] = row.offset, row.time_ms
        counts = self._counts[p, at]
        counts[:] = 0.0
        for name, value in row.counts.items():
            counts[EVENT_INDEX[name]] = value
        self._neighbours[at][p] = dict(row.neighbours)
        self._stale.add(at)
        return True

    def apply_catalog(self, item: CatalogItem) -> bool:
        """Take the catalog's word on one item; False when a newer record is held already."""
        at = self._row(item.item_id)
        if item.time_ms < self._catalog_ms[at]:
            return False
        self._catalog_ms[at], self._price[at], self._available[at] = item.time_ms, item.price, item.available
        self._category[at], self._brand[at], self._title[at] = item.item_category, item.item_brand, item.item_name
        return True

    def catalog(self, item: str) -> CatalogItem | None:
        """The catalog fields held for `item` (without its embedding); None when no catalog record came."""
        at = self._row_of.get(item)
        if at is None or self._catalog_ms[at] < 0:
            return None
        return CatalogItem(
            item_id=item,
            item_name=self._title[at],
            item_category=self._category[at],
            item_brand=self._brand[at],
            price=float(self._price[at]),
            available=bool(self._available[at]),
            time_ms=int(self._catalog_ms[at]),
        )

    def available(self, item: str) -> bool:
        """False only when the catalog says so: an item seen in events may be shown before its catalog record comes."""
        at = self._row_of.get(item)
        return at is None or bool(self._available[at])

    def columns(self, items: list[str], shopper: ShopperRow, time_ms: int) -> ItemColumns:
        """Features of `items` as they are at `time_ms` for `shopper`; an unknown item has zeros and empty fields."""
        rows = np.array([self._row_of.get(item, -1) for item in items], dtype=np.int64)
        known = rows >= 0
        at = np.where(known, rows, 0)
        counts = self._counts_at(at, time_ms) * known[:, None]
        covisit = self._covisit(shopper, time_ms)
        return ItemColumns(
            items=list(items),
            counts=counts.tolist(),
            price=(self._price[at] * known).tolist(),
            category=[self._category[row] if row >= 0 else "" for row in rows.tolist()],
            brand=[self._brand[row] if row >= 0 else "" for row in rows.tolist()],
            covisit=[covisit.get(item, 0.0) for item in items],
        )

    def neighbours(self, item: str, time_ms: int) -> list[tuple[str, float]]:
        """Items looked at together with `item` and their weights at `time_ms`, heaviest first; ties by id."""
        return sorted(self._neighbour_weights(item, time_ms).items(), key=lambda pair: (-pair[1], pair[0]))

    def popular(self, time_ms: int, n: int) -> list[tuple[str, float]]:
        """The `n` available items with the most engagement, and its decayed amount at `time_ms`, heaviest first.

        Items without any engagement come last, in the order they became known: a new shop's catalog fills a shelf too.
        """
        self._retrend()
        size = len(self._ids)
        n = min(n, size)
        if n <= 0:
            return []
        weight = np.where(self._available[:size], self._trend[:size], -1.0)
        least = np.partition(weight, size - n)[size - n]
        above = np.flatnonzero(weight > least)
        rows = np.concatenate([above, np.flatnonzero(weight == least)[: n - len(above)]])
        rows = rows[np.argsort(-weight[rows], kind="stable")]
        scale = decay(1.0, max(time_ms - self._trend_epoch_ms, -EARLIER_MAX_MS), ITEM_HALF_LIFE_MS)
        return [(self._ids[row], float(weight[row]) * scale) for row in rows.tolist() if weight[row] >= 0]

    def _row(self, item: str) -> int:
        at = self._row_of.get(item)
        if at is not None:
            return at
        at = self._row_of[item] = len(self._ids)
        self._ids.append(item)
        for column in (self._category, self._brand, self._title):
            column.append("")
        self._neighbours.append({})
        if at == len(self._price):
            self._grow_rows(2 * at)
        return at

    def _grow_rows(self, capacity: int) -> None:
        more = capacity - len(self._price)
        self._price = np.pad(self._price, (0, more))
        self._trend = np.pad(self._trend, (0, more))
        self._available = np.pad(self._available, (0, more), constant_values=True)
        self._catalog_ms = np.pad(self._catalog_ms, (0, more), constant_values=-1)
        self._counts = np.pad(self._counts, ((0, 0), (0, more), (0, 0)))
        self._time_ms = np.pad(self._time_ms, ((0, 0), (0, more)))
        self._offset = np.pad(self._offset, ((0, 0), (0, more)), constant_values=-1)

    def _grow_partitions(self, count: int) -> None:
        more = count - len(self._offset)
        if more > 0:
            self._counts = np.pad(self._counts, ((0, more), (0, 0), (0, 0)))
            self._time_ms = np.pad(self._time_ms, ((0, more), (0, 0)))
            self._offset = np.pad(self._offset, ((0, more), (0, 0)), constant_values=-1)

    def _counts_at(self, at: npt.NDArray[np.int64], time_ms: int) -> Floats:
        """[len(at), E] counts summed over partitions, valued at `time_ms`."""
        elapsed = np.maximum(time_ms - self._time_ms[:, at], -EARLIER_MAX_MS)
        factor = np.exp2(-elapsed / ITEM_HALF_LIFE_MS)
        result: Floats = np.einsum("pne,pn->ne", self._counts[:, at], factor)
        return result

    def _neighbour_weights(self, item: str, time_ms: int) -> dict[str, float]:
        at = self._row_of.get(item)
        merged: dict[str, float] = {}
        if at is None:
            return merged
        for p, weights in sorted(self._neighbours[at].items()):
            elapsed = max(time_ms - int(self._time_ms[p, at]), -EARLIER_MAX_MS)
            factor = decay(1.0, elapsed, ITEM_HALF_LIFE_MS)
            for neighbour, weight in weights.items():
                merged[neighbour] = merged.get(neighbour, 0.0) + weight * factor
        return merged

    def _covisit(self, shopper: ShopperRow, time_ms: int) -> dict[str, float]:
        """Weight with which the shopper's latest items lead to each of their neighbours."""
        total: dict[str, float] = {}
        for rank, recent in enumerate(shopper.recent_items[:COVISIT_RECENT]):
            for item, weight in self._neighbour_weights(recent, time_ms).items():
                total[item] = total.get(item, 0.0) + weight / (1 + rank)
        return total

    def _retrend(self) -> None:
        """Value the engagement of items touched since the last call at the epoch; move that along before 2^x runs out of range."""
        if not self._stale:
            return
        at = np.fromiter(self._stale, dtype=np.int64)
        self._stale.clear()
        times = self._time_ms[:, at]  # [P, touched]
        latest = int(times.max())
        if latest - self._trend_epoch_ms > REBASE_HALF_LIVES * ITEM_HALF_LIFE_MS:
            self._trend *= np.exp2((self._trend_epoch_ms - latest) / ITEM_HALF_LIFE_MS)
            self._trend_epoch_ms = latest
        factor = np.exp2((times - self._trend_epoch_ms) / ITEM_HALF_LIFE_MS)
        self._trend[at] = np.einsum("pne,e,pn->n", self._counts[:, at], _INTENT, factor)
