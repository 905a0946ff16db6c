"""The exploration policy, and with what probability it shows what: pure.

The last fifth of a shelf's positions explore. Each of them has a pool of its own: candidates that the greedy shelf would not show, dealt
out in turn, so that no candidate stands in two pools. With probability 1 - `share` a position shows the greedy item, otherwise one of its
pool: a new item with probability NEW_SHARE where the pool has one (the exploration floor: behaviour cannot rank what nobody was shown),
any other alike. Positions are independent and pools disjoint, so each item can stand at one position only, and the probability logged with
it is exactly the one with which the policy shows it at all: what inverse propensity scoring needs.
"""

import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Order = npt.NDArray[np.intp]

EXPLORING = 5  # one position of this many
POOL = 20  # candidates a position may show instead; more would spread too thin to learn from
NEW_SHARE = 0.5


class Pool(NamedTuple):
    """What one exploring position may show instead of its greedy item: places of new items and of others."""

    new: list[int]
    others: list[int]

    def propensity(self, new: bool, share: float) -> float:
        """Of one of the new items, or of one of the others."""
        if not self.new or not self.others:
            return share / (len(self.new) + len(self.others))
        return share * NEW_SHARE / len(self.new) if new else share * (1 - NEW_SHARE) / len(self.others)


class Chosen(NamedTuple):
    """The shelf: places best first, the probability of each to stand there, and which of them were explored."""

    places: list[int]
    propensities: list[float]
    explored: list[bool]


def explore(order: Order, is_new: npt.NDArray[np.bool_], count: int, share: float, seed: str, fixed: int = 0) -> Chosen:
    """The first `count` of `order` (places, best first), explored. Equal arguments give equal shelves.

    Args:
        is_new: by place, whether an item has the floor.
        share: probability with which an exploring position explores; 0 for the greedy shelf.
        seed: of this request.
        fixed: leading places that are not to be replaced (pinned ones come first).
    """
    greedy = order[:count].tolist()
    chosen = Chosen(greedy, [1.0] * len(greedy), [False] * len(greedy))
    slots = min(count // EXPLORING, len(greedy) - fixed)
    if share <= 0 or slots <= 0 or len(order) <= count:
        return chosen
    pools = _pools(order[count:], is_new, slots)
    draw = random.Random(seed)  # noqa: S311 - a choice of items, not of keys
    for position, pool in zip(range(len(greedy) - slots, len(greedy)), pools, strict=True):
        if not pool.new and not pool.others:
            continue
        chosen.propensities[position] = 1.0 - share
        if draw.random() >= share:
            continue
        new = bool(pool.new) and (not pool.others or draw.random() < NEW_SHARE)
        chosen.places[position] = draw.choice(pool.new if new else pool.others)
        chosen.propensities[position] = pool.propensity(new, share)
        chosen.explored[position] = True
    return chosen


def _pools(rest: Order, is_new: npt.NDArray[np.bool_], slots: int) -> list[Pool]:
    """Deal the best of what is left, and the best of the new ones, to the positions in turn."""
    new = rest[is_new[rest]][: slots * POOL // 2]
    others = rest[~is_new[rest]][: slots * POOL - len(new)]
    return [Pool(new[slot::slots].tolist(), others[slot::slots].tolist()) for slot in range(slots)]
