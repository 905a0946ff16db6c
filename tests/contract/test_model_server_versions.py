"""Versions come and go under requests: found, warmed up, broken, repaired, taken out."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

from tests.contract.tfserving import AVAILABLE, END, Code, Model, Server, values, wait_until, write_warmup


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
    model.add(3, lambda path: next((path / "variables").glob("*.data*")).unlink())
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


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_warmup(path, name="any")
        file = path / "assets.extra/tf_serving_warmup_requests"
        file.write_bytes(change(file.read_bytes()))

    return write


def test_damaged_warmup_keeps_its_version_out(model: Model) -> None:
    """DATA_LOSS "Please verify your warmup data is in TFRecord format" for what is no TFRecord file, INVALID_ARGUMENT for a record that is no
    PredictionLog or one too many: tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc, and its test
    saved_model_warmup_util_test.cc (InvalidWarmupDataFormat, TooManyWarmupRecords)."""
    model.serve(1)
    model.add(2, damaged(lambda data: b"no record file at all"))
    model.add(3, damaged(lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]))
    model.add(4, damaged(lambda data: data[:-3]))
    model.add(5, damaged(lambda data: data * 1001))
    wait_until(lambda: all(model.server.states(model.name).get(v) == END for v in (2, 3, 4, 5)), "all four failed")
    for version in (2, 3, 4):
        status = model.server.status(model.name, version).status
        assert status.error_code == Code.DATA_LOSS.value[0], (version, status)
        assert "Please verify your warmup data is in TFRecord format" in status.error_message
    too_many = model.server.status(model.name, 5).status
    assert too_many.error_code == Code.INVALID_ARGUMENT.value[0]
    assert "Number of warmup records exceeds the maximum" in too_many.error_message
    assert model.predict().model_spec.version.value == 1


def test_version_without_its_weights_keeps_out(our_server: Server, exported: Callable[[int], Path]) -> None:
    """Ours alone: TensorFlow takes a SavedModel whose variables are gone for one that has none (tensorflow/cc/saved_model/loader.cc,
    RunRestore), and TensorFlow Serving offers it."""
    model = Model(our_server, "weightless", exported).serve(1)
    model.add(2, lambda path: shutil.rmtree(path / "variables"))
    wait_until(lambda: model.server.states(model.name).get(2) == END, "2 failed")
    assert "variables.index is missing" in model.server.status(model.name, 2).status.error_message
