"""Replays the event log into training samples, for a shop that has no impressions yet. Pure: events in, samples out.

Each engagement event becomes a shelf as it would have been served just before: the item engaged with among sampled others, with the
shopper's row and the items' features as the fold had them at that moment. The fold is the live one (`features.fold`).
"""

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from features.encoder import Encoder
from features.events import ENGAGEMENT, Event
from features.feature_set import FeatureSet
from features.fold import FOLDED, Fold, event_key
from features.items import ItemTable
from features.rows import CatalogItem, ItemRow, ShopperRow
from trainer.log import Logged
from trainer.samples import UNKNOWN, Sample

NEGATIVES = 20  # with the positive a shelf of 21: near the 1 in 20 that real shelves are clicked at
NEAR_NEGATIVES, FURTHER_NEGATIVES, SEEN_NEGATIVES = 4, 12, 1
"""Of these: co-visited with the shopper's latest items; co-visited with such; looked at before. Together with popular ones they are what the
scorer ranks: the second kind stands for what the model itself retrieves. Without it nothing taught that such an item may be wrong, and every
step made the full list worse: Yoochoose-100k, HR@20 on the last day after hourly steps .406, with it .536 (of near ones alone 5 of 15)."""
NEAR_LATEST = 5  # items whose co-visits count, as in the scorer's source
FURTHER_AT_ONCE = 4  # items of one neighbour's neighbours: reading them costs more than drawing
POSITIVES_MAX = 8  # of one purchase with many items
POPULARITY_POWER = 0.75  # word2vec's: popular items are drawn often, rare ones still are
POPULARITY_EVERY = 256  # engagement events between refreshes of the popularity that negatives are drawn by
SAMPLES_MAX = 40_000
"""The latest ones. 20,000 samples are replayed in about 10 s and learnt in as long; older ones describe a shop that has moved on."""
EVENTS_MAX = 200_000
"""The latest ones, held in memory to be merged (about 1 kB each). Item counts halve every three days, sequences are 20 items long: what
lies further back barely shows in the features."""


def merge(partitions: Iterable[Iterable[Logged[Event]]]) -> Iterator[Logged[Event]]:
    """One event-time order over partitions; each partition's own order is kept even where its event times run backwards."""
    return heapq.merge(*partitions, key=lambda logged: logged.record.time_ms)


def replay(
    events: list[Logged[Event]], catalog: Iterable[CatalogItem], seed: int, features: FeatureSet
) -> Iterator[tuple[str, Sample]]:
    """Fold `events` (merged) and yield (event id, sample) for the latest SAMPLES_MAX engagement events that follow an earlier item.

    A repeated click or view of the shopper's latest item is one step with it, as in the fold, and makes no sample; nor does an item
    that no event and no catalog record had named before: no shelf could have held it.
    """
    past = Past(catalog, seed, features)
    first = _first_sampled(events)
    for sequence, logged in enumerate(events):
        if sequence >= first:
            sample = past.sample(logged.record)
            if sample is not None:
                yield logged.record.event_id, sample
        past.fold(logged, sequence)


def _first_sampled(events: list[Logged[Event]]) -> int:
    """Position of the event from which at most SAMPLES_MAX engagement events are left."""
    engaged = [at for at, logged in enumerate(events) if logged.record.event_name in ENGAGEMENT]
    return engaged[-SAMPLES_MAX] if len(engaged) > SAMPLES_MAX else 0


