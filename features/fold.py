"""The pure fold: one event into one shopper's row, and what it says about items.

The live agents, the rebuild from the log and the trainer call these functions and no others, so their rows agree. Nothing here reads
a clock, and a row depends on nothing but the records of its clickstream partition in their order.
"""

from collections.abc import Sequence
from math import frexp
from struct import Struct
from typing import NamedTuple

import mmh3
import msgspec

from features.declarations import milliseconds
from features.events import EVENT_NAMES, Event, EventItem, Handover
from features.feature_set import ID_BYTES, FeatureSet, Leaning
from features.rows import ItemRow, ShopperRow

HOUR_MS = 3_600_000
SEEN_HOURS = 49  # an event may come a day late, and be sent again for a day; the hour more covers rounding down to hours
SEEN_MAX = 2_048  # ids kept of one shopper, at 6 bytes: two hours of the most that is counted of anybody; a bot's oldest are let go
SEEN_MIN = 32  # ids kept however old: a browser that was offline sends old events, then new ones, then the old ones again
LINKS_MAX = 8  # sign-ins kept of one browser: what comes late belongs to one of the latest
MERGED_MAX = 32  # handovers kept of one person by source partition; older ones count as folded, since they come in order
NEIGHBOURS_SLACK = 16  # neighbours beyond k before the lightest are dropped: sorting once in 16 additions

FOLDED, REDELIVERED, DUPLICATE, BOUNDED = "folded", "redelivered", "duplicate", "bounded"
"""What became of an event: folded; at or below the row's offset; an id seen before; beyond `events_per_hour_max`."""


class Touch(msgspec.Struct, frozen=True, gc=False):
    """What one event says about one item: whether it counts there, and that it leads to `neighbours` with these weights."""

    item: str
    counted: bool
    neighbours: dict[str, float]


class Said(msgspec.Struct, frozen=True, gc=False):
    """What one event said. `state` is an anonymous browser's row that now belongs to the person `to`."""

    outcome: str
    touches: Sequence[Touch] = ()
    to: str = ""
    state: ShopperRow | None = None


class ItemWeights(msgspec.Struct, frozen=True, gc=False):
    """What an event at `time_ms` adds to items, in a row whose latest event lies in [since_ms, until_ms)."""

    time_ms: int
    since_ms: int
    until_ms: int
    counts: list[tuple[int, float]]
    """(place in `numbers`, weight)."""
    neighbour: float
    """What a co-visit weight of 1 counts."""


class _Plan(NamedTuple):
    """Everything that events of one name do."""

    at: int
    """Place in EVENT_NAMES."""
    counts: tuple[tuple[int, int], ...]
    """(place in the shopper's `numbers`, half-life)."""
    marks: tuple[int, ...]
    leanings: tuple[Leaning, ...]
    engaging: bool
    """The shopper wants these items: they enter the sequence, and lead to each other."""
    item_counts: tuple[tuple[int, int], ...]


_REDELIVERED, _DUPLICATE, _BOUNDED, _FOLDED = Said(REDELIVERED), Said(DUPLICATE), Said(BOUNDED), Said(FOLDED)
_NO_NEIGHBOURS: dict[str, float] = {}
_SINGLE = Struct("<f")


