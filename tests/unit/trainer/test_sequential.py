"""Bounds that hold at every look: against values worked out otherwise, and by simulation of people who look all the time."""

import numpy as np
import numpy.typing as npt
import pytest

from trainer.canary import ALPHA, PROMOTED, ROLLED_BACK, SHOPPERS_MAX, WORSE_TOLERATED, Arm, arm, decide
from trainer.sequential import bounds

RUNS, LOOKS, EVERY, SHARE, RATE = 1_000, 60, 100, 0.2, 0.1
"""Looks at every hundredth shopper, one in five of them the canary's."""
Counts = npt.NDArray[np.int64]


def test_the_bounds_are_where_the_mixture_says() -> None:
    """After nothing they are everything; after n successes of n, M(p) = prod (i - 1/2) / i / p^n, which is solved for p by hand."""
    assert bounds(0, 0, 0.05) == (0.0, 1.0)
    for n in (1, 5, 40):
        mixture = np.prod([(i - 0.5) / i for i in range(1, n + 1)])
        low, high = bounds(n, n, 0.05)
        assert high == 1.0
        assert low == pytest.approx((0.05 * mixture) ** (1 / n))
        assert bounds(0, n, 0.05).high == pytest.approx(1 - low)


def test_more_trials_are_surer_and_a_smaller_alpha_is_less_sure() -> None:
    few, many, careful = bounds(10, 100, 0.05), bounds(1_000, 10_000, 0.05), bounds(10, 100, 0.001)
    assert careful.low < few.low < many.low < 0.1 < many.high < few.high < careful.high


def feedback(rate: float, share: float, seed: int) -> tuple[Counts, Counts]:
    """[RUNS, LOOKS] shoppers and clicks of one arm up to each look."""
    rng = np.random.default_rng(seed)
    shoppers = rng.binomial(EVERY, share, (RUNS, LOOKS))
    return shoppers.cumsum(axis=1), rng.binomial(shoppers, rate).cumsum(axis=1)


def decisions(canary_rate: float, stable_rate: float) -> dict[str, float]:
    """How many of RUNS canaries, each looked at LOOKS times, were ever decided that way, as a share; the first decision counts."""
    (shoppers, clicked), (other_shoppers, other_clicked) = feedback(canary_rate, SHARE, 1), feedback(stable_rate, 1 - SHARE, 2)
    ours, theirs = bounds(clicked, shoppers, ALPHA / 2), bounds(other_clicked, other_shoppers, ALPHA / 2)
    said = np.full((RUNS, LOOKS), "", object)
    for at in np.ndindex(RUNS, LOOKS):
        canary = Arm(int(shoppers[at]), int(clicked[at]), float(ours.low[at]), float(ours.high[at]))
        stable = Arm(int(other_shoppers[at]), int(other_clicked[at]), float(theirs.low[at]), float(theirs.high[at]))
        said[at] = decide(canary, stable)[0]
    first = [next((one for one in run if one), "") for run in said.tolist()]
    return {one: first.count(one) / RUNS for one in (PROMOTED, ROLLED_BACK, "")}


def test_looking_all_the_time_does_not_find_what_is_not_there() -> None:
    """Of a thousand canaries that are as good as the stable version, at most ALPHA are ever rolled back; a test of fixed size, done at each look
    at the same level, calls many times as many worse."""
    assert decisions(RATE, RATE)[ROLLED_BACK] <= ALPHA
    (shoppers, clicked), (other_shoppers, other_clicked) = feedback(RATE, SHARE, 1), feedback(RATE, 1 - SHARE, 2)
    n, m = np.maximum(shoppers, 1), np.maximum(other_shoppers, 1)
    pooled = (clicked + other_clicked) / (n + m)
    z = (clicked / n - other_clicked / m) / np.sqrt(np.maximum(pooled * (1 - pooled), 1e-9) * (1 / n + 1 / m))
    assert (z < -1.645).any(axis=1).mean() > 4 * ALPHA


def test_a_canary_that_is_worse_by_what_is_not_tolerated_is_hardly_ever_promoted() -> None:
    assert decisions((1 - WORSE_TOLERATED) * 0.8, 0.8)[PROMOTED] <= ALPHA


@pytest.mark.parametrize(
    ("canary", "stable", "decision", "power"),
    [(0.05, 0.1, ROLLED_BACK, 0.7), (0.3, 0.4, ROLLED_BACK, 0.85), (0.4, 0.3, PROMOTED, 0.99), (0.8, 0.8, PROMOTED, 0.8)],
)
def test_what_is_there_is_found_within_six_thousand_shoppers(canary: float, stable: float, decision: str, power: float) -> None:
    assert decisions(canary, stable)[decision] >= power


def test_bounds_cover_the_truth_at_every_look() -> None:
    shoppers, clicked = feedback(RATE, 1.0, 5)
    low, high = bounds(clicked, shoppers, ALPHA)
    missed = ((low > RATE) | (high < RATE)).any(axis=1).mean()
    assert 0.0 < missed <= ALPHA, "and they are not so wide that nothing is ever outside"


def test_a_canary_that_shows_nothing_ends() -> None:
    alike = arm(1, SHOPPERS_MAX), arm(1, SHOPPERS_MAX)
    decision, reason = decide(*alike)
    assert decision == ROLLED_BACK
    assert "have not told them apart" in reason
    assert decide(arm(10, 100), arm(90, 900)) == (
        "",
        f"not told apart yet: of the canary's shelves {arm(10, 100)}, of the stable version's {arm(90, 900)}",
    )
    assert "10 of 100 shoppers clicked (10.00%, surely" in str(arm(10, 100))
