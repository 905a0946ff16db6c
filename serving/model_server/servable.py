"""One loaded version of a model: what its signatures ask for, and a session to run them in."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving import tfserving_pb2 as pb
from serving.model_server.runtime import ParseError, Session, Threads, Value
from serving.model_server.status import ServingError, invalid_argument
from serving.model_server.warmup import warmup_requests
from serving.tensors import BYTES_MAX, itemsize, shape_of, type_name

DEFAULT_SIGNATURE = "serving_default"
VARIABLES = Path("variables", "variables.index")
BRIEF_S = 0.002  # of a run, for which other requests may wait
ENDPOINTS_MAX = 256  # (signature, outputs) pairs kept resolved; a filter is the caller's choice, so it needs a bound


@dataclass(frozen=True)
class Signature:
    inputs: dict[str, Any]
    """Alias → TensorInfo, in alphabetical order, as in the C++ server's std::map."""
    outputs: dict[str, Any]
    defaults: Mapping[str, bytes]

    @cached_property
    def has_batch_axis(self) -> bool:
        """Whether every input and output leaves its first axis open: only then may requests be joined along it."""
        shapes = [info.tensor_shape for info in (*self.inputs.values(), *self.outputs.values())]
        return bool(self.inputs) and all(not s.unknown_rank and s.dim and s.dim[0].size == -1 for s in shapes)


@dataclass(frozen=True)
class Call:
    """A request that fits its signature."""

    key: str
    """Name of the signature."""
    inputs: tuple[bytes, ...]
    """Serialised TensorProtos, in the signature's order."""
    shapes: tuple[tuple[int, ...], ...]
    """Theirs."""
    aliases: tuple[str, ...]
    """Outputs to fetch, sorted."""
    all_outputs: bool

    @property
    def size(self) -> int:
        """Bytes of the inputs."""
        return sum(map(len, self.inputs))

    def of(self, inputs: Sequence[bytes]) -> "Call":
        """The same call of other tensors."""
        return replace(self, inputs=tuple(inputs))


class Brief:
    """Which calls are over within BRIEF_S, as far as those before them tell: by signature, up to the largest inputs that were."""

    def __init__(self) -> None:
        self._size: dict[str, int] = {}

    def __contains__(self, call: Call) -> bool:
        return call.size <= self._size.get(call.key, 0)

    def note(self, call: Call, took_s: float) -> None:
        if took_s < BRIEF_S:
            self._size[call.key] = max(self._size.get(call.key, 0), call.size)
        elif call in self:
            self._size[call.key] = call.size - 1


class Servable:
    def __init__(self, name: str, version: int, path: Path, threads: Threads, loader: Executor) -> None:
        """Load the version and run its warm-up requests, so that its first real request is as quick as its second. See Session for `loader`.

        Raises:
            ServingError: what is in `path` is not a SavedModel that can be served, or its warm-up failed.
        """
        self.name, self.version = name, version
        self.single: set[str] = set()
        """Signatures whose requests must not share a batch, as turned out."""
        self.brief = Brief()
        self._refs, self._retired = 0, False
        self._on_idle: Callable[[], None] | None = None
        self._lock = Lock()
        self._endpoints: dict[tuple[str, tuple[str, ...]], tuple[Any, Any]] = {}
        self._session = Session(path, threads, loader)
        try:
            if self._session.meta_graph.saver_def and not (path / VARIABLES).is_file():
                # TensorFlow takes that for a model without variables (tensorflow/cc/saved_model/loader.cc, RunRestore), and every request fails.
                raise ServingError(grpc.StatusCode.NOT_FOUND, f"{path / VARIABLES} is missing: the export is not complete")
            self.signature_defs: dict[str, Any] = dict(self._session.meta_graph.signature_def)
            signatures = {key: _signature(definition) for key, definition in self.signature_defs.items()}
            self.signatures = {key: signature for key, signature in signatures.items() if signature.outputs}
            for request in warmup_requests(path):
                self.run(self.prepare(request), in_loader=True)
        except ServingError:
            self._session.close()
            raise

    # Requests in flight keep the version alive: `acquire`, or `hold` for what outlives its request, … `release`.

    def acquire(self) -> bool:
        """Begin a request; False when the version is on its way out."""
        with self._lock:
            if self._retired:
                return False
            self._refs += 1
            return True

    def hold(self) -> None:
        """Once more, by somebody who has it already."""
        with self._lock:
            assert self._refs, (self.name, self.version)
            self._refs += 1

    def release(self) -> None:
        with self._lock:
            self._refs -= 1
            last = self._retired and not self._refs
        if last and self._on_idle:
            self._on_idle()

    def retire(self, on_idle: Callable[[], None]) -> None:
        """Take no new request, and call `on_idle` when the last one is done: then it may be closed."""
        with self._lock:
            self._retired, self._on_idle = True, on_idle
            last = not self._refs
        if last:
            on_idle()

    def close(self) -> None:
        self._endpoints.clear()
        self._session.close()

    @cached_property
    def metadata(self) -> Any:
        """SignatureDefMap"""
        return pb.SignatureDefMap(signature_def=self.signature_defs)

    def prepare(self, request: Any) -> Call:
        """What a RawPredictRequest asks for.

        Raises:
            ServingError: in the order and words of tensorflow_serving/servables/tensorflow/predict_util.cc (RunPredict,
                VerifyRequestInputsSize, PreProcessPrediction) and tensorflow/cc/saved_model/util.cc (GetInputValues).
        """
        key = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = self.signatures.get(key)
        if signature is None:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
        inputs, shapes = _inputs(signature, request.inputs)
        aliases = _fetches(signature, request.output_filter)
        return Call(key, inputs, shapes, aliases, len(aliases) == len(signature.outputs))

    def run(self, call: Call, in_loader: bool = False) -> dict[str, Value]:
        """Output alias → value.

        Raises:
            ServingError: an input does not parse, or an op refused.
        """
        feeds, fetches = self._resolved(call.key, call.aliases)
        began = time.perf_counter()
        try:
            values = self._session.run(feeds, call.inputs, fetches, in_loader)
        except ParseError as error:
            alias = list(self.signatures[call.key].inputs)[error.index]
            invalid_argument(f"tensor parsing error: {alias}")
        self.brief.note(call, time.perf_counter() - began)
        return dict(zip(call.aliases, values, strict=True))

    def _resolved(self, key: str, aliases: tuple[str, ...]) -> tuple[Any, Any]:
        found = self._endpoints.get((key, aliases))
        if found is None:
            signature = self.signatures[key]
            feeds = self._session.endpoints([info.name for info in signature.inputs.values()])
            found = feeds, self._session.endpoints([signature.outputs[alias].name for alias in aliases])
            with self._lock:
                if len(self._endpoints) < ENDPOINTS_MAX:
                    self._endpoints[key, aliases] = found
        return found


