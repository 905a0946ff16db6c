"""The scoring service on a real broker and store, without a model server: its edge, its fallback, its freshness."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from confluent_kafka import Producer
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from features.declarations import read_declarations
from features.events import EVENT_INDEX, Event, EventItem
from features.feature_set import FeatureSet
from features.rows import CatalogItem, ItemRow
from features.store import FeatureRows
from liveshelf.client import Client
from liveshelf.errors import LiveshelfError, NotFoundError, UnavailableError
from liveshelf.local.parts import role_environment
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings
from streams.pseudonym import Pseudonyms
from streams.records import Impression, decode, encode
from streams.topics import CATALOG, CLICKSTREAM, IMPRESSIONS, ITEM_UPDATES, PARTITIONER, item_update_key, kafka_config
from tests.conftest import local_settings, read_all, running, wait_for_port

T0 = int(time.time() * 1000)
FEATURES = FeatureSet(read_declarations(None))
SERVICE = "liveshelf.v1.RecommendationService"


def item_row(
    item: str, partition: int, offset: int, views: float, purchases: float = 0.0, neighbours: dict[str, float] | None = None
) -> ItemRow:
    """A row whose counts are worth these now."""
    row = FEATURES.item(item, partition)
    row.offset, row.time_ms = offset, T0
    weights = FEATURES.item_half_lives.weights(T0)
    for slot in FEATURES.item_slots["demand"]:
        row.numbers[slot.at] = {"view_item": views, "purchase": purchases}.get(slot.event, 0.0) * weights[slot.half_life]
    scale = weights[FEATURES.half_life_at(FEATURES.item_half_lives, FEATURES.covisit.half_life)]
    row.neighbours = {name: weight * scale for name, weight in (neighbours or {}).items()}
    return row


@pytest.fixture(scope="module")
def settings(kafka: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A scorer with eight items: even ones are hats, odd ones shoes; item 0 leads to item 6. Its store is its own, to be taken away."""
    home = tmp_path_factory.mktemp("scoring")
    settings = local_settings(
        home, kafka=kafka.kafka, partitions=kafka.partitions, recommend_deadline_ms=2_000, store_timeout_ms=500
    )
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER})
    for n in range(8):
        item = CatalogItem(
            item_id=f"score-{n}", item_name=f"Item {n}", item_category=["hats", "shoes"][n % 2], price=10.0 + n, time_ms=T0
        )
        producer.produce(CATALOG, encode(item), item.item_id)
        row = item_row(item.item_id, n % 4, n, 1000.0 - n, neighbours={"score-6": 9.0} if n == 0 else {})
        producer.produce(ITEM_UPDATES, encode(row), item_update_key(FEATURES.version, row.item), partition=row.partition)
    assert producer.flush(10) == 0
    store_log = home / "store.log"
    with running(valkey_command(settings), store_log) as store:
        wait_for_port(settings.store_port, store, store_log)
        FeatureRows(settings, 5.0).register_first()
        with running(
            [sys.executable, "-m", "serving.service"], home / "scoring.log", env=role_environment(settings, os.environ)
        ) as scorer:
            wait_for_port(settings.scoring_port, scorer, home / "scoring.log")
            with grpc.insecure_channel(settings.scoring_address) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                until(
                    lambda: (
                        health.Check(health_pb2.HealthCheckRequest(service=SERVICE)).status
                        == health_pb2.HealthCheckResponse.SERVING
                    )
                )
            yield settings


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings.scoring_address, deadline_ms=2_000) as client:
        yield client


def until(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail("not in time")


def test_a_shelf_without_model_is_heuristic_and_says_so(client: Client) -> None:
    shelf = client.recommend(client_id="x", count=3)
    assert (shelf.degraded, shelf.degraded_reason, shelf.model_version) == (True, "model_server_unavailable", 0)
    assert [(i.item_id, i.position) for i in shelf.items] == [("score-0", 0), ("score-1", 1), ("score-2", 2)]
    assert (shelf.items[0].title, shelf.items[0].category, shelf.items[0].price) == ("Item 0", "hats", 10.0)


def test_a_session_of_this_minute_leads_to_what_it_went_on_to(settings: Settings, client: Client) -> None:
    """Of the log alone: no agents run here, so nothing else knows of it."""

    def shelf() -> dict[str, str]:
        answer = client.recommend(client_id="looks-at-5", context_item_ids=["score-5"], placement="home")
        return {item.item_id: item.candidate_source for item in answer.items}

    assert shelf()["score-3"] != "neighbours"
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER})
    for n, item in enumerate(("score-5", "score-3")):
        event = Event(
            event_id=f"live-{n}", event_name="view_item", shopper="p-live", time_ms=T0 + n, items=(EventItem(item_id=item),)
        )
        producer.produce(CLICKSTREAM, encode(event), event.shopper)
    assert producer.flush(10) == 0
    until(lambda: shelf()["score-3"] == "neighbours", 10)


