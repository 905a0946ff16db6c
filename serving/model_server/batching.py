"""Request batching: concurrent requests of one signature are joined along their first axis, run once, and split again.

Parameters, limits, padding and error words are TensorFlow Serving's: tensorflow_serving/servables/tensorflow/session_bundle_config.proto and
bundle_factory_util.cc (the file), tensorflow_serving/batching/batching_session.cc and batching_util.cc (joining and splitting), and
tensorflow/core/kernels/batching_util/shared_batch_scheduler.h (queues). As there, a request that fetches only some of the outputs is run
by itself. Unlike there, nobody's request fails because of the company it keeps: requests of different shapes go into different batches
(unless they are padded), and a batch that fails is run again one request at a time.
"""

import asyncio
import os
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import structlog
from google.protobuf import text_format

from liveshelf.errors import SettingsError
from serving import tfserving_pb2 as pb
from serving.model_server.metrics import BATCH_ROWS
from serving.model_server.runtime import Value
from serving.model_server.status import ServingError, invalid_argument
from serving.tensors import Array, decode_tensor, encode_tensor

if TYPE_CHECKING:
    from serving.model_server.servable import Call, Servable

log = structlog.get_logger("model_server")


@dataclass(frozen=True)
class BatchingParameters:
    """Defaults are SharedBatchScheduler's."""

    max_batch_size: int = 1000
    """Rows of a batch, padding included."""
    batch_timeout_s: float = 0.0
    """A batch waits that long for company, counted from its first request."""
    max_enqueued_batches: int = 10
    """Of one signature, not counting those that are running."""
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    """A batch is padded to the next of these."""
    pad_variable_length_inputs: bool = False
    """Other axes than the first are padded to the longest of the batch, with the tensor's first value; outputs stay as long."""


def read_batching_parameters(file: Path) -> BatchingParameters:
    """Read `--batching_parameters_file`.

    Raises:
        SettingsError: unreadable, a field that this server does not know (the message names the line), or a value that TensorFlow Serving
            would refuse.
    """
    try:
        read = text_format.Parse(file.read_text(), pb.BatchingParameters())
        return _checked(read)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--batching-parameters-file={file}: {error}") from error
    except text_format.ParseError as error:
        where = re.match(r"(\d+):\d+ : ", str(error))
        line = f", line {where[1]}" if where else ""
        known = ", ".join(field.name for field in pb.BatchingParameters.DESCRIPTOR.fields)
        raise SettingsError(
            f"--batching-parameters-file={file}{line}: {error}. It wants TensorFlow Serving's BatchingParameters as text: {known}."
        ) from error
    except ServingError as error:
        raise SettingsError(f"--batching-parameters-file={file}: {error.message}") from error


def _checked(read: Any) -> BatchingParameters:
    """Checks of bundle_factory_util.cc (CreateBatchScheduler) and shared_batch_scheduler.h (Create, AddQueue)."""
    default = BatchingParameters()
    found = BatchingParameters(
        max_batch_size=read.max_batch_size.value if read.HasField("max_batch_size") else default.max_batch_size,
        batch_timeout_s=read.batch_timeout_micros.value / 1e6,
        max_enqueued_batches=(
            read.max_enqueued_batches.value if read.HasField("max_enqueued_batches") else default.max_enqueued_batches
        ),
        num_batch_threads=read.num_batch_threads.value if read.HasField("num_batch_threads") else default.num_batch_threads,
        allowed_batch_sizes=tuple(read.allowed_batch_sizes),
        pad_variable_length_inputs=read.pad_variable_length_inputs,
    )
    for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
        if getattr(found, name) < 1:
            invalid_argument(f"{name} must be positive; was {getattr(found, name)}")
    if found.batch_timeout_s < 0:
        invalid_argument(f"batch_timeout_micros must be non-negative; was {read.batch_timeout_micros.value}")
    sizes = found.allowed_batch_sizes
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1):
        invalid_argument(f"allowed_batch_sizes must be positive and increasing; were {list(sizes)}")
    if sizes and sizes[-1] != found.max_batch_size:
        invalid_argument(
            f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {sizes[-1]}; expected {found.max_batch_size}"
        )
    return found


# --- joining and splitting: pure


def join(requests: list[list[Array]], parameters: BatchingParameters) -> list[Array]:
    """One array per input, the requests' rows one after the other, padded to an allowed number of rows with the last request's first row.

    `requests` holds each request's inputs; of equal shapes but for the first axis, or of equal ranks where they are to be padded.
    """
    rows = sum(len(inputs[0]) for inputs in requests)
    missing = next((size for size in parameters.allowed_batch_sizes if size >= rows), rows) - rows
    joined = []
    for arrays in zip(*requests, strict=True):
        parts = list(arrays)
        if parameters.pad_variable_length_inputs:
            longest = np.max([part.shape[1:] for part in parts], axis=0) if parts[0].ndim > 1 else ()
            parts = [_lengthened(part, tuple(longest)) for part in parts]
        if missing:
            parts.append(np.repeat(parts[-1][:1], missing, axis=0))
        joined.append(np.concatenate(parts))
    return joined