class Fold:
    """The fold of one feature set."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        engaging = frozenset(features.sequence.events)
        self._plans = {
            name: _Plan(
                index,
                tuple(features.shopper_counts_by_event.get(name, ())),
                tuple(features.marks_by_event.get(name, ())),
                tuple(features.leanings_by_event.get(name, ())),
                name in engaging,
                tuple(features.item_counts_by_event.get(name, ())),
            )
            for index, name in enumerate(EVENT_NAMES)
        }
        self._sessions = [(features.mark_at[s.name], milliseconds(s.idle)) for s in features.sessions]
        self._affinity_half_lives = [
            features.half_life_at(features.shopper_half_lives, affinity.half_life) for affinity in features.affinities
        ]
        self._number_half_lives = _half_life_of(features.shopper_numbers, features.shopper_slots)
        self._item_half_lives = _half_life_of(features.item_numbers, features.item_slots)
        self._covisit = features.covisit
        self._covisit_span_ms = milliseconds(features.covisit.span)
        self._covisit_half_life = features.half_life_at(features.item_half_lives, features.covisit.half_life)
        self._neighbours_max = features.covisit.k + NEIGHBOURS_SLACK

    def shopper(self, row: ShopperRow, event: Event, partition: int, offset: int) -> Said:
        """Fold `event`, read at `partition`/`offset`, into `row` in place; return what it says beyond that row.

        At or below the row's offset this is a no-op. Whoever stores rows writes what was said before the shopper's row: a crash in
        between then leaves this row as it was, a redelivered event says the same again, and item rows drop what they already hold.
        """
        if offset <= row.offset and partition == row.partition:
            return _REDELIVERED
        row.partition, row.offset = partition, offset
        if event.handover is not None:
            return self._take_over(row, event.handover)
        key, seen = event_key(event.event_id), row.seen
        if key in seen:
            return _DUPLICATE
        hour = event.time_ms // HOUR_MS
        if hour > row.hour:
            row.hour, row.hour_events = hour, 1
            _let_go(seen, hour - SEEN_HOURS)
        elif row.hour_events >= self.features.events_per_hour_max:
            return _BOUNDED
        else:
            row.hour_events += 1
        seen[key] = row.hour  # of arrival, as far as the log tells: a late event may be sent again as late
        if len(seen) > SEEN_MAX:
            del seen[next(iter(seen))]
        if event.link_to and event.link_to != event.shopper:
            return self._sign_in(row, event)
        if row.links and event.time_ms <= row.links[-1][0]:
            return self._late(row, event)
        touches = self._fold(row, event)
        return Said(FOLDED, touches) if touches else _FOLDED

    def item(self, row: ItemRow, touch: Touch, event_name: str, weights: ItemWeights, offset: int) -> bool:
        """Fold what one event says about this item into `row` in place; False when `offset` was folded already."""
        if offset <= row.offset:
            return False
        row.offset = offset
        time_ms, row_ms = weights.time_ms, row.time_ms
        if time_ms > row_ms:
            if row_ms and row_ms < weights.since_ms:
                self._rebase_item(row, time_ms)
            row.time_ms = time_ms
        elif row_ms >= weights.until_ms:
            weights = self._item_weights(event_name, time_ms, row_ms)
        if touch.counted:
            numbers = row.numbers
            for at, weight in weights.counts:
                numbers[at] += weight
        if touch.neighbours:
            unit, neighbours = weights.neighbour, row.neighbours
            for neighbour, share in touch.neighbours.items():
                neighbours[neighbour] = neighbours.get(neighbour, 0.0) + share * unit
            if len(neighbours) > self._neighbours_max:
                _keep_heaviest(neighbours, self._covisit.k)
        return True

    def item_weights(self, event: Event) -> ItemWeights:
        """What `event` weighs in item rows; made once an event."""
        return self._item_weights(event.event_name, event.time_ms, 0)

    def _item_weights(self, event_name: str, time_ms: int, row_ms: int) -> ItemWeights:
        half_lives = self.features.item_half_lives
        values = half_lives.weights(time_ms, row_ms)
        counts = [(at, values[half_life]) for at, half_life in self._plans[event_name].item_counts]
        return ItemWeights(time_ms, half_lives.since_ms, half_lives.until_ms, counts, values[self._covisit_half_life])

    def _fold(self, row: ShopperRow, event: Event) -> list[Touch] | None:
        plan, time_ms, items = self._plans[event.event_name], event.time_ms, event.items
        weights = self._advance(row, time_ms)
        numbers, marks = row.numbers, row.marks
        for at, half_life in plan.counts:
            numbers[at] = single(numbers[at] + weights[half_life])
        for at in plan.marks:
            if time_ms > marks[at]:
                marks[at] = time_ms
        engaging = plan.engaging
        if self._sessions:
            recent = row.recent_items
            changed = engaging and bool(items) and not (recent and recent[0] == items[0].item_id)
            for at, idle_ms in self._sessions:
                _visit(marks, at, idle_ms, time_ms, changed)
        if not items:
            return None
        if plan.leanings:
            self._lean(row, items, plan.leanings, weights)
        if engaging:
            return self._engage(row, items, time_ms, plan)
        if not plan.item_counts:
            return None
        return [Touch(item, True, _NO_NEIGHBOURS) for item in dict.fromkeys([item.item_id for item in items])]

    def _lean(self, row: ShopperRow, items: Sequence[EventItem], leanings: tuple[Leaning, ...], weights: list[float]) -> None:
        affinities = row.affinities
        for item in items:
            for at, field, weight, half_life, top in leanings:
                if value := field_value(item, field):
                    affinity = affinities[at]
                    affinity[value] = single(affinity.get(value, 0.0) + weight * weights[half_life])
                    if len(affinity) > top:
                        _keep_heaviest(affinity, top)

    def _engage(self, row: ShopperRow, items: Sequence[EventItem], time_ms: int, plan: _Plan) -> list[Touch]:
        """Fold the items of an event that says the shopper wants them."""
        n, counted, index = self.features.sequence.n, bool(plan.item_counts), plan.at
        leads: dict[str, dict[str, float]] = {}
        for item in items:
            item_id = item.item_id
            if row.recent_items:
                self._lead(row, item_id, time_ms, leads)
            _remember(row, item_id, index, time_ms, n)
        if len(items) == 1:
            touches = [Touch(item_id, counted, leads.pop(item_id, _NO_NEIGHBOURS))]
        else:
            named = dict.fromkeys([item.item_id for item in items])
            touches = [Touch(item, counted, leads.pop(item, _NO_NEIGHBOURS)) for item in named]
        for earlier, neighbours in leads.items():
            touches.append(Touch(earlier, False, neighbours))
        return touches

    def _lead(self, row: ShopperRow, item: str, time_ms: int, leads: dict[str, dict[str, float]]) -> None:
        """Directed co-visit weights between `item` and the distinct items the shopper looked at just before it: 1, 1/2, 1/3, …"""
        since, backward, lookback = time_ms - self._covisit_span_ms, self._covisit.backward, self._covisit.lookback
        times = row.recent_times_ms
        seen = [item]
        for at, earlier in enumerate(row.recent_items):
            earlier_ms = times[at]
            if earlier_ms > time_ms or earlier in seen:
                continue
            if earlier_ms < since:
                break
            weight = 1.0 / len(seen)
            forward = leads.get(earlier)
            if forward is None:
                leads[earlier] = {item: weight}
            else:
                forward[item] = forward.get(item, 0.0) + weight
            if backward:
                back = leads.get(item)
                if back is None:
                    leads[item] = {earlier: backward * weight}
                else:
                    back[earlier] = back.get(earlier, 0.0) + backward * weight
            if len(seen) == lookback:
                break
            seen.append(earlier)

    def _advance(self, row: ShopperRow, time_ms: int) -> list[float]:
        """Bring the row to `time_ms` if that is later; return the weights of an event at `time_ms`, by half-life."""
        half_lives, row_ms = self.features.shopper_half_lives, row.time_ms
        weights = half_lives.weights(time_ms, row_ms)
        if time_ms > row_ms:
            if row_ms and row_ms < half_lives.since_ms:
                self._rescale(row, half_lives.moved(row_ms, time_ms))
            row.time_ms = time_ms
        return weights

    def _rescale(self, row: ShopperRow, factors: list[float]) -> None:
        row.numbers = [single(value * factors[h]) for value, h in zip(row.numbers, self._number_half_lives, strict=True)]
        row.affinities = [
            {key: single(value * factors[h]) for key, value in weights.items()}
            for weights, h in zip(row.affinities, self._affinity_half_lives, strict=True)
        ]

    def _rebase_item(self, row: ItemRow, time_ms: int) -> None:
        factors = self.features.item_half_lives.moved(row.time_ms, time_ms)
        row.numbers = [value * factors[h] for value, h in zip(row.numbers, self._item_half_lives, strict=True)]
        factor = factors[self._covisit_half_life]
        row.neighbours = {key: value * factor for key, value in row.neighbours.items()}

    # Signing in: an anonymous browser's row becomes part of a person's

    def _sign_in(self, row: ShopperRow, event: Event) -> Said:
        """Hand over what the browser did up to the sign-in; what it does later belongs to whoever uses it then.

        A sign-in that comes after a newer one of the same browser finds nothing: the newer took it along. Events still to come are told
        apart by both.
        """
        state = self.features.shopper("")
        if not row.links or event.time_ms >= row.links[-1][0]:
            state = self._split(row, event.time_ms)
        row.links = _linked(row.links, event.time_ms, event.link_to)
        plan = self._plans[event.event_name]
        touches = self._fold(state, event) if plan.counts or plan.marks else None  # where a feature counts sign-ins
        return Said(FOLDED, touches or ()) if self._empty(state) else Said(FOLDED, touches or (), event.link_to, state)

    def _late(self, row: ShopperRow, event: Event) -> Said:
        """An event of before a sign-in that was folded first: it goes where that sign-in's events went."""
        to = next(person for time_ms, person in row.links if event.time_ms <= time_ms)
        state = self.features.shopper("")
        touches = self._fold(state, event)
        return Said(FOLDED, touches or (), to, state)

    def _split(self, row: ShopperRow, time_ms: int) -> ShopperRow:
        """Take out of `row` what happened up to `time_ms`.

        When the sign-in comes after later events of the same browser, sums cannot be told apart: both sides then keep what the sequence
        lists with its times, and are counted from that. Nothing of one person stays with the next.
        """
        state = self.features.shopper("")
        if row.time_ms <= time_ms:
            for name in ("time_ms", "recent_items", "recent_events", "recent_times_ms", "numbers", "marks", "affinities"):
                setattr(state, name, getattr(row, name))
            self._reset(row)
            return state
        steps = list(zip(row.recent_times_ms, row.recent_events, row.recent_items, strict=True))
        self._reset(row)
        for at_ms, index, item in reversed(steps):
            step = Event(event_id="", event_name=EVENT_NAMES[index], shopper="", time_ms=at_ms, items=(EventItem(item),))  # type: ignore[arg-type]
            self._fold(state if at_ms <= time_ms else row, step)
        return state

    def _reset(self, row: ShopperRow) -> None:
        fresh = self.features.shopper("")
        for name in ("recent_items", "recent_events", "recent_times_ms", "numbers", "marks", "affinities"):
            setattr(row, name, getattr(fresh, name))

    def _empty(self, state: ShopperRow) -> bool:
        return not state.recent_items and not any(state.numbers) and not any(state.marks)

    def _take_over(self, row: ShopperRow, handover: Handover) -> Said:
        """Add a browser's row to the person's, once."""
        state = handover.states.get(self.features.version)
        if state is None:  # made before this feature version was: its own follows when the version is folded from the log
            return _FOLDED
        merged = _merged(row.merged, handover.id)
        if merged is None:
            return _DUPLICATE
        row.merged = merged
        half_lives = self.features.shopper_half_lives
        state = msgspec.structs.replace(state)
        latest = max(row.time_ms, state.time_ms)
        for side in (row, state):
            self._rescale(side, half_lives.moved(side.time_ms, latest) if side.time_ms else [1.0] * len(half_lives.ms))
        row.time_ms = latest
        row.numbers = [single(a + b) for a, b in zip(row.numbers, state.numbers, strict=True)]
        for affinity, mine, theirs in zip(self.features.affinities, row.affinities, state.affinities, strict=True):
            for key, weight in theirs.items():
                mine[key] = single(mine.get(key, 0.0) + weight)
            _keep_heaviest(mine, affinity.top)
        self._merge_marks(row.marks, state.marks)
        for step in reversed(list(zip(state.recent_items, state.recent_events, state.recent_times_ms, strict=True))):
            _remember(row, *step, self.features.sequence.n)
        return _FOLDED

    def _merge_marks(self, mine: list[int], theirs: list[int]) -> None:
        in_sessions = {at + i for at, _ in self._sessions for i in range(4)}
        for at, value in enumerate(theirs):
            if at not in in_sessions:
                mine[at] = max(mine[at], value)
        for at, idle_ms in self._sessions:
            start, last, depth, items = theirs[at : at + 4]
            if mine[at] - last <= idle_ms and start - mine[at + 1] <= idle_ms and mine[at]:  # one visit, seen from two sides
                mine[at : at + 4] = [min(mine[at], start), max(mine[at + 1], last), mine[at + 2] + depth, mine[at + 3] + items]
            elif last > mine[at + 1]:
                mine[at : at + 4] = [start, last, depth, items]


