"""The client against a real gRPC server on a real socket: what it sends, when it gives up, what it raises, what it sends again."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from liveshelf.client import AsyncClient, Client, DeadlineError, Event, OverloadedError, UnauthenticatedError
from liveshelf.errors import InvalidEventError, LiveshelfError, NotFoundError, UnavailableError
from liveshelf.v1 import recommendation_pb2 as pb2
from liveshelf.v1.recommendation_pb2_grpc import (
    EventServiceServicer,
    RecommendationServiceServicer,
    add_EventServiceServicer_to_server,
    add_RecommendationServiceServicer_to_server,
)


class Scorer(RecommendationServiceServicer, EventServiceServicer):
    """Answers what it was asked; `context_item_ids` or `item_id` of the form status:NAME or sleep:SECONDS ask for trouble."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.requests: list[object] = []

    def _trouble(self, method: str, orders: list[str], context: grpc.ServicerContext) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1
        for order in orders:
            kind, _, value = order.partition(":")
            if kind == "sleep":
                time.sleep(float(value))
            elif kind == "status":
                context.abort(grpc.StatusCode[value], f"words about {value}")
            elif kind == "refuse":
                field, _, description = value.partition(": ")
                violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
                self._abort(context, code_pb2.INVALID_ARGUMENT, value, error_details_pb2.BadRequest(field_violations=[violation]))
            elif kind == "overloaded":
                retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=int(float(value) * 1e9)))
                self._abort(context, code_pb2.RESOURCE_EXHAUSTED, "full", retry)
            elif kind == "slow_at_first" and self.calls[method] == 1:
                time.sleep(float(value))
            elif kind == "unavailable_until" and self.calls[method] < int(value):
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

    def _abort(self, context: grpc.ServicerContext, code: int, message: str, detail: Message) -> None:
        status = status_pb2.Status(code=code, message=message)
        status.details.add().Pack(detail)
        context.abort_with_status(rpc_status.to_status(status))

    def Recommend(self, request, context):  # noqa: N802 - the wire contract names it
        self.requests.append(request)
        self._trouble("Recommend", list(request.context_item_ids), context)
        return pb2.RecommendResponse(request_id="r1", items=[pb2.ScoredItem(item_id="a")] * (request.count or 10))

    def Rank(self, request, context):  # noqa: N802 - the wire contract names it
        self.requests.append(request)
        self._trouble("Rank", list(request.item_ids), context)
        return pb2.RankResponse(request_id="r2", items=[pb2.ScoredItem(item_id=i) for i in request.item_ids])

    def SimilarItems(self, request, context):  # noqa: N802 - the wire contract names it
        self._trouble("SimilarItems", [request.item_id], context)
        return pb2.SimilarItemsResponse(items=[pb2.ScoredItem(item_id=request.item_id)])

    def RecordEvents(self, request, context):  # noqa: N802 - the wire contract names it
        self.requests.append(request)
        self._trouble("RecordEvents", [request.events[0].search_term], context)
        return pb2.RecordEventsResponse(accepted=len(request.events))


@pytest.fixture
def scorer() -> Iterator[tuple[Scorer, str]]:
    servicer, server = Scorer(), grpc.server(ThreadPoolExecutor(4))
    add_RecommendationServiceServicer_to_server(servicer, server)
    add_EventServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_arguments_become_the_request(scorer: tuple[Scorer, str]) -> None:
    servicer, address = scorer
    with Client(address, deadline_ms=5_000) as client:
        shelf = client.recommend(
            user_id="u",
            client_id="c",
            session_id="s",
            count=3,
            placement="cart",
            context_item_ids=["x"],
            exclude_item_ids=["y", "z"],
        )
        ranked = client.rank(["q", "p"], client_id="c", placement="grid")
    assert (shelf.request_id, len(shelf.items)) == ("r1", 3)
    assert [item.item_id for item in ranked.items] == ["q", "p"]
    shopper = pb2.Shopper(user_id="u", client_id="c", session_id="s")
    assert servicer.requests == [
        pb2.RecommendRequest(shopper=shopper, count=3, placement="cart", context_item_ids=["x"], exclude_item_ids=["y", "z"]),
        pb2.RankRequest(shopper=pb2.Shopper(client_id="c"), item_ids=["q", "p"], placement="grid"),
    ]


