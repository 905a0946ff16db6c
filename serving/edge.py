"""What the scoring API does, whatever it comes over: messages in, messages out, `ApiError` for what is not answered.

gRPC (serving/rpc.py) ─┐                     ┌─▶ checks ─▶ pipeline (serving/shelf.py) ─▶ messages
                       ├─▶ Method.answer ────┤
HTTP (serving/http.py) ┘   token, slot, time └─▶ events (serving/events.py) ─▶ Kafka
"""

import asyncio
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import structlog
from google.protobuf.message import DecodeError, Message
from prometheus_client import Counter, Histogram

from features.catalog import Rows
from features.items import ItemTable
from liveshelf.v1 import recommendation_pb2 as pb
from serving import checks, status
from serving.admission import Admission
from serving.query import Scored, Shelf, Shelves
from serving.status import ApiError
from streams.pseudonym import Pseudonyms
from streams.tracing import Tracing

log = structlog.get_logger()

REQUESTS = Counter("liveshelf_scoring_requests_total", "Requests by method and gRPC status", ["method", "code"])
SECONDS = Histogram(
    "liveshelf_scoring_request_seconds",
    "Time of a request",
    ["method"],
    buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512),
)

_requests, _seconds = cache(REQUESTS.labels), cache(SECONDS.labels)  # see serving/shelf.py

NO_TRACE: Mapping[str, str] = {}
BatchAnswer = TypeVar("BatchAnswer")
Answer = TypeVar("Answer", pb.RecommendResponse, pb.RankResponse)


@dataclass(frozen=True)
class Method:
    """One call of the API, ready to be served. `call` takes a request and the seconds left (None: the caller waits for ever)."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    call: Callable[[Any, float | None], Awaitable[Message]]
    admission: Admission
    token: str = ""
    """What callers must show; empty: nothing."""
    tracing: Tracing | None = None

    async def answer(
        self, decode: Callable[[], Any], left_s: float | None, authorization: str, carrier: Mapping[str, str] = NO_TRACE
    ) -> Message:
        """The answer to one call. `decode` makes its request; it is only run for a call that is let in. `carrier` as Tracing.call takes it.

        Raises:
            ApiError: no answer, and why.
            asyncio.CancelledError: the caller has gone.
        """
        started, code = time.perf_counter(), "CANCELLED"
        try:
            self._authorise(authorization)
            with self.admission.slot(left_s), self._traced(carrier):
                async with self.admission.turn():
                    if left_s is not None and (left_s := left_s - (time.perf_counter() - started)) <= 0:
                        raise status.late()
                    message = await self.call(self._decoded(decode), left_s)
                code = "OK"
                return message
        except ApiError as error:
            code = error.code.name
            raise
        except Exception as error:
            code = "INTERNAL"
            log.exception("call failed", method=self.name)
            raise status.internal() from error
        finally:
            _requests(self.name, code).inc()
            _seconds(self.name).observe(time.perf_counter() - started)

    def _traced(self, carrier: Mapping[str, str]) -> AbstractContextManager[None]:
        return self.tracing.call(self.service, self.name, carrier) if self.tracing else nullcontext()

    def _decoded(self, decode: Callable[[], Any]) -> Any:
        try:
            return decode()
        except (DecodeError, ValueError, RecursionError) as error:
            raise status.unreadable(self.request.DESCRIPTOR.full_name, error) from None

    def _authorise(self, authorization: str) -> None:
        if not self.token:
            return
        kind, _, shown = authorization.partition(" ")
        if kind.lower() != "bearer":
            raise status.unauthenticated("TOKEN_MISSING", "this scorer wants its token: send `authorization: Bearer …`")
        if not hmac.compare_digest(shown.strip().encode(), self.token.encode()):
            raise status.unauthenticated("TOKEN_WRONG", "the bearer token is not this scorer's")


class Recommendations:
    """The calls of RecommendationService.

    `items` gives the table that titles, prices and neighbours are read from; `loaded` whether it holds all that it will.
    """

    def __init__(
        self,
        shelves: Shelves,
        items: Callable[[], ItemTable],
        loaded: Callable[[], bool],
        pseudonyms: Pseudonyms,
        admission: Admission,
        deadline_s: float,
    ) -> None:
        self._shelves, self._items, self._loaded = shelves, items, loaded
        self._pseudonyms, self._admission, self._deadline_s = pseudonyms, admission, deadline_s

    async def recommend(self, request: pb.RecommendRequest, left_s: float | None) -> pb.RecommendResponse:
        started = time.perf_counter()
        query = checks.recommend_query(request, self._pseudonyms)
        shelf = await self._shelves.shelf(query, self._within(left_s))
        answer = self._answer(pb.RecommendResponse(features_offset=shelf.features_offset), shelf)
        if request.with_timings:
            _add_timings(answer, shelf.timings_ms, started)
        return answer

    async def rank(self, request: pb.RankRequest, left_s: float | None) -> pb.RankResponse:
        started = time.perf_counter()
        query = checks.rank_query(request, self._pseudonyms)
        shelf = await self._shelves.shelf(query, self._within(left_s))
        assert len(shelf.items) == len(query.candidates), (len(shelf.items), len(query.candidates))
        answer = self._answer(pb.RankResponse(), shelf)
        if request.with_timings:
            _add_timings(answer, shelf.timings_ms, started)
        return answer

    async def similar_items(self, request: pb.SimilarItemsRequest, left_s: float | None) -> pb.SimilarItemsResponse:
        started = time.perf_counter()
        item, count, exclude, filters = checks.similar_query(request)
        table, loaded = self._items(), self._loaded()
        if item not in table and loaded:
            raise status.unknown_item(item)
        found = [
            Scored(neighbour, "covisit", weight)
            for neighbour, weight in table.neighbours(item, int(time.time() * 1000))
            if neighbour not in exclude and filters.allow(table.catalog(neighbour))
        ][:count]
        answer = pb.SimilarItemsResponse(
            request_id=uuid.uuid4().hex,
            feature_version=table.features.version,
            degraded=not loaded,
            degraded_reason="" if loaded else "items_loading",
        )
        _add_items(answer, found, [1.0] * len(found), table)
        if request.with_timings:
            _add_timings(answer, {}, started)
        return answer

    async def batch_recommend(self, request: pb.BatchRecommendRequest, left_s: float | None) -> pb.BatchRecommendResponse:
        return await self._batch(request.requests, self.recommend, pb.BatchRecommendResponse, left_s)

    async def batch_rank(self, request: pb.BatchRankRequest, left_s: float | None) -> pb.BatchRankResponse:
        return await self._batch(request.requests, self.rank, pb.BatchRankResponse, left_s)

    async def batch_similar_items(self, request: pb.BatchSimilarItemsRequest, left_s: float | None) -> pb.BatchSimilarItemsResponse:
        return await self._batch(request.requests, self.similar_items, pb.BatchSimilarItemsResponse, left_s)

    async def _batch(
        self,
        requests: Sequence[Any],
        call: Callable[[Any, float | None], Awaitable[Any]],
        answer: type[BatchAnswer],
        left_s: float | None,
    ) -> BatchAnswer:
        """Every request answered, as many at once as there are slots free for them; the batch's own slot makes it one at least."""
        checks.check_batch(requests)
        result: Any = answer.Result  # type: ignore[attr-defined]  # each batch answer has one
        ends = None if left_s is None else time.monotonic() + left_s
        with self._admission.more(len(requests) - 1) as granted:
            turns = asyncio.Semaphore(1 + granted)

            async def one(request: Any) -> Any:
                async with turns:
                    try:
                        # One that had to wait past the deadline still gets the shelf that costs no time.
                        left = None if ends is None else max(ends - time.monotonic(), 0.0)
                        return result(response=await call(request, left))
                    except ApiError as error:
                        return result(error=error.status)

            async with asyncio.TaskGroup() as group:  # a batch given up takes its requests along
                tasks = [group.create_task(one(request)) for request in requests]
        return answer(results=[task.result() for task in tasks])  # type: ignore[call-arg]

    def _within(self, left_s: float | None) -> float:
        return self._deadline_s if left_s is None else min(left_s, self._deadline_s)

    def _answer(self, answer: Answer, shelf: Shelf) -> Answer:
        answer.request_id, answer.model_version, answer.feature_version = (
            shelf.request_id,
            shelf.model_version,
            shelf.feature_version,
        )
        answer.degraded, answer.degraded_reason = bool(shelf.degraded), shelf.degraded
        _add_items(answer, shelf.items, shelf.propensities, self._items(), shelf.rows)
        return answer


