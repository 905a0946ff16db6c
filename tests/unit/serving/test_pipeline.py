"""From query to shelf: the fallback chain, filters, rules, cold start; every part beside the maker is a stand-in that tests switch."""

import asyncio
from typing import Any

import pytest

from features.items import ItemTable
from features.rows import CatalogItem
from serving.breakers import FAILURES_MAX
from serving.candidates import New, Visit
from serving.fallback import StaticLists, StaticShelves
from serving.model_client import ModelNotFoundError, ModelUnavailableError
from serving.query import Filters
from serving.rules import parse_rules
from serving.shelf import Policy
from streams.records import Impression
from tests.small_shop import FEATURES, T0, Model, Shop, item_row, items_of, run, shopper_row, table


def by_number(items: list[str]) -> list[float]:
    """A model that likes high numbers."""
    return [int(item[1:]) / 1000 for item in items]


def test_the_model_orders_the_shelf_and_every_item_says_where_it_came_from() -> None:
    shop = Shop(table(), shopper_row("i1"), Model(by_number, ["i19", "i18"]))
    shelf = run(shop.shelf())
    assert items_of(shelf) == ["i19", "i18", "i17", "i16", "i15"]
    assert [s.source for s in shelf.items][:2] == ["retrieval", "retrieval"]
    assert (shelf.degraded, shelf.model_version, shelf.features_offset) == ("", 5, 41)
    assert shelf.items[0].click == pytest.approx(0.019)
    assert shelf.items[0].score == pytest.approx(0.019 * (1 + 3 / 10 + 5 / 20), rel=1e-5)
    assert list(shelf.timings_ms) == ["hydrate", "candidates", "filter", "encode", "score", "select", "total"]
    (impression,) = shop.logged
    assert impression.items == items_of(shelf) == impression.features.candidates
    assert impression.sources == [s.source for s in shelf.items]


def test_an_item_found_twice_is_credited_to_the_first_source() -> None:
    shop = Shop(table(), shopper_row("i1"), Model(by_number, ["i7"]))
    shelf = run(shop.shelf(count=20))
    assert {s.item: s.source for s in shelf.items}["i7"] == "covisit"


def test_without_retrieval_the_model_still_ranks() -> None:
    model = Model(by_number)
    model.retrieve_fails = ModelUnavailableError("model_server_timeout", "late")
    shelf = run(Shop(table(), shopper_row("i1"), model).shelf())
    assert (shelf.degraded, shelf.model_version) == ("retrieval_unavailable", 5)
    assert items_of(shelf)[0] == "i19"


def test_the_last_good_scores_outlive_the_model() -> None:
    """While the model is away its own last word on the candidates shapes the shelf."""
    shop = Shop(table(), shopper_row("i0"), Model(by_number))

    async def visits() -> tuple[Any, Any]:
        good = await shop.shelf(count=3)
        assert shop.model is not None
        shop.model.rank_fails = ModelUnavailableError("model_garbage", "NaN")
        return good, await shop.shelf(count=3)

    good, after = run(visits())
    assert items_of(good) == items_of(after) == ["i19", "i18", "i17"]
    assert (after.degraded, after.model_version) == ("model_garbage", 0)


def test_a_stranger_gets_heuristics_when_the_model_is_away() -> None:
    model = Model(by_number)
    model.rank_fails = ModelUnavailableError("model_server_unavailable", "down")
    shelf = run(Shop(table(), None, model).shelf(context=("i1",)))
    assert (shelf.items[0].item, shelf.items[0].source) == ("i7", "covisit")
    assert shelf.degraded == "model_server_unavailable"


def test_a_version_that_is_gone_makes_the_scorer_look_again() -> None:
    model = Model(by_number)
    model.rank_fails = ModelNotFoundError("unloaded")
    shop = Shop(table(), shopper_row("i0"), model)
    shelf = run(shop.shelf())
    assert (shelf.degraded, shop.models.refreshed) == ("model_version_not_found", 1)


