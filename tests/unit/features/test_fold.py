"""The fold's arithmetic, and that rows depend on nothing but what happened: not on redelivery, batches, partitions or order of arrival."""

import copy
import math
from collections import defaultdict
from itertools import accumulate

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.decay import SPAN, base_ms
from features.declarations import default_text
from features.events import EVENT_NAMES, Event, EventItem
from features.feature_set import load_feature_set
from features.fold import (
    BOUNDED,
    DUPLICATE,
    FOLDED,
    NEIGHBOURS_SLACK,
    REDELIVERED,
    SEEN_HOURS,
    SEEN_MAX,
    SEEN_MIN,
    Touch,
    event_key,
    price_band,
)
from features.rows import ItemRow
from tests.folding import (
    DAY_MS,
    FEATURES,
    HOUR_MS,
    LEAST,
    MINUTE_MS,
    SINGLE,
    T0,
    Delivery,
    Rows,
    bits,
    counts,
    event,
    item_neighbours,
    item_numbers,
    one_shopper,
)

NAMES = [name for name in EVENT_NAMES if name != "login"]
PARTITIONS = 3
DEMAND_VIEWS = next(slot.at for slot in FEATURES.item_slots["demand"] if slot.event == "view_item")

# What one event does


def test_counts_halve_every_half_life() -> None:
    """An event one half-life before another counts half of it."""
    row = one_shopper([event(1), event(2, time_ms=T0 + DAY_MS)])
    assert counts(FEATURES, row) == {"view_item": pytest.approx(1.5, rel=SINGLE)}
    assert row.time_ms == T0 + DAY_MS
    fortnight = next(s for s in FEATURES.shopper_slots["activity"] if s.event == "view_item" and s.half_life == 1)
    assert FEATURES.shopper_half_lives.ms[fortnight.half_life] == 14 * DAY_MS


def test_values_outlive_a_move_of_the_base() -> None:
    """An event of one half-life before the base moves, and one after it: counts, affinities and neighbours of both are worth 1.5."""
    for half_life, worth in (
        (DAY_MS, lambda rows: counts(FEATURES, rows.shoppers["s"])["view_item"]),
        (7 * DAY_MS, lambda rows: affinity_worth(rows, 7 * DAY_MS)),
        (3 * DAY_MS, lambda rows: item_numbers(FEATURES, rows.items["b", 0], rows.items["b", 0].time_ms)[DEMAND_VIEWS]),
        (
            3 * DAY_MS,
            lambda rows: item_neighbours(FEATURES, rows.items["b", 0], rows.items["b", 0].time_ms)["a"] / FEATURES.covisit.backward,
        ),
    ):
        edge = base_ms(T0, half_life) + SPAN * half_life
        rows = Rows()
        for n, at in enumerate((edge - half_life, edge)):
            rows.take(event(f"{n}a", "select_item", "a", at))
            rows.take(event(f"{n}b", "view_item", "b", at, item_category="c"))
        assert worth(rows) == pytest.approx(1.5, rel=SINGLE)


def affinity_worth(rows: Rows, half_life: int) -> float:
    row = rows.shoppers["s"]
    return row.affinities[0]["c"] * 2.0 ** ((base_ms(row.time_ms, half_life) - row.time_ms) / half_life)


def test_every_event_name_counts_where_it_is_declared_and_nowhere_else() -> None:
    for name in NAMES:
        row = one_shopper([event(1, name)])
        places = {at for at, _ in FEATURES.shopper_counts_by_event.get(name, [])}
        assert {at for at, value in enumerate(row.numbers) if value} == places


def test_a_click_and_the_view_it_opens_are_one_step() -> None:
    row = one_shopper([event(1, "select_item"), event(2, "view_item", time_ms=T0 + 10)])
    assert (row.recent_items, row.recent_events, row.recent_times_ms) == (["a"], [EVENT_NAMES.index("view_item")], [T0 + 10])
    assert set(counts(FEATURES, row)) == {"select_item", "view_item"}