class Past:
    """What was known up to now. `sample` reads it, `fold` moves it past one event.

    Attributes:
        items: the item side.
        encoder: the one encoder.
    """

    def __init__(self, catalog: Iterable[CatalogItem], seed: int, features: FeatureSet) -> None:
        self._features, self._fold, self.encoder = features, Fold(features), Encoder(features)
        self._shoppers: dict[str, ShopperRow] = {}
        self._rows: dict[str, ItemRow] = {}
        self.items = ItemTable(features)
        for item in catalog:
            self.items.apply_catalog(item)
        self._negatives = _Negatives(seed)

    def shopper(self, shopper: str) -> ShopperRow:
        """The shopper's row: the one held, or an empty one."""
        return self._shoppers.get(shopper) or self._features.shopper(shopper)

    def sample(self, event: Event) -> Sample | None:
        """The shelf just before `event`; None for an event that makes none (see `replay`)."""
        row = self._shoppers.get(event.shopper)
        if event.event_name not in ENGAGEMENT or row is None or not row.recent_items or event_key(event.event_id) in row.seen:
            return None
        wanted = list(dict.fromkeys(item.item_id for item in event.items if item.item_id in self.items))[:POSITIVES_MAX]
        clicked = event.event_name in ("select_item", "view_item")
        if not wanted or (clicked and wanted == row.recent_items[:1]):
            return None
        others = self._others(row, set(wanted), event.time_ms)
        # Whether a shopper who carts or buys here would have clicked is not known: those clicks are events of their own.
        label = [1.0 if clicked else UNKNOWN, float(event.event_name == "add_to_cart"), float(event.event_name == "purchase")]
        miss = [0.0 if clicked else UNKNOWN, 0.0, 0.0]
        shopper = self.encoder.shopper(row, event.time_ms)
        candidates = self.encoder.candidates(row, self.items.columns(wanted + others, row, event.time_ms), event.time_ms)
        return Sample(shopper | candidates, [label] * len(wanted) + [miss] * len(others), served=False)

    def _others(self, row: ShopperRow, wanted: set[str], time_ms: int) -> list[str]:
        """Items that might have stood beside those `wanted`."""

        def led_to(recent: list[str]) -> list[str]:
            return self.items.records.items(self.items.led_to(recent, time_ms)[0])

        seen = list(dict.fromkeys(row.recent_items[1:]))
        return self._negatives.draw(led_to(row.recent_items[:NEAR_LATEST]), lambda item: led_to([item]), seen, wanted)

    def fold(self, logged: Logged[Event], sequence: int) -> None:
        """Move past `logged`, number `sequence` of the merged order."""
        event = logged.record
        row = self._shoppers.get(event.shopper)
        if row is None:
            row = self._shoppers[event.shopper] = self._features.shopper(event.shopper)
        said = self._fold.shopper(row, event, logged.partition, logged.offset)
        weights = self._fold.item_weights(event)
        for touch in said.touches:
            into = self._rows.get(touch.item)
            if into is None:  # one merged order, so one contribution an item
                into = self._rows[touch.item] = self._features.item(touch.item, 0)
            self._fold.item(into, touch, event.event_name, weights, sequence)
            self.items.apply(into)
        if said.outcome == FOLDED and event.event_name in ENGAGEMENT:
            for shown in event.items:
                self._negatives.saw(shown.item_id)


class _Negatives:
    """Draws other items: near the shopper's latest ones, further, seen before, and the rest by popularity so far."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._count: dict[str, int] = {}
        self._since_refresh = POPULARITY_EVERY
        self._ids: list[str] = []
        self._cumulative: list[float] = []
        self._uniform: deque[float] = deque()

    def saw(self, item: str) -> None:
        self._count[item] = self._count.get(item, 0) + 1
        self._since_refresh += 1

    def draw(self, near: list[str], around: Callable[[str], list[str]], seen: list[str], wanted: set[str]) -> list[str]:
        """At most NEGATIVES distinct items outside `wanted`: some of `near`, of what is `around` one of these, of `seen`, and popular ones."""
        if self._since_refresh >= POPULARITY_EVERY:
            self._since_refresh = 0
            self._ids = list(self._count)
            self._cumulative = np.cumsum(np.fromiter(self._count.values(), dtype=float) ** POPULARITY_POWER).tolist()
        known = wanted.union(near)
        near = [item for item in near if item not in wanted]
        drawn = dict.fromkeys(self._some(near, NEAR_NEGATIVES))
        for _ in range(0, FURTHER_NEGATIVES if near else 0, FURTHER_AT_ONCE):
            further = [item for item in around(near[int(self._random() * len(near))]) if item not in known and item not in drawn]
            drawn |= dict.fromkeys(self._some(further, FURTHER_AT_ONCE))
        drawn |= dict.fromkeys(self._some([item for item in seen if item not in wanted and item not in drawn], SEEN_NEGATIVES))
        for _ in range(2 * NEGATIVES):  # a few draws repeat; a tiny shop has fewer items than are wanted
            if len(drawn) >= NEGATIVES or not self._ids:
                break
            at = bisect_left(self._cumulative, self._random() * self._cumulative[-1])
            item = self._ids[min(at, len(self._ids) - 1)]
            if item not in wanted:
                drawn[item] = None
        return list(drawn)

    def _some(self, pool: list[str], count: int) -> list[str]:
        """At most `count` of `pool`, each as likely as the others."""
        pool = list(pool)
        return [pool.pop(int(self._random() * len(pool))) for _ in range(min(count, len(pool)))]

    def _random(self) -> float:
        if not self._uniform:
            self._uniform.extend(self._rng.random(4096).tolist())
        return self._uniform.popleft()
