"""Examples of refused steps: kept to be learnt from again, since most of them are as good as any. Pure.

A step is refused as a whole, for what some of its examples teach or by bad luck. Its examples come back together with the next step's, and the gate
judges the model that both make; when that is refused too, the new ones are learnt from alone. Examples that were refused REFUSALS_MAX times
are given up.
"""

from typing import NamedTuple

import numpy as np

from features.feature_set import FeatureSet
from trainer.samples import Array, Samples, concat, empty

REFUSALS_MAX = 3
RETRY_MAX = 4_096  # the latest ones; about 10 MB in every checkpoint, as the reservoir


class Retry(NamedTuple):
    """What waits to be learnt from again, oldest first."""

    samples: Samples
    refusals: Array
    """int64 [N] how often each was part of what was refused."""

    @property
    def size(self) -> int:
        return self.samples.size

    def refused_again(self) -> "Retry":
        """Without those that are given up."""
        left = np.flatnonzero(self.refusals + 1 < REFUSALS_MAX)
        return Retry(self.samples.take(left), self.refusals[left] + 1)

    def with_refused(self, new: Samples) -> "Retry":
        """And `new`, refused for the first time."""
        samples = concat(self.samples, new)
        refusals = np.concatenate([self.refusals, np.ones(new.size, np.int64)])
        return Retry(samples.take(np.arange(max(samples.size - RETRY_MAX, 0), samples.size)), refusals[-RETRY_MAX:])


def nothing(features: FeatureSet) -> Retry:
    return Retry(empty(features), np.zeros(0, np.int64))
