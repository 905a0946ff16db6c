"""Items nearest to a shopper's vector, found as the exported graph finds them, without writing it: for measuring, not for serving."""

from collections.abc import Sequence

import numpy as np

from features.encoder import Inputs
from trainer.learner import Learner
from trainer.vocabulary import FIRST_ROW


class Nearest:
    """Over the items that `learner` knows now; learning on leaves it as it is, so it is made anew after each step."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        ids, vectors = learner.table()
        self._ids = [item.decode() for item in ids]
        own = vectors[FIRST_ROW:]
        self._vectors = own / (np.linalg.norm(own, axis=1, keepdims=True) + 1e-6)

    def items(self, shopper: Inputs, n: int) -> Sequence[str]:
        """At most `n` ids, nearest first."""
        scores = self._vectors @ self._learner.shoppers([shopper])[0]
        top = np.argpartition(-scores, n)[:n] if len(scores) > n else np.arange(len(scores))
        return [self._ids[at] for at in top[np.argsort(-scores[top], kind="stable")]]
