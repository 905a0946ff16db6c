"""Questions to the model asked together: those of one turn of the event loop, and those that come while a call is under way, go out as one batch.

A lone question goes out at once and alone. Under load the fixed cost of a call is shared (gRPC's 0.7 ms of processor time on both sides,
and half of a model's run), which is what batching in TensorFlow Serving cannot save. The longer calls take, the larger batches become, so
there is no waiting time to tune (adaptive batching as in Clipper, Crankshaw et al., NSDI 2017, without its probing). With 16 callers the
two questions of a request cost 0.6 calls; with two calls of a kind under way at once it were 0.9, and they got 8 % fewer answers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from features.encoder import Inputs
from serving.tensors import Array

TOGETHER_MAX = 16  # rows of a call; more would make everybody wait for the whole batch

Call = Callable[[Inputs, float], Awaitable[dict[str, Array]]]


class _Question(NamedTuple):
    inputs: Inputs
    answer: "asyncio.Future[dict[str, Array]]"
    due_s: float


class Joined:
    """One call at a time. `call(inputs, timeout_s)` takes inputs with a batch axis; its answers have one too. For one event loop.

    Inputs of a name may differ in their first axis (a number of candidates): they are padded with zeros or b"" to the longest.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: list[_Question] = []
        self._under_way: asyncio.Task[None] | None = None
        self._asked_for: list[_Question] = []  # by the call under way

    async def ask(self, inputs: Inputs, timeout_s: float) -> dict[str, Array]:
        """The answer to `inputs` without batch axis; first axes may be longer than theirs, by padding.

        Raises:
            whatever `call` raises, for everybody who was asked for together.
        """
        loop = asyncio.get_running_loop()
        question = _Question(inputs, loop.create_future(), loop.time() + timeout_s)
        self._waiting.append(question)
        if self._under_way is None:
            self._begin()
        try:
            return await question.answer
        except asyncio.CancelledError:
            if self._under_way and self._asked_for and all(question.answer.done() for question in self._asked_for):
                self._under_way.cancel()
            raise

    def _begin(self) -> None:
        """A task begins after those whose turn it is now: they may ask too."""
        self._under_way = asyncio.ensure_future(self._ask_together())

    async def _ask_together(self) -> None:
        waiting = [question for question in self._waiting if not question.answer.done()]  # nobody waits for the others any more
        questions, self._waiting = waiting[:TOGETHER_MAX], waiting[TOGETHER_MAX:]
        self._asked_for = questions
        try:
            if questions:
                left_s = max(question.due_s for question in questions) - asyncio.get_running_loop().time()
                answers = await self._call(_together([question.inputs for question in questions]), left_s)
                for row, question in enumerate(questions):
                    if not question.answer.done():
                        question.answer.set_result(_row(answers, row))
        except Exception as error:
            for question in questions:
                if not question.answer.done():
                    question.answer.set_exception(error)
        finally:
            self._under_way, self._asked_for = None, []
            if self._waiting:
                self._begin()


def _row(answers: dict[str, Array], row: int) -> dict[str, Array]:
    return {name: array[row] for name, array in answers.items()}


def _together(rows: list[Inputs]) -> Inputs:
    """By name one array of all rows, with a batch axis in front."""
    if len(rows) == 1:
        return {name: array[None] for name, array in rows[0].items()}
    return {name: _stacked([row[name] for row in rows]) for name in rows[0]}


def _stacked(arrays: list[Array]) -> Array:
    longest = max(map(len, arrays))
    if all(len(array) == longest for array in arrays):
        return np.stack(arrays)
    first = arrays[0]
    out: Array = np.full((len(arrays), longest, *first.shape[1:]), b"" if first.dtype == object else 0, first.dtype)
    for row, array in enumerate(arrays):
        out[row, : len(array)] = array
    return out
