"""Clickstream records into rows, batch by batch: what the live agents do, and the same for rebuilding rows from the log.

One batch goes in this order, and may be repeated from the start at any point without changing the outcome:

1. read the rows that the batch touches and memory does not hold
2. fold every event into its shopper's row, then what it says about items into the item rows (a redelivered event is a no-op)
3. publish item rows and handovers (before the store holds them: a repeated batch would find nothing left to publish)
4. write the item rows, then the shopper rows (see `Fold.shopper` for why in this order), then the offset folded up to
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from features.events import Event, Handover
from features.feature_set import FeatureSet
from features.fold import Fold
from features.rows import ItemRow, ShopperRow
from features.store import FeatureRows, Written

ROWS_CACHED_MAX = 100_000  # rows of each kind in memory, at about 2 kB

Delivery = tuple[Event, int, int]
"""(event, clickstream partition, offset)."""


class HandedOver(NamedTuple):
    """A browser's row on its way to the person `to`."""

    to: str
    id: str
    time_ms: int
    state: ShopperRow


class Folded(NamedTuple):
    """The rows that a batch changed, and what became of its events."""

    shoppers: list[ShopperRow]
    items: list[ItemRow]
    handovers: list[HandedOver]
    outcomes: dict[str, int]
    upto: dict[int, int]
    """Partition → offset of the batch's last event."""


class FeatureFolder:
    """Rows of one feature version in memory, folded and stored in batches. Owned by one worker, called from one task at a time."""

    def __init__(self, rows: FeatureRows, features: FeatureSet) -> None:
        self.features = features
        self._rows, self._fold = rows, Fold(features)
        self._shoppers: OrderedDict[str, ShopperRow] = OrderedDict()
        self._items: OrderedDict[tuple[str, int], ItemRow] = OrderedDict()
        self._held: dict[int, int] = {}  # partition -> offset up to which the store holds everything, as last heard from it
        self._stale = False

    def forget(self) -> None:
        """Before the next batch, drop what memory holds: another worker may have written, or a batch was not stored and comes again."""
        self._stale = True

    def held(self, partition: int) -> int:
        """Offset up to which the store holds everything of `partition`; -1 when nothing.

        Raises:
            UnavailableError: the store does not answer.
        """
        self._refresh()
        if partition not in self._held:
            self._held[partition] = self._rows.folded(self.features.version).get(partition, -1)
        return self._held[partition]

    def fold(self, deliveries: Sequence[Delivery], upto: dict[int, int]) -> Folded:
        """Fold one batch, in offset order within each partition. `upto`: partition → the batch's last offset, event or not.

        Raises:
            UnavailableError: the store does not answer.
        """
        self._refresh()
        fold = self._fold
        self._load(self._shoppers, {event.shopper for event, _, _ in deliveries}, self._rows.read_shoppers)
        out = Folded([], [], [], {}, upto)
        shoppers: dict[str, ShopperRow] = {}
        owed: list[tuple[tuple[str, int], int, Any, Any, str]] = []
        for event, partition, offset in deliveries:
            row = self._shoppers.get(event.shopper)
            if row is None:
                row = self._shoppers[event.shopper] = self.features.shopper(event.shopper)
            said = fold.shopper(row, event, partition, offset)
            out.outcomes[said.outcome] = out.outcomes.get(said.outcome, 0) + 1
            shoppers[event.shopper] = row
            if said.state is not None:
                out.handovers.append(HandedOver(said.to, f"{partition}@{offset}", event.time_ms, said.state))
            if said.touches:
                weights = fold.item_weights(event)
                owed += [((touch.item, partition), offset, touch, weights, event.event_name) for touch in said.touches]
        self._load(self._items, {key for key, *_ in owed}, self._rows.read_items)
        items: dict[tuple[str, int], ItemRow] = {}
        for key, offset, touch, weights, name in owed:
            item_row = self._items.get(key)
            if item_row is None:
                item_row = self._items[key] = self.features.item(*key)
            if fold.item(item_row, touch, name, weights, offset):
                items[key] = item_row
        out.shoppers.extend(shoppers.values())
        out.items.extend(items.values())
        return out

    def store(self, folded: Folded) -> dict[str, Written]:
        """Write what was folded, and that it was. Returns what was written by kind of row: item, shopper.

        Raises:
            StoreBehindError: the store lost what it held; `forget`, and fold again from the offset that it still holds.
            UnavailableError: the store does not answer; part of it may be written.
        """
        written = {
            "item": self._rows.write_items(folded.items, self.features),
            "shopper": self._rows.write_shoppers(folded.shoppers, self.features),
        }
        self._rows.advance(self.features.version, {p: (self.held(p), at) for p, at in folded.upto.items()})
        self._held.update(folded.upto)
        for cache in (self._shoppers, self._items):
            while len(cache) > ROWS_CACHED_MAX:
                cache.popitem(last=False)
        return written

    def _refresh(self) -> None:
        if self._stale:
            self._shoppers.clear()
            self._items.clear()
            self._held.clear()
            self._stale = False

    def _load(self, cache: OrderedDict[Any, Any], keys: set[Any], read: Callable[..., Any]) -> None:
        for key in (known := [key for key in keys if key in cache]):
            cache.move_to_end(key)
        if len(known) < len(keys):  # not by `keys - cache.keys()`, which goes through all of the cache
            cache.update(read(sorted([key for key in keys if key not in cache]), self.features))


def handover_events(handed_over: Iterable[tuple[str, HandedOver]]) -> list[Event]:
    """The records that carry handovers to their persons' partitions, one for all feature versions; takes (version, handover) pairs."""
    states: dict[str, dict[str, ShopperRow]] = {}
    first: dict[str, HandedOver] = {}
    for version, handover in handed_over:
        first.setdefault(handover.id, handover)
        states.setdefault(handover.id, {})[version] = handover.state
    return [
        Event(
            event_id=f"handover-{h.id}",
            event_name="login",
            shopper=h.to,
            time_ms=h.time_ms,
            handover=Handover(id=h.id, states=states[h.id]),
        )
        for h in first.values()
    ]
