"""Proposes a feature settings file from a sample of a shop's events, and says why each entry is as it is. Pure."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import log2
from statistics import median
from typing import NamedTuple

from features.declarations import milliseconds
from features.events import ENGAGEMENT, EVENT_NAMES, Event
from features.fold import field_value
from liveshelf.errors import SettingsError

EVENTS_MIN = 20
"""Below, distributions say nothing at all. A few thousand say something."""
FIELD_SHARE_MIN = (
    0.2  # of the items that shoppers wanted; a field that is there less often says more about the feed than about taste
)
LIFT_MIN = 1.1
"""How much likelier a shopper's next item has the value of the one before than chance has it. At 1 the field does not tell shoppers apart."""
IDLE = ("10m", "15m", "20m", "30m", "45m", "1h", "2h", "4h")
LENGTHS = ("1h", "2h", "3h", "6h", "12h", "1d", "2d", "3d", "5d", "7d", "14d", "21d", "30d")
DEFAULT_IDLE, DEFAULT_SHORT, DEFAULT_LONG, DEFAULT_ITEM = "30m", "1d", "14d", "3d"
GAPS_MIN = 30  # of a kind, before their distribution decides anything
RATES = (
    ("click_rate", "select_item", "view_item_list"),
    ("cart_rate", "add_to_cart", "view_item"),
    ("conversion", "purchase", "view_item"),
)
PRIOR = 20.0  # showings that a new item is taken to have had, at the shop's own rate
FIELDS = (("category", "item_category"), ("brand", "item_brand"), ("price", "price_band"))
SEQUENCE_MIN, SEQUENCE_MAX = 5, 50
"""Below, the model's attention has nothing to choose from; beyond, measured gains end and rows grow."""


class Choice(NamedTuple):
    """A value, and why it is that."""

    value: str
    why: str


class _Seen(NamedTuple):
    """What the sample is made of. Times in ms."""

    events: Counter[str]
    mentions: Counter[str]
    """Items named, by event name."""
    shoppers: int
    items: int
    span_ms: int
    wanted: list[list[Event]]
    """By shopper, in order of time: events that say the shopper wants an item."""
    gaps: list[int]
    """Between a shopper's events."""
    item_gaps: list[int]
    """Between an item's events."""


def suggest(events: Sequence[Event], source: str) -> str:
    """The text of a settings file for `events`; `source` names them in its comments.

    Raises:
        SettingsError: there are too few, or none that says what a shopper wants.
    """
    if len(events) < EVENTS_MIN:
        raise SettingsError(f"{source} holds {len(events)} valid events, at least {EVENTS_MIN} are needed; a few thousand say more")
    seen = _look(events)
    engaging = [name for name in EVENT_NAMES if name in ENGAGEMENT and seen.events[name]]
    if not engaging:
        found = ", ".join(seen.events)
        raise SettingsError(
            f"{source} holds no event that says what a shopper wants ({', '.join(ENGAGEMENT)}), only: {found}. "
            "Is it a sample of all events?"
        )
    idle = _idle(seen)
    short, long = _half_lives(seen, milliseconds(idle.value))
    item = _item_half_life(seen)
    lines = [*_head(seen, source, engaging), *_shopper_side(seen, engaging, idle, short, long)]
    affinities = _affinities(seen, engaging, long)
    lines += [line for _, entry in affinities for line in entry]
    lines += _item_side(seen, engaging, item)
    for name, _ in affinities:
        lines += _entry(
            "share of that affinity that the candidate holds", name=f"{name}_match", kind="match", affinity=f"{name}_affinity"
        )
    lines += _entry(
        "known when learning, 0 when serving: takes the advantage of first places out", name="shown_at", kind="position"
    )
    return "\n".join(lines).rstrip() + "\n"


def _look(events: Sequence[Event]) -> _Seen:
    by_shopper: dict[str, list[Event]] = defaultdict(list)
    times: dict[str, list[int]] = defaultdict(list)
    mentions: Counter[str] = Counter()
    for event in events:
        by_shopper[event.shopper].append(event)
        mentions[event.event_name] += len(event.items)
        if event.event_name in ENGAGEMENT:
            for item in event.items:
                times[item.item_id].append(event.time_ms)
    for of_shopper in by_shopper.values():
        of_shopper.sort(key=lambda event: event.time_ms)
    span = [event.time_ms for event in events]
    return _Seen(
        Counter(event.event_name for event in events),
        mentions,
        len(by_shopper),
        len({item.item_id for event in events for item in event.items}),
        max(span) - min(span),
        [wanted for of in by_shopper.values() if (wanted := [e for e in of if e.event_name in ENGAGEMENT and e.items])],
        [gap for of in by_shopper.values() for gap in _gaps([event.time_ms for event in of])],
        [gap for of in times.values() for gap in _gaps(sorted(of))],
    )


