"""A model in a model server of its own: what it answers there, how quickly, what it shows, and the memory it takes.

The server is the very one that serves (`python -m serving.model_server`), in a process of its own on loopback: a model that brings it down
brings nothing else down, and its memory is that of one version and no more. The API is TensorFlow Serving's.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

import liveshelf
from features.feature_set import FeatureSet
from liveshelf.errors import LiveshelfError, UnavailableError
from liveshelf.settings import PREFIX
from trainer.export import WARMUP_CANDIDATES, example_inputs
from trainer.gate import Served
from trainer.samples import TASKS, Array, Samples

LOOPBACK = "127.0.0.1"  # whatever the parts listen on: nobody else has business with this one
LOAD_S_MAX = 120.0  # of the server's start and of each version: seconds, many more on a machine that has other work
ANSWER_S_MAX = 60.0
CONNECTED_S_MAX = 1.0  # then it is looked whether the server still runs
POLL_S = 0.02
MESSAGE_BYTES_MAX = 64 * 2**20  # as the server
ASKED_AT_ONCE = 256  # shelves; of 32 places they are 1 MB
TIMINGS = 15  # of one shelf, each model in turn; the quickest counts, which is what it takes when nothing else wants the processor
SHOPPERS_MAX = 500  # whose retrievals are looked at
SHOWN_FIRST = 10  # retrieved items of each shopper: what a shelf begins with

Outputs = dict[str, tuple[tuple[int, ...], bool]]
"""`signature/output` → (shape, whether every number is finite)."""


class NotServedError(LiveshelfError):
    """A model server that had come up did not load a model, or did not answer with it."""


class Trial:
    """A running server. Versions are loaded one by one; use `with`.

    Raises (every method):
        NotServedError: the model did not load or answer; with the end of the server's log.
        UnavailableError: the server itself did not come up.
    """

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="liveshelf-trial-")
        self._versions: dict[str, int] = {}
        self._up = False

    def __enter__(self) -> Self:
        port, metrics_port = _free_ports(2)
        settings = {"HOST": LOOPBACK, "MODEL_SERVER_PORT": port, "MODEL_SERVER_METRICS_PORT": metrics_port}
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environ |= {PREFIX + name: str(value) for name, value in settings.items()}
        config = self._path / "models.config"
        config.write_text("model_config_list {" + "".join(_entry(self._path, name) for name in ("candidate", "live")) + "}")
        # Run as a script and not imported: a server must not outlive a trainer that is killed.
        guard = Path(liveshelf.__file__).parent / "local" / "die_with_parent.py"
        server = [sys.executable, "-P", "-m", "serving.model_server", f"--model_config_file={config}"]
        with (self._path / "log").open("wb") as log:
            command = [sys.executable, "-SE", str(guard), str(os.getpid()), *server]
            self._process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)  # noqa: S603
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),  # it is asked from before it listens
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        self._channel = grpc.insecure_channel(f"{LOOPBACK}:{port}", options)
        self._statuses = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()
        self._process.kill()  # it holds nothing that is worth an orderly end
        self._process.wait()
        self._home.cleanup()

    def load(self, name: str, version: int, path: Path) -> None:
        """Serve what stands at `path` as `candidate` or `live`, and wait until it answers."""
        (self._path / name).mkdir()
        (self._path / name / str(version)).symlink_to(path.resolve())
        self._versions[name] = version
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        request.model_spec.version.value = version
        ends_s = time.monotonic() + LOAD_S_MAX
        while time.monotonic() < ends_s and self._process.poll() is None:
            try:
                # Waiting for the connection: a channel whose calls fail at once gets on with connecting every 10 s only.
                answer = self._statuses.GetModelStatus(request, timeout=CONNECTED_S_MAX, wait_for_ready=True)
                status = answer.model_version_status[0]
            except grpc.RpcError as error:  # not yet there, neither the server nor the version
                self._up = self._up or error.code() is grpc.StatusCode.NOT_FOUND
            else:
                self._up = True
                if status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE:
                    return
                if status.state == get_model_status_pb2.ModelVersionStatus.END:
                    raise self._failed(f"does not load it: {status.status.error_message}")
            time.sleep(POLL_S)
        raise self._failed(f"did not come up within {LOAD_S_MAX:.0f} s, or ended")

    def ask(self, name: str, signature: str, inputs: dict[str, Any], outputs: tuple[str, ...] = ()) -> dict[str, Array]:
        """One request; `outputs`: those wanted, all of them when none is named."""
        request = predict_pb2.PredictRequest(output_filter=outputs)
        request.model_spec.name, request.model_spec.signature_name = name, signature
        request.model_spec.version.value = self._versions[name]
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        try:
            answer = self._predictions.Predict(request, timeout=ANSWER_S_MAX)
        except grpc.RpcError as error:
            raise self._failed(f"answered {error.code().name}: {error.details()}") from error
        return {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}

    def outputs(self, name: str, features: FeatureSet) -> Outputs:
        """To B = 2 shoppers and C = 3 candidates."""
        outputs = {}
        for signature, inputs in (("retrieve", example_inputs(features, 2)), ("rank", example_inputs(features, 2, 3))):
            for key, value in self.ask(name, signature, inputs).items():
                outputs[f"{signature}/{key}"] = (value.shape, bool(np.isfinite(value).all()) if value.dtype.kind == "f" else True)
        return outputs

    def chances(self, name: str, samples: Samples) -> Array:
        """[N, C, 3] of `samples`."""
        answered = [
            self.ask(name, "rank", _columns(samples.take(np.arange(at, min(at + ASKED_AT_ONCE, samples.size)))), TASKS)
            for at in range(0, samples.size, ASKED_AT_ONCE)
        ]
        if not answered:
            return np.zeros(samples.labels.shape, np.float32)
        return np.concatenate([np.stack([one[task] for task in TASKS], axis=-1) for one in answered])

    def rank_ms(self, names: list[str], features: FeatureSet) -> list[float]:
        """Milliseconds of one shelf with the most candidates that a version is warmed up with, of each model: the calls alternate."""
        shelf = example_inputs(features, 1, max(WARMUP_CANDIDATES))
        took: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(TIMINGS):
            for name in names:
                start = time.perf_counter()
                self.ask(name, "rank", shelf, TASKS)
                took[name].append(1000 * (time.perf_counter() - start))
        return [min(took[name]) for name in names]

    def shown_items(self, name: str, samples: Samples) -> int:
        """How many different items stand among the first SHOWN_FIRST retrieved for anybody, of the latest SHOPPERS_MAX shoppers."""
        shoppers = _columns(samples.take(np.arange(max(samples.size - SHOPPERS_MAX, 0), samples.size)), of_shopper=True)
        found = self.ask(name, "retrieve", shoppers, ("item",))["item"] if samples.size else np.zeros((0, 0), object)
        return len(set(found[:, :SHOWN_FIRST].ravel().tolist()))

    def memory_mb(self) -> float:
        """Resident memory of the server, with what is loaded in it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kilobytes = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
        return int(kilobytes) / 1024

    @property
    def _path(self) -> Path:
        return Path(self._home.name)

    def _failed(self, why: str) -> LiveshelfError:
        ends = (self._path / "log").read_text(errors="replace")[-1000:].strip()
        kind = NotServedError if self._up else UnavailableError
        return kind(f"the model server that models are tried in {why}. Its log ends: {ends or 'empty'}")


