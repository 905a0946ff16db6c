"""The closed loop: one seed gives one result, a frozen copy stays as it was, and tastes stay where nothing drifts."""

import numpy as np
import pytest

from features.declarations import read_declarations
from features.feature_set import FeatureSet
from liveshelf.settings import Settings
from liveshelf.simulator import closed_loop
from liveshelf.simulator.closed_loop import FROZEN, OURS, POPULAR, POPULAR_IN_CATEGORY, RECOMMENDERS, Loop, Plan, Tally
from liveshelf.simulator.shop import Shop
from liveshelf.simulator.worth import visits_of, worth
from trainer.learner import Learner

FEATURES = FeatureSet(read_declarations(None))
PLAN = Plan(seed=3, drift=1.0, shoppers=20, items=60, history_days=2, warm_days=1, days=1)


@pytest.fixture(scope="module")
def found() -> dict[str, Tally]:
    return Loop(PLAN, Settings(), FEATURES).run()


def columns(tally: Tally) -> list[list[float]]:
    return [column.tolist() for column in (tally.shelves, tally.shown, tally.clicks, tally.revenue)]


def test_one_seed_gives_one_result(found: dict[str, Tally]) -> None:
    again = Loop(PLAN, Settings(), FEATURES).run()
    assert {name: columns(tally) for name, tally in again.items()} == {name: columns(tally) for name, tally in found.items()}


def test_all_recommenders_meet_the_same_visits(found: dict[str, Tally]) -> None:
    """A visit's length does not depend on what is shown, so each asks for the same shelves."""
    assert set(found) == set(RECOMMENDERS)
    assert len({tuple(tally.shelves) for tally in found.values()}) == 1
    assert found[OURS].shelves.sum() > 15
    assert all(found[name].shown.sum() == 10 * found[name].shelves.sum() for name in (OURS, FROZEN, POPULAR))
    assert found[POPULAR_IN_CATEGORY].shown.sum() < 10 * found[POPULAR_IN_CATEGORY].shelves.sum(), "no category has ten items"
    assert found[OURS].degraded == found[FROZEN].degraded == 0


def test_ours_learns_and_the_frozen_copy_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights at the end of each recommender's days, beside those at the end of the warm-up."""
    learners: list[Learner] = []
    make = closed_loop.Learner

    def kept(*arguments: object) -> Learner:
        learners.append(make(*arguments))  # type: ignore[arg-type]
        return learners[-1]

    monkeypatch.setattr(closed_loop, "Learner", kept)
    Loop(PLAN, Settings(), FEATURES).run()
    warm, ours, frozen = (learner.state() for learner in learners)
    assert warm.keys() == frozen.keys()
    assert all(np.array_equal(warm[name], frozen[name]) for name in warm)
    assert any(not np.array_equal(warm[name], ours[name]) for name in warm if name.startswith("weight/"))


def test_tastes_turn_as_fast_as_is_asked() -> None:
    still, slow, fast = (Shop(7, items=60, shoppers=10, drift=drift) for drift in (0.0, 1.0, 10.0))
    assert np.array_equal(still.utility(3, 0.0), still.utility(3, 50.0))
    assert np.allclose(slow.utility(3, 10.0), fast.utility(3, 1.0))
    assert not np.allclose(fast.utility(3, 0.0), fast.utility(3, 10.0))
    assert [item.item_id for item in still.catalog] == [item.item_id for item in fast.catalog]


def test_popular_shelves_hold_what_is_engaged_with_most(found: dict[str, Tally]) -> None:
    world, _ = Loop(PLAN, Settings(), FEATURES)._first()
    items, now_ms = world.past.items, closed_loop.START_MS
    shelf = closed_loop._Popular(world, FEATURES, False).shelf("", closed_loop.Page("home", ()), now_ms)
    assert list(shelf.items) == [item for item, _ in items.popular(now_ms, 10)]
    page = closed_loop.Page("item", (shelf.items[0],))
    category = items.catalog(shelf.items[0]).item_category  # type: ignore[union-attr]
    in_category = closed_loop._Popular(world, FEATURES, True).shelf("", page, now_ms).items
    assert {items.catalog(item).item_category for item in in_category} == {category}  # type: ignore[union-attr]
    assert shelf.items[0] not in in_category


def test_worth_is_told_for_both_worlds_with_intervals() -> None:
    played = 0

    def advance(n: int) -> None:
        nonlocal played
        played += n

    found = worth(PLAN, [3, 4], Settings(), FEATURES, advance)
    assert played == visits_of(PLAN, [3, 4], Settings(), FEATURES)
    assert [world["drift"] for world in found["worlds"]] == [0.0, 1.0]
    for world in found["worlds"]:
        for name in (FROZEN, POPULAR, POPULAR_IN_CATEGORY):
            point, low, high = world["ours_over"][name]["click_rate"]
            assert low <= point <= high
            assert len(world["ours_over"][name]["click_rate_by_seed"]) == 2
