"""What the model learns from: shoppers, their candidates and labels, as encoded columns that grow, shrink and go to disk together.

N samples, C candidates (padded), R = RECENT_MAX, E = len(EVENT_NAMES), F = len(CANDIDATE_FEATURES), 3 = len(TASKS).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.encoder import encode
from features.rows import FEATURE_VERSION, FeaturesAsServed, ItemColumns
from streams.records import Example

Array = npt.NDArray[Any]

TASKS = ("click", "cart", "purchase")
UNKNOWN = -1.0  # a label that is not known, and that of a padded candidate: no loss, no metric
POSITIONS_MAX = (
    32  # shown positions learnt from: shelves rarely show more, and a few long lists would pad every batch to their length
)


class Sample(NamedTuple):
    """One shelf and what came of it. `labels` are [C][3] of 0, 1 or UNKNOWN; `served` is false for a replayed one."""

    features: FeaturesAsServed
    labels: list[list[float]]
    served: bool = True


class Samples(NamedTuple):
    """N encoded samples. Item ids are bytes (dtype S), b"" where padded."""

    recent_items: Array  # S [N, R]
    recent_events: Array  # int32 [N, R]
    recent_age: Array  # float32 [N, R]
    shopper_counts: Array  # float32 [N, E]
    candidates: Array  # S [N, C]
    candidate_features: Array  # float32 [N, C, F]
    labels: Array  # float32 [N, C, 3]
    served: Array  # bool [N]

    @property
    def size(self) -> int:
        return len(self.served)

    def take(self, rows: Array) -> "Samples":
        return Samples(*(column[rows] for column in self))


def from_example(example: Example) -> Sample | None:
    """The sample that a joined impression makes; None when its lists disagree or its features are of another version.

    Of a shelf longer than POSITIONS_MAX the positions acted on stay, then the first ones.
    """
    features, n = example.features, len(example.items)
    labels = [list(map(float, row)) for row in zip(example.clicked, example.carted, example.purchased, strict=False)]
    if features.version != FEATURE_VERSION or not n or len(labels) != n or features.candidates.items != example.items:
        return None
    if n > POSITIONS_MAX:
        keep = sorted(sorted(range(n), key=lambda i: (not any(labels[i]), i))[:POSITIONS_MAX])
        labels = [labels[i] for i in keep]
        columns = {name: [getattr(features.candidates, name)[i] for i in keep] for name in ItemColumns.__struct_fields__}
        features = FeaturesAsServed(features.time_ms, features.shopper, ItemColumns(**columns), features.version)
    return Sample(features, labels)


def stack(samples: list[Sample]) -> tuple[Samples, int]:
    """Encode `samples`; returns them and how many were left out because a feature was not a finite number or not of its shape."""
    rows = []
    for sample in samples:
        try:
            inputs = encode(sample.features)
        except (AssertionError, KeyError, ValueError):  # lists of unequal length or unknown event names in a logged row
            continue
        if all(np.isfinite(column).all() for column in inputs.values() if column.dtype.kind == "f"):
            rows.append((inputs, np.asarray(sample.labels, dtype=np.float32), sample.served))
    width = max((len(labels) for _, labels, _ in rows), default=1)

    def column(name: str, dtype: str) -> Array:
        return np.array([inputs[name] for inputs, _, _ in rows], dtype=dtype)

    def padded(values: list[Array], fill: float | bytes, dtype: str) -> Array:
        return np.array(
            [np.pad(v, ((0, width - len(v)), *((0, 0),) * (v.ndim - 1)), constant_values=fill) for v in values], dtype=dtype
        )

    if not rows:
        return empty(), len(samples)
    stacked = Samples(
        recent_items=column("recent_items", "S"),
        recent_events=column("recent_events", "i4"),
        recent_age=column("recent_age", "f4"),
        shopper_counts=column("shopper_counts", "f4"),
        candidates=padded([inputs["candidates"] for inputs, _, _ in rows], b"", "S"),
        candidate_features=padded([inputs["candidate_features"] for inputs, _, _ in rows], 0.0, "f4"),
        labels=padded([labels for _, labels, _ in rows], UNKNOWN, "f4"),
        served=np.array([served for _, _, served in rows], dtype=bool),
    )
    return stacked, len(samples) - len(rows)


def empty() -> Samples:
    from features.encoder import CANDIDATE_FEATURES
    from features.events import EVENT_NAMES
    from features.fold import RECENT_MAX

    return Samples(
        np.zeros((0, RECENT_MAX), "S1"),
        np.zeros((0, RECENT_MAX), "i4"),
        np.zeros((0, RECENT_MAX), "f4"),
        np.zeros((0, len(EVENT_NAMES)), "f4"),
        np.zeros((0, 1), "S1"),
        np.zeros((0, 1, len(CANDIDATE_FEATURES)), "f4"),
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
