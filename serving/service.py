"""The scoring service: `liveshelf.v1` over gRPC and, as JSON, over HTTP. `python -m serving.service` puts its parts together."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import structlog
import uvloop
from prometheus_client import Gauge

from features.store import FeatureRows
from liveshelf.errors import LiveshelfError, UnavailableError
from liveshelf.settings import Settings, load_settings
from serving.admission import Admission
from serving.edge import SERVICES, Recommendations, methods
from serving.events import EventRecorder
from serving.fallback import Side
from serving.http import serve_http
from serving.item_memory import ItemMemory
from serving.live_model import ModelFollower
from serving.model_client import ModelClient
from serving.pipeline import open_pipeline
from serving.rpc import Health, make_server
from serving.session_memory import SessionMemory
from streams.health import serve_health
from streams.logs import configure_logs
from streams.producer import EventProducer
from streams.pseudonym import Pseudonyms
from streams.records import Impression, encode
from streams.topics import IMPRESSIONS
from streams.tracing import Tracing, open_tracing

log = structlog.get_logger()

RECOMMENDATION_SERVICE, EVENT_SERVICE = SERVICES
IMPRESSIONS_INFLIGHT_MAX = 10_000  # waiting for Kafka; beyond it they are dropped and counted
IMPRESSIONS_LINGER_MS = (
    20  # nobody waits for them; sent one by one they cost the broker 0.2 ms of processor a shelf more (busy machine)
)
EVENT_CALLS_MAX = 256  # RecordEvents under way: they wait for Kafka, and cost little while they do
STOP_GRACE_S = 2.0
GARBAGE_EVERY = (
    10_000  # containers made and not freed between two looks for cycles; a request leaves hundreds while it is under way
)

DROPPED = Gauge("liveshelf_scoring_impressions_dropped", "Impressions that never reached Kafka since the start")
UNDER_WAY = Gauge("liveshelf_scoring_requests_under_way", "Requests that are being answered; at most scoring_concurrency_max")


class Sides:
    """What every feature version needs to be served, made when first asked for; "" asks for the newest registered."""

    def __init__(self, rows: FeatureRows, memory: ItemMemory) -> None:
        self._rows, self._memory = rows, memory
        self._sides: dict[str, Side] = {}
        self._newest = rows.newest()

    def __call__(self, version: str) -> Side | None:
        version = version or self._newest.version
        side = self._sides.get(version)
        if side is None and (items := self._memory.table(version)) is not None:
            side = self._sides[version] = Side(items.features, items)
        return side


async def serve(settings: Settings, tracing: Tracing | None = None) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        SettingsError: the TLS settings.
        ConflictError: a port is in use.
    """
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    rows = FeatureRows(settings, settings.store_timeout_ms / 1000)
    pseudonyms = Pseudonyms.open(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rows.close)
        memory = await stack.enter_async_context(ItemMemory(settings, rows.feature_set))
        impressions = await stack.enter_async_context(
            EventProducer(settings, IMPRESSIONS_INFLIGHT_MAX, linger_ms=IMPRESSIONS_LINGER_MS)
        )
        # A producer of their own: impressions that wait for Kafka must not keep events out, nor the other way round.
        events = EventRecorder(
            await stack.enter_async_context(EventProducer(settings, settings.events_inflight_max)), settings, pseudonyms, tracing
        )
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)  # it waits for the exporter
        client = await stack.enter_async_context(ModelClient(settings, tracing))
        sides = Sides(rows, memory)
        models = ModelFollower(
            client,
            settings.model_timeout_ms / 1000,
            lambda version: sides(version) is not None,
            settings.model_path,
            settings.model_base_path,
        )

        def log_impression(impression: Impression) -> None:
            impressions.send_nowait(IMPRESSIONS, impression.shopper, encode(impression))

        sessions = None
        if settings.scoring_sessions_max:
            sessions = (await stack.enter_async_context(SessionMemory(settings, memory.catalog, memory.loaded))).sessions
        maker = await stack.enter_async_context(
            open_pipeline(settings, rows, sides, memory, models, log_impression, pseudonyms, sessions, tracing)
        )
        admission = Admission(settings.scoring_concurrency_max, "requests")
        DROPPED.set_function(lambda: impressions.dropped)
        UNDER_WAY.set_function(lambda: admission.under_way)
        recommendations = Recommendations(
            maker, lambda: maker.side()[0].items, memory.loaded.is_set, pseudonyms, admission, settings.recommend_deadline_ms / 1000
        )
        calls = methods(
            recommendations,
            events.record_events,
            admission,
            Admission(EVENT_CALLS_MAX, "RecordEvents calls"),
            settings.scoring_token,
            tracing,
        )
        server, health = await make_server(settings, calls)
        http = await serve_http(settings, calls)
        stack.push_async_callback(http.cleanup)
        await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        stack.push_async_callback(health.servicer.enter_graceful_shutdown)
        following = _background(stack, models.follow())
        _background(stack, events.follow(lambda ready: health.set(EVENT_SERVICE, ready)))
        preparing = _background(stack, _become_ready(rows, memory, health))
        await _serve_metrics(
            stack,
            settings,
            lambda: (
                preparing.done() and not following.done(),
                {
                    "items": len(maker.side()[0].items),
                    "sessions": len(sessions) if sessions is not None else 0,
                    "model": models.live.version if models.live else 0,
                    "canary": models.canary.version if models.canary else 0,
                    "events": events.ready,
                },
            ),
        )
        log.info("scoring", address=settings.scoring_address, http=f"{settings.host}:{settings.scoring_http_port}")
        await stopping.wait()


def _background(stack: AsyncExitStack, work: Any) -> "asyncio.Task[None]":
    task = asyncio.create_task(work)
    stack.callback(task.cancel)
    return task


async def _serve_metrics(stack: AsyncExitStack, settings: Settings, readiness: Callable[[], tuple[bool, dict[str, Any]]]) -> None:
    runner = await serve_health(settings.host, settings.scoring_metrics_port, readiness)
    stack.push_async_callback(runner.cleanup)


async def _become_ready(rows: FeatureRows, memory: ItemMemory, health: Health) -> None:
    """True readiness: item memory loaded and feature definitions registered. Requests before that get what is known."""
    await memory.loaded.wait()
    while not await asyncio.to_thread(rows.registered):  # noqa: ASYNC110 - another process registers them
        await asyncio.sleep(0.2)
    with contextlib.suppress(UnavailableError):  # the first read connects; it is not to be a shopper's
        await rows.shopper("", rows.newest())
    settle_interpreter()
    await health.set(RECOMMENDATION_SERVICE, True)


def settle_interpreter() -> None:
    """Nothing that stands now will ever be garbage: a collection need not walk it while requests wait. Half a scorer's time went there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_EVERY)


def main() -> int:
    configure_logs()
    try:
        uvloop.run(serve(load_settings(), open_tracing(os.environ, "liveshelf-scoring")))
    except LiveshelfError as error:
        log.error("failed", error=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
