"""The breaker: when a part is given up, what its callers are told, and how it is found again."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from liveshelf.errors import UnavailableError
from serving import breakers
from serving.breakers import FAILURES_MAX, Breaker, PartUnavailableError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakers, "OPEN_S", 0.1)
    monkeypatch.setattr(breakers, "SILENT_S", 0.1)


class Part:
    def __init__(self) -> None:
        self.asked = 0
        self.fails: Exception | None = None
        self.slow_s = 0.0

    async def answer(self, timeout_s: float) -> str:
        self.asked += 1
        await asyncio.sleep(self.slow_s)
        if self.fails:
            raise self.fails
        return "answer"


async def reasons(breaker: Breaker, call: Callable[[float], Awaitable[str]], times: int, left_s: float = 1.0) -> list[str]:
    out = []
    for _ in range(times):
        try:
            out.append(await breaker.ask(call, left_s))
        except PartUnavailableError as error:
            out.append(error.reason)
    return out


async def until_open(breaker: Breaker, part: Part) -> None:
    for _ in range(10 * FAILURES_MAX):
        if breaker.open:
            return
        await reasons(breaker, part.answer, 1)
    raise AssertionError("never given up")


def test_given_up_after_failures_in_a_row_and_found_again() -> None:
    async def work() -> None:
        part, breaker = Part(), Breaker("store", "store_late", 0.05)
        part.fails = UnavailableError("down")
        assert await reasons(breaker, part.answer, FAILURES_MAX + 10) == ["store_unavailable"] * (FAILURES_MAX + 10)
        assert (part.asked, breaker.open) == (FAILURES_MAX, True)
        await asyncio.sleep(0.15)
        assert await reasons(breaker, part.answer, 3) == ["store_unavailable"] * 3
        assert part.asked == FAILURES_MAX + 1  # one probe, and it is left alone again
        part.fails = None
        await asyncio.sleep(0.15)
        assert await reasons(breaker, part.answer, 3) == ["answer"] * 3

    asyncio.run(work())


def test_only_one_request_probes() -> None:
    async def work() -> None:
        part, breaker = Part(), Breaker("p", "late", 0.05)
        part.slow_s = 10
        await until_open(breaker, part)
        await asyncio.sleep(0.15)
        asked = part.asked
        began = time.perf_counter()
        together = await asyncio.gather(*(reasons(breaker, part.answer, 1) for _ in range(20)))
        assert part.asked == asked + 1
        assert {reason for (reason,) in together} == {"late"}
        assert time.perf_counter() - began < 1.0

    asyncio.run(work())


def test_many_that_are_late_at_once_are_no_outage() -> None:
    """Our event loop stood still, or the part is very busy: it answers those who come next."""

    async def work() -> None:
        part, breaker = Part(), Breaker("p", "late", 0.05)
        for _ in range(5):
            part.slow_s = 10
            together = await asyncio.gather(*(reasons(breaker, part.answer, 1) for _ in range(4 * FAILURES_MAX)))
            assert {reason for (reason,) in together} == {"late"}
            part.slow_s = 0
            assert await reasons(breaker, part.answer, 1) == ["answer"]

    asyncio.run(work())


def test_late_in_the_part_s_own_words_is_late_too() -> None:
    class LateError(UnavailableError):
        late = True

    async def work() -> None:
        part, breaker = Part(), Breaker("p", "late", 0.05)
        part.fails = LateError("deadline exceeded")
        await reasons(breaker, part.answer, 3 * FAILURES_MAX)
        assert not breaker.open
        part.slow_s = 0.02
        await until_open(breaker, part)

    asyncio.run(work())


def test_a_caller_without_time_tells_nothing_about_the_part() -> None:
    async def work() -> None:
        part, breaker = Part(), Breaker("p", "late", 0.05)
        part.slow_s = 0.02
        assert set(await reasons(breaker, part.answer, 3 * FAILURES_MAX, left_s=0.002)) == {"late"}
        assert not breaker.open
        assert await reasons(breaker, part.answer, 1) == ["answer"]

    asyncio.run(work())


def test_a_cancelled_caller_does_not_block_the_probe() -> None:
    async def work() -> None:
        part, breaker = Part(), Breaker("p", "late", 0.05)
        part.fails = UnavailableError("down")
        await reasons(breaker, part.answer, FAILURES_MAX)
        part.fails, part.slow_s = None, 0.03
        await asyncio.sleep(0.15)
        probe = asyncio.create_task(breaker.ask(part.answer, 1.0))
        await asyncio.sleep(0.01)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        assert await reasons(breaker, part.answer, 2) == ["answer", "answer"]

    asyncio.run(work())
