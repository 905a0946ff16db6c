"""TensorFlow's C API by ctypes: load a SavedModel, run it, free it. As TensorFlow Serving does it, and without TensorFlow's Python package.

Why not the Python package: it takes 7 s and 290 MB to import; building a graph in Python holds the interpreter, so that requests wait while
a version loads; and Python's garbage collector must find a graph before its weights are freed. The C functions used are declared in
tensorflow/c/{c_api,tf_tensor,tf_buffer,tf_tstring}.h, and documented there as stable. Per request the cost is the same: 0.29 ms from request
bytes to answer bytes for 500 candidates, against 0.31 ms by way of numpy and TensorFlow's private session callables.

Short calls hold the interpreter (PyDLL); loading, running and closing let go of it (CDLL).
"""

import ctypes
import importlib.util
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from liveshelf.errors import SettingsError
from serving import tfserving_pb2 as pb
from serving.model_server.status import CODES, ServingError
from serving.tensors import STRING

LIBRARY = "libtensorflow_cc.so.2"
TAG = b"serve"
_STRING_BYTES = 24  # of a TF_TString (tensorflow/core/platform/ctstring_internal.h)
_POINTER, _INT, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p


@dataclass(frozen=True)
class Threads:
    """TensorFlow's thread pools, with the meaning of `--tensorflow_intra_op_parallelism` and `--tensorflow_inter_op_parallelism`."""

    intra_op: int = 1
    """One op's. The ops of our models take microseconds; handing them out costs more than it gains (0.17 ms for 500 candidates with one
    thread, 0.34 ms with two). Both cores are used by requests side by side."""
    inter_op: int = -1
    """Ops' that could run at once. -1 is documented in config.proto: "all operations are performed in caller's thread" (0.30 ms with one)."""


@dataclass(frozen=True)
class Value:
    """A tensor as it came out: numbers as little-endian bytes, strings as a list of bytes."""

    dtype: int
    shape: tuple[int, ...]
    content: bytes | list[bytes]

    def rows(self, start: int, stop: int) -> "Value":
        """Part of it along the first axis."""
        stride = prod(self.shape[1:])
        if isinstance(self.content, bytes):
            stride = len(self.content) // self.shape[0] if self.shape[0] else 0
        return Value(self.dtype, (stop - start, *self.shape[1:]), self.content[start * stride : stop * stride])


class ParseError(Exception):
    """The tensor at `index` is none."""

    def __init__(self, index: int) -> None:
        self.index = index
        super().__init__(index)


class _Buffer(ctypes.Structure):
    _fields_ = (("data", _POINTER), ("length", _SIZE), ("deallocator", _POINTER))


class _Output(ctypes.Structure):
    _fields_ = (("operation", _POINTER), ("index", _INT))


_SHORT: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_NewStatus": (_POINTER, ()),
    "TF_DeleteStatus": (None, (_POINTER,)),
    "TF_GetCode": (_INT, (_POINTER,)),
    "TF_Message": (_TEXT, (_POINTER,)),
    "TF_NewSessionOptions": (_POINTER, ()),
    "TF_SetConfig": (None, (_POINTER, _TEXT, _SIZE, _POINTER)),
    "TF_DeleteSessionOptions": (None, (_POINTER,)),
    "TF_NewGraph": (_POINTER, ()),
    "TF_NewBuffer": (ctypes.POINTER(_Buffer), ()),
    "TF_DeleteBuffer": (None, (ctypes.POINTER(_Buffer),)),
    "TF_GraphOperationByName": (_POINTER, (_POINTER, _TEXT)),
    "TF_OperationNumOutputs": (_INT, (_POINTER,)),
    "TF_AllocateTensor": (_POINTER, (_INT, _POINTER, _INT, _SIZE)),
    "TF_TensorFromProto": (None, (ctypes.POINTER(_Buffer), _POINTER, _POINTER)),
    "TF_DeleteTensor": (None, (_POINTER,)),
    "TF_TensorType": (_INT, (_POINTER,)),
    "TF_NumDims": (_INT, (_POINTER,)),
    "TF_Dim": (ctypes.c_int64, (_POINTER, _INT)),
    "TF_TensorData": (_POINTER, (_POINTER,)),
    "TF_TensorByteSize": (_SIZE, (_POINTER,)),
    "TF_StringGetDataPointer": (_POINTER, (_POINTER,)),
    "TF_StringGetSize": (_SIZE, (_POINTER,)),
    "TF_DataTypeSize": (_SIZE, (_INT,)),
    "TF_Version": (_TEXT, ()),
}
_LONG: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_NewSession": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "TF_LoadSessionFromSavedModel": (
        _POINTER,
        (_POINTER, _POINTER, _TEXT, ctypes.POINTER(_TEXT), _INT, _POINTER, ctypes.POINTER(_Buffer), _POINTER),
    ),
    "TF_SessionRun": (
        None,
        (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER),
    ),
    "TF_CloseSession": (None, (_POINTER, _POINTER)),
    "TF_DeleteSession": (None, (_POINTER, _POINTER)),
    "TF_DeleteGraph": (None, (_POINTER,)),
}