def _signature(definition: Any) -> Signature:
    # A tensor is named op:index. What is not (composite tensors, the init op that SavedModels list as a signature) fits no Predict.
    inputs = {alias: definition.inputs[alias] for alias in sorted(definition.inputs) if ":" in definition.inputs[alias].name}
    outputs = {alias: definition.outputs[alias] for alias in sorted(definition.outputs) if ":" in definition.outputs[alias].name}
    return Signature(inputs, outputs, dict(definition.defaults))


def _inputs(signature: Signature, given: Mapping[str, bytes]) -> tuple[tuple[bytes, ...], tuple[tuple[int, ...], ...]]:
    """The signature's inputs in its order, each of the type and shape that the signature names, and their shapes."""
    wanted = signature.inputs
    if len(given) > len(wanted) or (len(given) < len(wanted) and not signature.defaults):
        sent, missing = sorted(set(given) - set(wanted)), sorted(set(wanted) - set(given))
        invalid_argument(
            f"input size does not match signature: {len(given)}!={len(wanted)} len({{{','.join(sorted(given))}}}) != "
            f"len({{{','.join(wanted)}}}). Sent extra: {{{','.join(sent)}}}. Missing but required: {{{','.join(missing)}}}."
        )
    tensors, shapes = [], []
    for index, (alias, info) in enumerate(wanted.items()):
        tensor = given[alias] if alias in given else signature.defaults.get(alias)
        if tensor is None:
            invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default value provided. Inputs "
                f"expected to be in the request {{{','.join(sorted(given))}}}, or default input alias set: {','.join(sorted(signature.defaults))}"
            )
        try:
            head = pb.TensorHead.FromString(tensor)
        except DecodeError:
            invalid_argument(f"tensor parsing error: {alias}")
        if head.dtype != info.dtype:  # tensorflow/core/framework/function.cc, FunctionCallFrame::SetArgs
            invalid_argument(
                f"Expects arg[{index}] to be {type_name(info.dtype)} but {type_name(head.dtype)} is provided (input {alias})"
            )
        shape = shape_of(head)
        _check_shape(alias, shape, head.tensor_shape.unknown_rank, info)
        tensors.append(tensor)
        shapes.append(shape)
    return tuple(tensors), tuple(shapes)


def _check_shape(alias: str, shape: tuple[int, ...], unknown_rank: bool, info: Any) -> None:
    """TensorFlow Serving leaves shapes to the ops; saying it here names the input, with the same code. It also parses a small message that
    claims a huge shape, and dies of it; here it is refused."""
    if unknown_rank or any(size < 0 for size in shape):
        invalid_argument(f"tensor parsing error: {alias}: shape {shape} is not fully known")
    if prod(shape) * itemsize(info.dtype) > BYTES_MAX:
        invalid_argument(f"tensor parsing error: {alias}: shape {shape} is over {BYTES_MAX} bytes")
    wanted = info.tensor_shape
    if wanted.unknown_rank:
        return
    sizes = [dim.size for dim in wanted.dim]
    if len(shape) != len(sizes) or any(want not in (-1, got) for want, got in zip(sizes, shape, strict=True)):
        want = ",".join("?" if size < 0 else str(size) for size in sizes)
        invalid_argument(f"input {alias} has shape [{','.join(map(str, shape))}], the signature wants [{want}]")


def _fetches(signature: Signature, output_filter: Any) -> tuple[str, ...]:
    """The outputs to compute, sorted: they are resolved once for every order of the same filter."""
    if not output_filter:
        return tuple(signature.outputs)
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {{{','.join(signature.outputs)}}}."
            )
        if alias in seen:
            invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(sorted(seen))
