"""The scoring service: `liveshelf.v1.RecommendationService` over gRPC, with standard health and reflection. `python -m serving.service`."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter, Gauge, Histogram

from features.rows import FEATURE_VERSION
from features.store import FeatureRows
from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings, load_settings
from liveshelf.v1 import recommendation_pb2 as pb
from liveshelf.v1 import recommendation_pb2_grpc as pb_grpc
from serving.candidates import default_sources
from serving.item_memory import ItemMemory
from serving.live_model import ModelFollower
from serving.model_client import ModelClient
from serving.query import Query, Scored, Shelf
from serving.shelf import ShelfMaker
from streams.health import serve_health
from streams.logs import configure_logs
from streams.producer import EventProducer
from streams.pseudonym import Pseudonyms
from streams.records import Impression, encode
from streams.topics import IMPRESSIONS

log = structlog.get_logger()

SERVICE = pb.DESCRIPTOR.services_by_name["RecommendationService"].full_name
COUNT_DEFAULT, COUNT_MAX = 10, 100
CONTEXT_MAX, EXCLUDE_MAX, CANDIDATES_MAX = 20, 1_000, 2_000
ID_CHARS_MAX = 128
IMPRESSIONS_INFLIGHT_MAX = 10_000  # waiting for Kafka; beyond it they are dropped and counted
STOP_GRACE_S = 2.0

REQUESTS = Counter("liveshelf_scoring_requests_total", "Requests by method and gRPC status", ["method", "code"])
SECONDS = Histogram(
    "liveshelf_scoring_request_seconds",
    "Time of a request",
    ["method"],
    buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512),
)
DROPPED = Gauge("liveshelf_scoring_impressions_dropped", "Impressions that never reached Kafka since the start")


class RecommendationService(pb_grpc.RecommendationServiceServicer):
    """The gRPC edge: checks requests, replaces ids by pseudonyms, and turns shelves into messages."""

    def __init__(self, maker: ShelfMaker, memory: ItemMemory, pseudonyms: Pseudonyms, deadline_s: float) -> None:
        self._maker, self._memory, self._pseudonyms, self._deadline_s = maker, memory, pseudonyms, deadline_s

    async def Recommend(self, request: pb.RecommendRequest, context: grpc.aio.ServicerContext) -> pb.RecommendResponse:
        with SECONDS.labels("Recommend").time():
            query = Query(
                *await self._who(request.shopper, context),
                placement=request.placement,
                count=await _count(request.count, context),
                context=tuple(await _ids("context_item_ids", request.context_item_ids, CONTEXT_MAX, context)),
                exclude=frozenset(await _ids("exclude_item_ids", request.exclude_item_ids, EXCLUDE_MAX, context)),
            )
            shelf = await self._maker.shelf(query, self._deadline(context))
            REQUESTS.labels("Recommend", "OK").inc()
            return pb.RecommendResponse(**self._answer(shelf), features_offset=shelf.features_offset)

    async def Rank(self, request: pb.RankRequest, context: grpc.aio.ServicerContext) -> pb.RankResponse:
        with SECONDS.labels("Rank").time():
            candidates = await _ids("item_ids", request.item_ids, CANDIDATES_MAX, context)
            if not candidates:
                await _refuse(context, "item_ids: got none, expected 1 to 2000 candidates")
            if len(set(candidates)) < len(candidates):
                twice = next(item for item in candidates if candidates.count(item) > 1)
                await _refuse(context, f"item_ids: {twice!r} stands there more than once, expected distinct candidates")
            query = Query(
                *await self._who(request.shopper, context),
                placement=request.placement,
                count=len(candidates),
                candidates=tuple(candidates),
            )
            shelf = await self._maker.shelf(query, self._deadline(context))
            assert len(shelf.items) == len(candidates), (len(shelf.items), len(candidates))
            REQUESTS.labels("Rank", "OK").inc()
            return pb.RankResponse(**self._answer(shelf))

    async def SimilarItems(self, request: pb.SimilarItemsRequest, context: grpc.aio.ServicerContext) -> pb.SimilarItemsResponse:
        with SECONDS.labels("SimilarItems").time():
            (item,) = await _ids("item_id", [request.item_id], 1, context)
            count = await _count(request.count, context)
            table, time_ms = self._memory.table, int(time.time() * 1000)
            if item not in table:
                REQUESTS.labels("SimilarItems", "NOT_FOUND").inc()
                await context.abort(
                    grpc.StatusCode.NOT_FOUND,
                    f"item_id {item!r} is neither in the catalog nor in any event so far. Send it to POST /v1/catalog, or check its spelling.",
                )
            neighbours = [Scored(i, "covisit", weight) for i, weight in table.neighbours(item, time_ms) if table.available(i)][
                :count
            ]
            REQUESTS.labels("SimilarItems", "OK").inc()
            return pb.SimilarItemsResponse(items=self._items(neighbours, [1.0] * len(neighbours)))

    async def _who(self, shopper: pb.Shopper, context: grpc.aio.ServicerContext) -> tuple[str, str]:
        ids = [shopper.user_id, shopper.client_id, shopper.session_id]
        if not any(ids):
            await _refuse(context, "shopper: got no id, expected at least one of user_id, client_id, session_id")
        if any(len(i) > ID_CHARS_MAX for i in ids):
            await _refuse(context, f"shopper: got an id of {max(map(len, ids))} characters, expected at most {ID_CHARS_MAX}")
        return self._pseudonyms.shopper(*ids), self._pseudonyms.session(shopper.session_id) if shopper.session_id else ""

    def _deadline(self, context: grpc.aio.ServicerContext) -> float:
        left = context.time_remaining()
        return self._deadline_s if left is None else min(left, self._deadline_s)

    def _answer(self, shelf: Shelf) -> dict[str, Any]:
        return {
            "request_id": shelf.request_id,
            "items": self._items(shelf.items, shelf.propensities),
            "model_version": shelf.model_version,
            "feature_version": FEATURE_VERSION,
            "degraded": bool(shelf.degraded),
            "degraded_reason": shelf.degraded,
        }

    def _items(self, items: Sequence[Scored], propensities: Sequence[float]) -> list[pb.ScoredItem]:
        answer = []
        for position, (scored, propensity) in enumerate(zip(items, propensities, strict=True)):
            catalog = self._memory.table.catalog(scored.item)
            answer.append(
                pb.ScoredItem(
                    item_id=scored.item,
                    position=position,
                    score=scored.score,
                    click=scored.click,
                    cart=scored.cart,
                    purchase=scored.purchase,
                    candidate_source=scored.source,
                    propensity=propensity,
                    title=catalog.item_name if catalog else "",
                    category=catalog.item_category if catalog else "",
                    brand=catalog.item_brand if catalog else "",
                    price=catalog.price if catalog else 0.0,
                )
            )
        return answer


async def _refuse(context: grpc.aio.ServicerContext, message: str) -> None:
    REQUESTS.labels("any", "INVALID_ARGUMENT").inc()
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)


async def _count(count: int, context: grpc.aio.ServicerContext) -> int:
    if not 0 <= count <= COUNT_MAX:
        await _refuse(context, f"count: got {count}, expected 1 to {COUNT_MAX}, or 0 for {COUNT_DEFAULT}")
    return count or COUNT_DEFAULT


async def _ids(field: str, ids: Sequence[str], count_max: int, context: grpc.aio.ServicerContext) -> list[str]:
    if len(ids) > count_max:
        await _refuse(context, f"{field}: got {len(ids)} items, expected at most {count_max}")
    for item in ids:
        if not 1 <= len(item) <= ID_CHARS_MAX:
            await _refuse(context, f"{field}: got an id of {len(item)} characters, expected 1 to {ID_CHARS_MAX}")
    return list(ids)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        OSError: a port is in use.
    """
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    rows = FeatureRows(settings, settings.store_timeout_ms / 1000)
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(ItemMemory(settings))
        producer = await stack.enter_async_context(EventProducer(settings, IMPRESSIONS_INFLIGHT_MAX))
        client = await stack.enter_async_context(ModelClient(settings))
        models = ModelFollower(client, settings.model_timeout_ms / 1000)
        DROPPED.set_function(lambda: producer.dropped)

        def log_impression(impression: Impression) -> None:
            producer.send_nowait(IMPRESSIONS, impression.shopper, encode(impression))

        maker = ShelfMaker(rows, memory.table, models, default_sources(), log_impression, settings.store_timeout_ms / 1000)
        service = RecommendationService(maker, memory, Pseudonyms.open(settings), settings.recommend_deadline_ms / 1000)
        server, health = _server(service, settings)
        await health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        stack.push_async_callback(health.enter_graceful_shutdown)
        following = asyncio.create_task(models.follow())
        stack.callback(following.cancel)
        preparing = asyncio.create_task(_become_ready(rows, memory, health))
        stack.callback(preparing.cancel)
        http = await serve_health(
            settings.host,
            settings.scoring_metrics_port,
            lambda: (
                preparing.done() and not following.done(),
                {"items": len(memory.table), "model": models.live.version if models.live else 0},
            ),
        )
        stack.push_async_callback(http.cleanup)
        log.info("scoring", address=settings.scoring_address)
        await stopping.wait()


def _server(service: RecommendationService, settings: Settings) -> tuple[grpc.aio.Server, health_aio.HealthServicer]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])  # a second scorer on this port must fail, not share it
    pb_grpc.add_RecommendationServiceServicer_to_server(service, server)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection([SERVICE, health_name, reflection.SERVICE_NAME], server)
    server.add_insecure_port(settings.scoring_address)
    return server, health


async def _become_ready(rows: FeatureRows, memory: ItemMemory, health: health_aio.HealthServicer) -> None:
    """True readiness: item memory loaded and feature definitions registered. Requests before that get what is known."""
    await memory.loaded.wait()
    while not await asyncio.to_thread(rows.applied):  # noqa: ASYNC110 - another process registers them
        await asyncio.sleep(0.2)
    with contextlib.suppress(UnavailableError):  # the first read costs Feast 100 ms and more; it is not to be a shopper's
        await asyncio.to_thread(rows.read_shoppers, [""])
    for name in ("", SERVICE):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    configure_logs()
    uvloop.run(serve(load_settings()))


if __name__ == "__main__":
    main()
