"""How a model learns: once from a beginning, then step by step from what is new beside some of what is old.

Pure: no log, no disk, no clock. The trainer's steps call these functions, and so does whoever measures what such steps are worth.
"""

import numpy as np

from trainer.learner import Learner
from trainer.samples import Samples, concat
from trainer.vocabulary import Turnover

BOOTSTRAP_RATES = (3e-3, 3e-3, 1e-3)
"""Learning rate by epoch. Ranking real candidates on Yoochoose-100k: three epochs HR@20 .607, five .565, six .492: it overfits."""
STEP_RATE = 1e-3
RESERVOIR_NEW_MAX = 1_024  # of these from one step: a long one must not push out all that came before
RESERVOIR_MAX = 4_096  # earlier samples learnt from beside new ones; about 10 MB in every checkpoint


def begin(learner: Learner, samples: Samples, time_ms: int, rng: np.random.Generator) -> float:
    """Learn the first weights of a fresh `learner` from `samples`, whose events end at `time_ms`; the last epoch's mean loss."""
    learner.admit(samples, time_ms)
    learner.normalise(samples)
    return [learner.fit(samples, rng, 1, rate) for rate in BOOTSTRAP_RATES][-1]


def go_on(learner: Learner, samples: Samples, reservoir: Samples, time_ms: int, rng: np.random.Generator) -> tuple[float, Turnover]:
    """Learn from new `samples`, of about `time_ms`, beside as many of `reservoir`; the mean loss, and which items got or lost a row."""
    turnover = learner.admit(samples, time_ms)
    # As many earlier samples as new ones: enough to keep what was learnt, and the new ones still count half.
    earlier = reservoir.take(rng.permutation(reservoir.size)[: samples.size])
    return learner.fit(concat(samples, earlier), rng, 1, STEP_RATE), turnover


def stirred(reservoir: Samples, samples: Samples, rng: np.random.Generator) -> Samples:
    """`reservoir` with new `samples` in it, each in the place of any older one, so that its memory fades slowly."""
    new = samples.take(rng.permutation(samples.size)[: RESERVOIR_NEW_MAX if reservoir.size else RESERVOIR_MAX])
    return concat(reservoir.take(rng.permutation(reservoir.size)[: RESERVOIR_MAX - new.size]), new)