def _gaps(times: Sequence[int]) -> Iterable[int]:
    return (after - before for before, after in itertools.pairwise(times) if after > before)


def _idle(seen: _Seen) -> Choice:
    """The length at which gaps are rarest: shorter ones are within a visit, longer ones between two."""
    between = [gap for gap in seen.gaps if milliseconds(IDLE[0]) / 2 <= gap <= 2 * milliseconds(IDLE[-1])]
    if len(seen.gaps) < GAPS_MIN:
        return Choice(DEFAULT_IDLE, f"only {len(seen.gaps)} gaps between events of a shopper: web analytics' usual {DEFAULT_IDLE}")
    near = {length: sum(abs(log2(gap / milliseconds(length))) < 0.5 for gap in between) for length in IDLE}
    fewest = min(near.values())
    # Among equals the one nearest to the usual 30 minutes.
    value = min((n for n in IDLE if near[n] == fewest), key=lambda n: abs(log2(milliseconds(n) / milliseconds(DEFAULT_IDLE))))
    within = sum(gap <= milliseconds(value) for gap in seen.gaps) / len(seen.gaps)
    return Choice(value, f"gaps are rarest there; {within:.0%} of {len(seen.gaps):,} gaps between a shopper's events are shorter")


def _half_lives(seen: _Seen, idle_ms: int) -> tuple[Choice, Choice]:
    """A short half-life for the day's mood, and a long one that bridges the time until shoppers come back."""
    returns = [gap for gap in seen.gaps if gap > idle_ms]
    if len(returns) < GAPS_MIN:
        why = f"only {len(returns)} returns in the sample, too few to measure: a day, and two weeks"
        return Choice(DEFAULT_SHORT, why), Choice(DEFAULT_LONG, why)
    typical = median(returns)
    long = _nearest(2 * typical, at_least="1d")
    short = _nearest(milliseconds(long) / 14, at_most=DEFAULT_SHORT)
    why = f"half of {len(returns):,} returns come within {_spoken(typical)}; twice that keeps a shopper known until then"
    return Choice(short, f"a fourteenth of {long}, for the mood of the day"), Choice(long, why)


def _item_half_life(seen: _Seen) -> Choice:
    if len(seen.item_gaps) < GAPS_MIN:
        return Choice(
            DEFAULT_ITEM, f"only {len(seen.item_gaps)} gaps between events of an item, too few to measure: {DEFAULT_ITEM}"
        )
    typical = median(seen.item_gaps)
    value = _nearest(10 * typical, at_least="6h", at_most="14d")
    return Choice(value, f"an item's events come {_spoken(typical)} apart (median): about ten of them count at a time")


def _nearest(ms: float, at_least: str = LENGTHS[0], at_most: str = LENGTHS[-1]) -> str:
    allowed = [n for n in LENGTHS if milliseconds(at_least) <= milliseconds(n) <= milliseconds(at_most)]
    return min(allowed, key=lambda n: abs(log2(max(ms, 1) / milliseconds(n))))


def _spoken(ms: float) -> str:
    unit, size = next(((u, s) for u, s in (("days", 86_400_000), ("h", 3_600_000), ("min", 60_000)) if ms >= s), ("s", 1_000))
    return f"{ms / size:.1f} {unit}"


def _head(seen: _Seen, source: str, engaging: list[str]) -> list[str]:
    counts = ", ".join(f"{name} {count:,}" for name, count in seen.events.most_common())
    return [
        f"# Proposed from {source}: {sum(seen.events.values()):,} events of {seen.shoppers:,} shoppers on {seen.items:,} items",
        f"# over {_spoken(seen.span_ms)}.",
        f"# {counts}",
        "# Look it over, then: `liveshelf features check THIS --sample SAMPLE`, `liveshelf features rebuild --file THIS`.",
        "",
        "features:",
    ]


