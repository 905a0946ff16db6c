"""PredictionService and ModelService, as tensorflow_serving/model_servers/{prediction,model}_service_impl.cc answer them.

grpc.aio on uvloop, with the model run on a small pool of threads, or by the event loop itself where a request is alone and its run brief: a
thread's turn and the way back cost one caller of Recommend, two runs each, 1.1 of 8.5 ms and a fifth of this server's processor time.
Always the event loop would be no quicker under load, and a slow model would hold up every other call; grpc's threaded server took 1.48 ms
in place of 1.12, and 5.2 in place of 1.5 at p99.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import grpc
import structlog

from serving import tfserving_pb2 as pb
from serving.model_server.batching import Batcher
from serving.model_server.config import models_of
from serving.model_server.manager import UNKNOWN_LABEL, Manager
from serving.model_server.metrics import PREDICT_SECONDS, REQUESTS
from serving.model_server.runtime import Value
from serving.model_server.servable import Call, Servable
from serving.model_server.status import ServingError, invalid_argument
from serving.tensors import write_answer

RELOAD_WAIT_S = 60.0  # for a new model to come up; a caller's shorter deadline wins
SIGNATURES_TYPE = "type.googleapis.com/tensorflow.serving.SignatureDefMap"

log = structlog.get_logger("model_server")
Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


def add_to_server(server: grpc.aio.Server, manager: Manager, pool: Executor, batcher: Batcher | None) -> None:
    """Answer both services. `pool` runs the models; with a `batcher`, what can share a batch goes there instead."""
    prediction, models = PredictionService(manager, pool, batcher), ModelService(manager)
    calls: dict[str, dict[str, tuple[Handler, Any]]] = {
        "PredictionService": {
            "Predict": (prediction.predict, pb.RawPredictRequest.FromString),
            "GetModelMetadata": (prediction.metadata, pb.GetModelMetadataRequest.FromString),
            **{name: (_unimplemented(name), None) for name in ("Classify", "Regress", "MultiInference")},
        },
        "ModelService": {
            "GetModelStatus": (models.status, pb.GetModelStatusRequest.FromString),
            "HandleReloadConfigRequest": (models.reload, pb.ReloadConfigRequest.FromString),
        },
    }
    for service, methods in calls.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(handler, read, lambda answer: answer.SerializeToString())
            for name, (handler, read) in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", handlers),))


async def _answer(context: grpc.aio.ServicerContext, method: str, model: str, work: Awaitable[Any]) -> Any:
    """Count the call, and turn a ServingError into its gRPC status. Names of models that are not served do not become labels."""
    try:
        response = await work
    except ServingError as error:
        REQUESTS.labels(method, "" if error.code is grpc.StatusCode.NOT_FOUND else model, error.code.name).inc()
        told = (
            log.debug if error.message.startswith(UNKNOWN_LABEL) else log.warning
        )  # scorers ask now and then whether there is one
        told("refused", method=method, model=model, code=error.code.name, error=error.message)
        await context.abort(error.code, error.message)
    except Exception as error:
        REQUESTS.labels(method, model, "INTERNAL").inc()
        log.exception("failed", method=method, model=model)
        await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    else:
        REQUESTS.labels(method, model, "OK").inc()
        return response


def _require_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        invalid_argument("Missing ModelSpec")


class PredictionService:
    def __init__(self, manager: Manager, pool: Executor, batcher: Batcher | None) -> None:
        self._manager, self._pool, self._batcher = manager, pool, batcher
        self._under_way = 0

    async def predict(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await _answer(context, "Predict", request.model_spec.name, self._predict(request))

    async def _predict(self, request: Any) -> Any:
        began = time.perf_counter()
        _require_spec(request)
        with self._manager.servable(request.model_spec) as servable:
            call = servable.prepare(request)
            self._under_way += 1
            try:
                outputs = await self._run(servable, call)
            finally:
                self._under_way -= 1
            response = _response(servable.name, servable.version, call.key, outputs)
            PREDICT_SECONDS.labels(servable.name, call.key).observe(time.perf_counter() - began)
        return response

    async def _run(self, servable: Servable, call: Call) -> dict[str, Value]:
        if self._batcher and self._batcher.takes(servable, call):
            return await self._batcher.run(servable, call)
        if self._under_way == 1 and call in servable.brief:
            return servable.run(call)
        servable.hold()  # a request that is cancelled leaves, and its run goes on
        running = self._pool.submit(servable.run, call)
        running.add_done_callback(lambda _: servable.release())
        return await asyncio.wrap_future(running)

    async def metadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await _answer(context, "GetModelMetadata", request.model_spec.name, self._metadata(request))

    async def _metadata(self, request: Any) -> Any:
        """Words of tensorflow_serving/servables/tensorflow/get_model_metadata_impl.cc."""
        _require_spec(request)
        if not request.metadata_field:
            invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                invalid_argument(f"Metadata field {field} is not supported")
        response = pb.GetModelMetadataResponse()
        with self._manager.servable(request.model_spec) as servable:
            found = response.metadata["signature_def"]
            found.type_url, found.value = SIGNATURES_TYPE, servable.metadata.SerializeToString()
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
        return response


def _response(name: str, version: int, signature: str, outputs: dict[str, Value]) -> Any:
    response = pb.PredictResponse()
    response.model_spec.name = name
    response.model_spec.version.value = version
    response.model_spec.signature_name = signature
    for alias, value in outputs.items():
        write_answer(value.dtype, value.shape, value.content, response.outputs[alias])
    return response


def _unimplemented(method: str) -> Handler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
        REQUESTS.labels(method, "", "UNIMPLEMENTED").inc()
        message = f"{method} is not answered by this model server; use Predict, or TensorFlow Serving."
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)

    return refuse


class ModelService:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def status(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await _answer(context, "GetModelStatus", request.model_spec.name, self._status(request))

    async def _status(self, request: Any) -> Any:
        """Words of tensorflow_serving/model_servers/get_model_status_impl.cc, which looks at no labels either."""
        _require_spec(request)
        spec = request.model_spec
        states = self._manager.states(spec.name)
        if spec.HasField("version"):
            version = spec.version.value
            if version not in states:
                raise ServingError(grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {spec.name}")
            states = {version: states[version]}
        elif not states:
            raise ServingError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = pb.GetModelStatusResponse()
        for version, (state, error) in states.items():
            status = pb.Status(error_code=error.number, error_message=error.message) if error else pb.Status()
            response.model_version_status.add(version=version, state=int(state), status=status)
        return response

    async def reload(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        left = context.time_remaining()
        timeout_s = RELOAD_WAIT_S if left is None else min(RELOAD_WAIT_S, left)
        return await _answer(context, "HandleReloadConfigRequest", "", self._reload(request, timeout_s))

    async def _reload(self, request: Any, timeout_s: float) -> Any:
        await asyncio.to_thread(self._manager.reload, models_of(request.config), timeout_s)
        return pb.ReloadConfigResponse(status=pb.Status())