def test_a_late_model_does_not_hold_up_the_answer_and_is_then_left_alone() -> None:
    model = Model(by_number)
    model.slow_s = 5.0
    shop = Shop(table(), shopper_row("i0"), model)

    async def visits() -> list[Any]:
        return [await shop.shelf() for _ in range(FAILURES_MAX + 5)]  # 100 ms each: after three it has long been silent

    shelves = run(visits())
    assert {s.degraded for s in shelves} == {"model_server_timeout"}
    assert all(len(s.items) == 5 for s in shelves)
    assert shelves[0].timings_ms["total"] >= 50  # one timeout of 50 ms; retrieval waits beside it
    assert shelves[-1].timings_ms["total"] < 50


def test_a_store_that_is_down_is_left_alone_and_found_again() -> None:
    shop = Shop(table(), shopper_row("i1"), Model(by_number))

    async def visits() -> tuple[list[str], int, str]:
        await shop.shelf()
        shop.store.down = True
        during = [(await shop.shelf()).degraded for _ in range(20)]
        asked = shop.store.asked
        shop.store.down = False
        for _ in range(400):
            await asyncio.sleep(0.01)
            if not (shelf := await shop.shelf()).degraded:
                return during, asked, shelf.degraded
        return during, asked, "never"

    during, asked, after = run(visits())
    assert set(during) == {"store_unavailable"}
    assert asked == 1 + FAILURES_MAX
    assert after == ""


def test_no_time_left_answers_what_is_popular_in_the_pages_category() -> None:
    shelf = run(Shop(table(), shopper_row("i1"), Model(by_number)).shelf(0.0, context=("i4",)))
    assert shelf.degraded == "deadline"
    assert items_of(shelf) == ["i0", "i2", "i6", "i8", "i10"]  # i4 is on the page; odd ones are of the other category
    assert {s.source for s in shelf.items} == {"fallback"}


def test_with_an_empty_catalog_the_list_on_disk_answers(tmp_path: Any) -> None:
    static = StaticShelves(tmp_path / "serving" / "static-shelf.json")
    full = Shop(table())
    assert static.take(full.items, full.side.lists, T0)
    static.write()
    again = StaticShelves(tmp_path / "serving" / "static-shelf.json")
    again.read()
    assert again.lists.popular[:4] == ["i0", "i1", "i2", "i4"]
    assert again.items(["c1"])[:3] == ["i1", "i5", "i7"]
    empty = Shop(ItemTable(FEATURES), static=again, items_state=lambda: "items_loading")
    shelf = run(empty.shelf(exclude=frozenset({"i1"})))
    assert items_of(shelf) == ["i0", "i2", "i4", "i5", "i6"]
    assert (shelf.degraded, shelf.items[0].source) == ("items_loading", "static")
    assert [impression.items for impression in empty.logged] == [items_of(shelf)]


def test_an_unreadable_list_on_disk_is_an_empty_one(tmp_path: Any) -> None:
    (tmp_path / "list.json").write_text("{half")
    static = StaticShelves(tmp_path / "list.json")
    static.read()
    assert static.lists == StaticLists()
    shelf = run(Shop(ItemTable(FEATURES), static=static).shelf())
    assert (items_of(shelf), shelf.degraded) == ([], "empty_catalog")


def test_stale_items_are_said() -> None:
    shelf = run(Shop(table(), shopper_row("i1"), Model(by_number), items_state=lambda: "items_stale").shelf())
    assert (shelf.degraded, items_of(shelf)[0]) == ("items_stale", "i19")


