"""What is proposed for a sample, why, and what a check of settings against a sample finds."""

import random
from itertools import count

import pytest

from features import declarations as d
from features.check import changes, check_sample
from features.declarations import default_text, parse_declarations
from features.events import Event, EventItem
from features.feature_set import FeatureSet, load_feature_set
from features.suggest import EVENTS_MIN, suggest
from liveshelf.errors import SettingsError

MINUTE, DAY = 60_000, 86_400_000


def shop(seed: int, shoppers: int, visits: int) -> list[Event]:
    """Shoppers that come every second day, look at items a minute apart, and stay within their category; brands say nothing."""
    rng, ids = random.Random(seed), count()
    events = []

    def event(name: str, shopper: int, time_ms: int, items: list[EventItem]) -> None:
        events.append(Event(event_id=str(next(ids)), event_name=name, shopper=f"s{shopper}", time_ms=time_ms, items=tuple(items)))  # type: ignore[arg-type]

    for shopper in range(shoppers):
        for visit in range(visits):
            start = 1_790_000_000_000 + 2 * visit * DAY + rng.randrange(DAY // 4)
            for step in range(4):
                item = rng.randrange(20)
                items = [EventItem(f"i{shopper % 4}-{item}", item_category=f"c{shopper % 4}", item_brand=f"b{rng.randrange(3)}")]
                event("view_item_list", shopper, start + step * MINUTE - 5_000, items * 2)
                event("view_item", shopper, start + step * MINUTE, items)
            event("add_to_cart", shopper, start + 5 * MINUTE, items)
    return events


def proposed(events: list[Event]) -> tuple[str, dict[str, d.AnyDeclaration]]:
    text = suggest(events, "sample.jsonl")
    return text, {feature.name: feature for feature in parse_declarations(text, "proposed").features}


def test_what_is_proposed_follows_from_the_sample() -> None:
    """Visits end between a minute and a day; half-lives bridge two days; only what tells shoppers apart, and pairs that exist."""
    text, features = proposed(shop(1, 40, 6))
    assert features["visit"].idle in ("20m", "30m", "45m", "1h", "2h", "4h")  # type: ignore[union-attr]
    assert features["activity"].half_lives[-1] in ("3d", "5d")  # type: ignore[union-attr]
    assert features["recent"].n == 30  # type: ignore[union-attr]  # 6 visits of 4 views and a cart
    assert "category_affinity" in features
    assert "brand_affinity" not in features  # it is there, and tells nothing
    assert "price" not in features
    assert {"cart_rate"} == {name for name, feature in features.items() if isinstance(feature, d.Rate)}
    assert features["cart_rate"].prior_of == pytest.approx(20 / 4)  # type: ignore[union-attr]  # one cart in four views
    assert "view_item_list 960, view_item 960, add_to_cart 240" in text
    assert "half of 200 returns come within 2.0 days" in text


def test_every_proposed_feature_fires_on_its_sample() -> None:
    events = shop(2, 10, 3)
    checked = check_sample(load_feature_set(suggest(events, "s"), "s"), events)
    assert (checked.silent, checked.partly, checked.unused, checked.lacking) == ({}, {}, [], {})


def test_too_small_or_one_sided_a_sample_is_refused() -> None:
    with pytest.raises(SettingsError, match=f"holds 9 valid events, at least {EVENTS_MIN}"):
        suggest(shop(1, 1, 1), "tiny.jsonl")
    lists = [event for event in shop(1, 10, 2) if event.event_name == "view_item_list"]
    with pytest.raises(SettingsError, match="no event that says what a shopper wants"):
        suggest(lists, "lists.jsonl")


def test_a_sample_of_minutes_falls_back_to_usual_lengths() -> None:
    text, features = proposed(shop(3, 3, 1))
    assert features["activity"].half_lives == ["1d", "14d"]  # type: ignore[union-attr]
    assert "too few to measure" in text


def test_check_finds_features_that_nothing_feeds() -> None:
    """The shipped features against a shop without purchases, clicks on shelves, and prices."""
    features = FeatureSet(parse_declarations(default_text(), "default"))
    searches = [Event(event_id="q", event_name="refund", shopper="s0", time_ms=1_790_000_000_000)]
    checked = check_sample(features, [*shop(1, 5, 2), *searches])
    assert checked.silent.keys() == {"price_affinity", "click_rate", "conversion"}
    assert checked.silent["price_affinity"] == "no item of its events has price_band"
    assert checked.partly["since"] == ["purchase"]
    assert checked.unused == ["refund"]
    assert checked.lacking == {"price_band": 0.0}


def test_what_makes_another_version() -> None:
    """Another meaning does not; a parameter, a feature more or less, their order and the bound do."""
    old = load_feature_set(default_text(), "default")
    assert changes(old, load_feature_set(default_text().replace("the item's price", "money"), "same")) == ([], [], [], [])
    text = (
        default_text().replace("n: 20", "n: 9").replace("name: shown_at", "name: place").replace("hour_max: 1000", "hour_max: 99")
    )
    assert changes(old, load_feature_set(text, "changed")) == (
        ["place"],
        ["shown_at"],
        ["recent"],
        ["events_per_hour_max: 1000 → 99"],
    )
