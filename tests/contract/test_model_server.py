"""What a model server must do, whoever made it: ours always, and TensorFlow Serving when one is named.

LIVESHELF_TFS_ADDRESS=host:port   also run against this server
LIVESHELF_TFS_MODELS=DIR          a directory that both this test and that server see under this same path, and may be filled with models
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import grpc
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from liveshelf.settings import Settings  # noqa: E402
from serving.model_client import ModelClient, ModelNotFoundError, ModelUnavailableError  # noqa: E402

ROOT = Path(__file__).parents[2]
AVAILABLE, END = 30, 50
Code = grpc.StatusCode
Specific = dict[str, Any]


class Tiny(tf.Module):
    """item string[B], x float[B,3] → id int64[B] (by a table inside the graph), y float[B] = version × sum of x."""

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


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A directory with the SavedModel of a version; each is made once."""
    made: dict[int, Path] = {}

    def export(version: int) -> Path:
        if version not in made:
            model = Tiny(version)
            made[version] = tmp_path_factory.mktemp("exported") / str(version)
            tf.saved_model.save(model, str(made[version]), signatures={"serving_default": model.both, "slow": model.slow})
        return made[version]

    return export


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def our_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Our server as a process of its own, started on the shipped model config with its path moved, and with no model there yet."""
    data = tmp_path_factory.mktemp("data")
    config = data / "models.config"
    shipped = (ROOT / "deploy/tensorflow-serving/models.config").read_text()
    config.write_text(shipped.replace('"/models/', f'"{data}/'))
    port, metrics_port = free_port(), free_port()
    environ = os.environ | {
        "LIVESHELF_DATA_DIR": str(data),
        "LIVESHELF_MODEL_SERVER_PORT": str(port),
        "LIVESHELF_MODEL_SERVER_METRICS_PORT": str(metrics_port),
        "PYTHONPATH": str(ROOT),
    }
    with (data / "log").open("wb") as log:
        command = [sys.executable, "-m", "serving.model_server", f"--model_config_file={config}"]
        process = subprocess.Popen(command, env=environ, stderr=log)
    shelf = {"model_version_policy": {"latest": {"num_versions": 2}}}
    server = Server(f"127.0.0.1:{port}", data, metrics_port, process, {"shelf": shelf})
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
        log_text = (data / "log").read_text()
        assert code == 0, log_text
        assert [line for line in log_text.splitlines() if not line.startswith("{")] == []  # TensorFlow's notices are no JSON lines
        assert '"event": "stopped"' in log_text


@pytest.fixture(scope="session", params=["ours", "external"])
def any_server(request: pytest.FixtureRequest) -> Server:
    if request.param == "ours":
        return request.getfixturevalue("our_server")  # type: ignore[no-any-return]
    address = os.environ.get("LIVESHELF_TFS_ADDRESS")
    if not address:
        pytest.skip("LIVESHELF_TFS_ADDRESS names no other server")
    shared = os.environ.get("LIVESHELF_TFS_MODELS")
    return Server(address, Path(shared) if shared else None)


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


@pytest.fixture
def model(any_server: Server, request: pytest.FixtureRequest, exported: Callable[[int], Path]) -> Model:
    """A model named after the test, not served yet."""
    if any_server.models is None:
        pytest.skip("LIVESHELF_TFS_MODELS names no directory that this test shares with the other server")
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    return Model(any_server, name, exported)


def values(response: Any) -> dict[str, list[Any]]:
    return {alias: tf.make_ndarray(value).tolist() for alias, value in response.outputs.items()}


# --- Predict


def test_predict_answers_all_outputs_and_says_who_answered(model: Model) -> None:
    response = model.serve(2).predict()
    assert values(response) == {"id": [1, 0], "y": [12.0, 2.0]}
    assert (response.model_spec.name, response.model_spec.version.value) == (model.name, 2)
    assert response.model_spec.signature_name == "serving_default"


def test_signature_by_name(model: Model) -> None:
    response = model.serve(1).predict({"signature_name": "slow"}, steps=7)
    assert values(response) == {"count": 7}
    assert response.model_spec.signature_name == "slow"


def test_output_filter(model: Model) -> None:
    model.serve(1)
    assert values(model.predict({"output_filter": ["y"]})) == {"y": [6.0, 1.0]}
    assert values(model.predict({"output_filter": ["y", "id"]})) == {"id": [1, 0], "y": [6.0, 1.0]}
    code, says = model.refused({"output_filter": ["z"]})
    assert code is Code.INVALID_ARGUMENT
    assert says.startswith("output tensor alias not found in signature: z")
    assert model.refused({"output_filter": ["y", "y"]}) == (Code.INVALID_ARGUMENT, "duplicate output tensor alias: y")


def test_inputs_in_typed_fields_are_read(model: Model) -> None:
    x = tf.make_tensor_proto(np.zeros((1, 3), np.float32))
    x.tensor_content = b""
    x.float_val[:] = [5.0]  # one value stands for all three
    assert values(model.serve(1).predict(item=[b"sock"], x=x)) == {"id": [2], "y": [15.0]}


def test_versions_explicit_and_latest(model: Model) -> None:
    model.serve(1, 3)
    assert model.predict().model_spec.version.value == 3
    assert values(model.predict({"version": 1}))["y"] == [6.0, 1.0]
    assert model.refused({"version": 2}) == (Code.NOT_FOUND, f"Servable not found for request: Specific({model.name}, 2)")


def test_what_is_missing_or_wrong_is_named(model: Model) -> None:
    model.serve(1)
    x, item = [[1.0, 2.0, 3.0]], [b"hat"]
    code, says = model.refused({"signature_name": "rank"})
    assert (code, says) == (Code.FAILED_PRECONDITION, 'Serving signature key "rank" not found.')
    code, says = model.refused(x=x)
    assert code is Code.INVALID_ARGUMENT
    assert "input size does not match signature: 1!=2" in says
    assert "Missing but required: {item}" in says
    code, says = model.refused(x=x, item=item, y=x)
    assert code is Code.INVALID_ARGUMENT
    assert "Sent extra: {y}" in says
    assert model.refused(x=x, thing=item)[0] is Code.INVALID_ARGUMENT
    code, says = model.refused(x=[[b"a", b"b", b"c"]], item=item)
    assert code is Code.INVALID_ARGUMENT
    assert "to be float but string is provided" in says
    assert model.refused(x=[[1.0, 2.0, 3.0, 4.0]], item=item)[0] is Code.INVALID_ARGUMENT
    broken = tensor(x)
    broken.tensor_content = b"123"
    code, says = model.refused(x=broken, item=item)
    assert code is Code.INVALID_ARGUMENT
    assert "tensor parsing error: x" in says
    assert values(model.predict())["y"] == [6.0, 1.0]  # and it still answers


def test_unknown_model(any_server: Server) -> None:
    def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]

    status = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "nobody"})
    predict = any_server.prediction.Predict
    assert refusal(lambda: any_server.predict("nobody")) == (Code.NOT_FOUND, "Servable not found for request: Latest(nobody)")
    assert refusal(lambda: any_server.model_service.GetModelStatus(status)) == (
        Code.NOT_FOUND,
        "Could not find any versions of model nobody",
    )
    assert refusal(lambda: predict(predict_pb2.PredictRequest())) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")
    assert refusal(lambda: any_server.predict("")) == (Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")


def test_other_calls_are_unimplemented(our_server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        our_server.prediction.Classify(classification_pb2.ClassificationRequest())
    assert caught.value.code() is Code.UNIMPLEMENTED
    assert "use Predict" in caught.value.details()


# --- metadata, status, config


def test_metadata_is_the_signatures(model: Model) -> None:
    model.serve(1)
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": model.name}, metadata_field=["signature_def"])
    response = model.server.prediction.GetModelMetadata(request)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    assert response.model_spec.version.value == 1
    default = found.signature_def["serving_default"]
    assert {alias: info.dtype for alias, info in default.inputs.items()} == {"item": 7, "x": 1}
    assert [dim.size for dim in default.inputs["x"].tensor_shape.dim] == [-1, 3]
    assert set(default.outputs) == {"id", "y"}
    assert set(found.signature_def["slow"].inputs) == {"steps"}
    for fields in ([], ["weights"]):
        with pytest.raises(grpc.RpcError) as caught:
            model.server.prediction.GetModelMetadata(
                get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": model.name}, metadata_field=fields)
            )
        assert caught.value.code() is Code.INVALID_ARGUMENT


def test_status_of_one_version(model: Model) -> None:
    model.serve(1, 2)
    entry = model.server.status(model.name, 2)
    assert (entry.version, entry.state, entry.status.error_code) == (2, AVAILABLE, 0)
    with pytest.raises(grpc.RpcError) as caught:
        model.server.status(model.name, 9)
    assert caught.value.details() == f"Could not find version 9 of model {model.name}"


def test_labels_move_and_never_point_at_nothing(model: Model) -> None:
    model.serve(1, 2)
    policy = {"all": {}}
    model.server.reload(model.name, model_version_policy=policy, version_labels={"stable": 1})
    assert model.predict({"version_label": "stable"}).model_spec.version.value == 1
    with pytest.raises(grpc.RpcError) as caught:
        model.server.reload(model.name, model_version_policy=policy, version_labels={"stable": 5})
    assert caught.value.code() is Code.FAILED_PRECONDITION
    assert "Request to assign label to version 5" in caught.value.details()
    assert model.predict({"version_label": "stable"}).model_spec.version.value == 1
    model.server.reload(model.name, model_version_policy=policy, version_labels={"stable": 2})
    assert model.predict({"version_label": "stable"}).model_spec.version.value == 2
    assert model.refused({"version_label": "canary"}) == (Code.INVALID_ARGUMENT, "Unrecognized servable version label: canary")


def test_policies_by_reload(model: Model) -> None:
    model.serve(1, 2, 3, latest={"num_versions": 1}, available={3})
    for policy, expected in [
        ({"all": {}}, {1, 2, 3}),
        ({"specific": {"versions": [1, 3]}}, {1, 3}),
        ({"latest": {"num_versions": 2}}, {2, 3}),
    ]:
        model.server.reload(model.name, model_version_policy=policy)
        model.server.wait_available(model.name, expected)


def test_bad_config_is_refused(any_server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        any_server.model_service.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=10)
    assert caught.value.code() is Code.INVALID_ARGUMENT


# --- versions come and go


def test_new_version_is_found_and_deleted_one_goes(model: Model) -> None:
    model.serve(1)
    model.add(2)
    model.server.wait_available(model.name, {1, 2})
    shutil.rmtree(model.path / "1")
    wait_until(lambda: model.server.states(model.name) == {1: END, 2: AVAILABLE}, "1 unloaded")
    assert model.refused({"version": 1})[0] is Code.NOT_FOUND


def test_corrupt_version_ends_with_its_error_and_the_others_serve_on(model: Model) -> None:
    model.serve(1, latest={"num_versions": 1})
    model.add(2, lambda path: (path / "saved_model.pb").write_bytes(b"no protobuf"))
    model.add(3, lambda path: shutil.rmtree(path / "variables"))
    wait_until(lambda: model.server.states(model.name).get(3) == END, "3 failed")
    assert model.server.status(model.name, 3).status.error_code != 0
    assert model.server.status(model.name, 3).status.error_message
    assert model.predict().model_spec.version.value == 1
    model.server.reload(model.name, model_version_policy={"all": {}})
    wait_until(lambda: model.server.states(model.name) == {1: AVAILABLE, 2: END, 3: END}, "2 failed too")


def test_repaired_version_loads(model: Model) -> None:
    model.serve(1)
    model.add(2, lambda path: (path / "saved_model.pb").write_bytes(b"no protobuf"))
    wait_until(lambda: model.server.states(model.name).get(2) == END, "2 failed")
    shutil.rmtree(model.path / "2")
    wait_until(lambda: model.server.states(model.name) == {1: AVAILABLE}, "2 forgotten")
    model.add(2)
    model.server.wait_available(model.name, {1, 2})


def write_warmup(path: Path, **spec: Any) -> None:
    request = predict_pb2.PredictRequest(model_spec=spec)
    request.inputs["item"].CopyFrom(tf.make_tensor_proto([b"hat"]))
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[1.0, 2.0, 3.0]]))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    (path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(path / "assets.extra/tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())


def test_warmup_runs_before_a_version_is_available(model: Model) -> None:
    """A warm-up request that cannot be answered keeps its version from coming up: so it was run, and first."""
    model.serve(1)
    model.add(2, lambda path: write_warmup(path, name=model.name))
    model.server.wait_available(model.name, {1, 2})
    model.add(3, lambda path: write_warmup(path, name=model.name, signature_name="absent"))
    wait_until(lambda: model.server.states(model.name).get(3) == END, "3 failed")
    assert "absent" in model.server.status(model.name, 3).status.error_message


def test_request_in_flight_outlives_its_version(model: Model) -> None:
    model.serve(1, 2)
    slow = {"signature_name": "slow", "version": 1}
    model.predict(slow, steps=10)
    began = time.perf_counter()
    model.predict(slow, steps=20_000)
    steps = int(20_000 * 3.0 / (time.perf_counter() - began))  # about three seconds of work
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(model.predict, slow, steps=steps)
        wait_until(answer.running, "sent")
        time.sleep(0.2)  # on its way; not for luck: the assertion below says whether it was
        shutil.rmtree(model.path / "1")
        wait_until(lambda: model.server.states(model.name)[1] != AVAILABLE, "1 taken out")
        assert model.refused({"version": 1})[0] is Code.NOT_FOUND
        assert not answer.done()
        assert values(answer.result()) == {"count": steps}
    wait_until(lambda: model.server.states(model.name) == {1: END, 2: AVAILABLE}, "1 unloaded")


# --- our client


def settings_for(model: Model) -> Settings:
    return Settings(model_server=model.server.address, model_name=model.name)


X, ITEM = np.array([[1, 2, 3]], np.float32), np.array([b"sock"], object)


def test_client_predicts_and_lists_versions(model: Model) -> None:
    model.serve(1, 2)

    async def ask() -> None:
        async with ModelClient(settings_for(model)) as client:
            assert await client.versions() == [2, 1]
            answer = await client.predict(1, "serving_default", {"x": X, "item": ITEM}, timeout_s=10)
            assert {key: value.tolist() for key, value in answer.items()} == {"id": [2], "y": [6.0]}
            answer = await client.predict(2, "serving_default", {"x": X, "item": ITEM}, timeout_s=10, outputs=("y",))
            assert {key: value.tolist() for key, value in answer.items()} == {"y": [12.0]}
            with pytest.raises(ModelNotFoundError, match=r"Specific\(.*, 9\)"):
                await client.predict(9, "serving_default", {"x": X, "item": ITEM}, timeout_s=10)
            with pytest.raises(ModelUnavailableError, match="Missing but required") as caught:
                await client.predict(1, "serving_default", {"x": X}, timeout_s=10)
            assert caught.value.reason == "model_refused"

    asyncio.run(ask())


def test_no_request_fails_while_versions_are_swapped(model: Model) -> None:
    """Eight callers ask for the newest version they know of, while three newer ones arrive and push the older ones out."""
    model.serve(1, latest={"num_versions": 2})

    async def swap() -> list[int]:
        answered: list[int] = []
        newest, done = 1, False

        async def watch(client: ModelClient) -> None:
            nonlocal newest
            while not done:
                newest = (await client.versions())[0]
                await asyncio.sleep(0.05)

        async def call(client: ModelClient) -> None:
            while not done:
                version = newest
                answer = await client.predict(version, "serving_default", {"x": X, "item": ITEM}, timeout_s=10)
                assert answer["y"].tolist() == [6.0 * version]
                answered.append(version)

        async with ModelClient(settings_for(model)) as client:
            tasks = [asyncio.create_task(call(client)) for _ in range(8)] + [asyncio.create_task(watch(client))]
            for version in (2, 3, 4):
                await asyncio.to_thread(model.add, version)
                await asyncio.to_thread(wait_until, lambda version=version: version in answered, f"answers of {version}")
            done = True
            await asyncio.gather(*tasks)  # raises what any call raised
        return answered

    for version in (2, 3, 4):
        model.exported(version)  # made before the clock runs
    assert set(asyncio.run(swap())) == {1, 2, 3, 4}
    model.server.wait_available(model.name, {3, 4})


# --- our server by itself


def health_of(server: Server, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(server.channel).Check(request, timeout=10).status  # type: ignore[no-any-return]


def test_healthy_without_a_model_and_serving_once_there_is_one(our_server: Server, exported: Callable[[int], Path]) -> None:
    shelf = Model(our_server, "shelf", exported)
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

    async def versions() -> list[int]:
        async with ModelClient(settings_for(shelf)) as client:
            return await client.versions()

    assert not shelf.path.exists()
    assert (health_of(our_server, ""), health_of(our_server, "shelf")) == (serving, not_serving)
    assert asyncio.run(versions()) == []
    assert shelf.refused() == (Code.NOT_FOUND, "Servable not found for request: Latest(shelf)")

    shelf.path.mkdir()
    (shelf.path / "7").mkdir()  # half-written
    shelf.add(1)
    our_server.wait_available("shelf", {1})
    assert (health_of(our_server, ""), health_of(our_server, "shelf")) == (serving, serving)
    assert asyncio.run(versions()) == [1]


def get(server: Server, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{path}", timeout=10) as response:
        return response.read().decode()  # type: ignore[no-any-return]


def test_http_health_and_metrics(our_server: Server, exported: Callable[[int], Path]) -> None:
    model = Model(our_server, "measured", exported).serve(1, 2)
    assert json.loads(get(our_server, "/healthz"))["models"]["measured"] == [2, 1]
    model.predict()
    metrics = get(our_server, "/metrics")
    assert 'liveshelf_model_server_requests_total{code="OK",method="Predict",model="measured"} 1.0' in metrics
    assert 'liveshelf_model_server_latest_version{model="measured"} 2.0' in metrics


def test_listens_on_loopback_only(our_server: Server) -> None:
    psutil = pytest.importorskip("psutil")
    connections = psutil.Process(our_server.process.pid).net_connections("tcp")  # type: ignore[union-attr]
    listening = [ip_address(c.laddr.ip.removeprefix("::ffff:")) for c in connections if c.status == "LISTEN"]
    assert len(listening) == 2
    assert all(address.is_loopback for address in listening), listening
