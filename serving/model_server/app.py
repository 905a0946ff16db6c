"""Puts the model server together: gRPC with health, HTTP for health and metrics, and an orderly end."""

import gc
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import make_wsgi_app
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from liveshelf.errors import ConflictError
from liveshelf.settings import Settings
from serving.model_server.config import default_config, read_config
from serving.model_server.manager import Manager
from serving.model_server.services import ModelService, PredictionService

MESSAGE_BYTES_MAX = 64 * 2**20
WORKERS = 4  # requests at once; two cores, and a second pair so that a status call never waits behind a long one
GRACE_S = 5.0  # for requests in flight at SIGTERM; a scorer waits 0.1 s for one
SWITCH_INTERVAL_S = 0.0005

log = structlog.get_logger("model_server")


class ModelServer:
    """One process's model server. `start`, then `stop`."""

    def __init__(self, settings: Settings, model_config_file: Path | None = None) -> None:
        """Raises SettingsError for a bad config file."""
        self._settings = settings
        models = read_config(model_config_file) if model_config_file else default_config(settings)
        self._health = health.HealthServicer()
        for model in models:
            self._on_change(model.name, False)
        self.manager = Manager(models, self._on_change)
        options = (
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.so_reuseport", 0),  # else a second server would share the port, and every other request
        )
        self._grpc = grpc.server(ThreadPoolExecutor(WORKERS, "request"), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(self.manager), self._grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self.manager), self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._http: WSGIServer | None = None

    def _on_change(self, model: str, available: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if available else health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set(model, status)

    def start(self) -> None:
        """Raises ConflictError when a port is taken."""
        s = self._settings
        address = f"{s.host}:{s.model_server_port}"
        try:
            self._grpc.add_insecure_port(address)
            self._http = make_server(s.host, s.model_server_metrics_port, self._respond, WSGIServer, _Quiet)
        except (RuntimeError, OSError) as error:
            raise ConflictError(
                f"the model server cannot listen on {address} and {s.host}:{s.model_server_metrics_port}: {error}. Is another one running? "
                "Set LIVESHELF_MODEL_SERVER_PORT or LIVESHELF_MODEL_SERVER_METRICS_PORT to free ports."
            ) from error
        # Python hands the interpreter from one busy thread to another every 5 ms by default; a request that comes while a version loads
        # would wait that long several times over.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # Nothing imported so far will ever be garbage; leaving TensorFlow's half a million objects out makes a collection cheap.
        gc.collect()
        gc.freeze()
        Thread(target=self._http.serve_forever, name="http", daemon=True).start()
        self.manager.start()
        self._grpc.start()
        log.info("listening", address=address, models=self.manager.models)

    def stop(self) -> None:
        """Refuse new requests, let those in flight end."""
        self._health.enter_graceful_shutdown()
        self._grpc.stop(GRACE_S).wait()
        self.manager.stop()
        if self._http:
            self._http.shutdown()
            self._http.server_close()
        log.info("stopped")

    def _respond(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return make_wsgi_app()(environ, start_response)
        if path == "/healthz":  # healthy as soon as it answers: a shop without a model yet is no fault of this server
            body = json.dumps({"status": "ok", "models": {name: self.manager.available(name) for name in self.manager.models}})
            start_response("200 OK", [("Content-Type", "application/json")])
            return [body.encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/healthz or /metrics\n"]


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A scrape every few seconds is no news."""


def serve(settings: Settings, model_config_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopping = Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = ModelServer(settings, model_config_file)
    server.start()
    stopping.wait()
    server.stop()
