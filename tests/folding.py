"""Logs of clickstream partitions, and what agents do with them, without a broker or a store: for tests of the fold."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np

from features.declarations import read_declarations
from features.events import Event, EventItem, Handover
from features.feature_set import FeatureSet, ViewSpec
from features.fold import Fold, Said
from features.packed import pack, unpack
from features.rows import ItemRow, ShopperRow
from features.values import View

T0 = 1_700_000_000_000
SINGLE = 1e-6
"""Relative: how far sums of a few dozen numbers in single precision may lie apart, added in two orders."""
LEAST = 1.2e-38
"""Absolute: single precision's least number of full precision. What has faded below, after 90 days at a half-life of one, has fewer digits."""
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
FEATURES = FeatureSet(read_declarations(None))

Delivery = tuple[Event, int, int]
"""(event, partition, offset)."""


def event(n: object, name: str = "view_item", item: str = "a", time_ms: int = T0, shopper: str = "s", **fields: Any) -> Event:
    """Of one item, described by `fields`; of none where `item` is empty."""
    items = (EventItem(item_id=item, **fields),) if item else ()
    return Event(event_id=f"e{n}", event_name=name, shopper=shopper, time_ms=time_ms, items=items)  # type: ignore[arg-type]


def login(n: object, person: str, time_ms: int, shopper: str = "s") -> Event:
    return Event(event_id=f"e{n}", event_name="login", shopper=shopper, time_ms=time_ms, link_to=person)


class Rows:
    """Every row that a log folds into; handovers that agents would send to their persons' partitions wait in `handovers`."""

    def __init__(self, features: FeatureSet = FEATURES) -> None:
        self.features, self.fold = features, Fold(features)
        self.shoppers: dict[str, ShopperRow] = {}
        self.items: dict[tuple[str, int], ItemRow] = {}
        self.handovers: list[Event] = []
        self.outcomes: Counter[str] = Counter()

    def take(self, event: Event, partition: int = 0, offset: int | None = None) -> Said:
        """Fold one delivery; by default the next of its shopper's row."""
        row = self.shoppers.setdefault(event.shopper, self.features.shopper(event.shopper))
        offset = row.offset + 1 if offset is None else offset
        said = self.fold.shopper(row, event, partition, offset)
        self.outcomes[said.outcome] += 1
        if said.state is not None:
            state = msgspec.json.decode(msgspec.json.encode(said.state), type=ShopperRow)  # as it comes out of the log
            handover = Handover(id=f"{partition}@{offset}", states={self.features.version: state})
            self.handovers.append(
                Event(
                    event_id=f"handover-{handover.id}",
                    event_name="login",
                    shopper=said.to,
                    time_ms=event.time_ms,
                    handover=handover,
                )
            )
        for touch in said.touches:
            into = self.items.setdefault((touch.item, partition), self.features.item(touch.item, partition))
            self.fold.item(into, touch, event.event_name, self.fold.item_weights(event), offset)
        return said

    def take_all(self, deliveries: Iterable[Delivery]) -> "Rows":
        for delivery in deliveries:
            self.take(*delivery)
        return self

    def bits(self) -> bytes:
        """All rows, the order within their lists and maps included: equal exactly when the rows are, bit for bit."""
        return bits([*sorted(self.shoppers.items()), *sorted(self.items.items())])

    def reread(self) -> "Rows":
        """These rows as another worker finds them in the store: through the bytes that are written there."""
        other = Rows(FeatureSet(self.features.declared))
        other.shoppers = {name: reread_shopper(self.features, row) for name, row in self.shoppers.items()}
        other.items = {key: reread_item(self.features, row) for key, row in self.items.items()}
        return other


def bits(value: object) -> bytes:
    return msgspec.json.encode(value)


def stored_view(spec: ViewSpec) -> View:
    return View(spec.name, spec.keys, tuple((name, kind) for name, kind, _ in spec.fields), spec.compressed)


def reread_shopper(features: FeatureSet, row: ShopperRow) -> ShopperRow:
    return features.shopper_row(row.shopper, _reread(features.shopper_view, features.shopper_values, row))


def reread_item(features: FeatureSet, row: ItemRow) -> ItemRow:
    return features.item_row(row.item, row.partition, _reread(features.item_view, features.item_values, row))


def _reread(spec: ViewSpec, values: Callable[[Any], list[Any]], row: object) -> list[Any]:
    view = stored_view(spec)
    return unpack(view, pack(view, 0, 0, 0, values(row))).values


def one_shopper(events: Iterable[Event], features: FeatureSet = FEATURES) -> ShopperRow:
    """The row of the events' one shopper."""
    rows = Rows(features)
    for one in events:
        rows.take(one)
    (row,) = rows.shoppers.values()
    return row


def counts(features: FeatureSet, row: ShopperRow, feature: str = "activity", time_ms: int | None = None) -> dict[str, float]:
    """Event name → decayed count of the first half-life of a decayed_count, valued at the row's latest event or at `time_ms`."""
    at = row.time_ms if time_ms is None else time_ms
    scale = features.shopper_half_lives.scale(np.asarray(row.time_ms), at)
    slots = features.shopper_slots[feature]
    first = [slot for slot in slots if slot.half_life == slots[0].half_life]
    return {slot.event: float(row.numbers[slot.at] * scale[slot.half_life]) for slot in first if row.numbers[slot.at]}


def item_numbers(features: FeatureSet, row: ItemRow, time_ms: int) -> list[float]:
    """A row's counts in their order, valued at `time_ms`."""
    scale = features.item_half_lives.scale(np.asarray(row.time_ms), time_ms)
    slots = [slot for of_feature in features.item_slots.values() for slot in of_feature]
    return [float(row.numbers[slot.at] * scale[slot.half_life]) for slot in slots]


def item_neighbours(features: FeatureSet, row: ItemRow, time_ms: int) -> dict[str, float]:
    scale = features.item_half_lives.scale(np.asarray(row.time_ms), time_ms)
    factor = scale[features.half_life_at(features.item_half_lives, features.covisit.half_life)]
    return {item: float(weight * factor) for item, weight in row.neighbours.items()}
