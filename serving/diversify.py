"""Diversity of a shelf: maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over category and brand. Pure.

An item's gain is its relevance less `strength` times its likeness to what stands on the shelf already: the most alike item counts in full,
each further one a little, so that a third hat is worth less than a second.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int32]
Order = npt.NDArray[np.intp]

CATEGORY_LIKENESS, BRAND_LIKENESS = 0.7, 0.3  # two hats of different makers are more alike than two things of one maker
AGAIN = 0.25  # what each further item like it adds
DEPTH = 5  # shelves' worth of candidates looked at: beyond it relevance is too low for variety to make up


class Kinds(NamedTuple):
    """[n] codes of what makes items alike; below 0: not known, and like nothing."""

    category: Codes
    brand: Codes


def diversify(scores: npt.NDArray[np.floating], order: Order, kinds: Kinds, count: int, strength: float) -> Order:
    """`order` (best first, places in `scores`) with its first `count` chosen one by one for relevance and variety.

    Args:
        strength: 0 keeps the order; at 1 an item exactly like one shown needs the whole range of scores to make up for it.
    """
    if strength <= 0 or count < 2 or len(order) < 2:
        return order
    depth = min(len(order), DEPTH * count)
    head = order[:depth]
    relevance = scores[head].astype(np.float64)
    spread = relevance[0] - relevance[-1]
    relevance = (relevance - relevance[-1]) / spread if spread > 0 else np.ones(depth)
    category, brand = kinds.category[head], kinds.brand[head]
    most, often = np.zeros(depth), np.zeros(depth)
    taken = np.zeros(depth, dtype=bool)
    chosen = []
    for _ in range(min(count, depth)):
        gain = relevance - strength * (most + AGAIN * (often - most))
        gain[taken] = -np.inf
        at = int(gain.argmax())
        chosen.append(at)
        taken[at] = True
        alike = CATEGORY_LIKENESS * ((category == category[at]) & (category[at] >= 0)) + BRAND_LIKENESS * (
            (brand == brand[at]) & (brand[at] >= 0)
        )
        np.maximum(most, alike, out=most)
        often += alike
    rest = head[~taken]
    return np.concatenate([head[chosen], rest, order[depth:]])
