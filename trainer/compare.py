"""Two models on the same unseen shelves, objective by objective: how much worse the one is, and how sure that is. Pure NumPy.

Shelves are drawn again with replacement, whole and for both models alike (a paired cluster bootstrap, Efron and Tibshirani, 1993, chapters
8 and 13): positions of one shelf share their shopper, and the two models err on the same ones, so only their difference varies.
"""

from typing import NamedTuple

import numpy as np

from trainer.samples import TASKS, UNKNOWN, Array, Samples

CONFIDENCE = 0.994
"""One-sided, of either bound: a step is looked at some eight times (objectives, measures, older and newer shelves), so that chance alone
finds one of them surely worse in at most one step of twenty (Bonferroni)."""
RESAMPLES = 2_000  # twelve of them lie beyond such a bound
SEED = 11  # the same shelves give the same verdict
CHANCE_MIN = 1e-6
POSITIVES_MIN, ORDERED_MIN = 20, 50
"""Actions of an objective, on shelves where it also has negatives, below which its log loss is that of a base rate, and its order is not
judged: the bounds of a bootstrap over a handful of shelves are too narrow."""


class Worse(NamedTuple):
    """By how much one model is worse than another on one measure; below 0 where it is better. Not a number where either is not."""

    point: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.point:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


class Comparison(NamedTuple):
    """Of a candidate with the live model, for one objective or for all together."""

    task: str
    """One of TASKS, or `all`."""
    shelves: int
    positives: int
    log_loss: Worse
    """Relative to the live model's."""
    order: Worse | None
    """Of the share of (acted on, not acted on) pairs within a shelf that stand in the right order: grouped AUC (Zhu et al., 2017). None for
    all objectives together, and of fewer than ORDERED_MIN actions."""
    calibration: float
    """Sum of the candidate's chances over the number of actions; 1 is right."""
    live_calibration: float


def compare(samples: Samples, candidate: Array, live: Array) -> list[Comparison]:
    """All objectives together, then each that has POSITIVES_MIN actions; chances are [N, C, 3]. Empty when there are no samples."""
    assert candidate.shape == live.shape == samples.labels.shape, (candidate.shape, live.shape, samples.labels.shape)
    if not samples.size:
        return []
    draws = _draws(samples.size)
    sums = [[_Sums(samples.labels[:, :, i], chances[:, :, i]) for chances in (candidate, live)] for i in range(len(TASKS))]
    found = [
        Comparison(
            task="all",
            shelves=samples.size,
            positives=int((samples.labels > 0).sum()),
            log_loss=_worse(draws, *(np.sum([pair[which].loss for pair in sums], axis=0) for which in (0, 1, 1))),
            order=None,
            calibration=1.0,
            live_calibration=1.0,
        )
    ]
    for task, (ours, theirs) in zip(TASKS, sums, strict=True):
        if ours.positives >= POSITIVES_MIN and ours.pairs.any():
            found.append(
                Comparison(
                    task=task,
                    shelves=ours.shelves,
                    positives=ours.positives,
                    log_loss=_worse(draws, ours.loss, theirs.loss, theirs.loss),
                    order=_worse(draws, theirs.ordered, ours.ordered, ours.pairs) if ours.positives >= ORDERED_MIN else None,
                    calibration=float(ours.chances.sum() / ours.positives),
                    live_calibration=float(theirs.chances.sum() / theirs.positives),
                )
            )
    return found


class _Sums:
    """Of one model and objective, by shelf: [N] each."""

    def __init__(self, labels: Array, chances: Array) -> None:
        known = labels != UNKNOWN
        self.positives, self.shelves = int((labels > 0).sum()), int(known.any(axis=1).sum())
        p = np.clip(chances.astype(np.float64), CHANCE_MIN, 1 - CHANCE_MIN)
        self.loss = -np.where(known, np.where(labels > 0, np.log(p), np.log1p(-p)), 0.0).sum(axis=1)
        self.chances = np.where(known, p, 0.0).sum(axis=1)
        positive, negative = labels > 0, known & (labels <= 0)
        self.pairs = positive.sum(axis=1) * negative.sum(axis=1).astype(np.float64)
        right = np.sign(p[:, :, None] - p[:, None, :]) / 2 + 0.5  # 1 above, 0.5 level, 0 below
        self.ordered = np.where(positive[:, :, None] & negative[:, None, :], right, 0.0).sum(axis=(1, 2))


def _draws(shelves: int) -> Array:
    """[RESAMPLES, N] how often each shelf was drawn."""
    rng = np.random.default_rng([SEED, shelves])
    return rng.multinomial(shelves, np.full(shelves, 1 / shelves), RESAMPLES).astype(np.float64)


def _worse(draws: Array, one: Array, other: Array, of: Array) -> Worse:
    """(Σ one − Σ other) / Σ of, with its bounds over `draws`."""
    differences, whole = draws @ (one - other), draws @ of
    low, high = np.quantile(differences / np.maximum(whole, 1e-12), [1 - CONFIDENCE, CONFIDENCE])
    return Worse(float((one - other).sum() / max(of.sum(), 1e-12)), float(low), float(high))