def test_a_list_that_was_shown_does_not_shape_taste() -> None:
    row = one_shopper([event(1, "view_item_list", item_category="shoes", item_brand="x", price=3.0)])
    assert row.recent_items == []
    assert not any(row.affinities)
    assert counts(FEATURES, row) == {"view_item_list": pytest.approx(1.0)}


def test_affinity_follows_intent_and_keeps_its_heaviest() -> None:
    row = one_shopper([event(1, item_category="shoes", item_brand="x", price=3.0), event(2, "purchase", "b", item_category="hats")])
    categories, brands, prices = row.affinities
    assert categories["hats"] / categories["shoes"] == pytest.approx(5.0)
    assert (list(brands), list(prices)) == (["x"], ["2"]), "a price of 3 lies in (2, 4]"
    many = one_shopper([event(n, item_category=f"c{n:02}", time_ms=T0 + n * HOUR_MS) for n in range(50)])
    assert sorted(many.affinities[0]) == [f"c{n}" for n in range(30, 50)]


def test_price_bands_are_powers_of_two() -> None:
    assert [price_band(p) for p in (0.0, -1.0, 0.75, 1.0, 1.99, 2.0, 1000.0)] == ["", "", "0", "1", "1", "2", "10"]


def test_marks_hold_the_latest_time_of_each_event_and_the_visit() -> None:
    row = one_shopper(
        [
            event(1, item="a"),
            event(2, item="b", time_ms=T0 + MINUTE_MS),
            event(3, "add_to_cart", "b", T0 + 2 * MINUTE_MS),
            event(4, "view_item", "a", T0 - DAY_MS),
        ]
    )
    since, visit = FEATURES.mark_at["since"], FEATURES.mark_at["visit"]
    assert row.marks[since : since + 3] == [T0 + MINUTE_MS, T0 + 2 * MINUTE_MS, 0]
    assert row.marks[visit : visit + 4] == [T0, T0 + 2 * MINUTE_MS, 3, 2], (
        "start, latest, events, changes of item; yesterday's is no part"
    )
    after = one_shopper([event(1), event(2, time_ms=T0 + 30 * MINUTE_MS + 1)])
    assert after.marks[visit : visit + 4] == [T0 + 30 * MINUTE_MS + 1, T0 + 30 * MINUTE_MS + 1, 1, 0]


def test_neighbours_are_directed_and_backward_counts_less() -> None:
    rows = Rows()
    rows.take(event(1, item="a"))
    rows.take(event(2, item="b", time_ms=T0 + 1))
    said = rows.take(event(3, item="c", time_ms=T0 + 2))
    backward = FEATURES.covisit.backward
    assert {touch.item: (touch.counted, touch.neighbours) for touch in said.touches} == {
        "c": (True, {"b": backward, "a": backward / 2}),
        "b": (False, {"c": 1.0}),
        "a": (False, {"c": 0.5}),
    }


def test_items_of_another_visit_are_no_neighbours() -> None:
    rows = Rows()
    rows.take(event(1, item="a"))
    said = rows.take(event(2, item="b", time_ms=T0 + HOUR_MS + 1))
    assert said.touches == [Touch("b", True, {})]


def test_an_item_named_twice_in_an_event_is_touched_once() -> None:
    items = (EventItem("a"), EventItem("b"), EventItem("a"))
    said = Rows().take(msgspec.structs.replace(event(1, "view_item_list"), items=items))
    assert [(touch.item, touch.counted) for touch in said.touches] == [("a", True), ("b", True)]


def test_item_rows_decay_and_skip_what_they_hold() -> None:
    rows = Rows()
    half_life = 3 * DAY_MS
    rows.take(event(1))
    second = event(2, time_ms=T0 + half_life)
    said = rows.take(second)
    row = rows.items["a", 0]
    assert item_numbers(FEATURES, row, row.time_ms)[DEMAND_VIEWS] == pytest.approx(1.5, rel=1e-12)
    before = bits(row)
    for offset in (0, 1):
        assert not rows.fold.item(row, said.touches[0], "view_item", rows.fold.item_weights(second), offset)
    assert bits(row) == before


