"""Finds items whose clicks cannot be believed before anything is learnt from them: those of a seller's bots, say. Pure.

The gate judges models on shelves of all shoppers, on which one item has a place in fifty: what is done to that item alone is hard to see
there. Here each item's clicks are set beside those that the live model expects of the very same shelves and shoppers, so that an item
which is merely shown to those who like it is no suspect; and that beside the same ratio of all other items, so that it does not matter
whether the model's chances are right on the whole. As trimming does in robust statistics (Huber and Ronchetti, 2009, chapter 1), it bounds
what any one item can do to a step, whoever clicks, and however many they are. (A planted shop, half of all clicks made by bots on one item:
without this a version was served whose log loss on clean shelves was 8.5% worse, surely by 6.2%; with it none is, surely by 6%.)
"""

from typing import NamedTuple

import numpy as np

from trainer.samples import UNKNOWN, Array, Samples

TIMES = 3.0
"""As many clicks as expected, beside other items. A price that is halved doubles the clicks on an item, or so; what is below reaches the
model, and the gate."""
EXCESS_MIN, EXCESS_SHARE_MIN = 30, 0.03
"""Clicks beyond those expected, in number and as a share of all clicks: below, chance may have done it (30 more than 15 expected are 7 standard
deviations of a Poisson count), or it does too little to matter."""
OTHERS_MIN = 30  # clicks on other items, to know by what the live model is off on the whole
LOOKED_AT_MAX = 2_000  # shelves of a step: enough to see what makes up a thirtieth of all clicks
BELIEVED_AFTER = 20
"""Steps in a row that an item is suspected: what lasts longer is no flood but the way shoppers behave now (as for refusals, see
`step`), and each of the releases has told of it."""


class Suspect(NamedTuple):
    item: bytes
    shown: int
    clicks: int
    expected: float
    """By the live model, corrected by how it is off on all other items."""

    def __str__(self) -> str:
        return f"{self.item.decode(errors='replace')} got {self.clicks} clicks of {self.shown}, {self.expected:.0f} were expected"


def suspects(samples: Samples, chances: Array) -> list[Suspect]:
    """Items of `samples` whose clicks are far beyond what `chances` [N, C, 3] of the live model say; most clicks first."""
    assert chances.shape == samples.labels.shape, (chances.shape, samples.labels.shape)
    labels = samples.labels[:, :, 0]
    known = (labels != UNKNOWN) & (samples.candidates != b"")
    items, of = np.unique(samples.candidates[known], return_inverse=True)
    shown = np.bincount(of, minlength=len(items))
    clicks = np.bincount(of, labels[known] > 0, len(items))
    chance = np.bincount(of, chances[:, :, 0][known].astype(np.float64), len(items))
    found = np.zeros(len(items), bool)
    while True:
        # Of all items but those found and the one looked at: it must not be measured by itself.
        others = clicks[~found].sum() - np.where(found, 0.0, clicks)
        expected = chance * others / np.maximum(chance[~found].sum() - np.where(found, 0.0, chance), 1e-9)
        excess = clicks - expected
        off = (
            (clicks > TIMES * expected)
            & (excess > EXCESS_MIN)
            & (excess > EXCESS_SHARE_MIN * clicks.sum())
            & (others >= OTHERS_MIN)
        )
        if not (off & ~found).any():
            break
        found |= off
    order = [int(at) for at in np.argsort(-clicks, kind="stable") if found[at]]
    return [Suspect(items[at], int(shown[at]), int(clicks[at]), float(expected[at])) for at in order]


def without(samples: Samples, items: list[bytes]) -> Samples:
    """`samples` without the shelves on which one of `items` was acted on, since nobody knows whose they are, and with nothing known of
    those items on the others: else it would seem that nobody ever acted on them."""
    if not items:
        return samples
    suspected = np.isin(samples.candidates, items)
    believed = np.flatnonzero(~(suspected & (samples.labels > 0).any(axis=-1)).any(axis=1))
    labels = np.where(suspected[:, :, None], np.float32(UNKNOWN), samples.labels)
    return samples._replace(labels=labels).take(believed)


def believed_after(before: dict[str, int], now: list[Suspect]) -> tuple[list[Suspect], dict[str, int]]:
    """Which of the suspects `now` are held back, and for how many steps in a row each has been suspected; `before`: up to now."""
    counts = {suspect.item.decode(errors="replace"): 0 for suspect in now}
    counts = {item: before.get(item, 0) + 1 for item in counts}
    return [s for s in now if counts[s.item.decode(errors="replace")] <= BELIEVED_AFTER], counts
