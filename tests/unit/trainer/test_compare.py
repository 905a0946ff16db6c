"""Which of two models is worse on the same shelves, and how sure that is: against values known beforehand."""

import math
from collections import Counter

import numpy as np
import pytest

from tests.planted_shop import FEATURES
from trainer.compare import CONFIDENCE, POSITIVES_MIN, Comparison, compare
from trainer.samples import UNKNOWN, Array, Samples, empty


def shelves(count: int, seed: int = 1, size: int = 10) -> tuple[Samples, Array]:
    """Shelves whose clicks come with known chances, and those chances [N, C]; carts and purchases are unknown."""
    rng = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-(rng.normal(size=(count, size)) - 1.5)))
    labels = np.full((count, size, 3), UNKNOWN, np.float32)
    labels[:, :, 0] = rng.random((count, size)) < truth
    one = empty(FEATURES)
    return one._replace(labels=labels, candidates=np.full((count, size), b"i"), served=np.ones(count, bool)), truth


def chances(truth: Array, noise: float, seed: int) -> Array:
    """[N, C, 3] of a model that knows the truth up to noise on the logit."""
    logits = np.log(truth / (1 - truth)) + noise * np.random.default_rng(seed).normal(size=truth.shape)
    return np.repeat((1 / (1 + np.exp(-logits)))[:, :, None], 3, axis=2)


def of(comparisons: list[Comparison], task: str) -> Comparison:
    return next(c for c in comparisons if c.task == task)


def test_values_of_two_shelves_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log loss over known labels, pairs within a shelf only, ties half; what is unknown counts for nothing."""
    monkeypatch.setattr("trainer.compare.POSITIVES_MIN", 1)
    monkeypatch.setattr("trainer.compare.ORDERED_MIN", 1)
    samples, _ = shelves(2, size=3)
    labels = np.full((2, 3, 3), UNKNOWN, np.float32)
    labels[:, :, 0] = [[1, 0, 0], [0, 1, UNKNOWN]]
    ours, theirs = np.full((2, 3, 3), 0.9), np.full((2, 3, 3), 0.9)
    ours[:, :, 0] = [[0.5, 0.5, 0.1], [0.2, 0.8, 0.1]]
    theirs[:, :, 0] = [[0.8, 0.2, 0.1], [0.4, 0.2, 0.9]]
    found = of(compare(samples._replace(labels=labels), ours, theirs), "click")
    loss = -(math.log(0.5) * 2 + math.log(0.9) + math.log(0.8) * 2)
    live = -(math.log(0.8) * 2 + math.log(0.9) + math.log(0.6) + math.log(0.2))
    assert found.log_loss.point == pytest.approx((loss - live) / live)
    assert found.order is not None
    assert found.order.point == pytest.approx((2 - 2.5) / 3), "live: 2 of 3 pairs; candidate: one tie and two right"
    assert found.calibration == pytest.approx((0.5 + 0.5 + 0.1 + 0.2 + 0.8) / 2)
    assert (found.shelves, found.positives) == (2, 2)


def test_equal_models_differ_by_nothing_and_worse_is_not_better() -> None:
    samples, truth = shelves(400)
    good, bad = chances(truth, 0.3, 1), chances(truth, 1.5, 2)
    for c in compare(samples, good, good):
        assert c.log_loss == (0.0, 0.0, 0.0)
    worse, better = of(compare(samples, bad, good), "click"), of(compare(samples, good, bad), "click")
    assert worse.log_loss.low > 0.0 > better.log_loss.high
    assert worse.order is not None
    assert better.order is not None
    assert worse.order.low > 0.0 > better.order.high
    assert worse.order.low < worse.order.point < worse.order.high


@pytest.mark.parametrize(("confidence", "said_max"), [(0.95, 22), (CONFIDENCE, 6)])
def test_the_bound_is_passed_by_chance_as_seldom_as_it_says(
    confidence: float, said_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models that are equally good on the whole: at 95%, "surely worse" is said of one in about 10 of 200 logs (give or take 3, and a
    bootstrap of 80 shelves says it a little too often)."""
    monkeypatch.setattr("trainer.compare.CONFIDENCE", confidence)
    monkeypatch.setattr("trainer.compare.RESAMPLES", 1_000)
    said = Counter[str]()
    for seed in range(200):
        samples, truth = shelves(80, seed)
        found = of(compare(samples, chances(truth, 0.5, 1_000 + seed), chances(truth, 0.5, 2_000 + seed)), "click")
        assert found.order is not None
        said.update(log_loss=found.log_loss.low > 0.0, order=found.order.low > 0.0)
    assert max(said.values()) <= said_max
    assert confidence > 0.95 or min(said.values()) > 0


def test_more_shelves_are_surer() -> None:
    few, many = (of(compare(s, chances(t, 0.6, 1), chances(t, 0.5, 2)), "click") for s, t in (shelves(100), shelves(2_000)))
    assert many.log_loss.high - many.log_loss.low < 0.5 * (few.log_loss.high - few.log_loss.low)


def test_an_objective_with_few_actions_is_not_judged_alone() -> None:
    samples, truth = shelves(100)
    labels = samples.labels.copy()
    labels[:, :, 1] = 0.0
    labels[: POSITIVES_MIN - 1, 0, 1] = 1.0
    labels[:, :, 2] = 0.0
    labels[:POSITIVES_MIN, 0, 2] = 1.0
    found = compare(samples._replace(labels=labels), chances(truth, 0.3, 1), chances(truth, 0.3, 2))
    assert [(c.task, c.order is not None) for c in found] == [("all", False), ("click", True), ("purchase", False)]
    assert compare(empty(FEATURES), np.zeros((0, 1, 3)), np.zeros((0, 1, 3))) == []


def test_a_figure_that_is_no_number_stays_none() -> None:
    samples, truth = shelves(60)
    broken = chances(truth, 0.3, 1)
    broken[3, 2, 0] = np.nan
    assert math.isnan(of(compare(samples, broken, chances(truth, 0.3, 2)), "all").log_loss.point)
