"""Intervals over shoppers: as wide as statistics say, and none where nothing varies."""

import math

import numpy as np

from trainer.resample import RESAMPLES, Ratio, difference, estimate, quotient


def test_an_interval_is_that_of_the_normal_approximation() -> None:
    """2,000 shoppers with one event each: a mean of .3 is sure to 1.96 standard errors."""
    hits = np.random.default_rng(1).random(2_000) < 0.3
    found = estimate(Ratio.by(range(2_000), hits, np.ones(2_000)))
    half = 1.96 * math.sqrt(hits.mean() * (1 - hits.mean()) / 2_000)
    assert found.point == hits.mean()
    assert abs(found.low - (found.point - half)) < 0.1 * half
    assert abs(found.high - (found.point + half)) < 0.1 * half


def test_shoppers_are_drawn_whole() -> None:
    """The same hits ten times over from the same shoppers are no surer."""
    hits = np.random.default_rng(1).random(300) < 0.3
    once = estimate(Ratio.by(range(300), hits, np.ones(300)))
    ten = estimate(Ratio.by(np.repeat(range(300), 10).tolist(), np.repeat(hits, 10), np.ones(3_000)))
    assert np.allclose(once, ten)


def test_what_differs_in_nothing_differs_surely_in_nothing() -> None:
    ratio = Ratio.by([0, 1, 2, 2], [1, 0, 1, 1], [1, 1, 1, 1])
    assert tuple(difference(ratio, ratio)) == (0.0, 0.0, 0.0)
    twice = Ratio(2 * ratio.of, ratio.to)
    assert tuple(quotient(twice, ratio)) == (2.0, 2.0, 2.0)


def test_a_paired_difference_is_surer_than_its_parts() -> None:
    rng = np.random.default_rng(2)
    shoppers = list(range(500))
    base = rng.random(500)
    one, other = Ratio.by(shoppers, base + 0.01, np.ones(500)), Ratio.by(shoppers, base, np.ones(500))
    found = difference(one, other)
    assert found.low > 0
    assert estimate(one).low < estimate(other).high, "apart, the two could not be told from each other"


def test_nothing_to_count_is_no_number() -> None:
    assert math.isnan(estimate(Ratio.by([], [], [])).point)
    assert math.isnan(estimate(Ratio.by([0], [0], [0])).low)
    assert math.isnan(quotient(Ratio.by([0], [1], [1]), Ratio.by([0], [0], [1])).point)


def test_the_number_of_draws_bounds_nothing_below_two_figures() -> None:
    assert RESAMPLES * 0.025 >= 20, "so many draws lie beyond either bound"
