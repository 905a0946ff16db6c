"""Which version answers whom: held, labelled, canary; and what becomes of a request whose version fails."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from features.encoder import Inputs
from liveshelf.errors import CorruptError
from serving.live_model import ModelFollower
from serving.model_client import ModelNotFoundError, ModelUnavailableError
from streams.route import AUTOMATIC, FILE, Route, read_route, write_route
from tests.small_shop import Model, Shop, shopper_row, table
from tests.small_shop import run as awaited
from tests.unit.serving.test_live_model import FEATURES, ModelServer, following


def test_a_route_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_route(tmp_path) == AUTOMATIC
    route = Route(stable=7, canary=9, share=0.25, before=6)
    write_route(tmp_path / "models", route)
    assert read_route(tmp_path / "models") == route
    assert route.held == {6, 7, 9}
    assert route.labels == {"stable": 7, "canary": 9}
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == [FILE]


def test_a_route_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"stable": "seven"}')
    with pytest.raises(CorruptError, match="liveshelf models pin"):
        read_route(tmp_path)


def test_a_canary_picks_its_share_the_same_shoppers_each_time_and_others_the_next_time() -> None:
    shoppers = [f"s{n}" for n in range(20_000)]
    tenth, quarter, next_one = Route(5, 6, 0.1), Route(5, 6, 0.25), Route(6, 7, 0.1)
    picked = [{s for s in shoppers if route.picks_canary(s)} for route in (tenth, quarter, next_one)]
    assert 0.09 < len(picked[0]) / len(shoppers) < 0.11
    assert 0.24 < len(picked[1]) / len(shoppers) < 0.26
    assert picked[0] < picked[1], "a larger share keeps those who were picked already"
    assert len(picked[0] & picked[2]) / len(picked[0]) < 0.2
    assert not any(Route(5).picks_canary(s) for s in shoppers[:10])


class Served:
    """A follower with a model directory of its own, and the model server that it follows."""

    def __init__(self, server: ModelServer, models: ModelFollower, path: Path) -> None:
        self.server, self.models, self.path = server, models, path

    async def sees(self, route: Route) -> tuple[int, int]:
        """(stable, canary) once the follower has looked, 0 for none."""
        write_route(self.path, route)
        await self.models.refresh()
        return tuple(model.version if model else 0 for model in (self.models.live, self.models.canary))  # type: ignore[return-value]


def test_the_follower_takes_what_is_held_and_lets_newer_ones_wait(tmp_path: Path) -> None:
    server = ModelServer({1: FEATURES.version, 2: FEATURES.version, 3: FEATURES.version})

    async def run() -> None:
        async with following(server, {FEATURES.version}, tmp_path) as models:
            served = Served(server, models, tmp_path)
            assert await served.sees(AUTOMATIC) == (3, 0)
            assert await served.sees(Route(stable=2)) == (2, 0)
            server.trained_on[4] = FEATURES.version
            assert await served.sees(Route(stable=2)) == (2, 0)
            assert await served.sees(Route(stable=2, canary=4, share=0.5)) == (2, 4)
            assert await served.sees(Route(stable=9)) == (2, 0), "a version that is not up leaves the one that answers"
            assert await served.sees(AUTOMATIC) == (4, 0)
            (tmp_path / FILE).write_text("no json")
            await models.refresh()
            assert models.live is not None
            assert models.live.version == 4

    asyncio.run(run())


def test_without_a_file_the_servers_own_label_is_followed(tmp_path: Path) -> None:
    server = ModelServer({1: FEATURES.version, 2: FEATURES.version})
    server.labels["stable"] = 1

    async def run() -> None:
        async with following(server, {FEATURES.version}, tmp_path) as models:
            await models.refresh()
            assert models.live is not None
            assert models.live.version == 1
            server.labels["stable"] = 2
            await models.refresh()
            assert models.live.version == 2

    asyncio.run(run())


def test_a_restarted_server_is_told_again_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes up with its own configuration; what is held and on the disk is asked for, with what it serves already."""
    monkeypatch.setattr("serving.live_model.HELD_AFTER_S", 0.0)
    (tmp_path / "1").mkdir()
    server = ModelServer({4: FEATURES.version, 5: FEATURES.version})

    async def run() -> None:
        async with following(server, {FEATURES.version}, tmp_path) as models:
            await Served(server, models, tmp_path).sees(Route(stable=1))
            await models.refresh()

    asyncio.run(run())
    (told,) = server.configured
    assert sorted(told.model_version_policy.specific.versions) == [1, 4, 5]
    assert told.base_path == str(tmp_path)


def shop_with_canary() -> tuple[Shop, Model, Model]:
    """The canary, of version 6, answers; the stable one prefers the items that come first."""
    stable, canary = (Model(lambda items: np.linspace(0.9, 0.1, len(items)), ["i4"]) for _ in range(2))
    canary.version = 6
    shop = Shop(table(), shopper_row("i1"), stable)
    shop.models.canary = canary
    return shop, stable, canary


@pytest.mark.parametrize(
    "failure",
    [ModelUnavailableError("model_garbage", "NaN"), ModelNotFoundError("gone"), ModelUnavailableError("model_refused", "no")],
)
def test_a_canary_that_fails_costs_its_shoppers_nothing(failure: Exception) -> None:
    shop, _, canary = shop_with_canary()
    assert awaited(shop.shelf()).model_version == 6
    canary.rank_fails = canary.retrieve_fails = failure

    async def ask() -> list[tuple[int, str]]:
        return [(s.model_version, s.degraded) for s in [await shop.shelf() for _ in range(10)]]

    assert set(awaited(ask())) == {(5, "")}


def test_a_canary_that_fails_does_not_keep_others_from_the_stable_version() -> None:
    """Its breakers are its own."""
    shop, _, canary = shop_with_canary()
    canary.rank_fails = canary.retrieve_fails = ModelUnavailableError("model_garbage", "NaN")

    async def ask() -> str:
        for _ in range(10):
            await shop.shelf()
        shop.models.canary = None
        return (await shop.shelf()).degraded

    assert awaited(ask()) == ""


def test_a_request_whose_version_is_unloaded_under_it_begins_again_with_the_one_that_answers() -> None:
    """Retrieval and ranking of the answer are both the new version's."""
    asked: list[tuple[int, str]] = []

    class Noting(Model):
        async def retrieve(self, shopper: Inputs, timeout_s: float) -> list[str]:
            asked.append((self.version, "retrieve"))
            return list(await super().retrieve(shopper, timeout_s))

    old, new = (Noting(lambda items: [0.5] * len(items), ["i4"]) for _ in range(2))
    new.version = 6
    shop = Shop(table(), shopper_row("i1"), old)
    old.rank_fails = ModelNotFoundError("gone")

    async def look_again() -> None:
        shop.models.live = new

    shop.models.refresh = look_again  # type: ignore[method-assign]
    shelf = awaited(shop.shelf())
    assert (shelf.model_version, shelf.degraded) == (6, "")
    assert asked == [(5, "retrieve"), (6, "retrieve")]
