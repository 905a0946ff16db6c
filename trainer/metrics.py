"""How well probabilities fit what shoppers did; pure NumPy. Unknown labels and padded candidates (UNKNOWN) do not count."""

import msgspec
import numpy as np

from trainer.samples import TASKS, Array, Samples


class Evaluation(msgspec.Struct, frozen=True):
    """Of one model on one set of samples."""

    samples: int
    log_loss: float
    """Mean binary cross-entropy of each objective, summed over objectives."""
    auc: float | None
    """Of clicks over all known positions; None when they are all of one kind."""
    mrr: float | None
    """Mean reciprocal rank, by click probability, of the best-placed item acted on; None when no shelf was acted on."""

    def named(self, prefix: str) -> dict[str, float]:
        """As flat metrics, those that exist."""
        values = {"samples": float(self.samples), "log_loss": self.log_loss, "auc": self.auc, "mrr": self.mrr}
        return {f"{prefix}_{name}": value for name, value in values.items() if value is not None}


def evaluate(samples: Samples, chances: Array) -> Evaluation:
    """`chances` are [N, C, 3] probabilities for `samples`."""
    assert chances.shape == samples.labels.shape, (chances.shape, samples.labels.shape)
    return Evaluation(
        samples=samples.size,
        log_loss=sum(log_loss(samples.labels[:, :, i], chances[:, :, i]) for i in range(len(TASKS))),
        auc=auc(samples.labels[:, :, 0], chances[:, :, 0]),
        mrr=mrr(samples, chances[:, :, 0]),
    )


def log_loss(labels: Array, chances: Array) -> float:
    known = labels >= 0
    if not known.any():
        return 0.0
    y, p = labels[known].astype(np.float64), np.clip(chances[known].astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def auc(labels: Array, chances: Array) -> float | None:
    """Chance that a positive is placed above a negative; ties count half."""
    known = labels >= 0
    y, p = labels[known] > 0, chances[known]
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return None
    _, group, size = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2.0)[group]  # ranks from 1; equal values share their mean rank
    return float((rank[y].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def mrr(samples: Samples, chances: Array) -> float | None:
    acted = np.asarray((samples.labels > 0).any(axis=-1))
    shown = samples.candidates != b""
    shelves = acted.any(axis=1)
    if not shelves.any():
        return None
    best = np.where(acted, chances, -1.0).max(axis=1, keepdims=True)
    rank = 1 + ((chances > best) & shown & ~acted).sum(axis=1)
    return float(np.mean(1.0 / rank[shelves]))
