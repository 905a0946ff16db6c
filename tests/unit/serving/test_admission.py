"""What is under way is bounded; over the bound the refusal comes at once, says when to come again, and costs the pipeline nothing."""

import asyncio
from pathlib import Path

import pytest

from liveshelf.client import AsyncClient, OverloadedError, recommend_request
from serving import query
from serving.admission import Admission
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