def test_neighbours_are_bounded_to_the_heaviest() -> None:
    fold, row, most = Rows().fold, ItemRow("a", 0, numbers=[0.0] * FEATURES.item_numbers), FEATURES.covisit.k + NEIGHBOURS_SLACK
    weights = fold.item_weights(event(1))
    for n in range(3 * most):
        fold.item(row, Touch("a", False, {f"n{n:03}": 1.0 + n}), "view_item", weights, n)
        assert len(row.neighbours) <= most
    kept = sorted(row.neighbours)
    assert kept == [f"n{n:03}" for n in range(3 * most - len(kept), 3 * most)]
    assert len(kept) >= FEATURES.covisit.k


# Redelivery and re-sending


def test_a_redelivered_offset_is_a_no_op() -> None:
    rows = Rows()
    rows.take(event(1), 0, 0)
    rows.take(event(2), 0, 1)
    before = rows.bits()
    for other_id, offset in ((2, 1), (9, 1), (1, 0)):
        said = rows.take(event(other_id), 0, offset)
        assert (said.outcome, list(said.touches)) == (REDELIVERED, [])
    assert rows.bits() == before


def test_a_resent_event_id_moves_the_offset_and_nothing_else() -> None:
    rows = Rows()
    rows.take(event(1))
    before = copy.deepcopy(rows.shoppers["s"])
    said = rows.take(event(1, "purchase", "z", T0 + 5))
    row = rows.shoppers["s"]
    assert (said.outcome, list(said.touches), row.offset) == (DUPLICATE, [], 1)
    row.offset = before.offset
    assert bits(row) == bits(before)
    assert ("z", 0) not in rows.items


@given(st.lists(st.tuples(st.integers(0, 71), st.integers(0, 20 * 60), st.integers(0, 24 * 60)), max_size=25))
def test_an_event_sent_again_within_a_day_counts_once_also_when_it_is_late(resent: list[tuple[int, int, int]]) -> None:
    """A shopper is busy for four days, so more than SEEN_MIN ids lie between; some events are (hour of arrival, late by, sent again after),
    both in minutes."""
    steady = [(at, event(f"steady{at}", time_ms=at)) for at in range(T0, T0 + 4 * DAY_MS, 20 * MINUTE_MS)]
    arrivals = []
    for n, (hour, late, again) in enumerate(resent):
        at = T0 + hour * HOUR_MS
        one = event(n, "add_to_cart", f"i{n}", at - late * MINUTE_MS)
        arrivals += [(at, one), (at + again * MINUTE_MS, one)]
    rows = Rows()
    for _, one in sorted([*steady, *arrivals], key=lambda arrival: arrival[0]):
        rows.take(one)
    assert rows.outcomes == {FOLDED: len(steady) + len(resent)} | ({DUPLICATE: len(resent)} if resent else {})


def test_ids_are_kept_for_a_day_and_the_latest_however_old() -> None:
    rows = Rows()
    for n in range(100):
        rows.take(event(n, item=""))
    rows.take(event("next", item="", time_ms=T0 + (SEEN_HOURS + 1) * HOUR_MS))
    seen = rows.shoppers["s"].seen
    assert list(seen) == [event_key(f"e{n}") for n in [*range(100 - SEEN_MIN, 100), "next"]]
    assert rows.take(event(99, item="")).outcome == DUPLICATE, "an offline browser sends its last ones again after days"
    assert rows.take(event(0, item="")).outcome == FOLDED


def test_memory_of_ids_is_bounded_and_holds_the_latest() -> None:
    rows = Rows(load_feature_set(default_text().replace("hour_max: 1000", "hour_max: 100000"), "unbounded"))
    for n in range(3 * SEEN_MAX):
        rows.take(event(n, item="", time_ms=T0 + n))
        assert len(rows.shoppers["s"].seen) <= SEEN_MAX
    assert rows.take(event(2 * SEEN_MAX, item="")).outcome == DUPLICATE
    assert rows.take(event(2 * SEEN_MAX - 1, item="")).outcome == FOLDED


