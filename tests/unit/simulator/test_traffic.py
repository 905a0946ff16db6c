"""Traffic over real sockets: batches in order, patience with an overloaded collector, and the loop closed by request ids."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from liveshelf.client import Client
from liveshelf.errors import UnavailableError
from liveshelf.simulator.feed import Feed
from liveshelf.simulator.history import history
from liveshelf.simulator.shop import Shop
from liveshelf.simulator.traffic import Tally, live, seed_history
from liveshelf.v1 import recommendation_pb2 as pb2
from liveshelf.v1.recommendation_pb2_grpc import RecommendationServiceServicer, add_RecommendationServiceServicer_to_server

NOW_MS = 1_800_000_000_000


class Collector(ThreadingHTTPServer):
    """Takes what it is sent, refuses what `refuse` says, and is overloaded for the first `overloaded` requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, list[dict]]] = []
        self.refuse = lambda record: False
        self.overloaded = 0
        self.lock = threading.Lock()

    @property
    def events(self) -> list[dict]:
        return [event for path, events in self.requests if path == "/v1/events" for event in events]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Collector

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = self.path.rpartition("/")[2].replace("catalog", "items")
        records = body[key] if self.path == "/v1/catalog" or "event_name" not in body else [body]
        with self.server.lock:
            if self.server.overloaded:
                self.server.overloaded -= 1
                return self.answer(503, {"error": "overloaded"}, {"retry-after": "0"})
            refused = [n for n, record in enumerate(records) if self.server.refuse(record)]
            self.server.requests.append((self.path, records))
        rejected = [
            {"index": n, "field": "name", "value": "", "expected": "a name", "reason": "unknown_event_name"} for n in refused
        ]
        return self.answer(202, {"accepted": len(records) - len(refused), "rejected": rejected})

    def answer(self, status: int, value: dict, headers: dict | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


class Scorer(RecommendationServiceServicer):
    """Shows the first items of the catalog, to whoever asks; every fifth time it is down."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.shelves, self.down, self.lock = shop, {}, 0, threading.Lock()

    def Recommend(self, request, context):  # noqa: N802 - the wire contract names it
        with self.lock:
            number = len(self.shelves) + self.down
            if number % 5 == 4:
                self.down += 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "down")
            items = [item.item_id for item in self.shop.catalog[number % 3 :: 7]][: request.count]
            self.shelves[f"r{number}"] = (request, items)
        return pb2.RecommendResponse(
            request_id=f"r{number}", items=[pb2.ScoredItem(item_id=item) for item in items], degraded=number % 2 == 0
        )


@pytest.fixture
def shop() -> Shop:
    return Shop(11, items=120, shoppers=20)


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def scorer(shop: Shop) -> Iterator[tuple[Scorer, str]]:
    servicer, server = Scorer(shop), grpc.server(ThreadPoolExecutor(8))
    add_RecommendationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_history_arrives_whole_in_order_and_ends_now(shop: Shop, collector: Collector) -> None:
    """The catalog first, stamped; then every event in event-time order; the tally is what the collector said."""
    steps: list[tuple[int, int]] = []
    with Feed(collector.url) as feed:
        tally = seed_history(shop, feed, 3, NOW_MS, lambda done, total: steps.append((done, total)))
    expected = history(shop, 3)
    assert collector.requests[0][0] == "/v1/catalog"
    assert [item["item_id"] for item in collector.requests[0][1]] == [item.item_id for item in shop.catalog]
    assert {item["time_ms"] for item in collector.requests[0][1]} == {NOW_MS}
    assert [event["event_id"] for event in collector.events] == [event.event_id for event in expected]
    times = [event["timestamp_micros"] for event in collector.events]
    assert times == sorted(times)
    assert times[-1] == NOW_MS * 1_000
    assert (tally.catalog, tally.events, tally.accepted, tally.rejected) == (120, len(expected), len(expected), 0)
    assert tally.clicks == sum(event["event_name"] == "select_item" for event in collector.events) > 0
    assert steps[-1] == (len(expected), len(expected))


def test_refusals_are_counted_with_their_reason(shop: Shop, collector: Collector) -> None:
    collector.refuse = lambda record: record.get("event_name") == "purchase"
    with Feed(collector.url) as feed:
        tally = seed_history(shop, feed, 3, NOW_MS)
    purchases = sum(event.event_name == "purchase" for event in history(shop, 3))
    assert (tally.rejected, tally.accepted + tally.rejected) == (purchases, tally.events)
    assert purchases > 0
    assert tally.reasons == {"unknown_event_name: name: expected a name": purchases}


def test_an_overloaded_collector_is_asked_again(shop: Shop, collector: Collector) -> None:
    """A 503 loses nothing and repeats nothing."""
    collector.overloaded = 3
    with Feed(collector.url) as feed:
        tally = seed_history(shop, feed, 1, NOW_MS)
    assert tally.accepted == len(collector.events) == len(history(shop, 1))


def test_no_collector_is_said_with_its_address(shop: Shop) -> None:
    with Feed("http://127.0.0.1:9") as feed, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9 .*liveshelf up"):
        seed_history(shop, feed, 1, NOW_MS)


def test_visits_now_close_the_loop(shop: Shop, collector: Collector, scorer: tuple[Scorer, str]) -> None:
    """What was shown is what was answered, to the shopper who asked; feedback bears that answer's request id."""
    servicer, address = scorer
    with Feed(collector.url) as feed, Client(address, 5_000) as client:
        tally = live(shop, feed, client, visits=40, rate_per_s=0, run="t")
    lists = [event for event in collector.events if event["event_name"] == "view_item_list"]
    assert {event["request_id"] for event in lists} == servicer.shelves.keys()
    for event in collector.events:
        if request_id := event.get("request_id"):
            request, items = servicer.shelves[request_id]
            assert request.shopper.client_id == event["client_id"]
            assert request.shopper.user_id == event.get("user_id", "")
            assert request.shopper.session_id == event["session_id"]
            assert {item["item_id"] for item in event["items"]} <= set(items)
    clicks = [event for event in collector.events if event["event_name"] == "select_item"]
    assert clicks
    assert all(event["request_id"] for event in clicks)
    assert (tally.visits, tally.clicks, tally.accepted) == (40, len(clicks), len(collector.events))
    assert (tally.shelves, tally.shelves_missed) == (len(servicer.shelves), servicer.down)
    assert 0 < tally.shelves_degraded < tally.shelves
    assert len({event["event_id"] for event in collector.events}) == len(collector.events)


def test_shelves_are_asked_for_and_events_sent_as_whoever_is_signed_in(
    shop: Shop, collector: Collector, scorer: tuple[Scorer, str]
) -> None:
    """Before the login as the anonymous browser, after it as the person; feedback on an earlier shelf may come after the login."""
    servicer, address = scorer
    with Feed(collector.url) as feed, Client(address, 5_000) as client:
        tally = live(shop, feed, client, visits=60, rate_per_s=0, run="t", sign_in_share=1.0)
    logins = {event["session_id"]: event for event in collector.events if event["event_name"] == "login"}
    assert len(logins) == tally.logins > 3
    owners = {shopper.client_id: shopper.user_id for shopper in shop.shoppers}
    assert all(event["user_id"] == owners[event["client_id"]] != "" for event in logins.values())
    for event in collector.events:
        if event["event_name"] == "view_item_list":
            request, _ = servicer.shelves[event["request_id"]]
            assert (request.shopper.client_id, request.shopper.user_id) == (event["client_id"], event.get("user_id", ""))
        login = logins.get(event["session_id"])
        if login is None or event["event_id"] < login["event_id"]:
            assert "user_id" not in event, "nobody is signed in before the login"


def test_same_seed_same_visitors_other_run_other_ids(shop: Shop, collector: Collector, scorer: tuple[Scorer, str]) -> None:
    _, address = scorer
    with Feed(collector.url) as feed, Client(address, 5_000) as client:
        live(shop, feed, client, visits=10, rate_per_s=0, run="a")
        first = list(collector.events)
        live(shop, feed, client, visits=10, rate_per_s=0, run="b")
    second = collector.events[len(first) :]
    visitors = [{e["session_id"][2:]: e["client_id"] for e in events} for events in (first, second)]
    both = visitors[0].keys() & visitors[1].keys()  # a visitor without a shelf may leave without an event
    assert len(both) > 3
    assert all(visitors[0][visit] == visitors[1][visit] for visit in both)
    assert not {e["event_id"] for e in first} & {e["event_id"] for e in second}


def test_who_is_absent_does_not_visit(shop: Shop, collector: Collector, scorer: tuple[Scorer, str]) -> None:
    away = [int(shop.activity.argmax()), 3]
    with Feed(collector.url) as feed, Client(scorer[1], 5_000) as client:
        live(shop, feed, client, visits=30, rate_per_s=0, run="t", absent=away)
    assert collector.events
    assert not {e["client_id"] for e in collector.events} & {shop.shoppers[s].client_id for s in away}


def test_a_lost_collector_ends_the_visits(shop: Shop, scorer: tuple[Scorer, str]) -> None:
    tally = Tally()
    with Feed("http://127.0.0.1:9") as feed, Client(scorer[1], 5_000) as client, pytest.raises(UnavailableError):
        live(shop, feed, client, visits=1_000, rate_per_s=0, run="t", tally=tally)
    assert tally.visits < 100
