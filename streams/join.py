"""FEEDBACK → EXAMPLE, the pure part: impressions joined with what the shopper did next.

One `Join` holds one partition of `clickstream` and the same partition of `impressions`. Labels depend on event time only; *when* an
impression closes depends on the broker's append time, so a shopper's wrong clock cannot close anybody's window early. Records may be
fed in any interleaving of the two topics: the examples are the same, because nothing closes until both topics have been read past
the window's end.

An event belongs to the shelf whose request id it carries, else to the latest shelf within the window that showed its item.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from streams.records import Event, Example, Impression

CLICK_EVENTS = frozenset({"select_item", "view_item"})
CART_EVENTS = frozenset({"add_to_cart"})
PURCHASE_EVENTS = frozenset({"purchase"})
LABEL_EVENTS = CLICK_EVENTS | CART_EVENTS | PURCHASE_EVENTS
GRACE_MS = 2_000  # an event is posted within about a second of happening; later ones count as late and label nothing

Token = TypeVar("Token")


@dataclass
class _Shopper:
    impressions: list[Impression] = field(default_factory=list)
    """Still open, in append order."""
    events: list[tuple[int, Event]] = field(default_factory=list)
    """(append time, event), in append order."""


@dataclass
class Closed(Generic[Token]):
    """What may go: `examples` are to be produced, then `tokens` (of records no longer needed) to be committed, oldest first."""

    examples: list[Example]
    tokens: list[Token]
    sources: list[list[str]]
    """Candidate sources of each example's items."""
    purchases: list[Event]
    """No open impression needs them any more: those that no example counted came too late (see `streams.late`)."""


class Join(Generic[Token]):
    """Pending impressions and recent events of one partition. Tokens are the caller's handles of records (for commits)."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._shoppers: dict[str, _Shopper] = {}
        self._impressions: deque[tuple[int, Impression, Token]] = deque()
        self._events: deque[tuple[int, Event, Token]] = deque()
        self.impressions_ms = 0
        """Append time up to which `impressions` was read; `events_ms` likewise for `clickstream`."""
        self.events_ms = 0

    def __len__(self) -> int:
        return len(self._impressions)

    def add_impression(self, impression: Impression, appended_ms: int, token: Token) -> None:
        self.impressions_ms = max(self.impressions_ms, appended_ms)
        self._impressions.append((appended_ms, impression, token))
        self._shoppers.setdefault(impression.shopper, _Shopper()).impressions.append(impression)

    def add_event(self, event: Event, appended_ms: int, token: Token) -> None:
        self.events_ms = max(self.events_ms, appended_ms)
        self._events.append((appended_ms, event, token))
        if event.event_name in LABEL_EVENTS:
            self._shoppers.setdefault(event.shopper, _Shopper()).events.append((appended_ms, event))

    def caught_up(self, now_ms: int) -> None:
        """Both topics are read to their ends at broker time `now_ms`: an idle shop's windows close too."""
        self.impressions_ms = max(self.impressions_ms, now_ms)
        self.events_ms = max(self.events_ms, now_ms)

    def close(self) -> Closed[Token]:
        """Close the impressions whose window is over, and drop the events that can label nothing any more."""
        read_ms = min(self.impressions_ms, self.events_ms)
        over_ms = read_ms - self._window_ms - GRACE_MS
        examples: list[Example] = []
        tokens: list[Token] = []
        sources: list[list[str]] = []
        purchases: list[Event] = []
        while self._impressions and self._impressions[0][0] < over_ms:
            appended_ms, impression, token = self._impressions.popleft()
            examples.append(self._example(impression, appended_ms))
            tokens.append(token)
            sources.append(impression.sources)
            self._shoppers[impression.shopper].impressions.remove(impression)
            self._tidy(impression.shopper)
        # An impression still open was appended at or after over_ms; an event appended a window before that precedes it.
        while self._events and self._events[0][0] < over_ms - self._window_ms:
            _, event, token = self._events.popleft()
            tokens.append(token)
            if event.event_name in LABEL_EVENTS:
                self._shoppers[event.shopper].events.pop(0)
                self._tidy(event.shopper)
            if event.event_name in PURCHASE_EVENTS:
                purchases.append(event)
        return Closed(examples, tokens, sources, purchases)

    def _example(self, impression: Impression, appended_ms: int) -> Example:
        shopper = self._shoppers[impression.shopper]
        clicked, carted, purchased = ([0] * len(impression.items) for _ in range(3))
        position = {item: at for at, item in enumerate(impression.items)}
        for event_appended_ms, event in shopper.events:
            if event_appended_ms > appended_ms + self._window_ms + GRACE_MS:
                break  # late, however far ahead of the close the log was read
            for item in event.items:
                at = position.get(item.item_id)
                if at is None or self._shelf_of(event, item.item_id, shopper) != impression.request_id:
                    continue
                # Who carts or buys from a shelf has also followed it.
                clicked[at] = 1
                if event.event_name in CART_EVENTS | PURCHASE_EVENTS:
                    carted[at] = 1
                if event.event_name in PURCHASE_EVENTS:
                    purchased[at] = 1
        return Example(
            request_id=impression.request_id,
            shopper=impression.shopper,
            time_ms=impression.time_ms,
            placement=impression.placement,
            model_version=impression.model_version,
            items=impression.items,
            propensities=impression.propensities,
            features=impression.features,
            clicked=clicked,
            carted=carted,
            purchased=purchased,
        )

    def _shelf_of(self, event: Event, item: str, shopper: _Shopper) -> str:
        if event.request_id:
            return event.request_id
        shelves = [
            impression
            for impression in shopper.impressions
            if 0 <= event.time_ms - impression.time_ms <= self._window_ms and item in impression.items
        ]
        return max(shelves, key=lambda shelf: (shelf.time_ms, shelf.request_id)).request_id if shelves else ""

    def _tidy(self, name: str) -> None:
        shopper = self._shoppers[name]
        if not shopper.events and not shopper.impressions:
            del self._shoppers[name]