# Bots


def test_beyond_the_bound_of_an_hour_events_are_counted_as_bounded_and_touch_nothing() -> None:
    rows = Rows(load_feature_set(default_text().replace("hour_max: 1000", "hour_max: 10"), "bounded"))
    said = [rows.take(event(n, item=f"i{n}", time_ms=T0 + n)) for n in range(25)]
    assert rows.outcomes == {FOLDED: 10, BOUNDED: 15}
    assert not any(one.touches for one in said[10:])
    assert {item for item, _ in rows.items} == {f"i{n}" for n in range(10)}
    row = rows.shoppers["s"]
    assert sum(counts(rows.features, row).values()) == pytest.approx(10, rel=1e-3)
    assert (len(row.seen), row.offset) == (10, 24), "what is bounded takes no room, and is not read again"
    assert rows.take(event("late", time_ms=T0 - 5 * HOUR_MS)).outcome == BOUNDED, "a bot's clock does not help it"
    assert rows.take(event("later", time_ms=T0 + HOUR_MS)).outcome == FOLDED


# Whatever happens on the way, the rows are the same

EVENTS = st.builds(
    lambda n, name, items, time_ms, shopper, category, price: Event(
        event_id=f"e{n}",
        event_name=name,
        shopper=shopper,
        time_ms=time_ms,
        items=tuple(EventItem(item, item_category=category, price=price) for item in items),
    ),
    st.integers(0, 60),
    st.sampled_from(NAMES),
    st.lists(st.sampled_from([f"i{n}" for n in range(30)]), max_size=3),
    st.one_of(st.integers(T0, T0 + 3 * HOUR_MS), st.integers(T0, T0 + 400 * DAY_MS)),  # bases move within 16 days
    st.sampled_from(["s0", "s1", "s2", "s3"]),
    st.sampled_from(["", *(f"c{n}" for n in range(30))]),
    st.sampled_from([0.0, 0.5, 3.0, 80.0]),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Delivery]:
    """Deliveries in the order of arrival: a shopper's events share a partition, each partition has offsets of its own."""
    next_offset: dict[int, int] = defaultdict(int)
    log = []
    for one in draw(st.lists(EVENTS, max_size=60)):
        partition = int(one.shopper[1:]) % PARTITIONS
        log.append((one, partition, next_offset[partition]))
        next_offset[partition] += draw(st.sampled_from([1, 1, 1, 5]))  # offsets have gaps: transactions and compaction leave them
    return log


@given(logs(), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=4))
def test_redelivery_of_any_stretch_changes_nothing(log: list[Delivery], again: list[tuple[int, int]]) -> None:
    """Kafka may deliver any tail of the log again and stop anywhere in it: told by offset, rows stay, bit for bit, and stay bounded."""
    rows = Rows().take_all(log)
    before = rows.bits()
    for start, end in [*again, (0, len(log))]:
        rows.outcomes.clear()
        rows.take_all(log[start:end])
        assert rows.outcomes == ({REDELIVERED: len(log[start:end])} if log[start:end] else {})
        assert rows.bits() == before
    for row in rows.shoppers.values():
        assert len(row.recent_items) == len(row.recent_events) == len(row.recent_times_ms) <= FEATURES.sequence.n
        assert row.recent_times_ms == sorted(row.recent_times_ms, reverse=True)
        assert all(len(affinity) <= one.top for affinity, one in zip(row.affinities, FEATURES.affinities, strict=True))


@given(logs(), st.integers(0, 60), st.integers(0, 60))
def test_a_crash_between_item_rows_and_shopper_rows_counts_nothing_twice(log: list[Delivery], back: int, crash: int) -> None:
    """Item rows of log[back:crash] are stored and shopper rows are not: folding again says the same, and item rows hold it already."""
    once, rows = Rows().take_all(log), Rows()
    rows.take_all(log[:back])
    shoppers = copy.deepcopy(rows.shoppers)
    rows.take_all(log[back:crash])
    rows.shoppers = shoppers
    rows.take_all(log[back:])
    assert rows.bits() == once.bits()


