"""Some days of past traffic, made at once: visits to a shop that has no recommender yet."""

from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from liveshelf.simulator.browsers import browse, sign_in
from liveshelf.simulator.shop import Floats, Shop
from liveshelf.simulator.visits import Identity, Page, Shelf, SimulatedEvent, merchandised, to_event

DAY_MS = 24 * 3_600_000
START_MS = 1_700_000_000_000  # when the shop opens to visitors, where nothing else is real time; the history lies before
VISITS_PER_SHOPPER_DAY = 0.7  # 400 shoppers over a week make 1,960 visits and about 18,000 events
# Share of visits by hour of the day before "now": quiet in the middle, busy at both ends, so that decay and trends have a shape.
HOURS: Floats = 1.0 + 0.6 * np.cos(2.0 * np.pi * (np.arange(24) + 0.5) / 24.0)


def history(shop: Shop, days: float, sign_in_share: float = 0.0) -> list[SimulatedEvent]:
    """`days` of events in order of event time; their times count from the last event (0) backwards.

    `sign_in_share` of members' visits begin anonymously; what everybody wants and does stays the same.
    """
    rng = np.random.default_rng([shop.seed, 2])
    count = max(1, round(len(shop.shoppers) * days * VISITS_PER_SHOPPER_DAY))
    starts = np.sort(-days + moments(rng, count, days))
    visitors = rng.choice(len(shop.shoppers), size=count, p=shop.activity)
    events: list[SimulatedEvent] = []
    for number, (day, shopper) in enumerate(zip(starts.tolist(), visitors.tolist(), strict=True)):
        own = np.random.default_rng([shop.seed, 3, number])
        time_ms, session_id = day * DAY_MS, f"h{shop.seed}-{number:06d}"
        plan = sign_in(shop, shopper, sign_in_share, np.random.default_rng([shop.seed, 7, number]))
        shelf = _whoever_asks(merchandised(shop, own))
        for n, (action, who) in enumerate(browse(shop, shopper, day, own, shelf, plan)):
            time_ms += action.after_s * 1_000.0
            events.append(to_event(shop, shopper, action, session_id=session_id, number=n, time_ms=int(time_ms), who=who))
    events.sort(key=lambda event: (event.timestamp_micros, event.event_id))
    return shifted(events, -events[-1].timestamp_micros // 1_000) if events else []


def _whoever_asks(shelf_for: Callable[[Page], Shelf]) -> Callable[[Page, Identity], Shelf]:
    return lambda page, who: shelf_for(page)


def shifted(events: Iterable[SimulatedEvent], by_ms: int) -> list[SimulatedEvent]:
    """The same events, `by_ms` later."""
    return [msgspec.structs.replace(event, timestamp_micros=event.timestamp_micros + by_ms * 1_000) for event in events]


def moments(rng: np.random.Generator, count: int, days: float) -> Floats:
    """float [count]: moments in [0, days), denser in the busy hours."""
    hours = rng.choice(24, size=count, p=HOURS / HOURS.sum()) + rng.random(count)
    whole = rng.integers(0, max(1, int(np.ceil(days))), count)
    return np.asarray((whole + hours / 24.0) % days)
