"""The seeded shop: the same seed gives the same bytes, and shoppers behave as their hidden tastes say."""

import hashlib
from collections import Counter, defaultdict

import msgspec
import numpy as np
import pytest

from features.events import EVENT_NAMES
from liveshelf.simulator.history import DAY_MS, history, shifted
from liveshelf.simulator.shop import AISLES, Shop
from liveshelf.simulator.visits import CLICK_AT, Page, Shelf, SimulatedEvent, event_item, merchandised, visit


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(7, items=240, shoppers=80)


@pytest.fixture(scope="module")
def past(shop: Shop) -> list[SimulatedEvent]:
    return history(shop, days=5)


def _digest(events: list[SimulatedEvent]) -> str:
    return hashlib.sha256(msgspec.json.encode(events)).hexdigest()


def test_one_seed_gives_one_shop_byte_for_byte(shop: Shop, past: list[SimulatedEvent]) -> None:
    again = Shop(7, items=240, shoppers=80)
    assert msgspec.json.encode(again.catalog) == msgspec.json.encode(shop.catalog)
    assert _digest(history(again, days=5)) == _digest(past)


def test_a_later_start_shifts_times_and_nothing_else(past: list[SimulatedEvent]) -> None:
    now_ms = 1_800_000_000_000
    moved = shifted(past, now_ms)
    assert moved[-1].timestamp_micros == now_ms * 1_000
    assert _digest(shifted(moved, -now_ms)) == _digest(past)


def test_another_seed_is_another_shop(shop: Shop, past: list[SimulatedEvent]) -> None:
    other = Shop(8, items=240, shoppers=80)
    assert [item.item_name for item in other.catalog] != [item.item_name for item in shop.catalog]
    assert not {event.event_id for event in history(other, days=1)} & {event.event_id for event in past}


def test_more_shoppers_leave_the_catalog_as_it_is(shop: Shop) -> None:
    assert Shop(7, items=240, shoppers=200).catalog == shop.catalog


def test_catalog_is_readable_and_priced(shop: Shop) -> None:
    """Unique ids and titles, the brand leads the title, every category is stocked, prices are log-normal around the aisle's median."""
    assert len({item.item_id for item in shop.catalog}) == len({item.item_name for item in shop.catalog}) == 240
    assert all(item.item_name.startswith(item.item_brand) for item in shop.catalog)
    assert {item.item_category for item in shop.catalog} == {aisle.category for aisle in AISLES}
    medians = {aisle.category: aisle.price for aisle in AISLES}
    z = np.log([item.price / medians[item.item_category] for item in shop.catalog])
    assert abs(float(z.mean())) < 0.12
    assert 0.4 < float(z.std()) < 0.6


def test_history_is_in_order_with_unique_ids_and_ends_now(past: list[SimulatedEvent]) -> None:
    times = [event.timestamp_micros / 1_000 for event in past]
    assert times == sorted(times)
    assert times[-1] == 0
    assert -5.2 * DAY_MS < times[0] < -4 * DAY_MS
    assert len({event.event_id for event in past}) == len(past)
    assert {event.event_name for event in past} == {"view_item_list", "select_item", "view_item", "add_to_cart", "purchase"}
    assert {event.event_name for event in past} <= set(EVENT_NAMES)


def test_events_carry_what_the_features_read(shop: Shop, past: list[SimulatedEvent]) -> None:
    """GA4 items bear category, brand and price of the catalog; a purchase bears an order, its value and currency; a list its positions."""
    records = {item.item_id: item for item in shop.catalog}
    for event in past:
        for item in event.items:
            record = records[item.item_id]
            assert (item.item_category, item.item_brand, item.price) == (record.item_category, record.item_brand, record.price)
        if event.event_name == "view_item_list":
            assert [item.index for item in event.items] == list(range(len(event.items)))
        bought = event.event_name == "purchase"
        assert bool(event.transaction_id) == bool(event.currency) == bought
        assert event.value == (event.items[0].price if bought else 0.0)


def test_each_visit_tells_a_possible_story(past: list[SimulatedEvent]) -> None:
    """In each session: nothing is clicked that was not shown, carted before viewed, or bought before carted."""
    done: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    needs = {"select_item": "view_item_list", "add_to_cart": "view_item", "purchase": "add_to_cart"}
    for event in past:
        for item in event.items:
            if event.event_name in needs:
                assert item.item_id in done[event.session_id][needs[event.event_name]], event
            done[event.session_id][event.event_name].add(item.item_id)
    assert len(done) > 200


def test_a_visit_does_not_touch_the_shop(shop: Shop) -> None:
    """The same visit twice on one shop gives the same actions: no state is left behind."""

    def run() -> list[object]:
        rng = np.random.default_rng(3)
        return list(visit(shop, 5, -1.0, rng, merchandised(shop, rng)))

    assert run() == run()


