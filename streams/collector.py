"""The collector: events over HTTP → Kafka. `python -m streams.collector`.

    body ─▶ intake (validate, pseudonymise) ─▶ producer ─▶ clickstream | catalog | clickstream-rejected ─▶ 202 or 400

202 means that Kafka has acknowledged every accepted record. On 429 and 503 nothing is claimed: send the same body again; events
carry ids (or get ids derived from the body, if they carry a time), so what reached Kafka the first time folds once, for 24 hours.
An event with neither id nor time cannot be recognised.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import msgspec
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from liveshelf.errors import ConflictError, LiveshelfError, UnavailableError
from liveshelf.settings import Settings, load_settings
from streams import intake, openapi
from streams.logs import configure_logs
from streams.producer import Delivery, EventProducer, InflightLimitError, Message, Producer
from streams.pseudonym import Pseudonyms
from streams.records import CatalogItem, Event, encode
from streams.topics import CATALOG, CLICKSTREAM, CLICKSTREAM_REJECTED
from streams.tracing import CARRIED, Tracing, open_tracing
from streams.wire import Answer, Failure

log = structlog.get_logger("collector")

RETRY_AFTER_S = 1  # in-flight records settle within milliseconds when Kafka works; clients add their own backoff
PROBE_INTERVAL_S = 2.0
PROBE_TIMEOUT_S = 2.0
READY_WITHIN_S = 10.0  # no answer from Kafka for longer than this: not ready. A broker's restart takes 3 s
TOPICS_RETRY_S_MAX = 5.0
BACKLOG = 2_048  # uvicorn's own default
SHUTDOWN_S = 15  # for requests under way: a little more than the producer's own delivery timeout
CONTENT_TYPES = ("", "application/json", "text/plain")  # text/plain: navigator.sendBeacon with a string, which needs no preflight
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """What /metrics shows. A registry of its own, so that an app can be made twice in one process."""

    def __init__(self, producer: Producer) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.records = Counter(
            "liveshelf_collector_records", "Records by outcome", ["kind", "outcome", "reason"], registry=self.registry
        )
        self.latency = Histogram(
            "liveshelf_collector_request_seconds",
            "From request to answer",
            ["path", "status"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.unrecorded = Counter(
            "liveshelf_collector_rejects_unrecorded", "Refused records that Kafka did not take either", registry=self.registry
        )
        gauge = Gauge("liveshelf_collector_inflight", "Records that await Kafka's acknowledgement", registry=self.registry)
        gauge.set_function(lambda: producer.inflight)


class Collector:
    """The handlers, and what they share."""

    def __init__(self, settings: Settings, producer: Producer, pseudonyms: Pseudonyms, tracing: Tracing | None = None) -> None:
        self.settings, self.producer, self.pseudonyms, self.tracing = settings, producer, pseudonyms, tracing
        self.metrics = Metrics(producer)
        self.topics_made = False
        self.kafka_seen_s = float("-inf")
        self.failure: LiveshelfError | None = None
        """Why this process cannot go on; `main` then exits with its code."""
        self.on_failure: Callable[[], None] = lambda: None
        self._openapi = msgspec.json.encode(openapi.document(settings))

    @property
    def ready(self) -> bool:
        seen = time.monotonic() - self.kafka_seen_s < READY_WITHIN_S
        return self.topics_made and seen and not self.producer.fatal

    async def events(self, request: Request) -> Response:
        return await self._take(request, "event", intake.read_events, self._event_message)

    async def catalog(self, request: Request) -> Response:
        return await self._take(request, "catalog", intake.read_catalog, self._catalog_message)

    async def _take(
        self, request: Request, kind: str, read: Callable[..., intake.Intake], message: Callable[[Any], Message]
    ) -> Response:
        started = time.perf_counter()
        try:
            with self._traced(request):
                response = await self._accept(request, kind, read, message)
        except HTTPException as error:
            response = failure(error)
        self.metrics.latency.labels(request.url.path, response.status_code).observe(time.perf_counter() - started)
        return response

    async def _accept(
        self, request: Request, kind: str, read: Callable[..., intake.Intake], message: Callable[[Any], Message]
    ) -> Response:
        """One request, from body to answer.

        Raises:
            HTTPException: 413, 415, 429 or 503.
        """
        if self.producer.inflight >= self.producer.inflight_max:  # before a body is read
            raise _later(429, "too many records await Kafka's acknowledgement")
        if not self.topics_made:
            raise _later(503, f"Kafka at {self.settings.kafka_address} has not answered yet")
        body = await self._body(request)
        try:
            taken = read(body, time.time_ns() // 1_000_000, self.settings, self.pseudonyms)
        except intake.TooManyError as error:
            raise HTTPException(413, f"{error.count} records, expected at most {self.settings.events_per_request_max}") from None
        delivered = await self._deliver(
            [message(record) for record in taken.accepted], [_rejected_message(r) for r in taken.rejected]
        )
        if self.tracing is not None:
            self.tracing.recorded([getattr(record, "event_id", "") for record in taken.accepted], delivered)
        self.metrics.records.labels(kind, "accepted", "").inc(len(taken.accepted))
        for refusal in taken.refusals:
            self.metrics.records.labels(kind, "rejected", refusal.reason).inc()
        return _json(Answer(len(taken.accepted), taken.refusals), 202 if taken.accepted else 400)

    async def _body(self, request: Request) -> bytes:
        """The body, given up as soon as it is known to be too large."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in CONTENT_TYPES:
            raise HTTPException(415, f"content-type {content_type[:100]!r}, expected application/json or text/plain")
        bytes_max = self.settings.event_body_bytes_max
        too_large = HTTPException(413, f"the body is larger than {bytes_max} bytes; send fewer records at once")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > bytes_max:
            raise too_large
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > bytes_max:
                    raise too_large
        except ClientDisconnect:
            raise HTTPException(400, "the client went away before its body had arrived") from None
        return bytes(body)

    def _traced(self, request: Request) -> contextlib.AbstractContextManager[None]:
        if self.tracing is None:
            return contextlib.nullcontext()
        carrier = {key: value for key in CARRIED if (value := request.headers.get(key))}
        return self.tracing.request(request.method, request.url.path, carrier)

    async def _deliver(self, accepted: list[Message], rejected: list[Message]) -> list[Delivery]:
        """Return when Kafka has acknowledged every accepted record. Refused ones go along; losing one is counted, not answered."""
        try:
            outcomes = await self.producer.send_all([*accepted, *rejected])
        except InflightLimitError as error:
            raise _later(429, str(error)) from None
        failed = [outcome for outcome in outcomes[: len(accepted)] if isinstance(outcome, UnavailableError)]
        self.metrics.unrecorded.inc(sum(isinstance(outcome, UnavailableError) for outcome in outcomes[len(accepted) :]))
        if failed:
            log.warning("not_acknowledged", records=len(failed), of=len(accepted), error=str(failed[0]))
            raise _later(503, f"{failed[0]} Send the same body again: records that carry an id or a time count once")
        return [outcome for outcome in outcomes[: len(accepted)] if isinstance(outcome, Delivery)]

    def _event_message(self, event: Event) -> Message:
        return Message(CLICKSTREAM, event.shopper, encode(event), headers=self.tracing.headers() if self.tracing else ())

    def _catalog_message(self, item: CatalogItem) -> Message:
        return Message(CATALOG, item.item_id, encode(item))

    async def healthz(self, request: Request) -> Response:
        return _json({"status": "alive"}, 200)

    async def readyz(self, request: Request) -> Response:
        if self.ready:
            return _json({"status": "ready"}, 200)
        return _json({"status": "not ready", "reason": f"Kafka at {self.settings.kafka_address} does not answer"}, 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def show_openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def index(self, request: Request) -> Response:
        return _json({"service": "liveshelf collector", "endpoints": [route.path for route in self.routes()]}, 200)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.index),
            Route("/v1/events", self.events, methods=["POST"]),
            Route("/v1/catalog", self.catalog, methods=["POST"]),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.show_openapi),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.producer:
            watch = asyncio.create_task(self._watch_kafka())
            try:
                yield
            finally:
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch
        log.info("stopped")

    async def _watch_kafka(self) -> None:
        """Make the topics, as soon as Kafka is there; then keep asking whether it answers, for /readyz."""
        await self._make_topics()
        while self.failure is None:
            if await self.producer.reachable(PROBE_TIMEOUT_S):
                self.kafka_seen_s = time.monotonic()
            if self.producer.fatal:
                self._fail(UnavailableError(f"the producer cannot go on: {self.producer.fatal}. A restart makes a new one."))
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _make_topics(self) -> None:
        wait_s = 0.1
        while not self.topics_made:
            try:
                await self.producer.prepare(PROBE_TIMEOUT_S)
                self.topics_made = True
            except UnavailableError as error:
                log.info("waiting_for_kafka", error=str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, TOPICS_RETRY_S_MAX)
            except ConflictError as error:
                self._fail(error)
                return

    def _fail(self, error: LiveshelfError) -> None:
        self.failure = error
        self.on_failure()


