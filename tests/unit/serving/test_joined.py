"""Questions asked together: each gets its own answer, whoever else was in the batch, and nobody waits for those who gave up."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps

import numpy as np
import pytest

from features.encoder import Inputs
from serving.joined import TOGETHER_MAX, Joined
from serving.tensors import Array


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    return run


class Server:
    """Answers each row with the number of its named candidates and the sum of their values, when let."""

    def __init__(self) -> None:
        self.batches: list[Inputs] = []
        self.timeouts_s: list[float] = []
        self.go_on = asyncio.Event()
        self.fails: Exception | None = None
        self.given_up = 0

    async def call(self, inputs: Inputs, timeout_s: float) -> dict[str, Array]:
        self.batches.append(inputs)
        self.timeouts_s.append(timeout_s)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.fails:
            raise self.fails
        return {"named": (inputs["ids"] != b"").sum(axis=1), "sum": inputs["values"].sum(axis=(1, 2))}

    @property
    def rows(self) -> list[int]:
        return [len(batch["ids"]) for batch in self.batches]


def shelf(*values: float) -> Inputs:
    ids = np.array([b"%d" % n for n in range(len(values))] + [b""], dtype=object)[:-1]
    return {"ids": ids, "values": np.array(values, dtype=np.float32)[:, None]}


def asked(joined: Joined, n: int, first: int = 0) -> "list[asyncio.Task[dict[str, Array]]]":
    """The i-th asks with i + 1 candidates worth i each."""
    return [asyncio.ensure_future(joined.ask(shelf(*[float(i)] * (i + 1)), 5.0)) for i in range(first, first + n)]


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def under_way(joined: Joined) -> "asyncio.Task[dict[str, Array]]":
    """A call of one question."""
    (task,) = asked(joined, 1)
    await turns()
    return task


@in_loop
async def test_what_is_asked_in_one_turn_of_the_loop_goes_out_as_one() -> None:
    server = Server()
    server.go_on.set()
    answers = await asyncio.gather(*asked(Joined(server.call), 4))
    assert server.rows == [4]
    assert server.batches[0]["ids"].shape == (4, 4), "as long as the longest"
    for i, answer in enumerate(answers):
        assert (answer["named"], answer["sum"]) == (i + 1, i * (i + 1))


@in_loop
async def test_what_comes_while_a_call_is_under_way_waits_for_it_and_goes_out_as_one() -> None:
    server = Server()
    joined = Joined(server.call)
    tasks = [await under_way(joined)]
    for n in range(1, 6):  # not in one turn
        tasks += asked(joined, 1, n)
        await turns()
    assert server.rows == [1], "at once and alone; the others wait"
    server.go_on.set()
    answers = await asyncio.gather(*tasks)
    assert server.rows == [1, 5]
    for i, answer in enumerate(answers):
        assert (answer["named"], answer["sum"]) == (i + 1, i * (i + 1))


@in_loop
async def test_a_batch_has_a_bound_and_the_rest_follows() -> None:
    server = Server()
    joined = Joined(server.call)
    tasks = [await under_way(joined), *asked(joined, TOGETHER_MAX + 3, 1)]
    await turns()
    server.go_on.set()
    answers = await asyncio.gather(*tasks)
    assert server.rows == [1, TOGETHER_MAX, 3]
    assert [int(answer["named"]) for answer in answers] == list(range(1, len(tasks) + 1))


@in_loop
async def test_an_error_reaches_everybody_of_its_batch_and_nobody_else() -> None:
    server = Server()
    server.fails = ValueError("no")
    joined = Joined(server.call)
    tasks = [await under_way(joined), *asked(joined, 2, 1)]
    await turns()
    server.go_on.set()
    assert [type(e) for e in await asyncio.gather(*tasks, return_exceptions=True)] == [ValueError] * len(tasks)
    server.fails = None
    assert (await joined.ask(shelf(1.0, 2.0), 5.0))["sum"] == 3.0


@in_loop
async def test_those_who_gave_up_are_not_asked_for_and_hold_nobody_up() -> None:
    server = Server()
    joined = Joined(server.call)
    tasks = [await under_way(joined), *asked(joined, 3, 1)]
    await turns()
    for task in tasks[:2]:  # one under way, one waiting
        task.cancel()
    await turns()
    assert server.rows == [1, 2], "the place of the one under way is taken by those who still wait"
    server.go_on.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in done] == [True, True, False, False]


@in_loop
async def test_a_call_goes_on_for_those_of_its_batch_who_wait_and_ends_with_the_last() -> None:
    server = Server()
    joined = Joined(server.call)
    tasks = asked(joined, 3)
    await turns()
    tasks[0].cancel()
    await turns()
    assert server.given_up == 0
    for task in tasks[1:]:
        task.cancel()
    await turns()
    assert (server.rows, server.given_up) == ([3], 1)


@in_loop
async def test_a_whole_batch_that_gave_up_does_not_strand_the_next() -> None:
    server = Server()
    joined = Joined(server.call)
    tasks = [await under_way(joined), *asked(joined, TOGETHER_MAX + 1, 1)]
    await turns()
    for task in tasks[1:-1]:
        task.cancel()
    await turns()
    server.go_on.set()
    assert (await asyncio.wait_for(tasks[-1], 5.0))["named"] == len(tasks)


@in_loop
async def test_a_batch_may_take_as_long_as_the_most_patient_waits() -> None:
    server = Server()
    joined = Joined(server.call)
    first = await under_way(joined)
    waiting = [asyncio.ensure_future(joined.ask(shelf(1.0), timeout_s)) for timeout_s in (0.5, 9.0)]
    await turns()
    server.go_on.set()
    await asyncio.gather(first, *waiting)
    assert server.timeouts_s[-1] == pytest.approx(9.0, abs=1.0)