def test_a_shop_without_a_catalog_has_shelves_too() -> None:
    """A replayed click log knows items only by what was done with them."""
    items = ItemTable(FEATURES)
    for n in range(5):
        items.apply(item_row(f"i{n}", 10.0 - n, n, {"i4": 50.0} if n == 1 else None))
    shop = Shop(items, shopper_row("i1"), Model(lambda names: [float(name == "i4") for name in names]))
    shelf = run(shop.shelf(count=3))
    assert shelf.degraded == ""
    assert items_of(shelf)[0] == "i4"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(categories=frozenset({"c0"})), ["i18", "i16", "i14", "i12", "i10"]),
        (Filters(brands=frozenset({"b0"}), price_max=10.0), ["i9", "i6", "i0"]),
        (Filters(price_min=18.0), ["i19", "i18", "i17"]),
        (Filters(categories=frozenset({"nobody"})), []),
        (Filters(price_max=5.0, include_unavailable=True), ["i4", "i3", "i2", "i1", "i0"]),
    ],
)
def test_filters_narrow_the_shelf(filters: Filters, expected: list[str]) -> None:
    items = table()
    shelf = run(Shop(items, None, Model(by_number, ["i3"])).shelf(filters=filters))
    if filters.include_unavailable:  # popular lists hold what is available; others must be found by another source
        expected = [i for i in expected if i != "i3"]
    assert items_of(shelf) == expected
    assert all(filters.allow(items.catalog(item)) for item in items_of(shelf))


def test_rules_pin_boost_bury_and_exclude() -> None:
    rules = parse_rules(
        """
margins: {brand: {b0: 0.3, b1: 0.01}}
rules:
  - {name: hero, do: pin, item: [i2, i3, nobody], position: 1}
  - {name: dear, do: boost, factor: 1.5, item: [i14]}
  - {name: dull, do: bury, category: [c1], placement: [home]}
  - {name: loss, do: exclude, margin_below: 0.05}
""",
        "rules.yml",
    )
    shop = Shop(table(), None, Model(by_number), rules=lambda: rules)
    shelf = run(shop.shelf())
    # c1 (odd) is buried, b1 (4, 10, 16, …) excluded; 14 x 1.5 beats 18; i3 cannot be had.
    assert items_of(shelf) == ["i14", "i2", "i18", "i12", "i8"]
    assert shelf.propensities == [1.0] * 5
    elsewhere = run(Shop(table(), None, Model(by_number), rules=lambda: rules).shelf(placement="cart"))
    assert items_of(elsewhere) == ["i14", "i2", "i18", "i17", "i15"]


def test_rank_answers_every_candidate_whatever_the_rules() -> None:
    rules = parse_rules("rules: [{name: never, do: exclude, item: [i3]}, {name: low, do: bury, factor: 0.01, item: [i19]}]", "r")
    shelf = run(
        Shop(table(), None, Model(lambda items: [0.5] * len(items)), rules=lambda: rules).shelf(
            candidates=("i19", "x", "i3"), count=3
        )
    )
    assert items_of(shelf) == ["x", "i3", "i19"]


def test_a_price_weight_prefers_the_dearer_of_equals() -> None:
    def even(items: list[str]) -> list[float]:
        return [0.1] * len(items)

    cheap = run(Shop(table(), None, Model(even)).shelf())
    dear = run(Shop(table(), None, Model(even), policy=Policy(price_weight=1.0)).shelf())
    assert items_of(cheap) == ["i0", "i1", "i2", "i4", "i5"]
    assert items_of(dear) == ["i19", "i18", "i17", "i16", "i15"]


def test_diversity_mixes_categories() -> None:
    def hats_first(items: list[str]) -> list[float]:
        return [0.9 - int(i[1:]) / 1000 if int(i[1:]) % 2 == 0 else 0.8 - int(i[1:]) / 1000 for i in items]

    plain = run(Shop(table(), None, Model(hats_first)).shelf())
    mixed = run(Shop(table(), None, Model(hats_first), policy=Policy(diversity=1.0)).shelf())
    assert {int(i[1:]) % 2 for i in items_of(plain)} == {0}
    assert {int(i[1:]) % 2 for i in items_of(mixed)} == {0, 1}


# Cold start


