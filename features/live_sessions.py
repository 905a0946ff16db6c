"""Sessions as they go on, item by item, over the rows of one catalog: what shoppers are looking at now, for those who look at the same."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.catalog import UNKNOWN, Catalog, Rows
from features.events import ENGAGEMENT, Event
from features.sessions import Floats, SessionIndex

IDLE_MS = 30 * 60_000  # without an event a session ends, GA4's default; where frontends name sessions, another name ends it too


class _Running(NamedTuple):
    number: int
    name: str
    time_ms: int
    row: int


class LiveSessions:
    """The `capacity` sessions that began last. For one thread, the catalog's."""

    def __init__(self, catalog: Catalog, capacity: int) -> None:
        self._catalog, self._capacity = catalog, capacity
        self._index = SessionIndex(capacity)
        self._began = 0
        self._running: OrderedDict[str, _Running] = OrderedDict()  # by shopper, the latest last

    def __len__(self) -> int:
        return len(self._index)

    def see(self, event: Event) -> None:
        """In the order of a shopper's events. The same item twice in a row (looked at, then put into the cart) counts once; an item that the
        catalog has no row for is passed over."""
        if event.event_name not in ENGAGEMENT:
            return
        running = self._running.get(event.shopper)
        if running is None or running.name != event.session or event.time_ms - running.time_ms > IDLE_MS:
            running = _Running(self._began, event.session, event.time_ms, UNKNOWN)
            self._began += 1
        number, name, time_ms, row = running
        time_ms = max(time_ms, event.time_ms)
        for item in event.items:
            at = self._catalog.find(item.item_id)
            if at not in (UNKNOWN, row):
                self._index.see(number, at + 1, time_ms / 1000)
                row = at
        self._running[event.shopper] = _Running(number, name, time_ms, row)
        self._running.move_to_end(event.shopper)
        if len(self._running) > self._capacity:
            self._running.popitem(last=False)

    def led_to(self, items: Sequence[str], time_ms: int) -> tuple[Rows, Floats]:
        """Rows that sessions with `items` (latest first) in common went on to, without `items` themselves, and their weights."""
        known = [at for item in items[: self._index.weights.query] if (at := self._catalog.find(item)) != UNKNOWN]
        found, weights = self._index.neighbours([at + 1 for at in reversed(known)], time_ms / 1000)
        rows: Rows = found - 1
        weights[self._catalog.among(rows, np.array(known, dtype=np.int32))] = 0.0
        return rows, weights
