"""The collector's HTTP interface, over the producer in memory."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from liveshelf.settings import Settings
from streams.collector import create_app
from streams.producer import MemoryProducer
from streams.pseudonym import Pseudonyms
from streams.records import CatalogItem, Event, Rejected, decode
from streams.wire import TIME_MIN_US

JSON = {"content-type": "application/json"}
VIEW: dict[str, Any] = {"name": "view_item", "client_id": "c", "event_id": "e", "items": [{"item_id": "a"}]}
PSEUDONYMS = Pseudonyms(b"k" * 32)
NOW_US = time.time_ns() // 1000


@contextmanager
def collector(producer: MemoryProducer, **changes: Any) -> Iterator[TestClient]:
    app = create_app(msgspec.structs.replace(Settings(), **changes), producer, PSEUDONYMS)
    with TestClient(app) as client:
        if not producer.down:
            wait_until_ready(client)
        yield client


def wait_until_ready(client: TestClient) -> None:
    deadline = time.monotonic() + 10
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[TestClient, MemoryProducer]]:
    producer = MemoryProducer(10_000)
    with collector(producer) as client:
        yield client, producer


@pytest.fixture
def client(shared: tuple[TestClient, MemoryProducer]) -> TestClient:
    shared[1].log.clear()
    return shared[0]


@pytest.fixture
def log(shared: tuple[TestClient, MemoryProducer], client: TestClient) -> dict[str, Any]:
    return shared[1].log


def test_accepted_event_stands_in_clickstream_under_its_shopper(client: TestClient, log: dict[str, Any]) -> None:
    answer = client.post("/v1/events", content=json.dumps(VIEW), headers=JSON)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "rejected": []})
    ((_, key, value),) = log["clickstream"]
    event = decode(Event, value)
    assert key == event.shopper == PSEUDONYMS.shopper("", "c", "")
    assert event.event_id == "e"


def test_login_stands_where_the_browsers_events_stand(client: TestClient, log: dict[str, Any]) -> None:
    browser = {"client_id": "c", "timestamp_micros": time.time_ns() // 1000}
    batch = [VIEW, browser | {"name": "login", "user_id": "u"}, VIEW | {"user_id": "u"}]
    assert client.post("/v1/events", json=batch).status_code == 202
    (before, login, after) = [(where.partition, key, decode(Event, value)) for where, key, value in log["clickstream"]]
    assert login[:2] == before[:2]
    assert login[2].link_to == after[1] != login[1]


def test_batch_is_taken_in_order_and_its_bad_events_are_named(client: TestClient, log: dict[str, Any]) -> None:
    batch = [VIEW | {"event_id": "1"}, VIEW | {"items": []}, VIEW | {"event_id": "2"}]
    answer = client.post("/v1/events", json=batch)
    assert answer.status_code == 202
    assert answer.json()["accepted"] == 2
    (refusal,) = answer.json()["rejected"]
    assert (refusal["index"], refusal["field"], refusal["reason"], refusal["value"]) == (1, "items", "missing_field", "[]")
    assert [decode(Event, value).event_id for _, _, value in log["clickstream"]] == ["1", "2"]
    ((_, key, value),) = log["clickstream-rejected"]
    assert key is None
    assert decode(Rejected, value).reason == "missing_field"


def test_nothing_acceptable_is_400_with_the_same_body(client: TestClient, log: dict[str, Any]) -> None:
    answer = client.post("/v1/events", content=b"{oops", headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["accepted"] == 0
    assert answer.json()["rejected"][0] | {"expected": ""} == {
        "index": None,
        "field": "",
        "value": "{oops",
        "expected": "",
        "reason": "invalid_json",
    }
    assert "clickstream" not in log
    assert decode(Rejected, log["clickstream-rejected"][0][2]).original == b"{oops"


def test_catalog_item_stands_under_its_id(client: TestClient, log: dict[str, Any]) -> None:
    assert client.post("/v1/catalog", json={"items": [{"item_id": "a", "price": 3}]}).status_code == 202
    ((_, key, value),) = log["catalog"]
    assert key == "a"
    assert decode(CatalogItem, value).price == 3.0


@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", "application/json; charset=utf-8", "TEXT/PLAIN"])
def test_content_types_of_browsers(client: TestClient, content_type: str) -> None:
    assert client.post("/v1/events", content=json.dumps(VIEW), headers={"content-type": content_type}).status_code == 202


def test_other_content_types_are_415(client: TestClient) -> None:
    answer = client.post("/v1/events", content="a=b", headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]


def test_browsers_of_any_origin_may_send(client: TestClient) -> None:
    origin = {"origin": "https://shop.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = client.options("/v1/events", headers=origin | asked)
    assert preflight.status_code == 200
    for answer in (preflight, client.post("/v1/events", json=VIEW, headers=origin)):
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert answer.headers["access-control-allow-credentials"] == "true"


def test_too_much_at_once_is_413() -> None:
    producer = MemoryProducer(100)
    with collector(producer, event_body_bytes_max=1000, events_per_request_max=3) as client:

        def endless() -> Iterator[bytes]:
            yield b"x" * 600
            yield b"x" * 600

        assert client.post("/v1/events", content=b"x" * 1001, headers=JSON).status_code == 413
        assert client.post("/v1/events", content=endless(), headers=JSON).status_code == 413
        assert client.post("/v1/events", json=[VIEW] * 4).status_code == 413
        assert producer.log == {}
        assert client.post("/v1/events", json=[VIEW] * 3).status_code == 202


def test_more_than_may_be_in_flight_is_429_with_retry_after() -> None:
    producer = MemoryProducer(2)
    with collector(producer) as client:
        answer = client.post("/v1/events", json=[VIEW] * 3)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert producer.log == {}
        assert client.post("/v1/events", json=[VIEW] * 2).status_code == 202


def test_kafka_that_does_not_acknowledge_is_503_and_nothing_is_claimed() -> None:
    producer = MemoryProducer(100)
    with collector(producer) as client:
        producer.down = True
        answer = client.post("/v1/events", json=[VIEW, {"name": "nope"}])
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "accepted" not in answer.json()
        metrics = client.get("/metrics").text
        assert 'outcome="accepted"' not in metrics
        assert "liveshelf_collector_rejects_unrecorded_total 1.0" in metrics


def test_kafka_that_comes_later() -> None:
    producer = MemoryProducer(100)
    producer.down = True
    with collector(producer) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.post("/v1/events", json=VIEW).status_code == 503
        producer.down = False
        wait_until_ready(client)
        assert client.post("/v1/events", json=VIEW).status_code == 202


def test_metrics_count_records_by_outcome_and_reason() -> None:
    with collector(MemoryProducer(100)) as client:
        client.post("/v1/events", json=[VIEW, VIEW, {"name": "nope"}])
        metrics = client.get("/metrics").text
    assert 'liveshelf_collector_records_total{kind="event",outcome="accepted",reason=""} 2.0' in metrics
    assert 'liveshelf_collector_records_total{kind="event",outcome="rejected",reason="unknown_event_name"} 1.0' in metrics
    assert 'liveshelf_collector_request_seconds_count{path="/v1/events",status="202"} 1.0' in metrics
    assert "liveshelf_collector_inflight 0.0" in metrics


def test_unknown_paths_and_methods_are_answered_in_json(client: TestClient) -> None:
    assert (client.get("/nope").status_code, client.get("/nope").json()) == (404, {"error": "Not Found"})
    assert client.get("/v1/events").status_code == 405
    assert "/v1/events" in client.get("/").json()["endpoints"]


def test_openapi_names_every_route_and_its_references_resolve(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == set(client.get("/").json()["endpoints"]) - {"/", "/openapi.json"}

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key == "$ref")
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from references(child)

    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= set(document["components"]["schemas"])
    assert "view_item" in json.dumps(document["components"]["schemas"]["WireEvent"])


def test_openapi_says_what_counts_once_and_what_is_too_old() -> None:
    with collector(MemoryProducer(100), event_age_max_h=48) as client:
        document = client.get("/openapi.json").json()
    assert "within 24 hours" in document["components"]["schemas"]["WireEvent"]["properties"]["event_id"]["description"]
    assert "48 hours ago" in document["info"]["description"]


def same_answer(answer: httpx.Response) -> None:
    assert answer.status_code in (202, 400, 413), answer.text
    if answer.status_code != 413:
        assert (answer.status_code == 202) == (answer.json()["accepted"] > 0)


quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(body=st.binary(max_size=2000), path=st.sampled_from(["/v1/events", "/v1/catalog"]))
def test_any_bytes_are_answered(client: TestClient, body: bytes, path: str) -> None:
    same_answer(client.post(path, content=body, headers=JSON))


RAW = "raw-Zq7-id"  # stands in every id below and must never be stored
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)
ids = st.sampled_from([RAW, RAW + "é\u2028", [RAW], "", None]) | junk.filter(lambda value: not isinstance(value, str))
items = st.lists(
    st.fixed_dictionaries({}, optional={"item_id": scalars, "price": scalars, "quantity": scalars, "item_name": scalars}),
    max_size=3,
)
fields = {
    "name": st.sampled_from(["view_item", "purchase", "refund", "login", "nope"]) | junk,
    "user_id": ids,
    "client_id": ids,
    "session_id": ids,
    "event_id": scalars,
    "timestamp_micros": scalars | st.integers(TIME_MIN_US, 2**62) | st.integers(NOW_US - 10**10, NOW_US),
    "items": items | junk,
    "value": scalars,
}
event = st.fixed_dictionaries({}, optional=fields)
event = event | st.fixed_dictionaries({"params": event}, optional=fields)
envelope = st.fixed_dictionaries({"events": st.lists(event, max_size=4)}, optional={"user_id": ids, "client_id": ids})


@quick
@given(request=event | st.lists(event | junk, max_size=4) | envelope, cut=st.none() | st.integers(0, 400))
def test_any_json_is_answered_and_no_raw_id_is_ever_stored(
    client: TestClient, log: dict[str, Any], request: Any, cut: int | None
) -> None:
    body = json.dumps(request, ensure_ascii=False).encode(errors="surrogatepass")[:cut]
    log.clear()
    answer = client.post("/v1/events", content=body, headers=JSON)
    same_answer(answer)
    for _, key, value in [record for records in log.values() for record in records]:
        kept = decode(Rejected, value).original if b'"original"' in value else value
        assert RAW.encode() not in kept, (body, kept)
        assert RAW not in (key or "")
    if isinstance(request, list) and request and cut is None and b"NaN" not in body and b"Infinity" not in body:
        assert answer.json()["accepted"] == len(log.get("clickstream", []))