def _lengthened(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape[1:] == shape:
        return array
    out = np.full((len(array), *shape), array.flat[0], array.dtype)
    out[tuple(slice(size) for size in array.shape)] = array
    return out


def split(outputs: dict[str, Value], rows: list[int], total: int) -> list[dict[str, Value]] | None:
    """Each request's outputs, for requests of `rows` rows; None when an output does not have one row for each of `total`."""
    if any(not value.shape or value.shape[0] != total for value in outputs.values()):
        return None
    ends = np.cumsum(rows).tolist()
    return [
        {alias: value.rows(end - count, end) for alias, value in outputs.items()} for end, count in zip(ends, rows, strict=True)
    ]


# --- scheduling


@dataclass
class _Task:
    call: "Call"
    answer: asyncio.Future[dict[str, Value]]
    loop: asyncio.AbstractEventLoop

    @property
    def rows(self) -> int:
        return self.call.shapes[0][0]


@dataclass
class _Batch:
    servable: "Servable"
    shape: Any
    """What its requests have in common beside the signature."""
    due: float
    tasks: list[_Task] = field(default_factory=list)
    rows: int = 0
    full: bool = False


class Batcher:
    """`num_batch_threads` threads for all signatures of all models; `close` them at the end."""

    def __init__(self, parameters: BatchingParameters) -> None:
        self.parameters = parameters
        self._changed = threading.Condition()
        self._batches: deque[_Batch] = deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{n}", daemon=True) for n in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def takes(self, servable: "Servable", call: "Call") -> bool:
        """Whether this request may share a batch."""
        same_rows = all(shape and shape[0] == call.shapes[0][0] for shape in call.shapes)
        return (
            call.all_outputs
            and servable.signatures[call.key].has_batch_axis
            and same_rows
            and call.shapes[0][0] > 0
            and call.key not in servable.single
        )

    async def run(self, servable: "Servable", call: "Call") -> dict[str, Value]:
        """Output alias → value, of this request alone.

        Raises:
            ServingError: UNAVAILABLE when the queue is full; INVALID_ARGUMENT for more rows than a batch has; what the model refuses.
        """
        loop = asyncio.get_running_loop()
        task = _Task(call, loop.create_future(), loop)
        self._enqueue(servable, task)
        return await task.answer

    def _enqueue(self, servable: "Servable", task: _Task) -> None:
        limit = self.parameters.max_batch_size
        if task.rows > limit:
            invalid_argument(f"Task size {task.rows} is larger than maximum input batch size {limit}")
        shapes = task.call.shapes
        shape = tuple(len(s) if self.parameters.pad_variable_length_inputs else s[1:] for s in shapes)
        with self._changed:
            queue = [b for b in self._batches if b.servable is servable and b.tasks[0].call.key == task.call.key]
            batch = next((b for b in queue if not b.full and b.shape == shape and b.rows + task.rows <= limit), None)
            if batch is None:
                if len(queue) >= self.parameters.max_enqueued_batches:
                    raise ServingError(
                        grpc.StatusCode.UNAVAILABLE,
                        f"The batch scheduling queue to which this task was submitted is full; currently {len(queue)} batches enqueued "
                        f"and max_enqueued_batches is {self.parameters.max_enqueued_batches}",
                    )
                for other in queue:
                    if other.shape == shape:
                        other.full = True  # as StartNewBatch: those who come later go into the new one
                batch = _Batch(servable, shape, time.monotonic() + self.parameters.batch_timeout_s)
                self._batches.append(batch)
            servable.hold()  # a request that is cancelled leaves, and its batch runs on
            batch.tasks.append(task)
            batch.rows += task.rows
            batch.full = batch.full or batch.rows == limit
            self._changed.notify()

    def _next(self) -> _Batch | None:
        """The batch to run now, waiting for it; None when closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                ready = next((b for b in self._batches if b.full or b.due <= now), None)
                if ready is not None:
                    self._batches.remove(ready)
                    return ready
                self._changed.wait(min((b.due for b in self._batches), default=now + 60) - now)
            return None

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            tasks = [task for task in batch.tasks if not task.answer.cancelled()]  # nobody waits for the others any more
            try:
                outcomes = self._outcomes(batch.servable, tasks)
            except Exception as error:  # a defect of ours; the thread and the other batches must outlive it
                log.exception("batch_failed", model=batch.servable.name)
                outcomes = [ServingError(grpc.StatusCode.INTERNAL, repr(error))] * len(tasks)
            for task, outcome in zip(tasks, outcomes, strict=True):
                task.loop.call_soon_threadsafe(_deliver, task.answer, outcome)
            for _ in batch.tasks:
                batch.servable.release()

    def _outcomes(self, servable: "Servable", tasks: list[_Task]) -> Sequence["_Outcome"]:
        if not tasks:
            return []
        BATCH_ROWS.labels(servable.name).observe(sum(task.rows for task in tasks))
        if len(tasks) > 1 or self.parameters.allowed_batch_sizes:
            together = self._together(servable, tasks)
            if together is not None:
                return together
        return [_alone(servable, task) for task in tasks]

    def _together(self, servable: "Servable", tasks: list[_Task]) -> list[dict[str, Value]] | None:
        """The tasks' outputs by one run; None when that failed, and each must be run by itself."""
        call = tasks[0].call
        try:
            arrays = join([[_array(tensor) for tensor in task.call.inputs] for task in tasks], self.parameters)
            outputs = servable.run(call.of([_message(array) for array in arrays]))
        except (ServingError, ValueError):
            return None
        answers = split(outputs, [task.rows for task in tasks], len(arrays[0]))
        if answers is None:
            log.warning("not_batchable", model=servable.name, version=servable.version, signature=call.key)
            servable.single.add(call.key)
            return None
        return answers

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)


_Outcome = dict[str, Value] | ServingError


def _alone(servable: "Servable", task: _Task) -> _Outcome:
    try:
        return servable.run(task.call)
    except ServingError as error:
        return error


def _deliver(answer: asyncio.Future[dict[str, Value]], outcome: _Outcome) -> None:
    if answer.done():
        return
    if isinstance(outcome, ServingError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _array(tensor: bytes) -> Array:
    return decode_tensor(pb.Tensor.FromString(tensor))


def _message(array: Array) -> bytes:
    message = pb.Tensor()
    encode_tensor(array, message)
    return bytes(message.SerializeToString())