def _shopper_side(seen: _Seen, engaging: list[str], idle: Choice, short: Choice, long: Choice) -> list[str]:
    lengths = sorted(len(wanted) for wanted in seen.wanted)
    ninth = lengths[min(len(lengths) * 9 // 10, len(lengths) - 1)]
    n = min(max(ninth, SEQUENCE_MIN), SEQUENCE_MAX)
    lines = _entry(
        f"nine shoppers of ten have at most {ninth} such events here; kept between {SEQUENCE_MIN} and {SEQUENCE_MAX}",
        name="recent", kind="last_n", n=n, events=engaging,
    )  # fmt: skip
    counted = [name for name in EVENT_NAMES if name != "login" and seen.events[name]]
    half_lives = list(dict.fromkeys([short.value, long.value]))
    lines += _entry(
        f"{short.value}: {short.why}. {long.value}: {long.why}",
        name="activity", kind="decayed_count", entity="shopper", events=counted, half_lives=half_lives,
    )  # fmt: skip
    timed = [name for name in ("view_item", "select_item", "add_to_cart", "purchase") if seen.events[name]]
    lines += _entry("the latest of each", name="since", kind="recency", events=timed)
    return lines + _entry(idle.why, name="visit", kind="session", idle=idle.value)


def _affinities(seen: _Seen, engaging: list[str], long: Choice) -> list[tuple[str, list[str]]]:
    out: list[tuple[str, list[str]]] = []
    for name, field in FIELDS:
        values = [[field_value(item, field) for event in wanted for item in event.items] for wanted in seen.wanted]
        there = [value for of_shopper in values for value in of_shopper if value]
        share = len(there) / max(sum(map(len, values)), 1)
        if share < FIELD_SHARE_MIN or len(set(there)) < 2:
            continue
        lift = _lift(seen.wanted, field, Counter(there))
        if lift is not None and lift < LIFT_MIN:
            continue
        tells = "too few pairs to measure whether it tells" if lift is None else f"{lift:.1f} times as likely as by chance"
        why = f"{field} stands on {share:.0%} of the items, {len(set(there)):,} values; a shopper's next item has the same: {tells}"
        weights = {event: int(ENGAGEMENT[event]) for event in engaging}
        half_life = long.value if milliseconds(long.value) <= milliseconds("14d") else "14d"
        entry = _entry(why, name=f"{name}_affinity", kind="affinity", field=field, half_life=half_life, weights=weights)
        out.append((name, entry))
    return out


def _lift(wanted: list[list[Event]], field: str, counts: Counter[str]) -> float | None:
    """How much likelier than chance a shopper's next, different item has the same value; None when there are too few pairs."""
    same = pairs = 0
    for of_shopper in wanted:
        firsts = [event.items[0] for event in of_shopper]
        for before, after in itertools.pairwise(firsts):
            one, other = field_value(before, field), field_value(after, field)
            if before.item_id != after.item_id and one and other:
                pairs += 1
                same += one == other
    total = sum(counts.values())
    chance = sum((count / total) ** 2 for count in counts.values())
    return same / pairs / chance if pairs >= GAPS_MIN else None


def _item_side(seen: _Seen, engaging: list[str], item: Choice) -> list[str]:
    names = ("view_item_list", "select_item", "view_item", "add_to_cart", "remove_from_cart", "purchase")
    counted = [name for name in names if seen.events[name]]
    lines = _entry(item.why, name="demand", kind="decayed_count", entity="item", events=counted, half_lives=[item.value])
    for name, of, to in RATES:
        if not seen.mentions[of] or not seen.mentions[to]:
            continue
        rate = seen.mentions[of] / seen.mentions[to]
        lines += _entry(
            f"{seen.mentions[of]:,} to {seen.mentions[to]:,} items named: {rate:.3f}; a new item starts there, with the weight of {PRIOR:g}",
            name=name, kind="rate", of=of, to=to, half_life=item.value, prior_of=round(max(rate * PRIOR, 0.001), 3), prior_to=PRIOR,
        )  # fmt: skip
    short = _nearest(milliseconds(item.value) / 12)
    if milliseconds(short) < milliseconds(item.value):
        why = f"the last {short} against {item.value}: what is rising right now"
        lines += _entry(why, name="trend", kind="trend", events=engaging, short=short, long=item.value)
    lines += _entry("candidates are found by it", name="covisit", kind="covisit", half_life=item.value)
    if any(item.price for wanted in seen.wanted for event in wanted for item in event.items):
        lines += _entry("items have prices", name="price", kind="field", field="price")
    return lines


def _entry(why: str, **fields: object) -> list[str]:
    """One feature of the file, with its reason above it."""
    lines = [f"  # {why}"]
    for at, (name, value) in enumerate(fields.items()):
        if isinstance(value, list):
            value = f"[{', '.join(value)}]"
        elif isinstance(value, dict):
            value = f"{{{', '.join(f'{key}: {of}' for key, of in value.items())}}}"
        lines.append(f"{'  - ' if not at else '    '}{name}: {value}")
    return [*lines, ""]
