"""Bounds on a share that hold at every look, however often one looks: what a canary is judged by. Pure NumPy.

A fixed-size test that is looked at again and again finds a difference sooner or later where there is none (Johari et al., "Peeking at A/B
Tests", 2017). A confidence sequence is an interval at every number of trials, all of which hold the truth together with the probability given
(Howard et al., "Time-uniform, nonparametric, nonasymptotic confidence sequences", 2021). For a Bernoulli rate p, after k successes of n, the
mixture over a Beta(a, b) of the likelihoods of all rates, over that of p,

    M(p) = B(a + k, b + n - k) / B(a, b) / (p^k (1 - p)^(n - k)),

is a martingale when p is true, and stays below 1/alpha for ever with probability 1 - alpha at least (Ville, 1939; Robbins, 1970). The rates
where it does are the sequence. It is exact: nothing is large or normal.
"""

from collections.abc import Callable
from math import lgamma
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

A, B = 0.5, 0.5  # Jeffreys' prior: no rate is far from it, so the price for not knowing the rate is half a logarithm of the trials
HALVINGS = 60  # of the interval that a bound is sought in: to the last digit of a double

Floats = npt.NDArray[np.float64]
_ln_gamma = np.vectorize(lgamma, otypes=[np.float64])


class Bounds(NamedTuple):
    low: Floats
    high: Floats


def bounds(successes: npt.ArrayLike, trials: npt.ArrayLike, alpha: float) -> Bounds:
    """Of the rate, elementwise: one sequence, looked at `trials` by `trials`, leaves them with probability `alpha` at most, ever."""
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(trials, float))
    assert (k >= 0).all(), "successes are counts"
    assert (k <= n).all(), "no more successes than trials"
    mixture = _ln_beta(A + k, B + n - k) - _ln_beta(np.array(A), np.array(B))
    rate = np.where(n > 0, k / np.maximum(n, 1.0), 0.5)

    def outside(p: Floats) -> npt.NDArray[np.bool_]:
        # 0 log 0 = 0: no failure says nothing against a rate of 1.
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood = np.where(k > 0, k * np.log(p), 0.0) + np.where(n > k, (n - k) * np.log1p(-p), 0.0)
        return np.asarray(mixture - likelihood >= -np.log(alpha))

    return Bounds(_edge(np.zeros_like(rate), rate, outside), _edge(np.ones_like(rate), rate, outside))


def _edge(end: Floats, inside: Floats, outside: Callable[[Floats], npt.NDArray[np.bool_]]) -> Floats:
    """The outermost rate between `end` and `inside` that is not outside."""
    open_end = ~outside(end)
    far, near = end.copy(), inside.copy()
    for _ in range(HALVINGS):
        middle = (far + near) / 2
        out = outside(middle)
        far, near = np.where(out, middle, far), np.where(out, near, middle)
    return np.where(open_end, end, far)


def _ln_beta(a: Floats, b: Floats) -> Floats:
    return np.asarray(_ln_gamma(a) + _ln_gamma(b) - _ln_gamma(a + b))
