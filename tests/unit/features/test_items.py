"""The item table: sums over partitions whatever their order, the newest row of each, and values as they are at the time asked."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.catalog import ROWS_AT_FIRST, Catalog
from features.declarations import default_text
from features.feature_set import load_feature_set
from features.items import COVISIT_RECENT, ItemTable
from features.rows import CandidateColumns, CatalogItem, ItemRow, ShopperRow
from tests.folding import DAY_MS, FEATURES, HOUR_MS, MINUTE_MS, T0, Delivery, Rows, event

HALF_LIFE_MS = 3 * DAY_MS  # of demand and of covisit
SINGLE = 1e-6  # relative: rows are held in single precision
ITEMS = [f"i{n}" for n in range(30)]
DEMAND = {slot.event: slot for slot in FEATURES.item_slots["demand"]}


def log(partitions: int, events: int, seed: int = 3) -> list[Delivery]:
    """A seeded log in the order of event time."""
    rng = random.Random(seed)
    offsets = [0] * partitions
    out = []
    for n in range(events):
        shopper = rng.randrange(8)
        name = rng.choice(["view_item", "select_item", "add_to_cart", "view_item_list"])
        out.append(
            (event(n, name, rng.choice(ITEMS), T0 + n * 7 * MINUTE_MS, f"s{shopper}"), p := shopper % partitions, offsets[p])
        )
        offsets[p] += 1
    return out


def item_row(
    item: str,
    partition: int = 0,
    offset: int = 0,
    time_ms: int = T0,
    neighbours: dict[str, float] | None = None,
    **counts: float,
) -> ItemRow:
    """A row whose demand is worth `counts`, by event name, at `time_ms`."""
    weights = FEATURES.item_half_lives.weights(time_ms)
    row = FEATURES.item(item, partition)
    row.offset, row.time_ms = offset, time_ms
    for name, count in counts.items():
        row.numbers[DEMAND[name].at] = count * weights[DEMAND[name].half_life]
    scale = weights[FEATURES.half_life_at(FEATURES.item_half_lives, FEATURES.covisit.half_life)]
    row.neighbours = {neighbour: weight * scale for neighbour, weight in (neighbours or {}).items()}
    return row


def table(rows: Any, catalog: Catalog | None = None) -> ItemTable:
    out = ItemTable(FEATURES, catalog)
    for row in rows:
        out.apply(row)
    return out


def looking_at(*items: str) -> ShopperRow:
    row = FEATURES.shopper("s")
    row.recent_items = list(items)
    return row


def demand(columns: CandidateColumns, name: str = "view_item") -> list[float]:
    values: list[float] = columns.numbers[DEMAND[name].at].tolist()
    return values


def test_partitions_sum_to_a_single_partition_fold() -> None:
    deliveries, now = log(partitions=4, events=400), T0 + 400 * 7 * MINUTE_MS
    shopper = looking_at("i3", "i5", "i7", "i9")
    apart = table(Rows().take_all(deliveries).items.values())
    one = table(Rows().take_all((e, 0, n) for n, (e, *_) in enumerate(deliveries)).items.values())
    a, b = apart.columns(ITEMS, shopper, now), one.columns(ITEMS, shopper, now)
    assert a.numbers == pytest.approx(b.numbers, rel=SINGLE)
    assert a.covisit == pytest.approx(b.covisit, rel=SINGLE)
    assert a.numbers.sum() > 100
    assert a.covisit.max() > 0.5
    assert dict(apart.popular(now, 30)) == pytest.approx(dict(one.popular(now, 30)), rel=SINGLE)
    for item in ITEMS:
        assert dict(apart.neighbours(item, now)) == pytest.approx(dict(one.neighbours(item, now)), rel=SINGLE)


@given(st.randoms(use_true_random=False), st.integers(0, 9))
def test_order_of_arrival_does_not_matter(rng: Any, again: int) -> None:
    """Rows as they were at several moments, in any order, some twice: what counts is the newest of each partition."""
    deliveries, now = log(partitions=3, events=60), T0 + 2 * HALF_LIFE_MS
    rows, published = Rows(), []
    for start in range(0, 60, 20):
        published += list(rows.take_all(deliveries[start : start + 20]).reread().items.values())
    shuffled = rng.sample(published, len(published)) + rng.sample(published, again)
    shopper = looking_at("i1", "i2", "i3")
    left, right = table(rows.items.values()), table(shuffled)
    a, b = left.columns(ITEMS, shopper, now), right.columns(ITEMS, shopper, now)
    assert a.numbers.tobytes() == b.numbers.tobytes()
    assert a.offsets(range(len(ITEMS))) == b.offsets(range(len(ITEMS)))
    assert a.covisit == pytest.approx(b.covisit, rel=1e-12)  # neighbours are summed in the order of their row numbers
    assert dict(left.popular(now, 30)) == pytest.approx(dict(right.popular(now, 30)), rel=1e-12)
    assert dict(left.neighbours("i1", now)) == pytest.approx(dict(right.neighbours("i1", now)), rel=1e-12)


def test_counts_decay_to_the_time_asked() -> None:
    items = table([item_row("a", view_item=8.0, neighbours={"b": 4.0})])
    later = T0 + HALF_LIFE_MS
    assert demand(items.columns(["a"], looking_at("a"), later)) == [pytest.approx(4.0)]
    assert items.neighbours("a", later) == [("b", pytest.approx(2.0))]
    assert items.popular(later, 5) == [("a", pytest.approx(4.0))]
    assert items.columns(["b"], looking_at("a"), later).covisit == pytest.approx([2.0])


def test_an_older_row_does_not_replace_a_newer_one() -> None:
    items = table([item_row("a", offset=5, view_item=8.0, neighbours={"b": 1.0})])
    assert not items.apply(item_row("a", offset=5, view_item=99.0))
    assert not items.apply(item_row("a", offset=4, view_item=7.0))
    assert items.popular(T0, 1) == [("a", pytest.approx(8.0))]
    assert items.apply(item_row("a", offset=6, view_item=9.0))
    assert items.popular(T0, 1) == [("a", pytest.approx(9.0))]
    assert items.neighbours("a", T0) == [], "the newer row names none"
    assert items.apply(item_row("a", partition=2, offset=0, view_item=1.0)), "each partition has offsets of its own"
    columns = items.columns(["a", "nobody"], looking_at("a", "nor this"), T0)
    assert columns.offsets([1]) == {"a": [6, -1, 0], "nobody": [-1, -1, -1]}, "of what leads to it too"


def test_partitions_whose_bases_differ_are_valued_each_by_its_own() -> None:
    """One partition's row is from before the base moved, the other's from after."""
    span = 64 * HALF_LIFE_MS
    edge = (T0 // span + 1) * span
    items = table([item_row("a", 0, time_ms=edge - HALF_LIFE_MS, view_item=4.0), item_row("a", 1, time_ms=edge, view_item=1.0)])
    assert demand(items.columns(["a"], looking_at(), edge)) == [pytest.approx(3.0)]
    assert items.popular(edge, 1) == [("a", pytest.approx(3.0))]


def test_neighbours_of_partitions_whose_bases_differ_add_up_and_are_replaced_one_by_one() -> None:
    span = 64 * HALF_LIFE_MS
    edge = (T0 // span + 1) * span
    before, after = edge - HALF_LIFE_MS, edge + HALF_LIFE_MS
    items = table(
        [
            item_row("a", 2, time_ms=before, neighbours={"z": 4.0, "x": 8.0}),
            item_row("a", 0, time_ms=edge, neighbours={"z": 1.0, "y": 2.0}),  # moves the base
            item_row("a", 1, time_ms=before, neighbours={"y": 6.0}),  # as from the base before
        ]
    )
    assert dict(items.neighbours("a", edge)) == {"z": 3.0, "x": 4.0, "y": 5.0}
    items.apply(item_row("a", 2, offset=1, time_ms=after, neighbours={"w": 1.0}))
    assert dict(items.neighbours("a", after)) == {"z": 0.5, "w": 1.0, "y": 2.5}


def test_co_visits_come_from_the_latest_items_and_fade_with_rank() -> None:
    rows = [item_row(f"i{n}", neighbours={"z": 6.0}) for n in range(COVISIT_RECENT + 1)]
    recent = [f"i{n}" for n in range(COVISIT_RECENT + 1)]
    assert table(rows).columns(["z", "i0"], looking_at(*recent), T0).covisit == pytest.approx([6.0 + 3.0 + 2.0, 0.0])


def test_catalog_fields_come_from_the_newest_record() -> None:
    items = ItemTable(FEATURES)
    newest = CatalogItem("a", item_name="Lamp", item_category="home", item_brand="Lux", price=9.5, time_ms=T0 + 1)
    assert items.apply_catalog(newest)
    assert not items.apply_catalog(CatalogItem("a", item_name="old", time_ms=T0))
    columns = items.columns(["a", "nobody"], looking_at(), T0).catalog
    assert columns.price.tolist() == [9.5, 0.0]
    assert columns.named.tolist() == [True, False]
    assert columns.time_ms.tolist() == [T0 + 1, -1]
    codes = {"item_category": "home", "item_brand": "Lux", "price_band": "4"}
    assert {field: columns.code[field].tolist() for field in codes} == {
        field: [columns.codes[field][value], -1] for field, value in codes.items()
    }
    assert items.catalog("a") == newest
    assert items.catalog("nobody") is None


def test_popular_leaves_out_what_is_not_available_and_ends_with_the_unseen() -> None:
    items = table([item_row(f"i{n}", offset=n, view_item=float(n), neighbours={"only named": 1.0}) for n in range(1, 6)])
    items.apply_catalog(CatalogItem("new", price=1.0))
    items.apply_catalog(CatalogItem("i5", available=False))
    assert [item for item, _ in items.popular(T0, 10)] == ["i4", "i3", "i2", "i1", "new"]
    assert [item for item, _ in items.popular(T0, 2)] == ["i4", "i3"]
    assert ItemTable(FEATURES).popular(T0, 3) == []
    assert (items.available("i5"), items.available("i4"), items.available("nobody")) == (False, True, True)
    among = np.sort(items.records.rows(["i2", "i5", "i1"]))
    assert items.records.items(items.popular_rows(9, among)) == ["i2", "i1"]


def test_popular_follows_intent_and_not_what_is_listed() -> None:
    items = table(
        [
            item_row("listed", view_item_list=1000.0, view_item=1.0),
            item_row("bought", purchase=1.0),
            item_row("carted", add_to_cart=1.0),
        ]
    )
    assert items.popular(T0, 3) == [("bought", pytest.approx(5)), ("carted", pytest.approx(3)), ("listed", pytest.approx(1))]
    rows = items.records.rows(["bought", "listed"])
    assert items.engagement(rows, T0 + HALF_LIFE_MS) == pytest.approx([2.5, 0.5])
    assert items.purchases(rows, T0 + HALF_LIFE_MS) == pytest.approx([0.5, 0.0])


def test_what_is_only_somebodys_neighbour_is_not_known() -> None:
    items = table([item_row("a", neighbours={"b": 1.0})])
    assert ("a" in items, "b" in items, "c" in items, len(items)) == (True, False, False, 1)
    items.apply_catalog(CatalogItem("b"))
    assert ("b" in items, len(items)) == (True, 2)


def test_reads_stay_finite_when_clocks_disagree() -> None:
    """A row from the far future, or a request from the far past, must not overflow 2^x."""
    items = table([item_row("now", view_item=2.0), item_row("ahead", time_ms=4_102_444_799_999, view_item=3.0)])
    for now in (0, T0, 4_102_444_799_999):
        assert np.isfinite(items.columns(["now", "ahead"], looking_at("now"), now).numbers).all()
        assert all(np.isfinite(weight) for _, weight in items.popular(now, 5))
    items.apply(item_row("now", offset=1, view_item=5.0))
    assert demand(items.columns(["now"], looking_at(), T0)) == [pytest.approx(5.0)]


def test_order_of_popularity_outlives_many_half_lives() -> None:
    """What it is valued at moves along before 2^x runs out of range."""
    items = ItemTable(FEATURES)
    for step in range(12):
        now = T0 + step * 100 * HALF_LIFE_MS
        items.apply(item_row("older", offset=step, time_ms=now - HALF_LIFE_MS, view_item=3.0))
        items.apply(item_row("newer", offset=step, time_ms=now, view_item=2.0))
        assert items.popular(now, 2) == [("newer", pytest.approx(2.0)), ("older", pytest.approx(1.5))]


def test_columns_grow_and_two_versions_share_one_catalog() -> None:
    catalog = Catalog()
    other = load_feature_set(default_text().replace("half_lives: [3d]", "half_lives: [6h]"), "other")
    first, second = ItemTable(FEATURES, catalog), ItemTable(other, catalog)
    n = 2 * ROWS_AT_FIRST
    for i in range(n):
        first.apply(item_row(f"i{i}", i % 2, offset=i, view_item=1.0 + i))
    first.apply_catalog(CatalogItem("i7", price=3.0, time_ms=T0))
    wanted = ["i0", f"i{n - 1}", "i7"]
    assert demand(first.columns(wanted, looking_at(), T0)) == pytest.approx([1.0, n, 8.0])
    columns = second.columns(wanted, other.shopper("s"), T0)
    assert not columns.numbers.any()
    assert columns.catalog.price.tolist() == [0.0, 0.0, 3.0]
    assert (len(first), len(second)) == (n, 1)
    assert [item for item, _ in second.popular(T0 + HOUR_MS, 5)] == ["i7"]
