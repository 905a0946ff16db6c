"""The exploration policy: the logged propensities are the frequencies, and weighting by them is unbiased."""

import math
from collections import Counter

import numpy as np
import pytest

from serving.explore import explore

CANDIDATES, COUNT, SHARE, ROUNDS = 60, 15, 0.3, 20_000
ORDER = np.arange(CANDIDATES)
IS_NEW = np.zeros(CANDIDATES, dtype=bool)
IS_NEW[[40, 41, 42, 43]] = True


def simulate() -> tuple[Counter[tuple[int, int]], dict[tuple[int, int], float]]:
    """How often each item stood at each position, and the probability logged with it."""
    shown: Counter[tuple[int, int]] = Counter()
    logged: dict[tuple[int, int], float] = {}
    for n in range(ROUNDS):
        chosen = explore(ORDER, IS_NEW, COUNT, SHARE, f"request-{n}")
        assert len(set(chosen.places)) == COUNT
        for at, (place, propensity) in enumerate(zip(chosen.places, chosen.propensities, strict=True)):
            shown[at, place] += 1
            assert logged.setdefault((at, place), propensity) == propensity
    return shown, logged


def test_empirical_frequencies_equal_the_logged_propensities() -> None:
    shown, logged = simulate()
    for key, propensity in logged.items():
        deviation = math.sqrt(ROUNDS * propensity * (1 - propensity))
        assert abs(shown[key] - ROUNDS * propensity) <= 5 * deviation + 1e-9, (key, shown[key], ROUNDS * propensity)
    explored = [key for key in logged if key[1] >= COUNT]
    assert len(explored) == 3 * 15  # three positions; all that is left of 60 - 15 candidates, dealt out
    for at in range(COUNT):  # what a position may show sums to one
        assert sum(p for (position, _), p in logged.items() if position == at) == pytest.approx(1.0)
    assert all(math.isclose(logged[at, at], 1.0) for at in range(COUNT - 3))


def test_inverse_propensity_weighting_estimates_another_policys_clicks() -> None:
    """Clicks of the shelf that explores never, from the log of the one that does; and of one that swaps the last item."""
    truth = np.linspace(0.5, 0.05, CANDIDATES)
    greedy, swapped = list(range(COUNT)), [*range(COUNT - 1), 17]  # 17 is in the last position's pool: 15 + 2
    totals = {"greedy": 0.0, "swapped": 0.0}
    for n in range(ROUNDS):
        chosen = explore(ORDER, IS_NEW, COUNT, SHARE, f"request-{n}")
        for at, (place, propensity) in enumerate(zip(chosen.places, chosen.propensities, strict=True)):
            reward = truth[place] / propensity
            totals["greedy"] += reward * (place == greedy[at])
            totals["swapped"] += reward * (place == swapped[at])
    assert totals["greedy"] / ROUNDS == pytest.approx(truth[greedy].sum(), rel=0.01)
    assert totals["swapped"] / ROUNDS == pytest.approx(truth[swapped].sum(), rel=0.01)


def test_a_shelf_is_the_same_for_the_same_request() -> None:
    assert explore(ORDER, IS_NEW, COUNT, SHARE, "r") == explore(ORDER, IS_NEW, COUNT, SHARE, "r")
    assert len({tuple(explore(ORDER, IS_NEW, COUNT, 0.9, str(n)).places) for n in range(50)}) > 25


@pytest.mark.parametrize(
    ("count", "share", "candidates", "fixed"),
    [(10, 0.0, 60, 0), (4, 1.0, 60, 0), (10, 1.0, 10, 0), (10, 1.0, 8, 0), (10, 1.0, 60, 10)],
)
def test_greedy_where_nothing_is_to_be_explored(count: int, share: float, candidates: int, fixed: int) -> None:
    chosen = explore(np.arange(candidates), np.zeros(candidates, dtype=bool), count, share, "r", fixed)
    assert chosen.places == list(range(min(count, candidates)))
    assert set(chosen.propensities) == {1.0}
