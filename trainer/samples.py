"""What the model learns from: shoppers, their candidates and labels, as encoded columns that grow, shrink and go to disk together.

N samples, C candidates (padded), R items in the sequence, S shopper features, F candidate features, 3 = len(TASKS).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.encoder import Inputs
from features.feature_set import FeatureSet
from streams import records

Array = npt.NDArray[Any]

TASKS = ("click", "cart", "purchase")
UNKNOWN = float(records.UNKNOWN)  # a label that is not known, and that of a padded candidate: no loss, no metric


class Sample(NamedTuple):
    """One shelf and what came of it: the encoder's inputs, `labels` [C][3] of 0, 1 or UNKNOWN; `served` is false for a replayed one."""

    inputs: Inputs
    labels: list[list[float]]
    served: bool = True


class Samples(NamedTuple):
    """N encoded samples. Item ids are bytes (dtype S), b"" where padded."""

    recent_items: Array  # S [N, R]
    recent_events: Array  # int32 [N, R]
    recent_age: Array  # float32 [N, R]
    shopper_features: Array  # float32 [N, S]
    candidates: Array  # S [N, C]
    candidate_features: Array  # float32 [N, C, F]
    labels: Array  # float32 [N, C, 3]
    served: Array  # bool [N]

    @property
    def size(self) -> int:
        return len(self.served)

    def take(self, rows: Array) -> "Samples":
        return Samples(*(column[rows] for column in self))


def stack(samples: list[Sample], features: FeatureSet) -> tuple[Samples, int]:
    """Put `samples` into columns; returns them and how many were left out because a feature was not a finite number."""
    rows = [
        (sample.inputs, np.asarray(sample.labels, dtype=np.float32), sample.served)
        for sample in samples
        if all(np.isfinite(column).all() for column in sample.inputs.values() if column.dtype.kind == "f")
    ]
    width = max((len(labels) for _, labels, _ in rows), default=1)

    def column(name: str, dtype: str) -> Array:
        return np.array([inputs[name] for inputs, _, _ in rows], dtype=dtype)

    def padded(values: list[Array], fill: float | bytes, dtype: str) -> Array:
        return np.array(
            [np.pad(v, ((0, width - len(v)), *((0, 0),) * (v.ndim - 1)), constant_values=fill) for v in values], dtype=dtype
        )

    if not rows:
        return empty(features), len(samples)
    stacked = Samples(
        recent_items=column("recent_items", "S"),
        recent_events=column("recent_events", "i4"),
        recent_age=column("recent_age", "f4"),
        shopper_features=column("shopper_features", "f4"),
        candidates=padded([inputs["candidates"] for inputs, _, _ in rows], b"", "S"),
        candidate_features=padded([inputs["candidate_features"] for inputs, _, _ in rows], 0.0, "f4"),
        labels=padded([labels for _, labels, _ in rows], UNKNOWN, "f4"),
        served=np.array([served for _, _, served in rows], dtype=bool),
    )
    return stacked, len(samples) - len(rows)


def empty(features: FeatureSet) -> Samples:
    n = features.sequence.n
    return Samples(
        np.zeros((0, n), "S1"),
        np.zeros((0, n), "i4"),
        np.zeros((0, n), "f4"),
        np.zeros((0, len(features.shopper_columns)), "f4"),
        np.zeros((0, 1), "S1"),
        np.zeros((0, 1, len(features.candidate_columns)), "f4"),
        np.zeros((0, 1, len(TASKS)), "f4"),
        np.zeros(0, bool),
    )


def concat(*parts: Samples) -> Samples:
    """One after the other, padded to the widest."""
    width = max(part.candidates.shape[1] for part in parts)
    return Samples(*(np.concatenate(columns) for columns in zip(*(_widen(part, width) for part in parts), strict=True)))


def _widen(samples: Samples, width: int) -> Samples:
    more = width - samples.candidates.shape[1]
    if not more:
        return samples
    return samples._replace(
        candidates=np.pad(samples.candidates, ((0, 0), (0, more)), constant_values=b""),
        candidate_features=np.pad(samples.candidate_features, ((0, 0), (0, more), (0, 0))),
        labels=np.pad(samples.labels, ((0, 0), (0, more), (0, 0)), constant_values=UNKNOWN),
    )
