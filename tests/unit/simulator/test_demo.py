"""What the demo decides by itself: whom it shows, what is clicked, when a shelf counts as changed, what it may delete."""

import pytest

from liveshelf.cli.demo import chosen_shopper, demo_settings, is_changed, moved, unlike
from liveshelf.settings import Settings
from liveshelf.simulator.shop import AISLES, Shop
from liveshelf.v1 import recommendation_pb2 as pb2


def _shelf(items: str, offset: int = 0, scores: float = 1.0, degraded: bool = False) -> pb2.RecommendResponse:
    scored = [pb2.ScoredItem(item_id=item, position=n, score=scores) for n, item in enumerate(items)]
    return pb2.RecommendResponse(items=scored, features_offset=offset, degraded=degraded)


def test_moves_name_every_item_of_both_shelves() -> None:
    assert moved(_shelf("abcd"), _shelf("cabx")) == {"c": "↑2", "a": "↓1", "b": "↓1", "x": "new", "d": "gone"}
    assert moved(_shelf("ab"), _shelf("ab")) == {"a": "=", "b": "="}


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        (_shelf("ba", offset=8), True),
        (_shelf("ab", offset=8, scores=2.0), True),
        (_shelf("ab", offset=8), False),  # the event said nothing about this shelf
        (_shelf("ba", offset=7), False),  # decay alone reorders, too
        (_shelf("ba", offset=8, degraded=True), False),  # what is popular, whoever asks
        (_shelf("ba", offset=-1), False),  # the store was late
    ],
)
def test_a_change_needs_newer_features_and_another_shelf(after: pb2.RecommendResponse, changed: bool) -> None:
    assert is_changed(_shelf("ab", offset=7), after) is changed


def test_clicks_go_where_the_shelf_and_the_shopper_are_not() -> None:
    shop = Shop(7)
    shopper = chosen_shopper(shop)
    taste = shop.category_taste(shopper.index, 0.0)
    liked = {AISLES[k].category for k in taste.argsort()[-5:]}
    clicked = unlike(shop, shopper, liked)
    assert len(clicked) == len(set(clicked)) == 3
    assert not {shop.catalog[at].item_category for at in clicked} & liked
    assert len({shop.catalog[at].item_category for at in clicked}) == 1
    assert not shopper.user_id


def test_the_demo_keeps_away_from_the_users_kafka_store_and_data(tmp_path) -> None:
    mine = Settings(data_dir=str(tmp_path), kafka="k:9092", store="r:6379,password=x", model_server="m:8500", kafka_replication=3)
    demo = demo_settings(mine)
    assert (demo.kafka, demo.store, demo.model_server, demo.kafka_replication) == ("", "", "", 1)
    assert demo.data_path == tmp_path.resolve() / "demo"
    assert demo.cache_dir == mine.cache_dir