def create_app(settings: Settings, producer: Producer, pseudonyms: Pseudonyms, tracing: Tracing | None = None) -> Starlette:
    """The ASGI application. It enters and closes `producer`. `app.state.collector` is its `Collector`."""
    collector = Collector(settings, producer, pseudonyms, tracing)
    # Any origin, with credentials: a browser's sendBeacon always sends them. The collector reads no cookies and answers no secrets.
    cors = Middleware(
        CORSMiddleware,
        allow_origin_regex=".*",
        allow_credentials=True,
        allow_methods=["POST", "GET"],
        allow_headers=["content-type", *CARRIED],
        max_age=86_400,
    )
    app = Starlette(
        routes=collector.routes(),
        middleware=[cors],
        exception_handlers={HTTPException: lambda request, error: failure(error)},  # type: ignore[dict-item,arg-type]
        lifespan=collector.lifespan,
    )
    app.state.collector = collector
    return app


def failure(error: HTTPException) -> Response:
    return _json(Failure(error.detail), error.status_code, error.headers)


def _later(status: int, detail: str) -> HTTPException:
    return HTTPException(status, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def _rejected_message(rejected: Any) -> Message:
    return Message(CLICKSTREAM_REJECTED, None, encode(rejected))


def _json(value: Any, status: int, headers: Any = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT: then take no more requests, finish those under way, flush.

    Raises:
        ConflictError: the port is taken, the data directory is not writable, or a topic has another partition count.
        CorruptError: the pseudonym key.
        UnavailableError: the producer cannot go on.
        SettingsError: an exporter of traces that is not had here.
    """
    tracing, pseudonyms = open_tracing(os.environ, "liveshelf-collector"), Pseudonyms.open(settings)
    app = create_app(settings, EventProducer(settings, settings.events_inflight_max), pseudonyms, tracing)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.collector_port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,  # it would log addresses of people
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.collector_port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConflictError(
            f"cannot listen on {settings.host}:{settings.collector_port}: {error}. Stop what listens there, or set LIVESHELF_COLLECTOR_PORT."
        ) from error
    server = uvicorn.Server(config)
    app.state.collector.on_failure = lambda: setattr(server, "should_exit", True)
    log.info("listening", address=f"{settings.host}:{settings.collector_port}")
    server.run(sockets=[listener])
    if tracing is not None:
        tracing.close()
    if app.state.collector.failure is not None:
        raise app.state.collector.failure


def main() -> int:
    configure_logs()
    # uvicorn raises the signal again once it has shut down; without this, Python would then die of it instead of exiting with 0.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, _exit)
    try:
        serve(load_settings())
    except LiveshelfError as error:
        log.error("failed", error=str(error))
        return error.exit_code
    return 0


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
