"""The estimators against a synthetic truth: every context, item, chance and reward is known, so the value of a policy is a sum."""

import numpy as np
import pytest

from liveshelf.evaluation.off_policy import Logged, Policy, Value, logged_value, value

CONTEXTS, ITEMS, ROUNDS, LOGS = 3, 4, 400, 40


class World:
    """Rewards by context and item; a policy that logs, and one that prefers what is rewarded."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.reward = rng.uniform(0.02, 0.4, (CONTEXTS, ITEMS))
        self.logging = rng.dirichlet(np.full(ITEMS, 3.0), CONTEXTS)
        better = np.exp(8 * self.reward)
        self.policy = better / better.sum(axis=1, keepdims=True)

    @property
    def truth(self) -> float:
        return float((self.policy * self.reward).sum(axis=1).mean())

    def judged(self, seed: int, model: np.ndarray | None = None, off: float = 1.0) -> tuple[Value, Logged]:
        """A log, and what is made of it; propensities in the log are `off` times the true ones."""
        rng = np.random.default_rng(seed)
        context = rng.integers(CONTEXTS, size=ROUNDS)
        shown = (rng.random((ROUNDS, 1)) > self.logging[context].cumsum(axis=1)).sum(axis=1)
        reward = (rng.random(ROUNDS) < self.reward[context, shown]).astype(float)
        model = np.zeros_like(self.reward) if model is None else model
        policy = Policy(
            self.policy[context, shown], (self.policy * model).sum(axis=1)[context], model[context, shown]
        )  # fmt: skip
        logged = Logged(reward, np.minimum(self.logging[context, shown] * off, 1.0))
        return value(policy, logged), logged


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def values(world: World) -> list[Value]:
    return [world.judged(seed, world.reward)[0] for seed in range(LOGS)]


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_estimates_meet_the_truth_and_their_intervals_hold_it(world: World, values: list[Value], name: str) -> None:
    found = [getattr(one, name) for one in values]
    points = np.array([one.point for one in found])
    assert abs(points.mean() - world.truth) < 3 * points.std() / np.sqrt(LOGS) + 1e-3
    assert sum(one.low <= world.truth <= one.high for one in found) >= 34  # of 40 at 95%: fewer in one of 300


def test_without_a_model_dr_is_ips(world: World) -> None:
    found, _ = world.judged(1)
    assert found.dr == found.ips


def test_a_wrong_model_leaves_dr_unbiased(world: World) -> None:
    wrong = 0.5 - world.reward
    points = np.array([world.judged(seed, wrong)[0].dr.point for seed in range(LOGS)])
    assert abs(points.mean() - world.truth) < 3 * points.std() / np.sqrt(LOGS)


def test_a_right_model_makes_up_for_wrong_propensities(world: World) -> None:
    found = [world.judged(seed, world.reward, off=0.7)[0] for seed in range(LOGS)]
    ips, dr = (np.mean([getattr(one, name).point for one in found]) for name in ("ips", "dr"))
    assert abs(dr - world.truth) < 0.01 < 0.05 < ips - world.truth


def test_a_right_model_narrows_the_interval(world: World) -> None:
    with_model, without = world.judged(2, world.reward)[0].dr, world.judged(2)[0].dr
    assert with_model.high - with_model.low < 0.95 * (without.high - without.low)


def test_the_policy_that_logged_is_worth_what_it_earned(world: World) -> None:
    _, logged = world.judged(4)
    same = value(Policy(logged.propensity, np.zeros(ROUNDS), np.zeros(ROUNDS)), logged)
    assert same.ips == same.snips == same.dr == logged_value(logged)
    assert (same.gain.low, same.gain.point, same.gain.high) == (0.0, 0.0, 0.0)
    assert same.rounds_used == ROUNDS


def test_a_propensity_of_nothing_is_refused() -> None:
    one = np.ones(2)
    with pytest.raises(ValueError, match=r"above 0 and at most 1; the least is 0"):
        value(Policy(one, one, one), Logged(one, np.array([0.5, 0.0])))
