"""Requests that share a batch are answered as if each were alone. On a server of ours with a batching parameters file."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from tests.contract.test_model_server_ours import get
from tests.contract.tfserving import Code, Model, Server, our_process, values

PARAMETERS = """
max_batch_size { value: 8 }
batch_timeout_micros { value: 200000 }  # the callers below are threads of one process: time enough for all of them
max_enqueued_batches { value: 4 }
num_batch_threads { value: 1 }
allowed_batch_sizes: 4
allowed_batch_sizes: 8
pad_variable_length_inputs: %s
"""


@pytest.fixture(scope="module", params=["false", "true"], ids=["unpadded", "padded"])
def batching_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("batching")
    (data / "batching.config").write_text(PARAMETERS % request.param)
    with our_process(data, f"--batching_parameters_file={data}/batching.config") as server:
        yield server


@pytest.fixture(scope="module")
def tiny(batching_server: Server, exported: Callable[[int], Path]) -> Model:
    model = Model(batching_server, "tiny", exported).serve(3)
    model.predict()
    return model


def batches(server: Server) -> tuple[int, float]:
    """How many there were, and their rows in all."""
    metrics = get(server, "/metrics")

    def one(name: str) -> float:
        found = re.search(rf'batch_rows_{name}{{model="tiny"}} (.+)', metrics)
        return float(found[1]) if found else 0.0

    return int(one("count")), one("sum")


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    """Call all at once; an answer, or the error."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def test_concurrent_requests_share_a_batch_and_answer_as_alone(tiny: Model) -> None:
    """Seven rows in five requests fit one batch; it is padded to eight."""
    rng = np.random.default_rng(5)
    sizes = [1, 2, 1, 2, 1]
    inputs = [rng.normal(size=(n, 3)).astype(np.float32) for n in sizes]
    words = [[b"hat", b"sock", b"?"][n : n + size] for n, size in zip([0, 1, 2, 0, 1], sizes, strict=True)]
    count, rows = batches(tiny.server)
    answers = together([lambda x=x, w=w: tiny.predict(item=w, x=x) for x, w in zip(inputs, words, strict=True)])
    for x, word, answer in zip(inputs, words, answers, strict=True):
        found = values(answer)
        assert found["id"] == [{b"hat": 1, b"sock": 2}.get(w, 0) for w in word]
        np.testing.assert_allclose(found["y"], 3 * x.sum(axis=1), atol=1e-6)
        assert answer.model_spec.version.value == 3
    assert batches(tiny.server) == (count + 1, rows + 7)


def test_one_bad_request_fails_alone(tiny: Model) -> None:
    """Where TensorFlow Serving fails the whole batch (tensorflow_serving/batching/batching_session.cc, ProcessBatch)."""
    numbers = [1.0, 2.0, float("nan"), 4.0]
    answers = together([lambda n=n: tiny.predict({"signature_name": "checked"}, x=[n]) for n in numbers])
    assert [values(a)["y"] for a in answers[:2] + answers[3:]] == [[2.0], [4.0], [8.0]]
    assert answers[2].code() is Code.INVALID_ARGUMENT
    assert "no number" in answers[2].details()


def test_lists_of_different_length(tiny: Model, request: pytest.FixtureRequest) -> None:
    """Padded with the tensor's first value, outputs and all (tensorflow_serving/batching/batching_session_test.cc, BatchingWithPadding);
    or in batches of their own."""
    short, long = [[b"hat"]], [[b"sock", b"hat", b"?"]]
    first, second = together([lambda i=i: tiny.predict({"signature_name": "longer"}, item=i) for i in (short, long)])
    assert values(second)["id"] == [[2, 1, 0]]
    padded = "unpadded" not in request.node.name
    assert values(first)["id"] == ([[1, 1, 1]] if padded else [[1]])
    assert values(first)["item"] == ([[b"hat!"] * 3] if padded else [[b"hat!"]])


def test_output_whose_open_axis_is_not_the_batch(tiny: Model) -> None:
    """Joined, [1, 1] and [1, 2] would give [1, 2]; each is answered by itself, now and later."""
    for _ in range(2):
        answers = together([lambda x=x: tiny.predict({"signature_name": "distinct"}, x=x) for x in ([1, 1], [1, 2])])
        assert [values(answer)["y"] for answer in answers] == [[1], [1, 2]]


def test_requests_that_cannot_share_are_answered_all_the_same(tiny: Model) -> None:
    """No batch axis; or some outputs only, which match no declared signature (batching_session.cc, InternalRun: "Bypassing batcher")."""
    count, _ = batches(tiny.server)
    assert values(tiny.predict({"signature_name": "slow"}, steps=3)) == {"count": 3}
    assert values(tiny.predict({"output_filter": ["y"]})) == {"y": [18.0, 3.0]}
    assert batches(tiny.server)[0] == count


def test_more_rows_than_a_batch_has(tiny: Model) -> None:
    """tensorflow/core/kernels/batching_util/shared_batch_scheduler.h, ValidateBatchTaskQueueCapacity."""
    refusal = tiny.refused({"signature_name": "checked"}, x=[1.0] * 9)
    assert refusal == (Code.INVALID_ARGUMENT, "Task size 9 is larger than maximum input batch size 8")
