"""What is under way is bounded; over the bound the refusal comes at once, says when to come again, and costs the pipeline nothing."""

import asyncio
from pathlib import Path

import pytest

from liveshelf.client import AsyncClient, OverloadedError, recommend_request
from serving import query
from serving.admission import WORKING_MAX, Admission
from serving.status import ApiError
from tests.scoring_api import TellableShelves, scoring_api, until


def test_slots_come_back_whatever_happens() -> None:
    admission = Admission(1, "requests")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.slot():
            raise ZeroDivisionError
    with admission.slot(), pytest.raises(ApiError, match="1 requests are under way"), admission.slot():
        pass
    assert admission.under_way == 0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_scorer_that_is_never_idle_refuses_calls_that_waited_too_long_in_grpc() -> None:
    clock = Clock()
    admission = Admission(64, "requests", clock, clock)
    for _ in range(200):  # one after the other, without a pause between
        with admission.slot(0.2):
            clock.now_s += 0.003
    with pytest.raises(ApiError, match="would not be done in time"), admission.slot(0.01):
        pass
    with admission.slot(0.1):
        pass
    with admission.slot(None):
        pass


def test_a_scorer_that_is_idle_at_times_takes_a_hurried_call() -> None:
    clock = Clock()
    admission = Admission(64, "requests", clock, clock)
    for _ in range(200):
        clock.now_s += 0.01
        with admission.slot(0.2):
            clock.now_s += 0.003
    with admission.slot(0.001):
        assert admission.under_way == 1


def test_those_who_wait_use_up_the_time_of_a_call_that_comes_after_them() -> None:
    async def run() -> None:
        clock = Clock()
        admission = Admission(64, "requests", clock, clock)
        for _ in range(200):
            with admission.slot(0.2):
                async with admission.turn():
                    clock.now_s += 0.01
        done = asyncio.Event()

        async def request() -> None:
            with admission.slot(0.2):
                async with admission.turn():
                    await done.wait()

        requests = [asyncio.create_task(request()) for _ in range(WORKING_MAX + 10)]
        await until(lambda: admission.under_way == WORKING_MAX + 10)
        with pytest.raises(ApiError, match="would not be done in time"), admission.slot(0.1):
            pass
        with admission.slot(0.15):  # ten before it, 10 ms each, and what it needs itself
            pass
        done.set()
        await asyncio.gather(*requests)
        assert admission.under_way == 0

    asyncio.run(run())


def test_what_a_request_takes_is_learnt_and_one_with_less_left_is_refused_at_once() -> None:
    async def run() -> None:
        clock = Clock()
        admission = Admission(64, "requests", clock, clock)
        for n in range(600):
            with admission.slot(0.2):
                async with admission.turn():
                    clock.now_s += 0.05 if n % 2 else 0.03  # a model server that is asked for much
        for left_s in (0.02, 0.05, 0.08):  # the mean and four mean deviations are 80 ms
            with pytest.raises(ApiError, match="would not be done in time"), admission.slot(left_s):
                pass
        with admission.slot(0.11):
            pass

    asyncio.run(run())


def test_a_scorer_that_waits_for_a_part_that_is_late_refuses_nobody() -> None:
    async def run() -> None:
        clock = Clock()
        admission = Admission(64, "requests", clock, lambda: clock.now_s / 25)
        for _ in range(600):
            with admission.slot(0.2):
                async with admission.turn():
                    clock.now_s += 0.1
        with admission.slot(0.02):
            assert admission.under_way == 1

    asyncio.run(run())


def test_a_batch_takes_half_of_what_is_free() -> None:
    admission = Admission(10, "requests")
    with admission.slot():
        with admission.more(3) as granted:
            assert (granted, admission.under_way) == (3, 4)
            with admission.more(20) as more:
                assert more == 3
        with admission.more(20) as granted:
            assert granted == 4
    assert admission.under_way == 0


def test_over_the_bound_the_refusal_is_early_and_the_others_are_answered(tmp_path: Path) -> None:
    gate: asyncio.Event

    async def wait(_: query.Query, __: float) -> None:
        await gate.wait()

    async def run() -> None:
        nonlocal gate
        gate = asyncio.Event()
        async with (
            scoring_api(tmp_path, TellableShelves(wait), scoring_concurrency_max=4) as api,
            AsyncClient(api.settings.scoring_address, 20_000) as client,
        ):
            admitted = [asyncio.create_task(client.recommend(client_id="c")) for _ in range(4)]
            await until(lambda: api.shelves.started == 4)
            started = asyncio.get_running_loop().time()
            refused = await asyncio.gather(*(client.recommend(client_id="c") for _ in range(20)), return_exceptions=True)
            assert asyncio.get_running_loop().time() - started < 2
            assert {type(r) for r in refused} == {OverloadedError}
            assert {r.retry_after_s for r in refused} == {0.1}  # type: ignore[union-attr]
            with pytest.raises(OverloadedError):
                await client.batch_recommend([recommend_request(client_id="c")])
            assert api.shelves.started == 4
            gate.set()
            assert len(await asyncio.gather(*admitted)) == 4
            assert (await client.recommend(client_id="c")).request_id

    asyncio.run(run())


def test_a_batch_alone_never_exceeds_the_bound(tmp_path: Path) -> None:
    most = 0

    async def run() -> None:
        async with (
            scoring_api(tmp_path, shelves, scoring_concurrency_max=5) as api,
            AsyncClient(api.settings.scoring_address, 20_000) as client,
        ):

            async def work(_: query.Query, __: float) -> None:
                nonlocal most
                most = max(most, api.shelves.started - api.shelves.finished)
                assert api.admission.under_way <= 5
                await asyncio.sleep(0.005)

            shelves.work = work
            answer = await client.batch_recommend([recommend_request(client_id="c")] * 32)
            assert all(r.HasField("response") for r in answer.results)
            assert api.admission.under_way == 0

    shelves = TellableShelves()
    asyncio.run(run())
    assert most == 3  # its own slot, and half of the four that were free
