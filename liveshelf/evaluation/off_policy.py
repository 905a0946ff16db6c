"""What another policy would have earned on logged impressions, from the chance at which each was shown (off-policy evaluation).

n rounds, A items. Of each round the log knows the item shown and what came of it; a policy is judged by how likely it would have shown the same.

    IPS     mean of weight · reward                                  (Horvitz and Thompson, 1952): unbiased, and noisy
    SNIPS   Σ weight · reward / Σ weight                             (Swaminathan and Joachims, 2015): less noisy, a little biased
    DR      mean of what a model expects + weight · what it missed   (Dudík, Langford and Li, 2011): unbiased when the chances or the model are right

Intervals are 95%, by a bootstrap over rounds (`trainer.resample`). Pure NumPy.
"""

from typing import NamedTuple

import numpy as np

from trainer.resample import Estimate, Floats, Ratio, difference, estimate


class Logged(NamedTuple):
    """Rounds of the policy that logged."""

    reward: Floats
    """[n]"""
    propensity: Floats
    """[n] of that policy, to show what it showed."""


class Policy(NamedTuple):
    """What the policy to be judged would have done in the same rounds, and what a model makes of it."""

    chance: Floats
    """[n] to show what was shown."""
    expected: Floats
    """[n] the model's reward, over all that the policy may show; 0 without a model."""
    expected_shown: Floats
    """[n] the model's reward of what was shown; 0 without a model."""


class Value(NamedTuple):
    """Reward a round."""

    ips: Estimate
    snips: Estimate
    dr: Estimate
    gain: Estimate
    """DR, above what was logged in the same rounds."""
    rounds_used: float
    """As many equally weighted rounds would be as sure: (Σ weight)² / Σ weight² (Kish, 1965)."""


def logged_value(logged: Logged) -> Estimate:
    """Of the policy that logged: the mean reward."""
    return estimate(_mean(logged.reward))


def value(policy: Policy, logged: Logged) -> Value:
    """
    Raises:
        ValueError: a propensity is not a chance: what was shown cannot have had none.
    """
    if not ((logged.propensity > 0) & (logged.propensity <= 1)).all():
        raise ValueError(f"propensities must be above 0 and at most 1; the least is {logged.propensity.min(initial=1.0)}")
    weight = policy.chance / logged.propensity
    robust = _mean(policy.expected + weight * (logged.reward - policy.expected_shown))
    return Value(
        ips=estimate(_mean(weight * logged.reward)),
        snips=estimate(Ratio(weight * logged.reward, weight)),
        dr=estimate(robust),
        gain=difference(robust, _mean(logged.reward)),
        rounds_used=float(weight.sum() ** 2 / max((weight**2).sum(), 1e-300)),
    )


def _mean(values: Floats) -> Ratio:
    return Ratio(values, np.ones(len(values)))
