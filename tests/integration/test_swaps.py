"""Versions change under load: by the trainer, by hand, for a share of the shoppers, and back. Nobody notices."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("tensorflow")

from liveshelf.errors import NotFoundError
from liveshelf.settings import Settings
from serving.model_client import ModelClient
from serving.promotion import Promotion
from streams.route import Route, read_route
from tests.live_shop import serving_state, until
from tests.swaps import SHOPPERS, PacedLoad, copy_version, served_shop, trained_version

RPS = 40
ITEMS = 200


@pytest.fixture(scope="module")
def settings(kafka: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    # Patient with the model server: how fast it answers on a busy machine is the bench's question.
    with served_shop(kafka, tmp_path_factory.mktemp("swaps"), ITEMS, model_timeout_ms=500) as settings:
        yield settings


async def under_load(settings: Settings, change: Callable[[PacedLoad], object]) -> PacedLoad:
    load, done = PacedLoad(settings, RPS), asyncio.Event()
    loading = asyncio.create_task(load.until(done))
    try:
        await asyncio.to_thread(change, load)
    finally:
        done.set()
        await loading
    assert not load.failed
    assert not load.degraded
    return load


def route(settings: Settings, verb: str, *arguments: object) -> Route:
    async def work() -> Route:
        async with ModelClient(settings) as client:
            answer: Route = await getattr(Promotion(settings, client), verb)(*arguments)
            return answer

    return asyncio.run(work())


def answers(settings: Settings, live: int, canary: int = 0) -> None:
    until(lambda: {"model": live, "canary": canary}.items() <= serving_state(settings).items(), 30, f"{live} and {canary} answer")


def loaded(settings: Settings) -> list[int]:
    async def work() -> list[int]:
        async with ModelClient(settings) as client:
            return await client.versions()

    return asyncio.run(work())


def test_swaps_under_load_fail_and_degrade_nothing(settings: Settings) -> None:
    """What the trainer promotes takes over by itself, again and again."""

    def swap(_: PacedLoad) -> None:
        for version in (2, 3, 4):
            trained_version(settings, version)

    load = asyncio.run(under_load(settings, swap))
    assert {1, 2, 3} <= set(load.versions) <= {1, 2, 3, 4}


def test_a_canary_answers_its_shoppers_and_is_promoted_or_rolled_back(settings: Settings) -> None:
    """Under load all the while: sticky by shopper, newer versions wait, the version before is still loaded, and goes on from there."""
    route(settings, "unpin")
    answers(settings, 4)
    began = route(settings, "promote", 3, 0.5)
    assert began == Route(stable=4, canary=3, share=0.5, since_ms=began.since_ms)
    assert abs(began.since_ms - 1000 * time.time()) < 60_000, "by the clock that shelves are shown by"
    answers(settings, 4, 3)

    def newer(load: PacedLoad) -> None:
        copy_version(settings, 5)
        until(lambda: len(load.times_ms) >= max(2 * SHOPPERS, 2 * RPS), 30, "each shopper is asked again, for two seconds")

    load = asyncio.run(under_load(settings, newer))
    assert set(load.versions) == {3, 4}
    assert all(len(versions) == 1 for versions in load.by_shopper.values())
    assert 0.2 < sum(versions == {3} for versions in load.by_shopper.values()) / len(load.by_shopper) < 0.8

    asyncio.run(under_load(settings, lambda _: (route(settings, "promote", 3), answers(settings, 3))))
    assert read_route(settings.model_path) == Route(stable=3, before=4)
    assert sorted(loaded(settings)) == [3, 4]
    asyncio.run(under_load(settings, lambda _: (route(settings, "rollback"), answers(settings, 4))))
    asyncio.run(under_load(settings, lambda _: (route(settings, "unpin"), answers(settings, 5))))
    until(lambda: sorted(loaded(settings)) == [4, 5], 30, "as by default, the two newest are loaded")


def test_a_version_that_is_not_there_is_refused_and_nothing_changes(settings: Settings) -> None:
    before = read_route(settings.model_path)
    with pytest.raises(NotFoundError, match="no version 77"):
        route(settings, "promote", 77)
    assert read_route(settings.model_path) == before
