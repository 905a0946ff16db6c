"""How sure a figure is: shoppers drawn again with replacement, each with all that they did (a cluster bootstrap, Efron and Tibshirani,
1993, chapters 8 and 13). Pure NumPy.

Two figures of the same shoppers are compared on the same draws, so that only their difference varies.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1_000
CONFIDENCE = 0.95  # two-sided
SEED = 17  # the same shoppers give the same interval
AT_ONCE = 50  # draws held at a time


class Estimate(NamedTuple):
    """A figure and its interval. Not a number where there is nothing to count."""

    point: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.point:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Ratio(NamedTuple):
    """A sum over shoppers through another: [S] each, one place a shopper."""

    of: Floats
    to: Floats

    @classmethod
    def by(cls, shoppers: Sequence[int], of: Any, to: Any) -> "Ratio":
        """From parallel lists: whose, how much, of how much."""
        size = max(shoppers, default=-1) + 1
        who = np.asarray(shoppers, dtype=np.int64)
        one, other = (np.bincount(who, np.asarray(values, np.float64), size).astype(np.float64, copy=False) for values in (of, to))
        return cls(one, other)

    @property
    def point(self) -> float:
        return float(self.of.sum() / self.to.sum()) if self.to.sum() else float("nan")


def estimate(ratio: Ratio) -> Estimate:
    """The ratio with its interval."""
    return _interval(ratio.point, _drawn(ratio)[0])


def difference(one: Ratio, other: Ratio) -> Estimate:
    """By how much `one` is larger than `other`, both over the same shoppers."""
    ours, theirs = _drawn(one, other)
    return _interval(one.point - other.point, ours - theirs)


def quotient(one: Ratio, other: Ratio) -> Estimate:
    """How many times as large `one` is as `other`, both over the same shoppers."""
    ours, theirs = _drawn(one, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(one.point / other.point if other.point else float("nan"), ours / theirs)


def _interval(point: float, drawn: Floats) -> Estimate:
    known = drawn[np.isfinite(drawn)]
    if not len(known) or not np.isfinite(point):
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(point, float(low), float(high))


def _drawn(*ratios: Ratio) -> list[Floats]:
    """[RESAMPLES] values of each ratio, over the same draws of shoppers."""
    size = len(ratios[0].of)
    assert all(len(ratio.of) == len(ratio.to) == size for ratio in ratios), [len(ratio.of) for ratio in ratios]
    if not size:
        return [np.zeros(0) for _ in ratios]
    rng = np.random.default_rng([SEED, size])
    sums = np.stack([column for ratio in ratios for column in ratio], axis=1)  # [S, 2 * ratios]
    parts = []
    for _ in range(0, RESAMPLES, AT_ONCE):
        weights = rng.multinomial(size, np.full(size, 1 / size), AT_ONCE).astype(np.float64)
        parts.append(weights @ sums)
    drawn = np.concatenate(parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [drawn[:, 2 * k] / drawn[:, 2 * k + 1] for k in range(len(ratios))]