@cache
def library() -> Any:
    """The functions of `_SHORT` and `_LONG`, by name. Loads TensorFlow on the first call (0.7 s).

    Raises:
        SettingsError: TensorFlow is not installed, or not for this system.
    """
    package = importlib.util.find_spec("tensorflow")  # finds it, does not import it
    if package is None or not package.submodule_search_locations:
        raise SettingsError("the model server needs TensorFlow: pip install 'liveshelf[model-server]'")
    path = Path(package.submodule_search_locations[0], LIBRARY)
    # TensorFlow takes oneDNN by itself on some processors only. On an AMD EPYC one shopper against 100,000 vectors of 64: 1.0 ms with it, 2.2 without.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    try:
        with _native_stderr_closed():
            short, long = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
    except OSError as error:
        raise SettingsError(
            f"TensorFlow's library cannot be loaded: {error}. The model server needs TensorFlow for Linux."
        ) from error

    class Functions:
        """Namespace."""

    functions = Functions()
    for source, table in ((short, _SHORT), (long, _LONG)):
        for name, (result, arguments) in table.items():
            function = getattr(source, name)
            function.restype, function.argtypes = result, arguments
            setattr(functions, name.removeprefix("TF_"), function)
    return functions


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """TensorFlow writes notices (oneDNN, CPU features) while it is loaded, before it looks at TF_CPP_MIN_LOG_LEVEL; they are no JSON lines.
    What goes wrong still comes as an exception."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _status() -> Iterator[Any]:
    """A TF_Status for one call.

    Raises:
        ServingError: with TensorFlow's own code and words, when the call was not OK.
    """
    tf = library()
    status = tf.NewStatus()
    try:
        yield status
        if code := tf.GetCode(status):
            raise ServingError(CODES.get(code, grpc.StatusCode.UNKNOWN), tf.Message(status).decode(errors="replace"))
    finally:
        tf.DeleteStatus(status)


@contextmanager
def _options(threads: Threads) -> Iterator[Any]:
    tf = library()
    config = pb.SessionConfig(intra_op_parallelism_threads=threads.intra_op, inter_op_parallelism_threads=threads.inter_op)
    text = config.SerializeToString()
    options = tf.NewSessionOptions()
    try:
        with _status() as status:
            tf.SetConfig(options, text, len(text), status)
        yield options
    finally:
        tf.DeleteSessionOptions(options)


def start(threads: Threads) -> str:
    """Make TensorFlow's own threads, by way of an empty session, and return its version. They inherit the priority of the thread that makes
    them, and versions are loaded by one that gives way to requests."""
    tf = library()
    with _options(threads) as options:
        graph = tf.NewGraph()
        with _status() as status:
            session = tf.NewSession(graph, options, status)
        with _status() as status:
            tf.CloseSession(session, status)
        with _status() as status:
            tf.DeleteSession(session, status)
        tf.DeleteGraph(graph)
    return str(tf.Version().decode())


class Session:
    """A SavedModel in memory. `close` it when no run is under way."""

    def __init__(self, path: Path, threads: Threads, loader: Executor) -> None:
        """Load the graph, its weights and tables, and run its initialisers, in a thread of `loader`. That may be a thread of low priority: only
        calls are made there that let go of the interpreter. (A thread that holds the interpreter and gives way stops all others.)

        Raises:
            ServingError: TensorFlow's code and words.
        """
        self._tf = tf = library()
        self._loader = loader
        self._graph = tf.NewGraph()
        buffer = tf.NewBuffer()
        tags = (_TEXT * 1)(TAG)
        try:
            with _options(threads) as options, _status() as status:
                where = str(path).encode()
                load = loader.submit(tf.LoadSessionFromSavedModel, options, None, where, tags, 1, self._graph, buffer, status)
                self._session = load.result()
            self.meta_graph = pb.MetaGraph.FromString(ctypes.string_at(buffer.contents.data, buffer.contents.length))
        except ServingError:
            tf.DeleteGraph(self._graph)
            raise
        except DecodeError as error:
            self.close()
            raise ServingError(grpc.StatusCode.UNKNOWN, f"{path}: {error}") from error
        finally:
            tf.DeleteBuffer(buffer)

    def endpoints(self, names: Sequence[str]) -> Any:
        """Tensors named `op:index`, for `run`.

        Raises:
            ServingError: INVALID_ARGUMENT, as a session answers for a name that is not in the graph (direct_session.cc).
        """
        found = (_Output * len(names))()
        for at, name in enumerate(names):
            op, _, index = name.rpartition(":")
            operation = self._tf.GraphOperationByName(self._graph, op.encode())
            if not operation or not index.isdigit() or int(index) >= self._tf.OperationNumOutputs(operation):
                raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"Tensor {name} is not found in the graph")
            found[at] = _Output(operation, int(index))
        return found

    def run(self, feeds: Any, tensors: Sequence[bytes], fetches: Any, in_loader: bool = False) -> list[Value]:
        """Feed serialised TensorProtos, and fetch; in this thread, or in the loader's.

        Raises:
            ParseError: a tensor does not parse.
            ServingError: an op refused; TensorFlow's code and words.
        """
        tf = self._tf
        given, wanted = (_POINTER * len(tensors))(), (_POINTER * len(fetches))()
        try:
            for at, tensor in enumerate(tensors):
                given[at] = tf.AllocateTensor(1, None, 0, 4)  # replaced by what is parsed
                self._parse(tensor, given[at], at)
            with _status() as status:
                tf.SessionRun(self._session, None, feeds, given, len(given), fetches, wanted, len(wanted), None, 0, None, status)
            return [self._value(tensor) for tensor in wanted]
        finally:
            for tensor in (*given, *wanted):
                if tensor:
                    tf.DeleteTensor(tensor)

    def _parse(self, tensor: bytes, into: Any, at: int) -> None:
        buffer = _Buffer(ctypes.cast(ctypes.c_char_p(tensor), _POINTER), len(tensor), None)
        try:
            with _status() as status:
                self._tf.TensorFromProto(ctypes.byref(buffer), into, status)
        except ServingError as error:
            raise ParseError(at) from error

    def _value(self, tensor: Any) -> Value:
        tf = self._tf
        dtype, data = tf.TensorType(tensor), tf.TensorData(tensor)
        shape = tuple(tf.Dim(tensor, axis) for axis in range(tf.NumDims(tensor)))
        if dtype == STRING:
            return Value(dtype, shape, self._strings(data, prod(shape)))
        return Value(dtype, shape, ctypes.string_at(data, tf.TensorByteSize(tensor)) if data else b"")

    def _strings(self, data: int, count: int) -> list[bytes]:
        raw = ctypes.string_at(data, count * _STRING_BYTES) if count else b""
        out = []
        for at in range(0, len(raw), _STRING_BYTES):
            head = raw[at]
            if head & 3 == 0:  # TF_TSTR_SMALL: up to 22 bytes stand here, their number times four in the first
                out.append(raw[at + 1 : at + 1 + (head >> 2)])
            else:
                where = data + at
                out.append(ctypes.string_at(self._tf.StringGetDataPointer(where), self._tf.StringGetSize(where)))
        return out

    def close(self) -> None:
        with _status() as status:
            self._loader.submit(self._tf.CloseSession, self._session, status).result()
        with _status() as status:
            self._loader.submit(self._tf.DeleteSession, self._session, status).result()
        self._loader.submit(self._tf.DeleteGraph, self._graph).result()