def test_a_new_shoppers_first_click_shapes_the_next_shelf() -> None:
    """Nothing is stored of the shopper; the page tells: neighbours of its item, then its category."""
    model = Model(lambda items: [0.0] * len(items))
    model.rank_fails = ModelUnavailableError("model_server_unavailable", "down")
    shop = Shop(table(), None, model)
    stranger, clicked = run(shop.shelf()), run(shop.shelf(context=("i1",)))
    assert [s.source for s in stranger.items] == ["trending"] * 5
    assert (clicked.items[0].item, clicked.items[0].source) == ("i7", "covisit")
    of_category = [s.item for s in clicked.items if s.source == "trending_category"]
    assert of_category
    assert all(int(item[1:]) % 2 == 1 for item in of_category)


def test_the_first_click_on_an_item_without_neighbours_still_leads_to_its_category() -> None:
    items = table()
    items.apply_catalog(CatalogItem(item_id="i21", item_category="c1", time_ms=T0))
    shelf = run(Shop(items, None, Model(by_number)).shelf(context=("i21",), count=20))
    assert {s.item for s in shelf.items if s.source == "trending_category"} >= {"i1", "i5", "i7"}


def newcomers(items: ItemTable) -> None:
    for n, (category, embedding) in enumerate([("c1", (1.0, 0.0)), ("c0", (0.0, 1.0)), ("elsewhere", (0.9, 0.1))]):
        items.apply_catalog(CatalogItem(item_id=f"i{100 + n}", item_category=category, embedding=embedding, price=3.0, time_ms=T0))


def test_a_new_item_is_reachable_from_its_record_alone() -> None:
    """Nobody has seen it. Its category, or what its embedding is like, brings it to shoppers who look at such things."""
    items = table()
    items.apply_catalog(
        CatalogItem(item_id="i1", item_category="c1", item_brand="b1", price=2.0, embedding=(1.0, 0.0), time_ms=T0 - 1)
    )
    shop = Shop(items, shopper_row("i1"), Model(by_number))
    assert "i100" not in items_of(run(shop.shelf(count=30)))
    newcomers(items)
    shop.now_ms += 1_000  # within a minute of its record
    shelf = run(shop.shelf(count=30))
    found = {s.item: s.source for s in shelf.items}
    assert found["i100"] == "trending_category"  # the record names the category that the shopper looks at
    assert (found["i101"], found["i102"]) == ("new", "new")


def test_new_items_that_fit_come_first() -> None:
    items = table()
    items.apply_catalog(
        CatalogItem(item_id="i1", item_category="c1", item_brand="b1", price=2.0, embedding=(1.0, 0.0), time_ms=T0 - 1)
    )
    newcomers(items)
    shop = Shop(items)
    row = shopper_row("i1")
    visit = Visit(row, shop.side.encoder.shopper(row, T0), T0, items, shop.side.lists, None)
    assert items.records.items(New(2).candidates(visit)) == ["i100", "i102"]  # of its category and like it; like it


def test_an_item_is_not_new_once_shoppers_engaged_with_it() -> None:
    items = table()
    newcomers(items)
    items.apply(item_row("i100", 25.0, 1))
    shop = Shop(items)
    assert items.records.items(shop.side.lists.new(T0)) == ["i101", "i102"]


def test_new_items_have_an_exploration_floor() -> None:
    """A model that scores new items at 0 keeps them off the greedy shelf; exploration shows them at a known rate."""
    items = table(60)
    newcomers(items)
    shop = Shop(
        items,
        shopper_row("i1"),
        Model(lambda ids: [0.0 if int(i[1:]) >= 100 else 0.5 for i in ids]),
        policy=Policy(explore_share=0.2),
    )

    async def visits() -> list[Any]:
        return [await shop.shelf(count=10) for _ in range(400)]

    shelves = run(visits())
    shown = sum(item in ("i100", "i101", "i102") for shelf in shelves for item in items_of(shelf))
    # Two exploring positions, each a new item with probability 0.2 * 0.5: expected 80, standard deviation 8.5.
    assert 45 <= shown <= 115
    logged: list[Impression] = shop.logged
    chances = {i.propensities[i.items.index(item)] for i in logged for item in ("i100", "i101", "i102") if item in i.items}
    assert {round(chance, 9) for chance in chances} == {0.1, 0.05}  # one of the positions has one of the three, the other has two
