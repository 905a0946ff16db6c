"""Questions asked together: each gets its own answer, whoever else was in the batch, and nobody waits for those who gave up."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps

import numpy as np
import pytest

from features.encoder import Inputs
from serving.joined import TOGETHER_MAX, UNDER_WAY_MAX, Joined
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

    async def call(self, inputs: Inputs, timeout_s: float) -> dict[str, Array]:
        self.batches.append(inputs)
        self.timeouts_s.append(timeout_s)
        await self.go_on.wait()
        if self.fails:
            raise self.fails
        return {"named": (inputs["ids"] != b"").sum(axis=1), "sum": inputs["values"].sum(axis=(1, 2))}

    @property
    def rows(self) -> list[int]:
        return [len(batch["ids"]) for batch in self.batches]


def shelf(*values: float) -> Inputs:
    ids = np.array([b"%d" % n for n in range(len(values))] + [b""], dtype=object)[:-1]
    return {"ids": ids, "values": np.array(values, dtype=np.float32)[:, None]}


def asked(joined: Joined, n: int) -> "list[asyncio.Task[dict[str, Array]]]":
    """The i-th asks with i + 1 candidates worth i each."""
    return [asyncio.ensure_future(joined.ask(shelf(*[float(i)] * (i + 1)), 5.0)) for i in range(n)]


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@in_loop
async def test_what_comes_while_calls_are_under_way_goes_out_as_one() -> None:
    server = Server()
    joined = Joined(server.call)
    tasks = asked(joined, UNDER_WAY_MAX + 5)
    await turns()
    assert server.rows == [1] * UNDER_WAY_MAX, "at once and alone; the others wait"
    server.go_on.set()
    answers = await asyncio.gather(*tasks)
    assert server.rows == [1] * UNDER_WAY_MAX + [5]
    assert server.batches[-1]["ids"].shape == (5, UNDER_WAY_MAX + 5), "as long as the longest"
    for i, answer in enumerate(answers):
        assert (answer["named"], answer["sum"]) == (i + 1, i * (i + 1))


@in_loop
async def test_a_batch_has_a_bound_and_the_rest_follows() -> None:
    server = Server()
    tasks = asked(Joined(server.call), UNDER_WAY_MAX + TOGETHER_MAX + 3)
    await turns()
    server.go_on.set()
    answers = await asyncio.gather(*tasks)
    assert sorted(server.rows) == [*[1] * UNDER_WAY_MAX, 3, TOGETHER_MAX]
    assert [int(answer["named"]) for answer in answers] == list(range(1, len(tasks) + 1))


@in_loop
async def test_an_error_reaches_everybody_of_its_batch_and_nobody_else() -> None:
    server = Server()
    server.fails = ValueError("no")
    joined = Joined(server.call)
    tasks = asked(joined, UNDER_WAY_MAX + 2)
    await turns()
    server.go_on.set()
    assert [type(e) for e in await asyncio.gather(*tasks, return_exceptions=True)] == [ValueError] * len(tasks)
    server.fails = None
    assert (await joined.ask(shelf(1.0, 2.0), 5.0))["sum"] == 3.0


@in_loop
async def test_those_who_gave_up_are_not_asked_for_and_hold_nobody_up() -> None:
    server = Server()
    joined = Joined(server.call)
    tasks = asked(joined, UNDER_WAY_MAX + 3)
    await turns()
    for task in (tasks[0], tasks[UNDER_WAY_MAX]):  # one under way, one waiting
        task.cancel()
    await turns()
    assert server.rows == [1] * UNDER_WAY_MAX + [2], "the place of the one under way is taken by those who still wait"
    server.go_on.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in done] == [
        n in (0, UNDER_WAY_MAX) for n in range(UNDER_WAY_MAX + 3)
    ]


@in_loop
async def test_a_whole_batch_that_gave_up_does_not_strand_the_next() -> None:
    server = Server()
    tasks = asked(Joined(server.call), UNDER_WAY_MAX + TOGETHER_MAX + 1)
    await turns()
    for task in tasks[UNDER_WAY_MAX:-1]:
        task.cancel()
    await turns()
    server.go_on.set()
    assert (await asyncio.wait_for(tasks[-1], 5.0))["named"] == len(tasks)


@in_loop
async def test_a_batch_may_take_as_long_as_the_most_patient_waits() -> None:
    server = Server()
    joined = Joined(server.call)
    first = asked(joined, UNDER_WAY_MAX)
    waiting = [asyncio.ensure_future(joined.ask(shelf(1.0), timeout_s)) for timeout_s in (0.5, 9.0)]
    await turns()
    server.go_on.set()
    await asyncio.gather(*first, *waiting)
    assert server.timeouts_s[-1] == pytest.approx(9.0, abs=1.0)
