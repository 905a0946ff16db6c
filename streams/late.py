"""FEEDBACK → EXAMPLE, what came too late: purchases of what was clicked on a shelf whose example is made already. Pure.

Such an example says of the item that it was not bought. The purchase makes one more, with the same features, that says it was, and nothing else
(every other label is unknown). So the model first learns a false negative, and then the positive: as in "fake negative weighted" of
Ktena et al. (2019, "Addressing delayed feedback for continuous training with neural networks in CTR prediction", section 3.2) without
its weights, by which a chance p is learnt as p / (1 + p). At the few percent that purchases have, that is off by a few percent of itself.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from features.events import Event
from streams.records import UNKNOWN, Example

SHELVES_MAX = 100_000
"""Of one partition, the latest, some 500 bytes each."""


class Clicks(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What of an example is remembered: the rest of the record is skipped and not parsed."""

    v: Literal[1] = 1
    request_id: str
    late: str = ""
    shopper: str
    time_ms: int
    items: list[str]
    clicked: list[int]
    purchased: list[int]


class Late(NamedTuple):
    """What a purchase adds to the example at `offset` of the same partition of `training-examples`."""

    offset: int
    event_id: str
    items: list[str]


@dataclass(slots=True)
class _Shelf:
    request_id: str
    shopper: str
    time_ms: int
    offset: int
    bought: dict[str, bool]
    """By item clicked."""


class Bought:
    """The shelves of one partition that were clicked on within the last `span_ms` of event time, and what of them was bought."""

    def __init__(self, span_ms: int) -> None:
        self._span_ms = span_ms
        self._latest_ms = 0
        self._order: deque[_Shelf] = deque()
        self._shoppers: dict[str, dict[str, _Shelf]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def note(self, example: Example | Clicks, offset: int) -> None:
        """`example` stands at `offset`. One that stands there twice, after a crash, is known by its first."""
        self._latest_ms = max(self._latest_ms, example.time_ms)
        known = self._shoppers.get(example.shopper, {}).get(example.request_id)
        if known is not None:
            known.bought.update({item: True for item, bought in zip(example.items, example.purchased, strict=True) if bought == 1})
            return
        by_item = zip(example.items, example.clicked, example.purchased, strict=True)
        clicked = {item: bought == 1 for item, clicked, bought in by_item if clicked == 1}
        if not clicked or example.late:
            return
        shelf = _Shelf(example.request_id, example.shopper, example.time_ms, offset, clicked)
        self._order.append(shelf)
        self._shoppers.setdefault(example.shopper, {})[example.request_id] = shelf
        self._forget()

    def buy(self, purchase: Event) -> list[Late]:
        """What `purchase` adds, shelf by shelf; nothing where it was counted in time. An item belongs to the shelf that the event names, else
        to the latest on which it was clicked."""
        shelves = self._shoppers.get(purchase.shopper, {})
        late: dict[str, Late] = {}
        for item in dict.fromkeys(one.item_id for one in purchase.items):
            shelf = self._shelf_of(purchase, item, shelves)
            if shelf is not None and not shelf.bought[item]:
                shelf.bought[item] = True
                late.setdefault(shelf.request_id, Late(shelf.offset, purchase.event_id, [])).items.append(item)
        return list(late.values())

    def _shelf_of(self, purchase: Event, item: str, shelves: dict[str, _Shelf]) -> _Shelf | None:
        if purchase.request_id:
            named = shelves.get(purchase.request_id)
            return named if named is not None and item in named.bought else None
        within = [s for s in shelves.values() if item in s.bought and 0 <= purchase.time_ms - s.time_ms <= self._span_ms]
        return max(within, key=lambda shelf: (shelf.time_ms, shelf.request_id), default=None)

    def _forget(self) -> None:
        while self._order and (self._latest_ms - self._order[0].time_ms > self._span_ms or len(self._order) > SHELVES_MAX):
            old = self._order.popleft()
            shelves = self._shoppers[old.shopper]
            del shelves[old.request_id]
            if not shelves:
                del self._shoppers[old.shopper]


def corrected(example: Example, late: Late) -> Example:
    """`example` as the one more that `late` makes of it."""
    bought = [item in late.items for item in example.items]
    return msgspec.structs.replace(
        example,
        late=late.event_id,
        clicked=[UNKNOWN] * len(bought),
        carted=[1 if now and not before else UNKNOWN for now, before in zip(bought, example.carted, strict=True)],
        purchased=[1 if now else UNKNOWN for now in bought],
    )
