"""Candidate sources: small objects behind one interface, each with a name, a quota and, when it asks another process, a timeout.

Items are row numbers of the side's catalog (see `features.catalog`), best first.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from features.catalog import Rows
from features.decay import Floats
from features.encoder import Inputs, shares
from features.events import EVENT_INDEX
from features.items import ItemTable
from features.live_sessions import LiveSessions
from features.rows import ShopperRow
from serving.live_model import LiveModel

POPULAR_EVERY_MS = 500  # how old the popular lists may be; making one looks at every item: 1 ms for 100,000
POPULAR_KEPT = 1_000  # covers a shelf of 100 and what 1,000 exclusions may take from it, mostly
CATEGORIES_KEPT = 1_000  # lists by category, each made when first asked for
CATEGORY_EVERY_MS = 5_000  # how old those may be while no item comes: what is popular in one category changes more slowly
NEW_FOR_MS = 7 * 24 * 3_600_000
NEW_ENGAGEMENT_MAX = 20.0  # clicks' worth; beyond it an item is found by its behaviour
NEW_KEPT = 2_000  # the newest; a shop that sends its whole catalog at once has only new items

CART, PURCHASE = EVENT_INDEX["add_to_cart"], EVENT_INDEX["purchase"]
NOTHING: Rows = np.zeros(0, dtype=np.int32)


class Lists:
    """What is popular and what is new among one table's items: made anew when older than POPULAR_EVERY_MS, not at every request."""

    def __init__(self, items: ItemTable) -> None:
        self._items = items
        self._made_ms = -POPULAR_EVERY_MS
        self._size = 0
        self._popular: Rows = NOTHING
        self._new: Rows = NOTHING
        self._is_new = np.zeros(1, dtype=bool)
        self._by_category: dict[int, Rows] = {}
        self._categories_ms = -CATEGORY_EVERY_MS

    def popular(self, time_ms: int) -> Rows:
        """At most POPULAR_KEPT available rows, the most engaged first."""
        self._refresh(time_ms)
        return self._popular

    def popular_in(self, category: int, time_ms: int) -> Rows:
        """Likewise, of one category (its code)."""
        self._refresh(time_ms)
        found = self._by_category.get(category)
        if found is None:
            if len(self._by_category) >= CATEGORIES_KEPT:
                self._by_category.clear()
            found = self._by_category[category] = self._items.popular_rows(
                POPULAR_KEPT // 10, self._items.records.in_category(category)
            )
        return found

    def new(self, time_ms: int) -> Rows:
        """At most NEW_KEPT available rows whose first catalog record came within NEW_FOR_MS and that few engaged with yet."""
        self._refresh(time_ms)
        return self._new

    def is_new(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """[len(rows)] whether known `rows` stand in the list of new ones."""
        result: npt.NDArray[np.bool_] = self._is_new[np.minimum(rows, len(self._is_new) - 1)]
        return result

    def _refresh(self, time_ms: int) -> None:
        # A few items more or less change no list that matters; from nothing to something does.
        size = len(self._items.records)
        if abs(time_ms - self._made_ms) < POPULAR_EVERY_MS and size <= 2 * self._size:
            return
        if size != self._size or abs(time_ms - self._categories_ms) >= CATEGORY_EVERY_MS:
            self._by_category.clear()
            self._categories_ms = time_ms
        self._made_ms, self._size = time_ms, size
        self._popular = self._items.popular_rows(POPULAR_KEPT)
        records = self._items.records
        since = records.since_ms[:size]
        rows = np.flatnonzero((since >= time_ms - NEW_FOR_MS) & (since >= 0) & records.available[:size]).astype(np.int32)
        if len(rows):
            rows = rows[self._items.engagement(rows, time_ms) < NEW_ENGAGEMENT_MAX]
        if len(rows) > NEW_KEPT:
            rows = rows[np.argpartition(since[rows], len(rows) - NEW_KEPT)[-NEW_KEPT:]]
        self._new = rows
        self._is_new = np.zeros(size + 1, dtype=bool)  # the last place is that of rows that came since
        self._is_new[self._new] = True


@dataclass(frozen=True)
class Visit:
    """What a source may look at."""

    shopper: ShopperRow
    """With the page's items in front of the sequence."""
    encoded: Inputs
    """The shopper's side of the model's inputs."""
    time_ms: int
    items: ItemTable
    lists: Lists
    model: LiveModel | None

    @cached_property
    def recent(self) -> Rows:
        """[recent_items] their rows, UNKNOWN ones among them."""
        return self.items.records.rows(self.shopper.recent_items)

    def categories(self, n: int) -> list[int]:
        """Codes of at most `n` categories that the shopper looks at now, then those that the shopper leans to."""
        records = self.items.records
        code = records.code["item_category"]
        names = records.values["item_category"]
        found = dict.fromkeys(c for at in self.recent[:n].tolist() if at >= 0 and (c := int(code[at])) >= 0 and names[c])
        for of_feature, affinity in zip(self.shopper.affinities, self.items.features.affinities, strict=False):
            if affinity.field == "item_category":
                codes = records.codes["item_category"]
                found |= dict.fromkeys(codes[c] for c in sorted(of_feature, key=lambda c: -of_feature[c])[:n] if c in codes)
        return list(found)[:n]


class CandidateSource(Protocol):
    """Finds items that the shopper may want. `name` goes with its candidates into the answer and the impression."""

    name: str
    quota: int
    timeout_s: float
    """How long an answer is waited for; 0 for a source that answers from this process's memory."""

    def candidates(self, visit: Visit) -> Rows | Awaitable[Rows]:
        """Best first; what is over the quota is dropped.

        Raises:
            UnavailableError, NotFoundError: what the source asks does not answer; the others go on without it.
        """
        ...


class _InMemory:
    name: str
    timeout_s = 0.0

    def __init__(self, quota: int) -> None:
        self.quota = quota


class Retrieval:
    """Nearest items to the shopper's vector, found inside the SavedModel."""

    name = "retrieval"

    def __init__(self, quota: int, timeout_s: float) -> None:
        self.quota, self.timeout_s = quota, timeout_s

    def candidates(self, visit: Visit) -> Rows | Awaitable[Rows]:
        if visit.model is None or not visit.shopper.recent_items:
            return NOTHING
        return self._asked(visit, visit.model)

    async def _asked(self, visit: Visit, model: LiveModel) -> Rows:
        found = await model.retrieve(visit.encoded, self.timeout_s)
        rows = visit.items.records.rows(found[: self.quota])
        return rows[rows >= 0]


class CoVisit(_InMemory):
    """Neighbours of the shopper's latest items."""

    name = "covisit"
    LATEST = 5  # items whose neighbours are taken, the n-th weighted 1/n

    def candidates(self, visit: Visit) -> Rows:
        return heaviest(*visit.items.led_to(visit.shopper.recent_items[: self.LATEST], visit.time_ms), self.quota)


class Neighbours(_InMemory):
    """What shoppers went on to whose sessions resemble this one: session kNN, as it learns with every click."""

    name = "neighbours"

    def __init__(self, quota: int, sessions: LiveSessions) -> None:
        super().__init__(quota)
        self._sessions = sessions

    def candidates(self, visit: Visit) -> Rows:
        return heaviest(*self._sessions.led_to(visit.shopper.recent_items, visit.time_ms), self.quota)


class BoughtTogether(_InMemory):
    """Neighbours of what the shopper put into the cart or bought, weighted by how much they are bought themselves."""

    name = "bought_together"
    LATEST = 3

    def candidates(self, visit: Visit) -> Rows:
        shopper = visit.shopper
        wanted = [i for i, e in zip(shopper.recent_items, shopper.recent_events, strict=True) if e in (CART, PURCHASE)]
        if not wanted:
            return NOTHING
        rows, weights = visit.items.led_to(list(dict.fromkeys(wanted))[: self.LATEST], visit.time_ms)
        return heaviest(rows, weights * np.log1p(visit.items.purchases(rows, visit.time_ms)), self.quota)


class Recent(_InMemory):
    """What the shopper looked at before: people come back to it."""

    name = "recent"

    def candidates(self, visit: Visit) -> Rows:
        known = visit.recent[visit.recent >= 0]
        return known[visit.items.records.distinct(known)]


class TrendingInCategory(_InMemory):
    """What is popular in the categories of the page, of the visit, and of the shopper's taste."""

    name = "trending_category"
    CATEGORIES = 3

    def candidates(self, visit: Visit) -> Rows:
        codes = visit.categories(self.CATEGORIES)
        share = self.quota // max(len(codes), 1)
        return np.concatenate([NOTHING, *(visit.lists.popular_in(code, visit.time_ms)[:share] for code in codes)])


class New(_InMemory):
    """Items that nobody's behaviour tells of yet, by what their catalog record says: category, brand, embedding; the newest first."""

    name = "new"

    def candidates(self, visit: Visit) -> Rows:
        rows = visit.lists.new(visit.time_ms)
        if not len(rows):
            return NOTHING
        records = visit.items.records
        since = records.since_ms[rows]
        score = 0.1 * (1.0 - (visit.time_ms - since) / NEW_FOR_MS)  # below any match: newness alone decides among equals
        score += self._matches(visit, rows)
        if len(seen := visit.recent[visit.recent >= 0]):
            score += self._content(visit, rows, seen)
        return heaviest(rows, score, self.quota)

    def _matches(self, visit: Visit, rows: Rows) -> Floats:
        """[len(rows)] the shares of the shopper's affinities that the rows' values hold, summed; and of the latest item's category."""
        records = visit.items.records
        total = np.zeros(len(rows))
        for weights, affinity in zip(visit.shopper.affinities, visit.items.features.affinities, strict=False):
            total += shares(weights, records.codes[affinity.field], records.code[affinity.field][rows])
        for code in visit.categories(1):
            total += records.code["item_category"][rows] == code
        return total

    def _content(self, visit: Visit, rows: Rows, seen: Rows) -> Floats:
        """[len(rows)] cosine to the mean of the embeddings of what the shopper looked at."""
        vectors, has = visit.items.records.embeddings(seen)
        if not has.any():
            return np.zeros(len(rows))
        mean = vectors[has].mean(axis=0)
        ours, _ = visit.items.records.embeddings(rows)
        result: Floats = np.maximum(ours @ mean, 0.0).astype(np.float64)
        return result


class Trending(_InMemory):
    """The items with the most recent engagement."""

    name = "trending"

    def candidates(self, visit: Visit) -> Rows:
        return visit.lists.popular(visit.time_ms)


def heaviest(rows: Rows, weights: npt.NDArray[np.floating], n: int) -> Rows:
    """The `n` rows with the largest weights, heaviest first, the first of equals first; rows without weight are left out."""
    if len(rows) > n:
        top = (-weights).argpartition(n)[:n]
        top.sort()
        rows, weights = rows.take(top), weights.take(top)
    order = (-weights).argsort(kind="stable")
    found: Rows = rows.take(order[: np.count_nonzero(weights > 0)])
    return found


def default_sources(model_timeout_s: float = 0.1, sessions: LiveSessions | None = None) -> Sequence[CandidateSource]:
    """In order of precedence: an item found by several is credited to the first. Quotas sum to about 500, ranked in about a millisecond."""
    return (
        CoVisit(100),
        *([Neighbours(60, sessions)] if sessions is not None else []),
        BoughtTogether(30),
        Retrieval(170, model_timeout_s),
        Recent(20),
        TrendingInCategory(90),
        New(30),
        Trending(100),
    )