def _add_items(
    answer: Any, items: Sequence[Scored], propensities: Sequence[float], table: ItemTable, rows: Rows | None = None
) -> None:
    """In place: a message given to another's constructor is copied, and a Rank may answer 2,000."""
    add, records = answer.items.add, table.records
    labels = records.labels(records.rows([scored.item for scored in items]) if rows is None else rows)
    for position, (scored, propensity, title, category, brand, price) in enumerate(zip(items, propensities, *labels, strict=True)):
        add(
            item_id=scored.item,
            position=position,
            score=scored.score,
            click=scored.click,
            cart=scored.cart,
            purchase=scored.purchase,
            candidate_source=scored.source,
            propensity=propensity,
            title=title,
            category=category,
            brand=brand,
            price=price,
        )


def _add_timings(answer: Any, stages_ms: dict[str, float], started: float) -> None:
    for stage, ms in stages_ms.items():
        answer.timings.add(stage=stage, ms=ms)
    answer.timings.add(stage="total", ms=(time.perf_counter() - started) * 1000)


def methods(
    recommendations: Recommendations,
    record_events: Any,
    admission: Admission,
    events: Admission,
    token: str,
    tracing: Tracing | None = None,
) -> list[Method]:
    """Every call of the API, in the order of the proto. `record_events` is the call of EventService."""
    calls = {
        "Recommend": recommendations.recommend,
        "Rank": recommendations.rank,
        "SimilarItems": recommendations.similar_items,
        "BatchRecommend": recommendations.batch_recommend,
        "BatchRank": recommendations.batch_rank,
        "BatchSimilarItems": recommendations.batch_similar_items,
        "RecordEvents": record_events,
    }
    found = []
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            request, response = getattr(pb, method.input_type.name), getattr(pb, method.output_type.name)
            bound = events if service.name == "EventService" else admission
            found.append(Method(service.full_name, method.name, request, response, calls.pop(method.name), bound, token, tracing))
    assert not calls, calls
    return found


SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