def measure(
    candidate: tuple[int, Path], live: tuple[int, Path] | None, shoppers: Samples, items: int, features: FeatureSet
) -> tuple[Outputs, Served]:
    """Try a candidate beside the live model: (version, directory) each; `items` that the candidate knows, `shoppers` to retrieve for.

    Raises:
        NotServedError: the candidate does not load or answer there.
        UnavailableError: the server itself did not come up.
    """
    with Trial() as trial:
        trial.load("candidate", *candidate)
        outputs = trial.outputs("candidate", features)
        rank_ms, shown = trial.rank_ms(["candidate"], features), [trial.shown_items("candidate", shoppers)]
        memory_mb = trial.memory_mb()
        if live is not None:
            with contextlib.suppress(NotServedError):  # its directory may have gone meanwhile: no fault of the candidate's
                trial.load("live", *live)
                rank_ms = trial.rank_ms(["candidate", "live"], features)
                shown.append(trial.shown_items("live", shoppers))
    return outputs, Served(
        rank_ms=rank_ms[0],
        live_rank_ms=rank_ms[1] if len(shown) > 1 else None,
        memory_mb=memory_mb,
        shoppers=min(shoppers.size, SHOPPERS_MAX),
        items=items,
        shown_items=shown[0],
        live_shown_items=shown[1] if len(shown) > 1 else None,
    )


def _columns(samples: Samples, of_shopper: bool = False) -> dict[str, Array]:
    names = ["recent_items", "recent_events", "recent_age", "shopper_features"]
    return {name: getattr(samples, name) for name in (names if of_shopper else [*names, "candidates", "candidate_features"])}


def _entry(home: Path, name: str) -> str:
    return f'config {{ name: "{name}" base_path: "{home / name}" model_platform: "tensorflow" }}'


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
