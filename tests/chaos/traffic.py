"""The seeded stream: what is sent, in which request, and what must become of it. Pure: the clock is passed in."""

import json
import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any, NamedTuple

SHOPPERS = 3_000
HEAVY_SHOPPERS = 4  # bots and reload addicts: rows at their limits, and more events between two re-sends than a row remembers
HEAVY_SHARE = 0.12
PERSONS = 800  # who sign in, from any browser: fewer than browsers, so that several hand over to one, and one to several
SIGNED_IN_SHARE = 0.15  # of events that name the person
ITEMS = 2_000
ZIPF = 1.1  # exponent of item popularity; shop logs lie between 0.9 and 1.2
DUPLICATE_SHARE = 0.03
DUPLICATE_SOON_MAX = 50  # events: half of the re-sends come this soon, the others anywhere later
INVALID_SHARE = 0.02
REQUEST_EVENTS_MAX = 30
OUT_OF_ORDER_REQUESTS = 8  # requests are shuffled within windows of this many
SPAN_MS = 3_600_000  # event time that the stream covers: short against every half-life, so that weights count events
JITTER_MS = 5_000
LATE_SHARE = 0.01
LATE_MAX_MS = 1_800_000


class Wire(NamedTuple):
    """One event as it is sent."""

    event_id: str
    json: str
    reason: str = ""
    """Why the collector must refuse it; empty: it must accept it."""
    again: bool = False
    """A re-send of an event sent before."""


class Request(NamedTuple):
    """One body; `events` in its order."""

    body: bytes
    events: tuple[Wire, ...]


class _Shop:
    """Draws shoppers, items and events."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._popularity = list(accumulate(1 / rank**ZIPF for rank in range(1, ITEMS + 1)))

    def shopper(self) -> str:
        if self.rng.random() < HEAVY_SHARE:
            return f"heavy-{self.rng.randrange(HEAVY_SHOPPERS)}"
        return f"shopper-{self.rng.randrange(SHOPPERS)}"

    def items(self, count: int) -> list[dict[str, Any]]:
        picked = self.rng.choices(range(ITEMS), cum_weights=self._popularity, k=count)
        return [
            {"item_id": f"i{n}", "item_category": f"c{n % 23}", "item_brand": f"b{n % 41}", "price": 1.0 + n % 97} for n in picked
        ]

    def event(self) -> dict[str, Any]:
        """Name, shopper and items of a valid event."""
        (make,) = self.rng.choices([kind for _, kind in KINDS], weights=[weight for weight, _ in KINDS])
        made = make(self)
        if made["name"] != "login" and self.rng.random() < SIGNED_IN_SHARE:
            return {"user_id": self.person(), **made}
        return {"client_id": self.shopper(), **made}

    def person(self) -> str:
        return f"person-{self.rng.randrange(PERSONS)}"


def _one_item(name: str) -> Callable[[_Shop], dict[str, Any]]:
    return lambda shop: {"name": name, "items": shop.items(1)}


KINDS: list[tuple[float, Callable[[_Shop], dict[str, Any]]]] = [
    (0.50, _one_item("view_item")),
    (0.15, _one_item("select_item")),
    (0.14, lambda shop: {"name": "view_item_list", "items": shop.items(shop.rng.randint(2, 12))}),
    (0.10, _one_item("add_to_cart")),
    (0.03, _one_item("remove_from_cart")),
    (0.03, lambda shop: {"name": "purchase", "items": shop.items(shop.rng.randint(1, 4)), "transaction_id": "t"}),
    (0.03, lambda shop: {"name": "view_search_results", "search_term": "tent"}),
    (0.02, lambda shop: {"name": "login", "user_id": shop.person()}),
]
"""What shoppers do: share of the valid events, and what such an event holds besides id, shopper and time. Add kinds here."""

INVALID: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "missing_field": lambda event: event | {"name": "view_item", "items": []},
    "unknown_event_name": lambda event: event | {"name": "look_at"},
    "wrong_type": lambda event: event | {"items": "i1"},
    "out_of_range": lambda event: event | {"name": "view_item", "items": [{"item_id": "i1", "price": -1}]},
    "too_long": lambda event: event | {"name": "view_item", "items": [{"item_id": "i" * 200}]},
    "in_the_future": lambda event: event | {"timestamp_micros": event["timestamp_micros"] + 86_400_000_000},
}
"""Reason → a valid event made refusable for it."""


def requests(seed: int, count: int, start_ms: int) -> list[Request]:
    """`count` events in requests, in the order they are to be sent. Event times begin at `start_ms` and cover SPAN_MS."""
    rng = random.Random(seed)
    shop = _Shop(rng)
    due: list[tuple[int, Wire]] = []  # re-sends, by position
    stream: list[Wire] = []
    while len(stream) < count:
        here = len(stream)
        if due and due[0][0] <= here:
            stream.append(heappop(due)[1])
            continue
        wire = _wire(shop, f"{seed}-{here}", start_ms + here * SPAN_MS // count)
        stream.append(wire)
        if not wire.reason and rng.random() < DUPLICATE_SHARE:
            soon = rng.random() < 0.5
            at = here + rng.randint(1, DUPLICATE_SOON_MAX) if soon else rng.randint(here, count)
            heappush(due, (at, wire._replace(again=True)))
    bodies = list(_in_bodies(stream, rng))
    for start in range(0, len(bodies), OUT_OF_ORDER_REQUESTS):
        window = bodies[start : start + OUT_OF_ORDER_REQUESTS]
        rng.shuffle(window)
        bodies[start : start + OUT_OF_ORDER_REQUESTS] = window
    return bodies


def _wire(shop: _Shop, event_id: str, now_ms: int) -> Wire:
    rng = shop.rng
    late_ms = rng.randrange(LATE_MAX_MS) if rng.random() < LATE_SHARE else rng.randrange(JITTER_MS)
    event = {"event_id": event_id, "timestamp_micros": (now_ms - late_ms) * 1000, **shop.event()}
    if rng.random() >= INVALID_SHARE:
        return Wire(event_id, json.dumps(event))
    reason = rng.choice([*INVALID, "invalid_json"])
    if reason == "invalid_json":
        return Wire(event_id, json.dumps(event)[:-1], reason)
    return Wire(event_id, json.dumps(INVALID[reason](event)), reason)


def _in_bodies(stream: list[Wire], rng: random.Random) -> list[Request]:
    """Arrays of several shoppers' events, as a backend sends them. What is no JSON would take its array with it: it goes alone."""
    bodies, batch = [], list[Wire]()
    size = rng.randint(1, REQUEST_EVENTS_MAX)
    for wire in [*stream, None]:
        alone = wire is not None and wire.reason == "invalid_json"
        if batch and (wire is None or alone or len(batch) >= size):
            bodies.append(Request(f"[{','.join(w.json for w in batch)}]".encode(), tuple(batch)))
            batch, size = [], rng.randint(1, REQUEST_EVENTS_MAX)
        if alone and wire:
            bodies.append(Request(wire.json.encode(), (wire,)))
        elif wire:
            batch.append(wire)
    return bodies