def test_a_late_answer_is_given_up_at_the_deadline(scorer: tuple[Scorer, str]) -> None:
    """The client's deadline holds by default, and a call's own deadline wins over it, in both directions."""
    _, address = scorer
    with Client(address, deadline_ms=100) as client:
        client.similar_items("warm", deadline_ms=5_000)  # connects
        started = time.monotonic()
        with pytest.raises(DeadlineError, match="within its deadline"):
            client.recommend(client_id="c", context_item_ids=["sleep:2"])
        assert time.monotonic() - started < 1.5
        assert client.recommend(client_id="c", context_item_ids=["sleep:0.3"], deadline_ms=5_000).request_id == "r1"


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        ("RESOURCE_EXHAUSTED", OverloadedError),
        ("UNAVAILABLE", UnavailableError),
        ("UNAUTHENTICATED", UnauthenticatedError),
        ("INVALID_ARGUMENT", InvalidEventError),
        ("NOT_FOUND", NotFoundError),
        ("INTERNAL", LiveshelfError),
    ],
)
def test_a_status_becomes_an_error_of_the_tree(scorer: tuple[Scorer, str], status: str, raised: type[LiveshelfError]) -> None:
    """The same for both clients, and the server's words are kept."""
    _, address = scorer
    with Client(address, deadline_ms=5_000) as client, pytest.raises(raised, match=f"words about {status}") as caught:
        client.recommend(client_id="c", context_item_ids=[f"status:{status}"])
    assert type(caught.value) is raised

    async def awaited() -> None:
        async with AsyncClient(address, deadline_ms=5_000) as client:
            await client.rank([f"status:{status}"], client_id="c")

    with pytest.raises(raised, match=f"words about {status}") as caught:
        asyncio.run(awaited())
    assert type(caught.value) is raised


def test_a_refusal_names_the_field(scorer: tuple[Scorer, str]) -> None:
    """The scorer's words, taken apart again: a caller can tell which argument was wrong without reading prose."""
    _, address = scorer
    with Client(address, deadline_ms=5_000) as client, pytest.raises(InvalidEventError) as caught:
        client.recommend(client_id="c", context_item_ids=["refuse:count: got 500, expected 1 to 100, or 0 for 10"])
    assert (caught.value.field, caught.value.value, caught.value.expected) == ("count", "500", "1 to 100, or 0 for 10")


def test_only_the_unlogged_call_is_sent_again(scorer: tuple[Scorer, str]) -> None:
    """SimilarItems survives two UNAVAILABLE; Recommend and Rank, which log an impression, reach the server once."""
    servicer, address = scorer
    with Client(address, deadline_ms=5_000) as client:
        assert client.similar_items("unavailable_until:3").items[0].item_id == "unavailable_until:3"
        with pytest.raises(UnavailableError):
            client.recommend(client_id="c", context_item_ids=["unavailable_until:3"])
        with pytest.raises(UnavailableError):
            client.rank(["unavailable_until:3"], client_id="c")
    assert servicer.calls == {"SimilarItems": 3, "Recommend": 1, "Rank": 1}


def test_overload_says_when_to_come_again(scorer: tuple[Scorer, str]) -> None:
    """And the client leaves that to its caller: asking a scorer that is full again at once would keep it full."""
    servicer, address = scorer
    with Client(address, deadline_ms=5_000) as client, pytest.raises(OverloadedError) as caught:
        client.similar_items("overloaded:0.25")
    assert caught.value.retry_after_s == 0.25
    assert servicer.calls == {"SimilarItems": 1}


def test_events_are_sent_again_with_the_ids_they_got_first(scorer: tuple[Scorer, str]) -> None:
    """Ids and times are given at the client, in the caller's own objects; those that are there stay."""
    servicer, address = scorer
    message = Event(name="view_item", client_id="c", search_term="unavailable_until:3")
    mapping = {"name": "view_item", "client_id": "c", "event_id": "mine", "items": [{"item_id": "a", "price": 2.5}]}
    with Client(address) as client:
        assert client.record_events([message, mapping]).accepted == 2
    first, *others = servicer.requests
    assert len(others) == 2
    assert all(other == first for other in others)
    assert (first.events[0].event_id, first.events[1].event_id) == (message.event_id, "mine")
    assert len(message.event_id) == 32
    assert abs(message.timestamp_micros / 1e6 - time.time()) < 60
    assert mapping["timestamp_micros"] == message.timestamp_micros
    assert first.events[1].items[0].price == 2.5


