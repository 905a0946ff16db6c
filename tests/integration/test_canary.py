"""A canary on a real Kafka and model server: shoppers decide, the versions switch, and the log says why."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from liveshelf.settings import Settings
from streams.records import Example
from streams.route import AUTOMATIC, Route, read_route
from tests.conftest import local_settings
from tests.integration.test_trainer import give
from tests.live_shop import export_model, role, until
from tests.planted_shop import PlantedShop
from tests.swaps import copy_version
from trainer import releases
from trainer.canary import PROMOTED, ROLLED_BACK, Canary, _models
from trainer.worker import Worker

replace = msgspec.structs.replace
SHOPPERS = 700


@pytest.fixture(scope="module")
def settings(kafka: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A model server with versions 1, 2 and 3."""
    home = tmp_path_factory.mktemp("canary")
    settings = local_settings(home, kafka=kafka.kafka, partitions=kafka.partitions, model_name="canaries", train_interval_s=0)
    export_model(settings, 30)
    for version in (2, 3):
        copy_version(settings, version)
    with role(settings, "serving.model_server", home / "model-server.log"):
        until(lambda: _up(settings), 120, f"the model server answers; see {home}/model-server.log")
        yield settings


def _up(settings: Settings) -> bool:
    try:
        _models(settings, "show")
    except Exception:
        return False
    return True


@pytest.fixture
def began(settings: Settings) -> Route:
    """Version 2 as a canary beside 1."""
    _models(settings, "promote", "1")
    _models(settings, "promote", "2", "--canary", "0.4")
    route = read_route(settings.model_path)
    assert (route.stable, route.canary, route.share) == (1, 2, 0.4)
    return route


def held(settings: Settings) -> tuple[int, int]:
    """(stable, canary)"""
    route = read_route(settings.model_path)
    return route.stable, route.canary


def shown(shop: PlantedShop, route: Route, name: str, canary_clicks: bool) -> list[Example]:
    """A shelf for each shopper from the version that answers; every second shopper of the stable version clicks, and all of the canary's, or
    none."""
    found = []
    for n, shopper in enumerate(shop.shoppers):
        canary = route.picks_canary(shopper)
        clicked = [int(canary_clicks if canary else n % 2)] + [0] * 9
        version = route.canary if canary else route.stable
        example = replace(shop.example(f"{name}-{n}"), shopper=shopper, model_version=version, time_ms=route.since_ms + n)
        found.append(replace(example, clicked=clicked))
    return found


@pytest.mark.parametrize(("clicks", "outcome"), [(False, ROLLED_BACK), (True, PROMOTED)])
def test_shoppers_decide_and_the_log_says_why(settings: Settings, began: Route, clicks: bool, outcome: str) -> None:
    shop = PlantedShop(seed=9, shoppers=SHOPPERS)
    canary = Canary(settings)
    before = len(releases.history(settings))
    examples = shown(shop, began, outcome, clicks)
    give(settings, examples[:30])
    standing = canary.look()
    assert standing is not None
    assert (standing.decision, standing.metrics["canary_shoppers"] + standing.metrics["stable_shoppers"]) == ("", 30)
    assert canary.act() is None, "thirty shoppers tell nothing"
    give(settings, [*examples[30:], *examples[:10]])
    standing = canary.look()
    assert standing is not None
    assert (standing.decision, standing.metrics["canary_shoppers"] + standing.metrics["stable_shoppers"]) == (outcome, SHOPPERS)
    assert Canary(settings).look() == standing, "one that starts later counts the same"
    release = canary.act()
    assert release is not None
    assert (release.outcome, release.version, release.parent, release.examples) == (outcome, 2, 1, SHOPPERS)
    assert release.metrics == standing.metrics
    history = releases.history(settings)
    assert history[before:] == [release]
    assert held(settings) == (2 if clicks else 1, 0)
    assert canary.look() is None
    assert canary.act() is None
    assert len(releases.history(settings)) == before + 1


def test_what_was_told_before_a_crash_is_put_in_force_and_not_told_twice(
    settings: Settings, began: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = PlantedShop(seed=10, shoppers=SHOPPERS)
    give(settings, shown(shop, began, "crash", canary_clicks=False))
    canary = Canary(settings)
    canary.look()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainer.canary._models", killed)
        with pytest.raises(KeyboardInterrupt):
            canary.act()
    told = releases.history(settings)
    assert told[-1].outcome == ROLLED_BACK
    assert read_route(settings.model_path) == began
    again = Canary(settings)
    again.look()
    assert again.act() == told[-1]
    assert releases.history(settings) == told
    assert held(settings) == (1, 0)


def test_people_decide_unless_the_trainer_is_told_to(settings: Settings, began: Route, tmp_path: Path) -> None:
    give(settings, shown(PlantedShop(seed=11, shoppers=SHOPPERS), began, "people", canary_clicks=False))
    worker = Worker(settings)
    worker._canary_if_due()
    assert worker.canary is not None
    assert worker.canary.decision == ROLLED_BACK
    assert read_route(settings.model_path) == began
    Worker(replace(settings, canary_automatic=True))._canary_if_due()
    assert held(settings) == (1, 0)
    assert time.time_ns() > 1_000_000 * releases.history(settings)[-1].time_ms > 1_000_000 * began.since_ms
    _models(settings, "pin", "--off")
    assert read_route(settings.model_path) == AUTOMATIC
    worker._canary_due_at = 0.0
    worker._canary_if_due()
    assert worker.canary is None
