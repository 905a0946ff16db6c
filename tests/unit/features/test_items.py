"""The item table: sums over partitions, whatever their order, and reads fast enough for a request."""

import random
import time

import pytest

from features.events import EVENT_NAMES, Event, EventItem
from features.fold import ITEM_HALF_LIFE_MS, fold_item, fold_shopper
from features.items import ItemTable
from features.rows import CatalogItem, ItemRow, ShopperRow

T0 = 1_700_000_000_000
MINUTE = 60_000


def log(partitions: int, events: int, items: int = 30, seed: int = 3) -> list[tuple[int, int, Event]]:
    """A seeded log as (partition, offset, event), in event-time order."""
    rng = random.Random(seed)
    offsets = [0] * partitions
    out = []
    for n in range(events):
        shopper = rng.randrange(8)
        partition = shopper % partitions
        event = Event(
            event_id=f"e{n}",
            event_name=rng.choice(["view_item", "select_item", "add_to_cart", "view_item_list"]),
            shopper=f"s{shopper}",
            time_ms=T0 + n * 7 * MINUTE,
            items=(EventItem(item_id=f"i{rng.randrange(items)}"),),
        )
        out.append((partition, offsets[partition], event))
        offsets[partition] += 1
    return out


def folded(events: list[tuple[int, int, Event]], merged: bool) -> list[ItemRow]:
    """Item rows of the log: one a source partition, or all in one partition."""
    shoppers: dict[str, ShopperRow] = {}
    rows: dict[tuple[str, int], ItemRow] = {}
    for sequence, (partition, offset, event) in enumerate(events):
        row = shoppers.setdefault(event.shopper, ShopperRow(event.shopper))
        deltas = fold_shopper(row, event, partition, offset)
        partition, offset = (0, sequence) if merged else (partition, offset)
        for item in {delta.item for delta in deltas}:
            into = rows.setdefault((item, partition), ItemRow(item, partition))
            fold_item(into, [delta for delta in deltas if delta.item == item], offset)
    return list(rows.values())


def table(rows: list[ItemRow]) -> ItemTable:
    out = ItemTable()
    for row in rows:
        out.apply(row)
    return out


def test_partitions_sum_to_a_single_partition_fold() -> None:
    events = log(partitions=4, events=400)
    now = T0 + 400 * 7 * MINUTE
    items = [f"i{n}" for n in range(30)]
    shopper = ShopperRow("s", recent_items=["i3", "i5", "i7", "i9"])
    apart, one = table(folded(events, merged=False)), table(folded(events, merged=True))
    a, b = apart.columns(items, shopper, now), one.columns(items, shopper, now)
    for left, right in zip(a.counts, b.counts, strict=True):
        assert left == pytest.approx(right, rel=1e-9)
    assert a.covisit == pytest.approx(b.covisit, rel=1e-9)
    assert sum(map(sum, a.counts)) > 100
    assert max(a.covisit) > 0.5
    ours, theirs = dict(apart.popular(now, 30)), dict(one.popular(now, 30))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_order_of_arrival_does_not_matter() -> None:
    rows = folded(log(partitions=4, events=200), merged=False)
    shuffled = random.Random(1).sample(rows, len(rows))
    now, shopper = T0 + 9 * ITEM_HALF_LIFE_MS, ShopperRow("s", recent_items=["i1"])
    items = [f"i{n}" for n in range(30)]
    assert table(rows).columns(items, shopper, now) == table(shuffled).columns(items, shopper, now)
    assert table(rows).neighbours("i1", now) == table(shuffled).neighbours("i1", now)


def test_counts_decay_to_the_time_asked() -> None:
    items = table([ItemRow("a", 0, offset=5, time_ms=T0, counts={"view_item": 8.0}, neighbours={"b": 4.0})])
    later = T0 + ITEM_HALF_LIFE_MS
    columns = items.columns(["a"], ShopperRow("s", recent_items=["a"]), later)
    assert columns.counts[0][EVENT_NAMES.index("view_item")] == pytest.approx(4.0)
    assert items.neighbours("a", later) == [("b", pytest.approx(2.0))]
    assert items.popular(later, 5)[0] == ("a", pytest.approx(4.0))


