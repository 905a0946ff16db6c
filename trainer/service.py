"""The trainer as a service: steps from time to time and on demand, and says how it is. Run with `python -m trainer.service`.

GET  /healthz    200 while the worker makes progress
GET  /readyz     200 once TensorFlow is loaded, the checkpoint read and Kafka has answered; else 503 and why
GET  /metrics    Prometheus
GET  /v1/models  releases, oldest first, and which version is live
GET  /v1/models/diff?first=7&second=8   two versions side by side
GET  /v1/canary  how the canary stands by what shoppers did; null without one
POST /v1/step    one step now; {"bootstrap": true} learns anew from the event log; 409 while another runs
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from liveshelf.errors import ConflictError, CorruptError, LiveshelfError, NotFoundError, SettingsError, UnavailableError
from liveshelf.settings import Settings, load_settings
from streams.logs import configure_logs
from trainer import directory, releases
from trainer.worker import Worker

STOP_S_MAX = 8.0  # a step is a few seconds; one that takes longer is cut short, which its checkpoint makes harmless
STATUS: dict[type[LiveshelfError], HTTPStatus] = {
    ConflictError: HTTPStatus.CONFLICT,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    NotFoundError: HTTPStatus.NOT_FOUND,
    CorruptError: HTTPStatus.INTERNAL_SERVER_ERROR,
    SettingsError: HTTPStatus.BAD_REQUEST,
}


class StepRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/step; an empty body is a plain step."""

    bootstrap: bool = False


def app(settings: Settings, worker: Worker) -> Starlette:
    """The HTTP side of `worker`, which is started and stopped with it."""

    async def healthz(_: Request) -> Response:
        stuck = worker.stuck()
        return _json({"status": stuck or "ok"}, HTTPStatus.SERVICE_UNAVAILABLE if stuck else HTTPStatus.OK)

    async def readyz(_: Request) -> Response:
        missing = worker.not_ready()
        return _json({"status": missing or "ready"}, HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(worker.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(_: Request) -> Response:
        told = await asyncio.to_thread(releases.history, settings)
        return _json({"model": settings.model_name, "live": directory.live_version(settings.model_path), "releases": told})

    async def diff(request: Request) -> Response:
        from trainer.diff import diff  # TensorFlow, which health does not wait for

        try:
            first, second = (int(request.query_params[name]) for name in ("first", "second"))
        except (KeyError, ValueError) as error:
            raise SettingsError(f"{request.url.query!r}: name two versions, as in first=7&second=8") from error
        told = await asyncio.to_thread(releases.history, settings)
        return _json(await asyncio.to_thread(diff, settings, told, first, second))

    async def canary(_: Request) -> Response:
        return _json(worker.canary)

    async def step(request: Request) -> Response:
        body = await request.body()
        try:
            wanted = msgspec.json.decode(body, type=StepRequest) if body else StepRequest()
        except msgspec.DecodeError as error:
            raise SettingsError(f'body: {error}. Send nothing, or {{"bootstrap": true}}.') from error
        return _json(await asyncio.wrap_future(worker.submit(wanted.bootstrap)))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/models/diff", diff),
            Route("/v1/canary", canary),
            Route("/v1/step", step, methods=["POST"]),
        ],
        exception_handlers={LiveshelfError: _refuse},
        lifespan=lifespan,
    )


async def _refuse(_: Request, error: Exception) -> Response:
    status = (
        STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
        if isinstance(error, LiveshelfError)
        else HTTPStatus.INTERNAL_SERVER_ERROR
    )
    headers = {"Retry-After": "5"} if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.CONFLICT) else {}
    return _json({"error": str(error), "kind": type(error).__name__}, status, headers)


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its notes on drivers and kernels are not JSON and not news
    configure_logs()
    try:
        settings = load_settings()
    except SettingsError as error:
        structlog.get_logger().error("settings", reason=str(error))
        return error.exit_code
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn stops on both, then raises them again for the handler it found
    worker = Worker(settings)
    config = uvicorn.Config(
        app(settings, worker),
        host=settings.host,
        port=settings.trainer_port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=int(STOP_S_MAX),
    )
    uvicorn.Server(config).run()
    if not worker.join(STOP_S_MAX):
        structlog.get_logger().warning("step_cut_short", reason=f"it ran for more than {STOP_S_MAX:.0f} s after the stop signal")
    sys.stderr.flush()
    # Threads inside TensorFlow and librdkafka may be in the middle of work; interpreter teardown under them crashes now and then.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
