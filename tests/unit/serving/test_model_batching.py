"""Joining and splitting of requests, the parameters file, and what a full queue does."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from liveshelf.errors import SettingsError
from serving import tfserving_pb2 as pb
from serving.model_server.batching import Batcher, BatchingParameters, join, read_batching_parameters, split
from serving.model_server.runtime import Value
from serving.model_server.servable import Call, Signature
from serving.model_server.status import ServingError
from serving.tensors import decode_tensor, encode_tensor

SHIPPED = Path(__file__).parents[3] / "deploy/tensorflow-serving/batching_parameters.config"


# --- the file


def test_shipped_file_is_read() -> None:
    read = read_batching_parameters(SHIPPED)
    assert (read.max_batch_size, read.batch_timeout_s, read.allowed_batch_sizes[-1]) == (32, 0.001, 32)
    assert read.pad_variable_length_inputs


def test_empty_file_means_tensorflow_servings_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_batching_parameters(tmp_path / "empty") == BatchingParameters(1000, 0.0, 10)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_batch_size { value: 8 }\n# why\nmax_batch_sise { value: 8 }", 'line 3: .* no field named "max_batch_sise"'),
        ("max_batch_size { value: 8 }\nallowed_batch_sizes: 4", "last entry was 4; expected 8"),
        ("max_batch_size { value: 8 }\nallowed_batch_sizes: 8\nallowed_batch_sizes: 4", "increasing"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("max_batch_size { value: many }", "line 1"),
    ],
)
def test_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "batching.config"
    file.write_text(text)
    with pytest.raises(SettingsError, match=says) as caught:
        read_batching_parameters(file)
    assert str(file) in str(caught.value)


# --- joining and splitting


def test_joined_rows_are_padded_to_an_allowed_size() -> None:
    parameters = BatchingParameters(max_batch_size=4, allowed_batch_sizes=(1, 4))
    (x, words) = join(
        [[np.array([[1.0], [2.0]]), np.array([b"a", b"b"], object)], [np.array([[3.0]]), np.array([b"c"], object)]], parameters
    )
    assert x.tolist() == [[1.0], [2.0], [3.0], [3.0]]
    assert words.tolist() == [b"a", b"b", b"c", b"c"]


def test_variable_length_is_padded_with_the_first_value() -> None:
    """tensorflow_serving/batching/batching_util.cc, PadTensor: "using existing values in padding"."""
    parameters = BatchingParameters(pad_variable_length_inputs=True)
    (x,) = join([[np.array([[7.0, 1.0]])], [np.array([[2.0, 3.0, 4.0]])]], parameters)
    assert x.tolist() == [[7.0, 1.0, 7.0], [2.0, 3.0, 4.0]]


def test_split_gives_each_request_its_rows_and_drops_the_padding() -> None:
    scores = np.arange(8, dtype=np.float32).reshape(4, 2)
    outputs = {"score": Value(1, (4, 2), scores.tobytes()), "id": Value(7, (4,), [b"a", b"b", b"c", b"pad"])}
    first, second = split(outputs, [1, 2], 4) or []
    assert first["id"].content == [b"a"]
    assert (second["score"].shape, second["score"].content) == ((2, 2), scores[1:3].tobytes())
    assert split({"y": Value(1, (3,), bytes(12))}, [1, 2], 4) is None
    assert split({"y": Value(1, (), bytes(4))}, [1, 2], 4) is None


# --- the queue


class Doubling:
    """What the batcher needs of a servable: y = 2 x, once it is let go."""

    name, version = "doubling", 1

    def __init__(self) -> None:
        shape = pb.TensorShape(dim=[pb.TensorShape.Dim(size=-1)])
        info = {"x": pb.TensorInfo(name="x:0", dtype=1, tensor_shape=shape)}
        self.signatures = {"f": Signature(info, info, {})}
        self.single: set[str] = set()
        self.go, self.running = threading.Event(), threading.Event()
        self.held = 0
        self.rows: list[int] = []

    def hold(self) -> None:
        self.held += 1

    def release(self) -> None:
        self.held -= 1

    def run(self, call: Call) -> dict[str, Value]:
        self.running.set()
        assert self.go.wait(30)
        x = decode_tensor(pb.Tensor.FromString(call.inputs[0]))
        self.rows.append(len(x))
        return {"y": Value(1, x.shape, (2 * x).tobytes())}


def call_of(*numbers: float) -> Call:
    message = pb.Tensor()
    encode_tensor(np.array(numbers, np.float32), message)
    return Call("f", (message.SerializeToString(),), ((len(numbers),),), ("y",), all_outputs=True)


@pytest.fixture
def doubling() -> Iterator[Doubling]:
    servable = Doubling()
    yield servable
    servable.go.set()


def numbers(outputs: dict[str, Value]) -> list[float]:
    return np.frombuffer(outputs["y"].content, np.float32).tolist()  # type: ignore[arg-type]


def test_full_queue_refuses_and_those_in_it_are_answered(doubling: Doubling) -> None:
    """One batch runs, two wait, the next request finds no place: UNAVAILABLE, in the words of shared_batch_scheduler.h."""

    async def ask() -> None:
        batcher = Batcher(BatchingParameters(max_batch_size=2, max_enqueued_batches=2, num_batch_threads=1))
        servable: Any = doubling
        first = asyncio.create_task(batcher.run(servable, call_of(1.0, 2.0)))
        await asyncio.to_thread(doubling.running.wait, 30)
        waiting = [asyncio.create_task(batcher.run(servable, call_of(n))) for n in (3.0, 4.0, 5.0, 6.0)]
        await asyncio.sleep(0)  # they are queued: two batches of two
        with pytest.raises(ServingError) as caught:
            await batcher.run(servable, call_of(7.0))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.message == (
            "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and max_enqueued_batches is 2"
        )
        doubling.go.set()
        assert [numbers(a) for a in await asyncio.gather(first, *waiting)] == [[2.0, 4.0], [6.0], [8.0], [10.0], [12.0]]
        await asyncio.to_thread(batcher.close)

    asyncio.run(ask())
    assert doubling.rows == [2, 2, 2]
    assert doubling.held == 0


def test_cancelled_request_is_not_run_and_its_version_is_let_go(doubling: Doubling) -> None:
    async def ask() -> None:
        batcher = Batcher(BatchingParameters(max_batch_size=1, num_batch_threads=1))
        servable: Any = doubling
        first = asyncio.create_task(batcher.run(servable, call_of(1.0)))
        await asyncio.to_thread(doubling.running.wait, 30)
        second = asyncio.create_task(batcher.run(servable, call_of(2.0)))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        doubling.go.set()
        assert numbers(await first) == [2.0]
        assert numbers(await batcher.run(servable, call_of(3.0))) == [6.0]
        await asyncio.to_thread(batcher.close)

    asyncio.run(ask())
    assert doubling.rows == [1, 1]
    assert doubling.held == 0


def test_what_may_share_a_batch(doubling: Doubling) -> None:
    batcher = Batcher(BatchingParameters())
    servable: Any = doubling
    assert batcher.takes(servable, call_of(1.0))
    assert not batcher.takes(servable, call_of())
    assert not batcher.takes(servable, Call("f", (b"", b""), ((2,), (3,)), ("y",), all_outputs=True))
    assert not batcher.takes(servable, Call("f", (b"",), ((2,),), ("y",), all_outputs=False))
    doubling.single.add("f")
    assert not batcher.takes(servable, call_of(1.0))
    batcher.close()