def test_an_older_row_does_not_replace_a_newer_one() -> None:
    items = table([ItemRow("a", 0, offset=5, time_ms=T0, counts={"view_item": 8.0})])
    assert not items.apply(ItemRow("a", 0, offset=5, time_ms=T0, counts={"view_item": 99.0}))
    assert not items.apply(ItemRow("a", 0, offset=4, time_ms=T0, counts={"view_item": 7.0}))
    assert items.apply(ItemRow("a", 0, offset=6, time_ms=T0, counts={"view_item": 9.0}))
    assert items.popular(T0, 1) == [("a", pytest.approx(9.0))]


def test_catalog_fields_come_from_the_newest_record() -> None:
    items = ItemTable()
    items.apply_catalog(CatalogItem("a", item_name="Lamp", item_category="home", item_brand="Lux", price=9.5, time_ms=T0 + 1))
    assert not items.apply_catalog(CatalogItem("a", item_name="old", time_ms=T0))
    columns = items.columns(["a", "nobody"], ShopperRow("s"), T0)
    assert (columns.price, columns.category, columns.brand) == ([9.5, 0.0], ["home", ""], ["Lux", ""])
    assert columns.counts[1] == [0.0] * len(EVENT_NAMES)
    held = items.catalog("a")
    assert held is not None
    assert held.item_name == "Lamp"
    assert items.catalog("nobody") is None


def test_popular_leaves_out_what_is_not_available_and_ends_with_the_unseen() -> None:
    items = table([ItemRow(f"i{n}", 0, offset=n, time_ms=T0, counts={"view_item": float(n)}) for n in range(1, 6)])
    items.apply_catalog(CatalogItem("new", price=1.0))
    items.apply_catalog(CatalogItem("i5", available=False))
    assert [item for item, _ in items.popular(T0, 10)] == ["i4", "i3", "i2", "i1", "new"]
    assert [item for item, _ in items.popular(T0, 2)] == ["i4", "i3"]
    assert ItemTable().popular(T0, 3) == []


def test_reads_stay_finite_when_clocks_disagree() -> None:
    """A row from the far future, or a request from the far past, must not overflow 2^x."""
    items = table([ItemRow("a", 0, offset=1, time_ms=T0, counts={"view_item": 1.0}, neighbours={"b": 1.0})])
    items.apply(ItemRow("b", 1, offset=1, time_ms=T0 + 5000 * ITEM_HALF_LIFE_MS, counts={"view_item": 1.0}))
    columns = items.columns(["a", "b"], ShopperRow("s", recent_items=["a"]), 1)
    assert max(map(max, columns.counts)) <= 2.0
    assert columns.covisit[1] <= 2.0
    assert items.popular(1, 2)[0][1] <= 2.0


def test_500_candidates_and_100k_items_are_read_within_budget() -> None:
    """Budget: 1 ms for the columns of 500 candidates, 5 ms for the popular ones of 100,000; best of several, the machine is shared."""
    rng = random.Random(5)
    items = ItemTable()
    for n in range(100_000):
        items.apply(ItemRow(f"i{n}", n % 4, offset=n, time_ms=T0 + n, counts={"view_item": rng.random()}))
    near = {f"i{rng.randrange(100_000)}": 1.0 for _ in range(40)}
    for n in range(3):
        items.apply(ItemRow(f"i{n}", 0, offset=200_000, time_ms=T0, neighbours=near))
    shopper = ShopperRow("s", recent_items=["i0", "i1", "i2"])
    wanted = [f"i{rng.randrange(100_000)}" for _ in range(500)]
    items.popular(T0, 100)

    def best_ms(read) -> float:  # type: ignore[no-untyped-def]
        laps = []
        for _ in range(15):
            start = time.perf_counter()
            read()
            laps.append(1000 * (time.perf_counter() - start))
        return min(laps)

    assert best_ms(lambda: items.columns(wanted, shopper, T0)) < 1.0
    assert best_ms(lambda: items.popular(T0, 100)) < 5.0