def event_key(event_id: str) -> int:
    """48 bits of an event id: that a new one equals one of a shopper's 2,048 by chance happens once in 10^11 events."""
    return mmh3.hash64(event_id, signed=False)[0] & (1 << 8 * ID_BYTES) - 1


def single(value: float) -> float:
    """`value` in single precision, as rows of shoppers keep their sums: rounded at each addition, so that a row is the same to the last
    bit whether it stayed in memory or went through the store between two events."""
    return _SINGLE.unpack(_SINGLE.pack(value))[0]  # type: ignore[no-any-return]


def field_value(item: EventItem, field: str) -> str:
    """The value of an affinity's field; empty when the event does not say."""
    return price_band(item.price) if field == "price_band" else getattr(item, field)  # type: ignore[no-any-return]


def price_band(price: float) -> str:
    """The power of two at or above a price, as its exponent; empty for no price."""
    return str(frexp(price)[1]) if price > 0 else ""


def _half_life_of(size: int, slots: dict[str, list]) -> list[int]:  # type: ignore[type-arg]
    """Half-life by place in `numbers`."""
    out = [0] * size
    for of_feature in slots.values():
        for slot in of_feature:
            out[slot.at] = slot.half_life
    return out


def _visit(marks: list[int], at: int, idle_ms: int, time_ms: int, changed: bool) -> None:
    """marks[at:at+4] are the visit's start, latest event, events and changes of item."""
    last = marks[at + 1]
    if time_ms - last > idle_ms:
        marks[at : at + 4] = [time_ms, time_ms, 1, int(changed)]
    elif time_ms >= marks[at] - idle_ms:
        marks[at], marks[at + 1] = min(marks[at], time_ms), max(last, time_ms)
        marks[at + 2] += 1
        marks[at + 3] += changed


