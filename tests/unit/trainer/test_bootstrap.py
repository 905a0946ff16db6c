"""Replayed samples: what was known just before each event, and nothing of it or of what came after."""

from collections import Counter
from itertools import islice

import numpy as np

from features.events import Event, EventItem
from features.fold import Fold
from features.items import ItemTable
from features.rows import ItemRow, ShopperRow
from tests.planted_shop import FEATURES, T0, PlantedShop, fold_into
from trainer.bootstrap import (
    FURTHER_NEGATIVES,
    NEAR_NEGATIVES,
    NEGATIVES,
    SEEN_NEGATIVES,
    _Negatives,
    merge,
    replay,
)
from trainer.log import Logged
from trainer.samples import Sample


def logged(events: list[Event]) -> list[Logged[Event]]:
    return [Logged(0, offset, event) for offset, event in enumerate(events)]


def items_of(sample: Sample) -> list[str]:
    return [item.decode() for item in sample.inputs["candidates"].tolist()]


def view(event_id: str, item: str, minute: int, name: str = "view_item") -> Event:
    return Event(event_id=event_id, event_name=name, shopper="s", time_ms=T0 + 60_000 * minute, items=(EventItem(item),))  # type: ignore[arg-type]


def folded(events: list[Event], shop: PlantedShop) -> tuple[dict[str, ShopperRow], ItemTable]:
    """Rows and item table of `events` alone."""
    rows: dict[str, ShopperRow] = {}
    items: dict[str, ItemRow] = {}
    fold = Fold(FEATURES)
    for offset, event in enumerate(events):
        fold_into(fold, rows.setdefault(event.shopper, FEATURES.shopper(event.shopper)), items, event, offset)
    table = ItemTable(FEATURES)
    for item_row in items.values():
        table.apply(item_row)
    for item in shop.catalog():
        table.apply_catalog(item)
    return rows, table


def test_features_hold_nothing_of_the_event_they_predict_nor_of_later_ones() -> None:
    """Compared, after the whole replay, with rows folded from only the events before."""
    shop = PlantedShop()
    events = shop.events(600)
    position = {event.event_id: n for n, event in enumerate(events)}
    samples = list(replay(logged(events), shop.catalog(), seed=7, features=FEATURES))
    assert len(samples) > 300
    for event_id, sample in islice(samples, 0, None, 60):
        n = position[event_id]
        rows, table = folded(events[:n], shop)
        before, time_ms = rows[events[n].shopper], events[n].time_ms
        items = items_of(sample)
        assert items[0] == events[n].items[0].item_id
        columns = table.columns(items, before, time_ms)
        expected = shop.encoder.shopper(before, time_ms) | shop.encoder.candidates(before, columns, time_ms)
        assert expected.keys() == sample.inputs.keys()
        for name, column in expected.items():
            assert np.array_equal(sample.inputs[name], column), name


def test_the_event_is_the_positive_and_the_rest_are_distinct_others() -> None:
    shop = PlantedShop()
    events = shop.events(400)
    by_id = {event.event_id: event for event in events}
    for event_id, sample in replay(logged(events), shop.catalog(), 7, FEATURES):
        event, items = by_id[event_id], items_of(sample)
        assert len(set(items)) == len(items) == len(sample.labels) <= 1 + NEGATIVES
        task = {"view_item": 0, "add_to_cart": 1, "purchase": 2}[event.event_name]
        assert [labels[task] for labels in sample.labels] == [1.0] + [0.0] * (len(items) - 1)
        assert not sample.served


def test_negatives_are_of_every_kind_that_the_scorer_ranks() -> None:
    """Neighbours, neighbours of these, one seen before, and popular ones for the rest; none wanted, none twice."""
    near, further, seen = [f"n{k}" for k in range(30)], [f"f{k}" for k in range(40)], ["s0", "s1", "n3"]
    negatives = _Negatives(seed=1)
    for k in range(100):
        negatives.saw(f"p{k}")
    drawn = negatives.draw(near, lambda item: [*further, *near, "w"] if item in near else [], seen, {"w", "n0"})
    kinds = Counter(item[0] for item in drawn if item not in seen)
    assert len(drawn) == len(set(drawn)) == NEGATIVES
    assert not {"w", "n0"} & set(drawn)
    assert (kinds["n"], kinds["f"]) in ((NEAR_NEGATIVES, FURTHER_NEGATIVES), (NEAR_NEGATIVES - 1, FURTHER_NEGATIVES)), (
        "n3 is seen, too"
    )
    assert sum(item in seen for item in drawn) in (SEEN_NEGATIVES, SEEN_NEGATIVES + 1)
    assert kinds["p"] >= NEGATIVES - NEAR_NEGATIVES - FURTHER_NEGATIVES - SEEN_NEGATIVES


def test_the_same_seed_draws_the_same_samples() -> None:
    shop = PlantedShop()
    events = logged(shop.events(300))
    once, twice, other = (
        [(event_id, items_of(sample)) for event_id, sample in replay(events, shop.catalog(), seed, FEATURES)] for seed in (7, 7, 8)
    )
    assert once == twice
    assert once != other


def test_first_looks_repeats_and_unknown_items_make_no_sample() -> None:
    events = [
        view("first", "a", 0),
        view("repeat", "a", 1),  # a click and the view it opens are one step
        view("unknown", "b", 2),  # nothing had named b: no shelf could have held it
        view("known", "a", 3),
        view("cart", "a", 4, "add_to_cart"),  # of the item just looked at: that is what a cart is
        view("known", "b", 5),  # the same event id again: a browser's retry
        view("list", "a", 6, "view_item_list"),
    ]
    assert [event_id for event_id, _ in replay(logged(events), [], 7, FEATURES)] == ["known", "cart"]


def test_merge_orders_by_event_time_and_keeps_each_partition_in_order() -> None:
    late = [Logged(0, n, view(f"a{n}", "a", minute)) for n, minute in enumerate([0, 5, 3])]
    other = [Logged(1, n, view(f"b{n}", "b", minute)) for n, minute in enumerate([1, 4, 9])]
    assert [entry.record.event_id for entry in merge([late, other])] == ["a0", "b0", "b1", "a1", "a2", "b2"]