def test_the_stored_row_shapes_the_shelf_and_stands_in_the_impression(settings: Settings, client: Client) -> None:
    shopper = Pseudonyms.open(settings).shopper("", "row-client", "")
    row = FEATURES.shopper(shopper)
    row.partition, row.offset, row.time_ms = 0, 41, T0
    row.recent_items, row.recent_events, row.recent_times_ms = ["score-0"], [EVENT_INDEX["view_item"]], [T0]
    FeatureRows(settings, 5.0).write_shoppers([row], FEATURES)
    shelf = client.recommend(client_id="row-client", placement="home")
    assert shelf.features_offset == 41
    assert (shelf.items[0].item_id, shelf.items[0].candidate_source) == ("score-6", "covisit")

    def logged() -> list[Impression]:
        found = [decode(Impression, value) for _, _, _, value in read_all(settings, IMPRESSIONS)]
        return [i for i in found if i.request_id == shelf.request_id]

    (impression,) = until(logged)
    served = impression.features
    assert (served.partition, served.offset, served.recent_items) == (0, 41, ["score-0"])
    assert impression.items == [i.item_id for i in shelf.items]
    assert (impression.shopper, impression.placement, impression.degraded) == (shopper, "home", shelf.degraded_reason)


def test_rank_answers_every_candidate(client: Client) -> None:
    answer = client.rank(["score-5", "unknown", "score-1"], client_id="x")
    assert [i.item_id for i in answer.items] == ["score-1", "score-5", "unknown"]


def test_similar_items_are_its_neighbours_and_an_unknown_item_is_not_found(client: Client) -> None:
    assert [i.item_id for i in client.similar_items("score-0").items] == ["score-6"]
    with pytest.raises(NotFoundError, match="score-none"):
        client.similar_items("score-none")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: c.recommend(), "at least one of user_id"),
        (lambda c: c.recommend(client_id="x", count=101), "count: got .?101"),
        (lambda c: c.recommend(client_id="x", exclude_item_ids=["a"] * 1001), "exclude_item_ids: got .?1001 items"),
        (lambda c: c.recommend(client_id="x" * 129), "129 characters"),
        (lambda c: c.rank([], client_id="x"), "expected 1 to 2000"),
        (lambda c: c.rank(["a", "b", "a"], client_id="x"), "'a.? once more"),
    ],
)
def test_a_wrong_request_is_told_what_and_why(client: Client, call: Callable[[Client], Any], said: str) -> None:
    with pytest.raises(LiveshelfError, match=said):
        call(client)


def test_a_new_item_update_counts_within_seconds(settings: Settings, client: Client) -> None:
    """What is folded now changes the next shelf: the scorer follows `item-updates`."""
    producer = Producer(kafka_config(settings))
    row = item_row("score-7", 3, 1000, views=500_000.0, purchases=50_000.0)
    producer.produce(ITEM_UPDATES, encode(row), item_update_key(FEATURES.version, row.item), partition=3)
    assert producer.flush(10) == 0
    until(lambda: client.recommend(client_id="x", count=1).items[0].item_id == "score-7", 10)


def test_a_new_item_is_shown_within_a_minute_of_its_catalog_record(settings: Settings, client: Client) -> None:
    """Nobody ever looked at it: its record makes it a candidate, and the exploration floor shows it, with its propensity."""
    producer = Producer(kafka_config(settings))
    record = CatalogItem(item_id="score-new", item_name="Just in", item_category="hats", price=9.0, time_ms=int(time.time() * 1000))
    producer.produce(CATALOG, encode(record), record.item_id)
    assert producer.flush(10) == 0

    def shown() -> Any:
        shelf = client.recommend(client_id=f"stranger-{time.monotonic_ns()}", count=5)
        return next((item for item in shelf.items if item.item_id == "score-new"), None)

    found = until(shown, 60)
    assert found.candidate_source == "new"
    assert 0.0 < found.propensity < 1.0


def test_reflection_is_enough_to_call_it(settings: Settings) -> None:
    """As grpcurl does: no generated code, the messages come from the server."""
    with grpc.insecure_channel(settings.scoring_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in database.get_services()
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName(SERVICE).FindMethodByName("Recommend")
        request = json_format.Parse(
            '{"shopper": {"client_id": "x"}, "count": 2}', message_factory.GetMessageClass(method.input_type)()
        )
        answer = channel.unary_unary(
            f"/{SERVICE}/Recommend",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )(request, timeout=5)
    assert len(answer.items) == 2


def test_without_its_store_every_request_is_answered_and_it_recovers(settings: Settings, tmp_path: Path) -> None:
    """A scorer whose store never was: shelves all the same, and a full one once it is there."""
    alone = msgspec.structs.replace(
        local_settings(tmp_path), kafka=settings.kafka, partitions=settings.partitions, recommend_deadline_ms=2_000
    )
    log = tmp_path / "scoring.log"
    with running([sys.executable, "-m", "serving.service"], log, env=role_environment(alone, os.environ)) as scorer:
        wait_for_port(alone.scoring_port, scorer, log)
        with Client(alone.scoring_address, deadline_ms=2_000) as lonely:

            def first_shelf() -> Any:
                try:  # the port is open a moment before anybody answers there
                    return (shelf := lonely.recommend(client_id="x", count=2)).items and shelf
                except UnavailableError:
                    return None

            shelf = until(first_shelf)
            assert shelf.degraded_reason in ("store_unavailable", "store_late")  # late: the first read costs Feast 100 ms and more
            store_log = tmp_path / "store.log"
            FeatureRows(alone, 5.0).register_first()
            with running(valkey_command(alone), store_log) as store:
                wait_for_port(alone.store_port, store, store_log)
                until(lambda: lonely.recommend(client_id="x").degraded_reason == "model_server_unavailable")