def _remember(row: ShopperRow, item: str, event: int, time_ms: int, n: int) -> None:
    """Insert into the sequence at its event time, newest first; among equal times the later arrival is the newer.

    The same item twice in a row is one step, the newer: a click and the view it opens.
    """
    items, events, times = row.recent_items, row.recent_events, row.recent_times_ms
    at, size = 0, len(items)
    while at < size and times[at] > time_ms:
        at += 1
    if at < size and items[at] == item:
        events[at], times[at] = event, time_ms
        return
    if at and items[at - 1] == item:
        return
    items.insert(at, item)
    events.insert(at, event)
    times.insert(at, time_ms)
    if size == n:
        del items[n:], events[n:], times[n:]


def _let_go(seen: dict[int, int], oldest: int) -> None:
    """Drop the ids that arrived before the hour `oldest`, but for the latest SEEN_MIN. `seen` is in the order of arrival."""
    while len(seen) > SEEN_MIN:
        first = next(iter(seen))
        if seen[first] >= oldest:
            break
        del seen[first]


def _linked(links: list[tuple[int, str]], time_ms: int, to: str) -> list[tuple[int, str]]:
    """`links` with one more, by time; of one person's sign-ins in a row the latest says it all."""
    out: list[tuple[int, str]] = []
    for link in sorted([*links, (time_ms, to)], key=lambda link: link[0]):
        if out and out[-1][1] == link[1]:
            out.pop()
        out.append(link)
    return out[-LINKS_MAX:]


def _merged(merged: list[str], handover: str) -> list[str] | None:
    """`merged` with one more handover (`partition@offset`); None when it was folded before.

    Handovers of one source partition are made in the order of its log and, after a crash, made again from some point on: whatever is
    older than the MERGED_MAX latest of its partition was folded.
    """
    source, _, offset = handover.partition("@")
    at = int(offset)
    own = [int(other[len(source) + 1 :]) for other in merged if other.startswith(f"{source}@")]
    if at in own or (len(own) == MERGED_MAX and at < min(own)):
        return None
    oldest = f"{source}@{min(own)}" if len(own) == MERGED_MAX else ""
    return [*(other for other in merged if other != oldest), handover]


def _keep_heaviest(weights: dict[str, float], count_max: int) -> None:
    """Drop the lightest entries beyond `count_max`; ties fall to the smaller key, so the result is the same on every run."""
    if len(weights) > count_max:
        for key in sorted(weights, key=lambda k: (weights[k], k))[: len(weights) - count_max]:
            del weights[key]