def test_views_follow_hidden_taste(shop: Shop, past: list[SimulatedEvent]) -> None:
    """Over shoppers with enough views, the share of views by category correlates with the hidden category taste."""
    views: dict[str, Counter[str]] = defaultdict(Counter)
    for event in past:
        if event.event_name == "view_item":
            views[event.client_id][event.items[0].item_category] += 1
    correlations = []
    for shopper in shop.shoppers:
        counts = views[shopper.client_id]
        if counts.total() >= 10:
            shares = [counts[aisle.category] / counts.total() for aisle in AISLES]
            correlations.append(np.corrcoef(np.exp(shop.category_taste(shopper.index, -2.5)), shares)[0, 1])
    assert len(correlations) > 20
    assert float(np.median(correlations)) > 0.6


def test_views_follow_hidden_brand_taste(shop: Shop, past: list[SimulatedEvent]) -> None:
    """Among the items of one category, those viewed are of brands that the shopper likes better than the category's average."""
    at_client = {shopper.client_id: shopper.index for shopper in shop.shoppers}
    lift = []
    for event in past:
        if event.event_name == "view_item":
            at = shop.index(event.items[0].item_id)
            assert at is not None
            taste = shop.brand_taste(at_client[event.client_id], -2.5)[shop.brand]
            lift.append(taste[at] - taste[shop.category == shop.category[at]].mean())
    assert float(np.mean(lift)) > 0.25


def test_popular_items_are_those_with_appeal(shop: Shop, past: list[SimulatedEvent]) -> None:
    views = Counter(event.items[0].item_id for event in past if event.event_name == "view_item")
    counts = [views[item.item_id] for item in shop.catalog]
    order = np.argsort(shop.appeal)
    assert np.mean(np.take(counts, order[-60:])) > 2.0 * np.mean(np.take(counts, order[:60]))


def test_clicks_fall_with_position_though_the_items_are_alike(shop: Shop) -> None:
    """One item, wanted a little, shown at all ten positions: the first place is clicked more than twice as often as the last."""
    at = int(np.argmin(np.abs(shop.utility(0, 0.0) - (CLICK_AT - 2.0))))
    shelf = Shelf([shop.catalog[at].item_id] * 10)
    clicked: Counter[int] = Counter()
    for n in range(600):
        for action in visit(shop, 0, 0.0, np.random.default_rng(n), lambda page: shelf):
            if action.name == "select_item":
                clicked[action.items[0].index] += 1
    assert clicked[0] > 2 * clicked[9]


def test_a_better_shelf_gets_more_clicks(shop: Shop) -> None:
    """What a recommender is for: shelves by hidden utility get clearly more clicks than popular ones, from the same shoppers."""

    def clicks(personal: bool) -> int:
        total = 0
        for n in range(150):
            shopper, rng = n % 80, np.random.default_rng([1, n])
            best = [shop.catalog[i].item_id for i in np.argsort(-shop.utility(shopper, 0.0))[:10]]
            shelf_for = (lambda page, best=best: Shelf(best)) if personal else merchandised(shop, rng)
            total += sum(action.name == "select_item" for action in visit(shop, shopper, 0.0, rng, shelf_for))
        return total

    assert clicks(personal=True) > 1.5 * clicks(personal=False)


def test_tastes_drift_slowly(shop: Shop) -> None:
    """Taste a day later is almost the same; two months later it is not."""
    today = np.array([shop.category_taste(s, 0.0) for s in range(80)]).ravel()
    tomorrow = np.array([shop.category_taste(s, 1.0) for s in range(80)]).ravel()
    later = np.array([shop.category_taste(s, 60.0) for s in range(80)]).ravel()
    assert np.corrcoef(today, tomorrow)[0, 1] > 0.98
    assert np.corrcoef(today, later)[0, 1] < 0.5


def test_request_id_follows_the_shelf_and_only_it(shop: Shop) -> None:
    """Events that come of a recommender's shelf bear its request id; an item found by search bears none."""
    shelves = iter(f"r{n}" for n in range(10_000))
    asked: list[Page] = []

    def shelf_for(page: Page) -> Shelf:
        asked.append(page)
        return Shelf([shop.catalog[i].item_id for i in np.argsort(-shop.utility(4, 0.0))[:10]], next(shelves))

    shown: dict[str, set[str]] = {}
    found = 0
    for n in range(60):
        for action in visit(shop, 4, 0.0, np.random.default_rng(n), shelf_for):
            if action.name == "view_item_list":
                shown[action.request_id] = {item.item_id for item in action.items}
            elif action.request_id:
                assert action.items[0].item_id in shown[action.request_id]
            else:
                found += action.name == "view_item"
    assert found > 10
    assert {page.placement for page in asked} == {"home", "item"}
    assert all(bool(page.context) == (page.placement == "item") for page in asked)


def test_items_of_another_shop_on_a_shelf_are_passed_over(shop: Shop) -> None:
    actions = list(visit(shop, 1, 0.0, np.random.default_rng(0), lambda page: Shelf(["no-such-item"])))
    assert "view_item_list" not in {action.name for action in actions}
    assert event_item(shop, 0).item_id == "sku-00000"
