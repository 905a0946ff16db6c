"""PredictionService and ModelService, as tensorflow_serving/model_servers/{prediction,model}_service_impl.cc answer them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_server.config import models_of
from serving.model_server.manager import Manager
from serving.model_server.metrics import PREDICT_SECONDS, REQUESTS
from serving.model_server.status import ServingError, invalid_argument
from serving.tensors import encode_tensor

RELOAD_WAIT_S = 60.0  # for a new model to come up; a caller's shorter deadline wins

log = structlog.get_logger("model_server")


@contextmanager
def _answering(context: grpc.ServicerContext, method: str, request: Any) -> Iterator[None]:
    """Count the call, and turn a ServingError into its gRPC status. Names of models that are not served are not made into labels."""
    model = request.model_spec.name if hasattr(request, "model_spec") else ""
    try:
        yield
    except ServingError as error:
        known = "" if error.code is grpc.StatusCode.NOT_FOUND else model
        REQUESTS.labels(method, known, error.code.name).inc()
        log.warning("refused", method=method, model=model, code=error.code.name, error=error.message)
        context.abort(error.code, error.message)
    except Exception as error:
        REQUESTS.labels(method, model, "INTERNAL").inc()
        log.exception("failed", method=method, model=model)
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
    else:
        REQUESTS.labels(method, model, "OK").inc()


def _require_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        invalid_argument("Missing ModelSpec")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        began = time.perf_counter()
        response = predict_pb2.PredictResponse()
        with _answering(context, "Predict", request):
            _require_spec(request)
            with self._manager.servable(request.model_spec) as servable:
                signature, outputs = servable.predict(request)
                name, version = servable.name, servable.version
            response.model_spec.name = name
            response.model_spec.version.value = version
            response.model_spec.signature_name = signature
            for alias, array in outputs.items():
                encode_tensor(array, response.outputs[alias])
            PREDICT_SECONDS.labels(name, signature).observe(time.perf_counter() - began)
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Words of tensorflow_serving/servables/tensorflow/get_model_metadata_impl.cc."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with _answering(context, "GetModelMetadata", request):
            _require_spec(request)
            if not request.metadata_field:
                invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
            for field in request.metadata_field:
                if field != "signature_def":
                    invalid_argument(f"Metadata field {field} is not supported")
            with self._manager.servable(request.model_spec) as servable:
                signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
                response.model_spec.name = servable.name
                response.model_spec.version.value = servable.version
            response.metadata["signature_def"].Pack(signatures)
        return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._unimplemented(context, "Classify")

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._unimplemented(context, "Regress")

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._unimplemented(context, "MultiInference")

    def _unimplemented(self, context: grpc.ServicerContext, method: str) -> None:
        REQUESTS.labels(method, "", "UNIMPLEMENTED").inc()
        context.abort(
            grpc.StatusCode.UNIMPLEMENTED, f"{method} is not answered by this model server; use Predict, or TensorFlow Serving."
        )


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Words of tensorflow_serving/model_servers/get_model_status_impl.cc, which knows no labels either."""
        response = get_model_status_pb2.GetModelStatusResponse()
        with _answering(context, "GetModelStatus", request):
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
            for version, (state, error) in states.items():
                entry = response.model_version_status.add(version=version, state=int(state))
                entry.status.error_code = error.number if error else 0
                entry.status.error_message = error.message if error else ""
        return response

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        response = model_management_pb2.ReloadConfigResponse()
        with _answering(context, "HandleReloadConfigRequest", request):
            left = context.time_remaining()
            self._manager.reload(models_of(request.config), min(RELOAD_WAIT_S, RELOAD_WAIT_S if left is None else left))
            response.status.error_code = 0
        return response
