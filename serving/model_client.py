"""The scorer's client of the model server: TensorFlow Serving's gRPC API with numpy arrays, without importing TensorFlow."""

from types import TracebackType
from typing import Self

import grpc

from liveshelf.client import Tls
from liveshelf.errors import NotFoundError, UnavailableError
from liveshelf.settings import Settings
from serving import tfserving_pb2 as pb
from serving.tensors import Array, decode_tensor, encode_tensor
from streams.tracing import Tracing

AVAILABLE = 30  # tensorflow.serving.ModelVersionStatus.State
MESSAGE_BYTES_MAX = 64 * 2**20  # as the server
STATUS_TIMEOUT_S = 1.0  # nobody waits for it: the scorer asks in the background
RELOAD_TIMEOUT_S = (
    10.0  # the server answers once it has taken the configuration over, TensorFlow Serving after its next look at the disk
)
LATEST = 2  # versions served when none is named: whoever asks for the older one must not lose it while the newer one loads

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # gRPC backs off up to 2 minutes by default; a restarted model server is to be found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


class ModelUnavailableError(UnavailableError):
    """`reason` is fit for counting: `model_server_unavailable`, `model_server_timeout`, or `model_refused` (it answered with an error)."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.late = reason == "model_server_timeout"
        super().__init__(message)


class ModelNotFoundError(NotFoundError):
    """The model server has no such version (any more)."""

    reason = "model_version_not_found"


class ModelClient:
    """Asks one model of one model server. Create it inside a running event loop, and close it (or use `async with`).

    Raises:
        SettingsError: the settings model_server_tls_* are half a set, or a file that they name cannot be read.
    """

    def __init__(self, settings: Settings, tracing: Tracing | None = None) -> None:
        self._tracing = tracing
        self._address, self._model = settings.model_server_address, settings.model_name
        if tls := Tls.of_settings(settings, "model_server_tls_ca", "model_server_tls_cert", "model_server_tls_key"):
            self._channel = grpc.aio.secure_channel(self._address, tls.credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        self._predict = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=pb.PredictRequest.SerializeToString,
            response_deserializer=pb.PredictResponse.FromString,
        )
        self._status = self._channel.unary_unary(
            "/tensorflow.serving.ModelService/GetModelStatus",
            request_serializer=pb.GetModelStatusRequest.SerializeToString,
            response_deserializer=pb.GetModelStatusResponse.FromString,
        )
        self._metadata = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/GetModelMetadata",
            request_serializer=pb.GetModelMetadataRequest.SerializeToString,
            response_deserializer=pb.GetModelMetadataResponse.FromString,
        )
        self._reload = self._channel.unary_unary(
            "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
            request_serializer=pb.ReloadConfigRequest.SerializeToString,
            response_deserializer=pb.ReloadConfigResponse.FromString,
        )

    async def versions(self) -> list[int]:
        """Versions that can be asked now, newest first; empty while there is no model yet.

        Raises:
            ModelUnavailableError: no answer, or an error.
        """
        request = pb.GetModelStatusRequest(model_spec=pb.ModelSpec(name=self._model))
        try:
            response = await self._status(request, timeout=STATUS_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return []
            raise self._error(error) from error
        return sorted((s.version for s in response.model_version_status if s.state == AVAILABLE), reverse=True)

    async def labelled(self, label: str) -> int:
        """The version that the server's configuration gives `label`; 0 when it gives it to none.

        Raises:
            ModelUnavailableError: no answer.
        """
        request = pb.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name, request.model_spec.version_label = self._model, label
        try:
            response = await self._metadata(request, timeout=STATUS_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            # tensorflow_serving/model_servers/server_core.cc, GetModelVersionForLabel; UNIMPLEMENTED: a server that knows no labels.
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
                return 0
            raise self._error(error) from error
        return int(response.model_spec.version.value)

    async def configure(self, base_path: str, versions: set[int], labels: dict[str, int]) -> None:
        """Have the server serve this one model, with these `versions` (none: its LATEST newest) under these `labels`. Versions load afterwards.

        Raises:
            ModelUnavailableError: no answer, or refused: a label of a version that is not available yet.
        """
        request = pb.ReloadConfigRequest()
        entry = request.config.model_config_list.config.add(name=self._model, base_path=base_path, model_platform="tensorflow")
        if versions:
            entry.model_version_policy.specific.versions.extend(sorted(versions))
        else:
            entry.model_version_policy.latest.num_versions = LATEST
        entry.version_labels.update(labels)
        try:
            response = await self._reload(request, timeout=RELOAD_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error
        if response.status.error_code:
            raise ModelUnavailableError("model_refused", f"model {self._model}: {response.status.error_message}")

    async def predict(
        self,
        version: int,
        signature: str,
        inputs: dict[str, Array],
        timeout_s: float,
        outputs: tuple[str, ...] | None = None,
    ) -> dict[str, Array]:
        """Run `signature` of exactly `version`. Arrays carry the batch axis first; string outputs are object arrays of bytes.

        Args:
            timeout_s: the whole call, seconds.
            outputs: compute and return only these; all when None.

        Raises:
            ModelNotFoundError: the server has no such model or version now. Ask `versions()` and take another.
            ModelUnavailableError: no answer in time, or the model refused the request; see `reason`.
            ValueError: an input array has no tensor form.
        """
        request = pb.PredictRequest(output_filter=outputs or ())
        request.model_spec.name = self._model
        request.model_spec.version.value = version
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            encode_tensor(array, request.inputs[name])
        try:
            if self._tracing is None:
                response = await self._predict(request, timeout=timeout_s)
            else:
                with self._tracing.model_call(signature, version) as metadata:
                    response = await self._predict(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, version) from error
        try:
            return {name: decode_tensor(tensor) for name, tensor in response.outputs.items()}
        except ValueError as error:
            raise ModelUnavailableError(
                "model_refused", f"model {self._model} version {version}: unreadable answer: {error}"
            ) from error

    def _error(self, error: grpc.aio.AioRpcError, version: int | None = None) -> Exception:
        code, detail = error.code(), error.details() or ""
        what = f"model {self._model}" + (f" version {version}" if version is not None else "")
        if code is grpc.StatusCode.NOT_FOUND:
            return ModelNotFoundError(f"{what}: {detail}. Ask for a version that is available.")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return ModelUnavailableError(
                "model_server_unavailable", f"model server at {self._address} does not answer: {detail}. Is it up?"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ModelUnavailableError(
                "model_server_timeout", f"model server at {self._address} did not answer in time for {what}."
            )
        return ModelUnavailableError("model_refused", f"{what} refused the request ({code.name}): {detail}")

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