@given(logs(), st.lists(st.integers(0, 60), max_size=6))
def test_any_split_into_batches_gives_the_same_rows(log: list[Delivery], cuts: list[int]) -> None:
    """After each batch the rows go through the store's bytes to another worker: bit for bit what one worker folds at once."""
    rows = Rows()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(log)], strict=True):
        rows = rows.take_all(log[start:end]).reread()
    assert rows.bits() == Rows().take_all(log).reread().bits()
    assert rows.bits() == Rows().take_all(log).bits()


@given(logs(), st.randoms(use_true_random=False))
def test_any_interleaving_of_partitions_gives_the_same_rows(log: list[Delivery], random: object) -> None:
    """Shopper rows, and the rows of each item and partition, bit for bit; the latter sum to a fold of one partition to 1e-9."""
    waiting: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in log:
        waiting[delivery[1]].append(delivery)
    order = [partition for _, partition, _ in log]
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = Rows().take_all(waiting[partition].pop(0) for partition in order)
    apart = Rows().take_all(log)
    assert mixed.bits() == apart.bits()

    one = Rows().take_all((event, 0, n) for n, (event, *_) in enumerate(log))
    now = T0 + 401 * DAY_MS
    for item in {item for item, _ in one.items}:
        parts = [row for (name, _), row in apart.items.items() if name == item]
        numbers = [math.fsum(column) for column in zip(*(item_numbers(FEATURES, row, now) for row in parts), strict=True)]
        assert numbers == pytest.approx(item_numbers(FEATURES, one.items[item, 0], now), rel=1e-9, abs=LEAST)
        neighbours: dict[str, float] = defaultdict(float)
        for row in parts:
            for neighbour, weight in item_neighbours(FEATURES, row, now).items():
                neighbours[neighbour] += weight
        assert neighbours == pytest.approx(item_neighbours(FEATURES, one.items[item, 0], now), rel=1e-9, abs=LEAST)
    for name, row in one.shoppers.items():
        row.partition, row.offset = apart.shoppers[name].partition, apart.shoppers[name].offset
        assert bits(row) == bits(apart.shoppers[name])


@given(
    st.lists(
        st.tuples(st.one_of(st.integers(1, HOUR_MS), st.integers(DAY_MS, 90 * DAY_MS)), st.sampled_from(NAMES)),
        min_size=1,
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_late_and_out_of_order_events_land_at_their_event_time(steps: list[tuple[int, str]], random: object) -> None:
    """In any order of arrival counts, latest times, affinities and sequence are those of the log in order of event time."""
    times = accumulate(step for step, _ in steps)
    ordered = [
        event(n, name, f"i{n}", T0 + at, item_category=f"c{n % 7}")
        for n, (at, (_, name)) in enumerate(zip(times, steps, strict=True))
    ]
    shuffled = list(ordered)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    left, right = Rows(), Rows()
    for one in ordered:
        left.take(one)
    for one in shuffled:
        right.take(one)
    mine, its = left.shoppers["s"], right.shoppers["s"]
    assert its.numbers == pytest.approx(mine.numbers, rel=SINGLE, abs=LEAST)
    assert its.affinities[0] == pytest.approx(mine.affinities[0], rel=SINGLE, abs=LEAST)
    assert (its.recent_items, its.recent_events, its.recent_times_ms) == (
        mine.recent_items,
        mine.recent_events,
        mine.recent_times_ms,
    )
    since = FEATURES.mark_at["since"]
    assert (its.time_ms, its.marks[since : since + 3]) == (mine.time_ms, mine.marks[since : since + 3])
    now = ordered[-1].time_ms
    for key, row in left.items.items():
        assert item_numbers(FEATURES, right.items[key], now) == pytest.approx(item_numbers(FEATURES, row, now), rel=1e-9, abs=LEAST)
