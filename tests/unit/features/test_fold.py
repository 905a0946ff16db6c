"""The fold's arithmetic: decay, order, redelivery."""

import copy

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event, EventItem
from features.fold import (
    AFFINITY_MAX,
    BACKWARD_WEIGHT,
    HOUR_MS,
    ITEM_HALF_LIFE_MS,
    NEIGHBOURS_MAX,
    RECENT_MAX,
    SHOPPER_HALF_LIFE_MS,
    ItemDelta,
    fold_item,
    fold_shopper,
)
from features.items import ItemTable
from features.rows import ItemRow, ShopperRow

T0 = 1_700_000_000_000


def event(n: int, name: str = "view_item", item: str = "a", time_ms: int = T0, category: str = "") -> Event:
    return Event(
        event_id=f"e{n}", event_name=name, shopper="s", time_ms=time_ms, items=(EventItem(item_id=item, item_category=category),)
    )


def folded(events: list[Event]) -> ShopperRow:
    row = ShopperRow(shopper="s")
    for offset, e in enumerate(events):
        fold_shopper(row, e, 0, offset)
    return row


def test_counts_halve_every_half_life() -> None:
    """An event one half-life before another counts half of it."""
    row = folded([event(1), event(2, time_ms=T0 + SHOPPER_HALF_LIFE_MS)])
    assert row.counts == {"view_item": 1.5}
    assert row.time_ms == T0 + SHOPPER_HALF_LIFE_MS


def test_a_late_event_counts_as_if_it_had_come_in_time() -> None:
    """Counts and recent items are those of the ordered log."""
    early, late = event(1, item="a"), event(2, item="b", time_ms=T0 + SHOPPER_HALF_LIFE_MS)
    assert folded([late, early]).counts == folded([early, late]).counts
    assert folded([late, early]).recent_items == ["b", "a"]


def test_a_redelivered_offset_is_a_no_op() -> None:
    row = folded([event(1), event(2)])
    before = copy.deepcopy(row)
    assert fold_shopper(row, event(2), 0, 1) == []
    assert row == before


def test_a_resent_event_id_moves_the_offset_and_nothing_else() -> None:
    row = folded([event(1)])
    before = copy.deepcopy(row)
    assert fold_shopper(row, event(1), 0, 1) == []
    assert row.offset == 1
    row.offset = before.offset
    assert row == before


def test_a_click_and_the_view_it_opens_are_one_step() -> None:
    row = folded([event(1, "select_item"), event(2, "view_item", time_ms=T0 + 10)])
    assert (row.recent_items, row.recent_events) == (["a"], ["view_item"])
    assert set(row.counts) == {"select_item", "view_item"}


def test_a_list_that_was_shown_does_not_shape_taste() -> None:
    row = folded([event(1, "view_item_list", category="shoes")])
    assert row.recent_items == []
    assert row.category_affinity == {}
    assert row.counts == {"view_item_list": 1.0}


def test_affinity_follows_intent() -> None:
    row = folded([event(1, "view_item", category="shoes"), event(2, "purchase", "b", category="hats")])
    assert row.category_affinity == {"shoes": 1.0, "hats": 5.0}


def test_neighbours_are_directed_and_backward_counts_less() -> None:
    row = folded([event(1, item="a")])
    deltas = [d for d in fold_shopper(row, event(2, item="b", time_ms=T0 + 1), 0, 1) if d.neighbour]
    assert [(d.item, d.neighbour, d.weight) for d in deltas] == [("a", "b", 1.0), ("b", "a", BACKWARD_WEIGHT)]


def test_items_of_another_visit_are_no_neighbours() -> None:
    row = folded([event(1, item="a")])
    assert [d for d in fold_shopper(row, event(2, item="b", time_ms=T0 + 2 * HOUR_MS), 0, 1) if d.neighbour] == []


def test_item_rows_decay_and_skip_what_they_hold() -> None:
    row = ItemRow(item="a", partition=0)
    shopper = ShopperRow(shopper="s")
    first = fold_shopper(shopper, event(1), 0, 0)
    second = fold_shopper(shopper, event(2, time_ms=T0 + ITEM_HALF_LIFE_MS), 0, 1)
    assert fold_item(row, first, 0)
    assert fold_item(row, second, 1)
    assert row.counts == {"view_item": 1.5}
    assert not fold_item(row, second, 1)
    assert row.counts == {"view_item": 1.5}


events = st.lists(
    st.builds(
        event,
        st.integers(0, 40),
        st.sampled_from(["view_item", "select_item", "add_to_cart", "purchase", "view_item_list"]),
        st.sampled_from([f"i{n}" for n in range(60)]),
        st.integers(T0, T0 + 10 * HOUR_MS),
        st.sampled_from([f"c{n}" for n in range(30)]),
    ),
    max_size=80,
)


@given(events, st.integers(0, 80))
def test_redelivery_from_any_offset_changes_nothing(log: list[Event], back: int) -> None:
    """Kafka may deliver any tail of the log again: rows and bounds stay, bit for bit."""
    row = folded(log)
    before = copy.deepcopy(row)
    for offset, e in list(enumerate(log))[back:]:
        assert fold_shopper(row, e, 0, offset) == []
    assert row == before
    assert len(row.recent_items) == len(row.recent_events) == len(row.recent_times_ms) <= RECENT_MAX
    assert row.recent_times_ms == sorted(row.recent_times_ms, reverse=True)
    assert len(row.category_affinity) <= AFFINITY_MAX


@given(events)
def test_splits_into_partitions_sum_to_one(log: list[Event]) -> None:
    """Counts of an item over partitions sum to the single-partition fold, to 1e-9 relative."""

    def counts(partitions: int) -> list[list[float]]:
        shoppers: dict[str, ShopperRow] = {}
        items: dict[tuple[str, int], ItemRow] = {}
        for offset, e in enumerate(log):
            p = offset % partitions
            for delta in fold_shopper(shoppers.setdefault(f"s{p}", ShopperRow(shopper=f"s{p}")), e, p, offset):
                if not delta.neighbour:
                    row = items.setdefault((delta.item, p), ItemRow(item=delta.item, partition=p))
                    row.offset = -1
                    fold_item(row, [delta], offset)
        table = ItemTable()
        for item_row in items.values():
            table.apply(item_row)
        return table.columns(sorted({e.items[0].item_id for e in log}), ShopperRow(shopper="s"), T0 + 20 * HOUR_MS).counts

    log = [msgspec.structs.replace(e, event_id=f"e{n}") for n, e in enumerate(log)]
    for one, four in zip(counts(1), counts(4), strict=True):
        assert four == pytest.approx(one, rel=1e-9)


def test_neighbours_are_bounded() -> None:
    row = ItemRow(item="a", partition=0)
    for n in range(3 * NEIGHBOURS_MAX):
        fold_item(row, [ItemDelta("a", "", 1.0 + n, T0, neighbour=f"n{n:03}")], n)
    assert len(row.neighbours) == NEIGHBOURS_MAX
    assert min(row.neighbours.values()) == 1.0 + 2 * NEIGHBOURS_MAX
