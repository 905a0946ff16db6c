"""The scoring API over gRPC: what reaches the pipeline, what comes back, what is refused and how, and what a deadline or a hang-up stops."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liveshelf.client import AsyncClient, Filters, rank_request, recommend_request, result, similar_items_request
from liveshelf.errors import InvalidEventError, NotFoundError
from liveshelf.v1 import recommendation_pb2 as pb
from serving import query
from serving.edge import Method
from tests.scoring_api import Api, TellableShelves, raw_call, scoring_api, until


def over_grpc(
    tmp_path: Path, ask: Callable[[AsyncClient, Api], Any], shelves: TellableShelves | None = None, **changes: Any
) -> Any:
    async def run() -> Any:
        async with scoring_api(tmp_path, shelves, **changes) as api, AsyncClient(api.settings.scoring_address, 10_000) as client:
            return await ask(client, api)

    return asyncio.run(run())


def test_a_request_reaches_the_pipeline_whole_and_its_shelf_comes_back_whole(tmp_path: Path) -> None:
    async def ask(client: AsyncClient, api: Api) -> pb.RecommendResponse:
        filters = Filters(categories=["hats"], brands=["b1", "b2"], price_min=5, price_max=50, include_unavailable=True)
        answer = await client.recommend(
            client_id="c", session_id="s", count=2, placement="home", context_item_ids=["x"], exclude_item_ids=["y"], filters=filters,
            with_timings=True,
        )  # fmt: skip
        (asked,) = api.shelves.asked
        assert asked.shopper not in ("", "c")
        assert asked.session not in ("", "s")
        assert (asked.placement, asked.count, asked.context, asked.exclude) == ("home", 2, ("x",), {"y"})
        assert asked.filters == query.Filters(frozenset({"hats"}), frozenset({"b1", "b2"}), 5, 50, True)
        return answer

    answer = over_grpc(tmp_path, ask)
    first = answer.items[1]
    assert (first.item_id, first.position, first.candidate_source, first.title, first.category, first.price) == (
        "i1", 1, "covisit", "Item 1", "shoes", 10.0,
    )  # fmt: skip
    assert [round(v, 3) for v in (first.score, first.click, first.cart, first.purchase, first.propensity)] == [
        0.99,
        0.3,
        0.2,
        0.1,
        0.5,
    ]
    assert (answer.request_id, answer.model_version, answer.features_offset, answer.degraded) == ("r1", 7, 41, False)
    assert [(t.stage, t.ms) for t in answer.timings][:2] == [("hydrate", 0.5), ("score", 1.5)]
    assert answer.timings[2].stage == "total"
    assert answer.timings[2].ms > 0


def test_similar_items_are_filtered(tmp_path: Path) -> None:
    async def ask(client: AsyncClient, api: Api) -> list[list[str]]:
        shelves = [
            await client.similar_items("i0"),
            await client.similar_items("i0", filters=Filters(categories=["shoes"], include_unavailable=True)),
            await client.similar_items("i0", filters=Filters(price_min=30, price_max=50), exclude_item_ids=["i4"]),
            await client.similar_items("i0", count=2),
        ]
        return [[item.item_id for item in shelf.items] for shelf in shelves]

    assert over_grpc(tmp_path, ask) == [
        ["i1", "i2", "i4", "i5", "i6", "i7", "i8", "i9"],
        ["i1", "i3", "i5", "i7", "i9"],
        ["i5"],
        ["i1", "i2"],
    ]


def test_while_items_load_an_unknown_one_is_no_error(tmp_path: Path) -> None:
    async def ask(client: AsyncClient, api: Api) -> pb.SimilarItemsResponse:
        with pytest.raises(NotFoundError, match="nobody"):
            await client.similar_items("nobody")
        api.loaded = False
        return await client.similar_items("nobody")

    answer = over_grpc(tmp_path, ask)
    assert (list(answer.items), answer.degraded, answer.degraded_reason) == ([], True, "items_loading")


BAD = [
    ("Recommend", recommend_request(), ["shopper"]),
    ("Recommend", recommend_request(client_id="c", count=-1), ["count"]),
    ("Recommend", recommend_request(client_id="c" * 129, count=101), ["shopper.client_id", "count"]),
    ("Recommend", recommend_request(client_id="c", context_item_ids=["a"] * 21), ["context_item_ids"]),
    ("Recommend", recommend_request(client_id="c", exclude_item_ids=["a", ""]), ["exclude_item_ids[1]"]),
    ("Recommend", recommend_request(client_id="c", placement="p" * 129), ["placement"]),
    ("Recommend", recommend_request(client_id="c", filters=Filters(price_min=float("nan"))), ["filters.price_min"]),
    ("Recommend", recommend_request(client_id="c", filters=Filters(price_min=2, price_max=1)), ["filters.price_max"]),
    ("Recommend", recommend_request(client_id="c", filters=Filters(brands=[""])), ["filters.brands[0]"]),
    ("Rank", rank_request([], client_id="c"), ["item_ids"]),
    ("Rank", rank_request(["a", "b", "a"], client_id="c"), ["item_ids[2]"]),
    ("Rank", rank_request([str(n) for n in range(2_001)], client_id="c"), ["item_ids"]),
    ("SimilarItems", similar_items_request("", count=101), ["item_id", "count"]),
    ("BatchRecommend", pb.BatchRecommendRequest(), ["requests"]),
    ("BatchRecommend", pb.BatchRecommendRequest(requests=[recommend_request(client_id="c")] * 33), ["requests"]),
    ("BatchRank", pb.BatchRankRequest(requests=[rank_request(map(str, range(1_500)), client_id="c")] * 7), ["requests"]),
    ("RecordEvents", pb.RecordEventsRequest(), ["events"]),
    ("RecordEvents", pb.RecordEventsRequest(events=[pb.Event(name="login")] * 501), ["events"]),
]


def test_a_wrong_request_is_told_every_field_that_is_wrong(tmp_path: Path) -> None:
    """As google.rpc.BadRequest; nothing of it reaches the pipeline."""

    async def run() -> None:
        async with scoring_api(tmp_path) as api, grpc.aio.insecure_channel(api.settings.scoring_address) as channel:
            of_name = {method.name: method for method in api.methods}
            for name, request, fields in BAD:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await raw_call(channel, of_name[name])(request.SerializeToString())
                assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
                (detail,) = rpc_status.from_call(caught.value).details
                bad = error_details_pb2.BadRequest()
                assert detail.Unpack(bad)
                found = [violation.field for violation in bad.field_violations]
                assert [f for f in found if f in fields] == fields, (name, found)
                assert caught.value.details().startswith(bad.field_violations[0].field + ": got ")
            assert api.shelves.asked == []
            assert api.producer.log.get("clickstream") is None

    asyncio.run(run())


def test_a_batch_answers_each_of_its_requests_side_by_side(tmp_path: Path) -> None:
    """In their order, one's refusal beside the others' shelves; four that take 0.2 s take less than 0.6 s together."""

    async def slow(_: query.Query, __: float) -> None:
        await asyncio.sleep(0.2)

    async def ask(client: AsyncClient, api: Api) -> None:
        requests = [recommend_request(client_id="c", count=n) for n in (1, 2, 101, 4, 5)]
        started = asyncio.get_running_loop().time()
        answer = await client.batch_recommend(requests)
        assert asyncio.get_running_loop().time() - started < 0.6
        assert [len(r.response.items) for r in answer.results] == [1, 2, 0, 4, 5]
        with pytest.raises(InvalidEventError, match="count"):
            result(answer.results[2])
        assert len(result(answer.results[3]).items) == 4
        ranked = await client.batch_rank([rank_request(["a", "b"], client_id="c"), rank_request(["c"], client_id="c")])
        assert [[i.item_id for i in result(r).items] for r in ranked.results] == [["a", "b"], ["c"]]
        similar = await client.batch_similar_items([similar_items_request("i0", count=1), similar_items_request("nobody")])
        assert [i.item_id for i in result(similar.results[0]).items] == ["i1"]
        with pytest.raises(NotFoundError, match="nobody"):
            result(similar.results[1])

    over_grpc(tmp_path, ask, TellableShelves(slow))


def test_the_shorter_deadline_holds_and_is_passed_on(tmp_path: Path) -> None:
    async def ask(client: AsyncClient, api: Api) -> list[float]:
        await client.recommend(client_id="c", deadline_ms=60)
        await client.recommend(client_id="c", deadline_ms=10_000)
        await client.batch_recommend([recommend_request(client_id="c")], deadline_ms=70)
        return api.shelves.deadlines_s

    short, own, in_batch = over_grpc(tmp_path, ask, recommend_deadline_ms=200)
    assert 0 < short < 0.065
    assert own == 0.2
    assert 0 < in_batch < 0.075


@pytest.mark.parametrize("batch", [False, True])
def test_a_call_that_was_given_up_stops_the_work(tmp_path: Path, batch: bool) -> None:
    """Cancelled by its caller, or at its deadline: the pipeline is cancelled where it stands, and the slots are free again."""

    async def for_ever(_: query.Query, __: float) -> None:
        await asyncio.Event().wait()

    async def ask(client: AsyncClient, api: Api) -> None:
        def call(deadline_ms: int) -> Any:
            requests = [recommend_request(client_id="c")] * 3
            return (
                client.batch_recommend(requests, deadline_ms=deadline_ms)
                if batch
                else client.recommend(client_id="c", deadline_ms=deadline_ms)
            )

        calls = asyncio.create_task(call(60_000))
        await until(lambda: api.shelves.started == (3 if batch else 1))
        assert api.admission.under_way == api.shelves.started
        calls.cancel()
        await until(lambda: api.admission.under_way == 0)
        await asyncio.gather(call(50), return_exceptions=True)
        await until(lambda: api.admission.under_way == 0)
        assert api.shelves.finished == 0

    over_grpc(tmp_path, ask, TellableShelves(for_ever))


def test_what_goes_wrong_inside_is_said_without_its_words(tmp_path: Path) -> None:
    async def broken(_: query.Query, __: float) -> None:
        raise ZeroDivisionError("a secret")

    async def run() -> None:
        async with scoring_api(tmp_path, TellableShelves(broken)) as api:
            async with AsyncClient(api.settings.scoring_address, 10_000) as client:
                with pytest.raises(Exception, match="INTERNAL") as caught:
                    await client.recommend(client_id="c")
            assert "secret" not in str(caught.value)

    asyncio.run(run())


REFUSED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
TEXT = st.text(max_size=150)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
SHOPPERS = st.builds(pb.Shopper, user_id=TEXT, client_id=TEXT, session_id=TEXT)
FILTERS = st.none() | st.builds(pb.Filters, categories=st.lists(TEXT, max_size=3), price_min=FLOATS, price_max=FLOATS)
COUNTS = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 101)
ITEMS = st.lists(TEXT | st.sampled_from(["i0", "i1", "i3"]), max_size=5)
EVENTS = st.builds(
    pb.Event,
    name=TEXT | st.sampled_from(["view_item", "purchase", "login", "refund"]),
    event_id=TEXT,
    user_id=TEXT,
    client_id=TEXT,
    timestamp_micros=st.none() | st.integers(-(2**63), 2**63 - 1),
    items=st.lists(st.builds(pb.EventItem, item_id=TEXT, price=FLOATS, quantity=COUNTS, index=COUNTS), max_size=2),
    value=FLOATS,
    currency=TEXT,
)
MESSAGES = {
    "Recommend": st.builds(pb.RecommendRequest, shopper=SHOPPERS, count=COUNTS, placement=TEXT, context_item_ids=ITEMS, filters=FILTERS),
    "Rank": st.builds(pb.RankRequest, shopper=SHOPPERS, item_ids=ITEMS, placement=TEXT),
    "SimilarItems": st.builds(pb.SimilarItemsRequest, item_id=TEXT | st.just("i0"), count=COUNTS, filters=FILTERS),
    "RecordEvents": st.builds(pb.RecordEventsRequest, events=st.lists(EVENTS, max_size=3)),
}  # fmt: skip
BODIES = st.one_of(
    st.tuples(st.none(), st.binary(max_size=200)),
    *(st.tuples(st.just(name), messages.map(lambda m: m.SerializeToString())) for name, messages in MESSAGES.items()),
)


def test_no_bytes_are_an_internal_error(tmp_path: Path) -> None:
    """Whatever comes, to whichever method: an answer, INVALID_ARGUMENT or NOT_FOUND, over gRPC and as JSON over HTTP."""
    codes: set[grpc.StatusCode] = set()
    with asyncio.Runner() as runner:
        stack = scoring_api(tmp_path, recommend_deadline_ms=5_000)
        api = runner.run(stack.__aenter__())

        async def connect() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(api.settings.scoring_address)

        channel = runner.run(connect())

        async def send(method: Method, body: bytes) -> None:
            call = raw_call(channel, method)(body, timeout=20)
            codes.add(code := await call.code())
            assert code in REFUSED | {grpc.StatusCode.OK}, (method.name, body, await call.details())
            assert (code == grpc.StatusCode.OK) == (
                "grpc-status-details-bin" not in [key for key, _ in await call.trailing_metadata()]
            )
            response = await api.http.post("/v1/recommend", content=body)
            assert response.status_code in (200, 400), (body, response.text)

        @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
        @given(BODIES, st.sampled_from(api.methods))
        def exchange(named: tuple[str | None, bytes], method: Method) -> None:
            name, body = named
            runner.run(send(next((m for m in api.methods if m.name == name), method), body))

        exchange()
        runner.run(channel.close())
        runner.run(stack.__aexit__(None, None, None))
    assert codes >= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
