"""Puts the model server together: gRPC with health, HTTP for health and metrics, and an orderly end."""

import asyncio
import gc
import json
import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import make_wsgi_app
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from liveshelf.errors import ConflictError
from liveshelf.settings import Settings
from serving.model_server.config import ModelConfig
from serving.model_server.manager import Manager
from serving.model_server.services import ModelService, PredictionService

MESSAGE_BYTES_MAX = 64 * 2**20
WORKERS = 4  # models run at once: two cores, and a second pair so that a long run never holds up a short one alone
REQUESTS_MAX = 64  # at once; more are refused with RESOURCE_EXHAUSTED, for their 100 ms would be over before their turn
GRACE_S = 5.0  # for requests in flight at SIGTERM; a scorer waits 0.1 s for one
SWITCH_INTERVAL_S = 0.0005

log = structlog.get_logger("model_server")


async def serve(settings: Settings, models: list[ModelConfig]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConflictError: a port is taken.
    """
    logging.getLogger("tensorflow").setLevel(
        logging.ERROR
    )  # the session loader is "deprecated" since 2.0, and is what Serving is made of
    loop = asyncio.get_running_loop()
    statuses = health.aio.HealthServicer()

    answer = health_pb2.HealthCheckResponse
    await statuses.set("", answer.SERVING)  # the server as such, with or without a model
    for model in models:
        await statuses.set(model.name, answer.NOT_SERVING)

    def on_change(model: str, available: bool) -> None:  # on the manager's thread
        asyncio.run_coroutine_threadsafe(statuses.set(model, answer.SERVING if available else answer.NOT_SERVING), loop)

    manager = Manager(models, on_change)

    with ThreadPoolExecutor(WORKERS, "model") as pool:
        server = _grpc_server(settings, manager, pool, statuses)
        http = _http_server(settings, manager)
        _settle_interpreter()
        Thread(target=http.serve_forever, name="http", daemon=True).start()
        await server.start()
        manager.start()
        log.info("listening", address=f"{settings.host}:{settings.model_server_port}", models=manager.models)

        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await stopping.wait()

        await statuses.enter_graceful_shutdown()
        await server.stop(GRACE_S)  # refuses new requests, lets those in flight end
        await asyncio.to_thread(manager.stop)
        await asyncio.to_thread(http.shutdown)
        http.server_close()
    log.info("stopped")


def _grpc_server(settings: Settings, manager: Manager, pool: ThreadPoolExecutor, statuses: Any) -> grpc.aio.Server:
    options = (
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.so_reuseport", 0),  # else a second server would share the port, and every other request
    )
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=REQUESTS_MAX)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(manager, pool), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    try:
        server.add_insecure_port(f"{settings.host}:{settings.model_server_port}")
    except RuntimeError as error:
        raise _taken(settings.host, settings.model_server_port, "LIVESHELF_MODEL_SERVER_PORT", error) from error
    return server


def _http_server(settings: Settings, manager: Manager) -> WSGIServer:
    metrics = make_wsgi_app()

    def respond(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)
        if environ["PATH_INFO"] == "/healthz":  # a shop that has no model yet is no fault of this server
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"status": "ok", "models": {name: manager.available(name) for name in manager.models}}).encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/healthz or /metrics\n"]

    try:
        return make_server(settings.host, settings.model_server_metrics_port, respond, WSGIServer, _Quiet)
    except OSError as error:
        raise _taken(settings.host, settings.model_server_metrics_port, "LIVESHELF_MODEL_SERVER_METRICS_PORT", error) from error


def _taken(host: str, port: int, name: str, error: Exception) -> ConflictError:
    return ConflictError(
        f"the model server cannot listen on {host}:{port}: {error}. Is another one running? Or set {name} to a free port."
    )


def _settle_interpreter() -> None:
    # Python hands the interpreter from one busy thread to another every 5 ms by default, and a request that comes while a version loads
    # waits that long several times over. Worst request over ten loads, three runs each on a fully loaded machine: 120-320 ms
    # with 5 ms, 36-210 ms with this.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Nothing imported so far will ever be garbage. Without this a full collection walks TensorFlow's 320,000 objects and stops every
    # request for 300 ms (measured); with it, for under one.
    gc.collect()
    gc.freeze()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape every few seconds is no news."""
