"""What models are judged on, and how two of them do there."""

from typing import NamedTuple

import numpy as np

from trainer.compare import compare
from trainer.gate import Contest, Unseen
from trainer.metrics import evaluate
from trainer.samples import Array, Samples

RECENT_MAX = 500  # the latest shelves, of the step and before: on these a model must not be worse by more than noise


class Judged(NamedTuple):
    """Shelves that no model has learnt from: `earlier` of them were set aside before this step."""

    samples: Samples
    earlier: int

    def _parts(self) -> tuple[Array, Array, Array]:
        """Rows of the recent ones, the earlier ones, and the replayed ones."""
        served = np.flatnonzero(self.samples.served)
        return served[-RECENT_MAX:], served[served < self.earlier], np.flatnonzero(~self.samples.served)

    def evaluated(self, chances: Array) -> Unseen:
        return Unseen(*(evaluate(self.samples.take(rows), chances[rows]) for rows in self._parts()))

    def contest(self, candidate: Array, live: Array) -> Contest:
        return Contest(*(compare(self.samples.take(rows), candidate[rows], live[rows]) for rows in self._parts()))
