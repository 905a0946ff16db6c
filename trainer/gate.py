"""Decides whether a newly learnt model may replace the live one. Pure: numbers in, a verdict with its reason out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trainer.metrics import Evaluation
from trainer.samples import Array

UNSEEN_MIN = 50
"""Fewer unseen shelves hold two or three clicks: their AUC moves by tenths from chance alone, so quality is not judged."""
LOG_LOSS_WORSE_MAX = 0.01
"""Relative. Both models see the same shelves, and one step moves an honest model by a few per mille; 1% is beyond that noise."""
AUC_WORSE_MAX = 0.01
"""Absolute, for the same reason: on 50 and more shelves one step moves it by thousandths."""
EARLIER_SLACK = 5.0
"""Tolerances on what earlier steps set aside are this many times wider: shoppers may have moved on since, but a step whose own examples
are wrong (a broken join, a flood of false clicks) also sets wrong ones aside, and only the earlier ones show it. After a true break in
behaviour a step or two is refused, until its examples are earlier ones themselves."""


class Verdict(NamedTuple):
    promoted: bool
    reason: str


class Unseen(NamedTuple):
    """One model on examples that no model was trained on: shelves really served (all, and those set aside by earlier steps), and
    replayed ones with sampled negatives."""

    served: Evaluation
    earlier: Evaluation
    replayed: Evaluation

    def named(self, prefix: str) -> dict[str, float]:
        """As flat metrics; a part without samples has none."""
        parts = {"served": self.served, "earlier": self.earlier, "replayed": self.replayed}
        return {k: v for name, part in parts.items() if part.samples for k, v in part.named(f"{prefix}{name}").items()}


def unsound(
    weights: Mapping[str, Array], outputs: Mapping[str, tuple[tuple[int, ...], bool]], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Why a model cannot be served at all; empty when it can.

    Args:
        weights: every weight by name.
        outputs: output → (shape, all finite), as a loaded SavedModel gave them.
        shapes: the shapes it had to give.
    """
    for name, value in weights.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"weight {name} holds {int((~np.isfinite(value)).sum())} numbers that are not finite"
    for name, shape in shapes.items():
        if name not in outputs:
            return f"output {name} is missing"
        found, finite = outputs[name]
        if found != shape:
            return f"output {name} has shape {found}, expected {shape}"
        if not finite:
            return f"output {name} holds numbers that are not finite"
    return ""


def judge(candidate: Unseen, live: Unseen | None) -> Verdict:
    """Compare on served shelves when there are enough, else on replayed ones, by AUC alone: their base rate is that of the sampled
    negatives, and learning the real one must not count against a model."""
    if live is None:
        return Verdict(True, "first model: there is none to compare with")
    if candidate.served.samples >= UNSEEN_MIN:
        kind, count = "served", candidate.served.samples
        worse = _worse(candidate.served, live.served)
        if not worse and candidate.earlier.samples >= UNSEEN_MIN:
            kind, count = "earlier served", candidate.earlier.samples
            worse = _worse(candidate.earlier, live.earlier, slack=EARLIER_SLACK)
    elif candidate.replayed.samples >= UNSEEN_MIN:
        kind, count = "replayed", candidate.replayed.samples
        worse = _worse(candidate.replayed, live.replayed, by_log_loss=False)
    else:
        few = max(candidate.served.samples, candidate.replayed.samples)
        return Verdict(True, f"quality not judged: {few} unseen examples, {UNSEEN_MIN} are needed")
    if worse:
        return Verdict(False, f"worse than the live model on {count} unseen {kind} examples: {worse}")
    return Verdict(True, f"not worse than the live model on {count} unseen {kind} examples")


def _worse(candidate: Evaluation, live: Evaluation, slack: float = 1.0, by_log_loss: bool = True) -> str:
    """In what `candidate` is worse beyond tolerance; empty when in nothing. A figure that is not a number is worse."""
    if by_log_loss and not candidate.log_loss <= live.log_loss * (1 + slack * LOG_LOSS_WORSE_MAX):
        return f"log loss {candidate.log_loss:.4f}, live {live.log_loss:.4f}"
    if candidate.auc is not None and live.auc is not None and not candidate.auc >= live.auc - slack * AUC_WORSE_MAX:
        return f"AUC {candidate.auc:.4f}, live {live.auc:.4f}"
    return ""
