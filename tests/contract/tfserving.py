"""A small model, and a running model server to ask about it: ours, or the one at LIVESHELF_TFS_ADDRESS.

LIVESHELF_TFS_ADDRESS=host:port   also run the contract against this server
LIVESHELF_TFS_MODELS=DIR          a directory that both the tests and that server see under this same path, and may be filled with models
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from liveshelf.local.process import OWN_SESSION, dying_with_parent
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
AVAILABLE, END = 30, 50
Code = grpc.StatusCode
Specific = dict[str, Any]


class Tiny(tf.Module):
    """One signature a method; each says what it is for.

    both (and serving_default)  string and float in, two outputs; a table inside the graph, and weights that tell the version
    slow                        no batch axis; takes as long as it is told
    longer                      an axis of variable length besides the batch
    checked                     refuses a batch with a number in it that is none
    distinct                    its output's open axis is not the batch: [1, 1, 2] → [1, 2]
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        words = tf.lookup.KeyValueTensorInitializer(["hat", "sock"], tf.constant([1, 2], tf.int64))
        self.table = tf.lookup.StaticHashTable(words, 0)
        self.weights = tf.Variable(tf.fill([3, 1], float(version)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "item"), tf.TensorSpec([None, 3], tf.float32, "x")])
    def both(self, item: Any, x: Any) -> dict[str, Any]:
        return {"id": self.table.lookup(item), "y": tf.matmul(x, self.weights)[:, 0]}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "steps")])
    def slow(self, steps: Any) -> dict[str, Any]:
        (count,) = tf.while_loop(lambda i: i < steps, lambda i: (i + 1,), (tf.constant(0),))
        return {"count": count}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.string, "item")])
    def longer(self, item: Any) -> dict[str, Any]:
        return {"item": tf.strings.join([item, "!"]), "id": self.table.lookup(item)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def checked(self, x: Any) -> dict[str, Any]:
        return {"y": tf.debugging.check_numerics(x, "no number") * 2.0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "x")])
    def distinct(self, x: Any) -> dict[str, Any]:
        return {"y": tf.unique(x).y}


def export_tiny(version: int, path: Path) -> None:
    model = Tiny(version)
    names = ("slow", "longer", "checked", "distinct")
    tf.saved_model.save(
        model, str(path), signatures={"serving_default": model.both} | {name: getattr(model, name) for name in names}
    )


@dataclass
class Server:
    """A running model server; `models` is a directory that it and we see."""

    address: str
    models: Path | None
    metrics_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.address)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model_service = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def reload(self, name: str, **entry: Any) -> None:
        """Serve `name` as well, with this policy and these labels."""
        entries = self.entries | {name: entry}
        request = model_management_pb2.ReloadConfigRequest()
        for key, value in entries.items():
            request.config.model_config_list.config.add(
                name=key, base_path=str(self.models / key), model_platform="tensorflow", **value
            )
        self.model_service.HandleReloadConfigRequest(request, timeout=60)
        self.entries = entries  # only when it was accepted

    def states(self, name: str) -> dict[int, int]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": name})
        try:
            response = self.model_service.GetModelStatus(request, timeout=10)
        except grpc.RpcError as error:
            if error.code() is Code.NOT_FOUND:
                return {}
            raise
        return {entry.version: entry.state for entry in response.model_version_status}

    def status(self, name: str, version: int) -> Any:
        spec = {"name": name, "version": {"value": version}}
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        (entry,) = self.model_service.GetModelStatus(request, timeout=10).model_version_status
        return entry

    def wait_available(self, name: str, versions: set[int]) -> None:
        wait_until(lambda: {v for v, s in self.states(name).items() if s == AVAILABLE} == versions, f"{name} {versions}")

    def predict(self, name: str, spec: Specific | None = None, **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest(model_spec={"name": name} | versioned(spec or {}))
        request.output_filter.extend((spec or {}).get("output_filter", ()))
        for alias, value in (inputs or {"item": [b"hat", b"?"], "x": [[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]}).items():
            request.inputs[alias].CopyFrom(value if hasattr(value, "dtype") and hasattr(value, "tensor_shape") else tensor(value))
        return self.prediction.Predict(request, timeout=30)


def versioned(spec: Specific) -> Specific:
    out = {key: value for key, value in spec.items() if key in ("signature_name", "version_label")}
    return out | ({"version": {"value": spec["version"]}} if "version" in spec else {})


def tensor(value: Any) -> Any:
    array = np.asarray(value)
    return tf.make_tensor_proto(value, dtype=tf.float32 if array.dtype.kind == "f" else None)


def wait_until(true: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}")


@contextmanager
def our_process(data: Path, *flags: str) -> Iterator[Server]:
    """Our server as a process of its own, on free ports, gone in good order when the block ends."""
    log_file = data / "log"
    port, metrics_port = free_port(), free_port()
    environ = os.environ | {
        "LIVESHELF_DATA_DIR": str(data),
        "LIVESHELF_MODEL_SERVER_PORT": str(port),
        "LIVESHELF_MODEL_SERVER_METRICS_PORT": str(metrics_port),
        "PYTHONPATH": str(ROOT),
    }
    with log_file.open("wb") as log:
        command = dying_with_parent([sys.executable, "-m", "serving.model_server", *flags])
        process = subprocess.Popen(command, env=environ, stderr=log, **OWN_SESSION)
    server = Server(f"127.0.0.1:{port}", data, metrics_port, process)
    try:
        grpc.channel_ready_future(server.channel).result(timeout=120)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        log_text = log_file.read_text()
        assert code == 0, log_text
        assert [line for line in log_text.splitlines() if not line.startswith("{")] == []  # TensorFlow's notices are no JSON lines
        assert '"event": "stopped"' in log_text


@dataclass
class Model:
    """One model of a server, for one test."""

    server: Server
    name: str
    exported: Callable[[int], Path]

    @property
    def path(self) -> Path:
        return self.server.models / self.name  # type: ignore[operator]

    def add(self, version: int, change: Callable[[Path], None] = lambda path: None) -> None:
        """Appear all at once under `version`, as an exporter should do it."""
        half = self.path / f".tmp-{version}"
        shutil.copytree(self.exported(version), half)
        change(half)
        half.rename(self.path / str(version))

    def serve(self, *versions: int, available: set[int] | None = None, **policy: Any) -> "Model":
        self.path.mkdir()
        for version in versions:
            self.add(version)
        self.server.reload(self.name, model_version_policy=policy or {"all": {}})
        self.server.wait_available(self.name, set(versions) if available is None else available)
        return self

    def predict(self, spec: Specific | None = None, **inputs: Any) -> Any:
        return self.server.predict(self.name, spec, **inputs)

    def refused(self, spec: Specific | None = None, **inputs: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.predict(spec, **inputs)
        return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]


def values(response: Any) -> dict[str, list[Any]]:
    return {alias: tf.make_ndarray(value).tolist() for alias, value in response.outputs.items()}


def write_warmup(path: Path, **spec: Any) -> None:
    request = predict_pb2.PredictRequest(model_spec=spec)
    request.inputs["item"].CopyFrom(tf.make_tensor_proto([b"hat"]))
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[1.0, 2.0, 3.0]]))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    (path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(path / "assets.extra/tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
