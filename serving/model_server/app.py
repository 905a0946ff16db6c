"""Puts the model server together: gRPC with health, HTTP for health and metrics, and an orderly end."""

import asyncio
import gc
import json
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import make_wsgi_app

from liveshelf.errors import ConflictError
from liveshelf.settings import Settings
from serving.model_server.batching import Batcher, BatchingParameters
from serving.model_server.config import ModelConfig
from serving.model_server.manager import Manager
from serving.model_server.runtime import Threads, start
from serving.model_server.services import add_to_server

MESSAGE_BYTES_MAX = 64 * 2**20
WORKERS = 4  # models run at once: two cores, and a second pair so that a long run never holds up a short one alone
REQUESTS_MAX = 64  # at once; more are refused with RESOURCE_EXHAUSTED, for their 100 ms would be over before their turn
GRACE_S = 5.0  # for requests in flight at SIGTERM; a scorer waits 0.1 s for one
SWITCH_INTERVAL_S = 0.0005
MODEL_PATH = re.compile(r"/v1/models/(?P<model>[^/:]+)(/versions/(?P<version>\d+))?")

log = structlog.get_logger("model_server")


@dataclass(frozen=True)
class Options:
    """What TensorFlow Serving takes as flags, beside the models."""

    threads: Threads = field(default_factory=Threads)
    batching: BatchingParameters | None = None
    """None: each request is run by itself."""
    credentials: grpc.ServerCredentials | None = None
    """None: no TLS."""


async def serve(settings: Settings, models: list[ModelConfig], options: Options) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConflictError: a port is taken.
        SettingsError: TensorFlow is not there.
    """
    version = start(options.threads)
    loop = asyncio.get_running_loop()
    statuses = health.aio.HealthServicer()

    answer = health_pb2.HealthCheckResponse
    await statuses.set("", answer.SERVING)  # the server as such, with or without a model
    for model in models:
        await statuses.set(model.name, answer.NOT_SERVING)

    def on_change(model: str, available: bool) -> None:  # on the manager's thread
        asyncio.run_coroutine_threadsafe(statuses.set(model, answer.SERVING if available else answer.NOT_SERVING), loop)

    manager = Manager(models, options.threads, on_change)
    batcher = Batcher(options.batching) if options.batching else None

    with ThreadPoolExecutor(WORKERS, "model") as pool:
        server = _grpc_server(settings, statuses, options)
        add_to_server(server, manager, pool, batcher)
        http = _http_server(settings, manager)
        _settle_interpreter()
        Thread(target=http.serve_forever, name="http", daemon=True).start()
        await server.start()
        manager.start()
        address = f"{settings.host}:{settings.model_server_port}"
        log.info("listening", address=address, models=manager.models, tensorflow=version, batching=batcher is not None)

        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await stopping.wait()

        await statuses.enter_graceful_shutdown()
        await server.stop(GRACE_S)  # refuses new requests, lets those in flight end
        await asyncio.to_thread(manager.stop)
        if batcher:
            await asyncio.to_thread(batcher.close)
        await asyncio.to_thread(http.shutdown)
        http.server_close()
    log.info("stopped")


def _requests_max(batching: BatchingParameters | None) -> int:
    """With batching it is the queue that refuses; what waits there must not count against those that run."""
    if batching is None:
        return REQUESTS_MAX
    return REQUESTS_MAX + (batching.max_enqueued_batches + batching.num_batch_threads) * batching.max_batch_size


def _grpc_server(settings: Settings, statuses: Any, options: Options) -> grpc.aio.Server:
    arguments = (
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.so_reuseport", 0),  # else a second server would share the port, and every other request
    )
    server = grpc.aio.server(options=arguments, maximum_concurrent_rpcs=_requests_max(options.batching))
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    try:
        address = f"{settings.host}:{settings.model_server_port}"
        if options.credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, options.credentials)
    except RuntimeError as error:
        raise _taken(settings.host, settings.model_server_port, "LIVESHELF_MODEL_SERVER_PORT", error) from error
    return server


def _http_server(settings: Settings, manager: Manager) -> WSGIServer:
    metrics = make_wsgi_app()

    def respond(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path in ("/metrics", "/monitoring/prometheus/metrics"):  # the second is where TensorFlow Serving has them
            return metrics(environ, start_response)
        if path == "/healthz":  # a shop that has no model yet is no fault of this server
            status, body = "200 OK", {"status": "ok", "models": {name: manager.available(name) for name in manager.models}}
        elif found := MODEL_PATH.fullmatch(path):
            status, body = _status_json(manager, found["model"], found["version"])
        else:
            status, body = "404 Not Found", {"error": f"{path}: there are /healthz, /metrics and /v1/models/NAME[/versions/N]"}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(body, indent=1).encode()]

    try:
        return make_server(settings.host, settings.model_server_metrics_port, respond, WSGIServer, _Quiet)
    except OSError as error:
        raise _taken(settings.host, settings.model_server_metrics_port, "LIVESHELF_MODEL_SERVER_METRICS_PORT", error) from error


def _status_json(manager: Manager, model: str, version: str | None) -> tuple[str, dict[str, Any]]:
    """As tensorflow_serving/model_servers/http_rest_api_handler.cc answers GET /v1/models/NAME: GetModelStatus in protobuf's JSON, numbers of
    64 bits and names as it writes them."""
    states = manager.states(model)
    if version is not None:
        states = {number: state for number, state in states.items() if number == int(version)}
    if not states:
        what = f"version {version}" if version is not None else "any versions"
        return "404 Not Found", {"error": f"Could not find {what} of model {model}"}
    entries = []
    for number, (state, error) in states.items():
        code, message = (error.code.name, error.message) if error else ("OK", "")
        entries.append({"version": str(number), "state": state.name, "status": {"error_code": code, "error_message": message}})
    return "200 OK", {"model_version_status": entries}


def _taken(host: str, port: int, name: str, error: Exception) -> ConflictError:
    return ConflictError(
        f"the model server cannot listen on {host}:{port}: {error}. Is another one running? Or set {name} to a free port."
    )


def _settle_interpreter() -> None:
    # Python hands the interpreter from one busy thread to another every 5 ms by default, and a request that comes while a version loads
    # waits that long several times over. Worst request over ten loads, three runs each on a fully loaded machine: 120-320 ms
    # with 5 ms, 36-210 ms with this.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Nothing imported so far will ever be garbage; a full collection need not walk it while requests wait.
    gc.collect()
    gc.freeze()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape every few seconds is no news."""