def test_a_late_unlogged_call_is_hedged(scorer: tuple[Scorer, str]) -> None:
    """The second answer comes long before the first would have; Recommend is never hedged, and nothing is without being asked to."""
    servicer, address = scorer
    with Client(address, deadline_ms=10_000, hedge_after_ms=100) as client:
        started = time.monotonic()
        assert client.similar_items("slow_at_first:1.5").items
        assert time.monotonic() - started < 1.2
        client.recommend(client_id="c", context_item_ids=["slow_at_first:0.3"])
    assert servicer.calls == {"SimilarItems": 2, "Recommend": 1}

    async def awaited() -> float:
        servicer.calls.clear()
        async with AsyncClient(address, deadline_ms=10_000, hedge_after_ms=100) as client:
            started = time.monotonic()
            assert (await client.similar_items("slow_at_first:1.5")).items
            return time.monotonic() - started

    assert asyncio.run(awaited()) < 1.2
    assert servicer.calls == {"SimilarItems": 2}
    servicer.calls.clear()
    with Client(address, deadline_ms=10_000) as client:
        client.similar_items("slow_at_first:0.3")
    assert servicer.calls == {"SimilarItems": 1}


def test_a_hedged_call_fails_as_an_unhedged_one_does(scorer: tuple[Scorer, str]) -> None:
    _, address = scorer
    with Client(address, deadline_ms=300, hedge_after_ms=50) as client:
        client.recommend(client_id="c", deadline_ms=5_000)  # connects
        with pytest.raises(NotFoundError):
            client.similar_items("status:NOT_FOUND")
        with pytest.raises(DeadlineError):
            client.similar_items("sleep:1")


def test_nobody_listening_is_said_with_the_address(unused_address: str) -> None:
    with Client(unused_address, deadline_ms=2_000) as client, pytest.raises(UnavailableError, match=unused_address) as caught:
        client.recommend(client_id="c")
    assert "liveshelf status" in str(caught.value)


SERVE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from liveshelf.v1.recommendation_pb2_grpc import add_RecommendationServiceServicer_to_server
from tests.unit.client.test_client import Scorer
server = grpc.server(ThreadPoolExecutor(1))
add_RecommendationServiceServicer_to_server(Scorer(), server)
assert server.add_insecure_port(sys.argv[1])
server.start()
print("listens", flush=True)
sys.stdin.read()
"""


def test_a_client_finds_a_scorer_that_came_back(unused_address: str) -> None:
    """After refused connections, and calls that go on meanwhile, the channel connects soon after somebody listens: a server in a process
    of its own, since one in this process would do the channel's work, too."""
    command = [sys.executable, "-c", SERVE, unused_address]
    with (
        Client(unused_address, deadline_ms=500) as client,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None

        def answers() -> bool:
            try:
                return client.recommend(client_id="c").request_id == "r1"
            except UnavailableError:
                time.sleep(0.02)
                return False

        listens = Thread(target=server.stdout.readline)
        listens.start()
        while listens.is_alive():
            answers()
        deadline = time.monotonic() + 3
        while not answers():
            assert time.monotonic() < deadline
        server.communicate()


def test_the_async_client_runs_calls_side_by_side(scorer: tuple[Scorer, str]) -> None:
    """Three calls of 0.4 s on one channel take less than two of them in a row, and a late one is given up alone."""
    _, address = scorer

    async def run() -> tuple[list[object], float]:
        async with AsyncClient(address, deadline_ms=5_000) as client:
            await client.similar_items("warm")
            started = time.monotonic()
            answers = await asyncio.gather(
                client.recommend(client_id="c", count=2, context_item_ids=["sleep:0.4"]),
                client.rank(["sleep:0.4"], client_id="c"),
                client.similar_items("sleep:0.4", deadline_ms=100),
                return_exceptions=True,
            )
            return answers, time.monotonic() - started

    (shelf, ranked, late), elapsed_s = asyncio.run(run())
    assert len(shelf.items) == 2  # type: ignore[attr-defined]
    assert ranked.request_id == "r2"  # type: ignore[attr-defined]
    assert isinstance(late, UnavailableError)
    assert elapsed_s < 0.8


@pytest.fixture
def unused_address() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
