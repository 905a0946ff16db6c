"""Decides whether a newly learnt model may replace the live one. Pure: numbers in, a verdict with its reason out.

A model is refused when it is worse than the live one on shelves that neither has learnt from, by more than is tolerated at best guess, and
surely worse at all: the lower bound of the difference is above nothing (see `compare`). The bound keeps noise from refusing honest steps;
the tolerance keeps a difference that is sure and tiny from doing so. It is also refused when it may be far worse: the upper bound is high.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trainer.compare import Comparison, Worse
from trainer.metrics import Evaluation
from trainer.samples import Array

UNSEEN_MIN = 50
"""Fewer unseen shelves hold two or three clicks: what they say moves by tenths from chance alone, so quality is not judged."""
LOG_LOSS_WORSE_MAX = 0.01
"""Relative, on the latest shelves. Both models see the same ones, and one step moves an honest model by a few per mille."""
ORDER_WORSE_MAX = 0.01
"""Absolute, of the share of pairs in the right order."""
LOG_LOSS_UNSURE_MAX, ORDER_UNSURE_MAX = 0.06, 0.06
"""The upper bounds must stay below these: a model that may be as much worse, for all that the unseen shelves say, is not let through because
they are few. Honest steps change little, so their bounds are narrow (planted shops, 100 shelves and more: log loss at most .055)."""
EARLIER_SLACK = 3.0
"""Tolerances on what earlier steps set aside are this many times wider: shoppers may have moved on since, but a step whose own examples
are wrong (a broken join, a flood of false clicks) also sets wrong ones aside, and only the earlier ones show it. Honest steps on planted
shops: mostly below .015; with a quarter of the labels the wrong way round: .17 and more. After a true break in behaviour steps are refused
for a while (see REFUSED_IN_A_ROW_MAX in `step`)."""
CALIBRATION_OFF_MAX, CALIBRATION_WORSE_MIN = 1.3, 1.15
"""Chances may be off by this factor on the whole; beyond it, by this much more than the live model's, they are refused. Log loss
alone does not show it while the live model's own are off."""
CALIBRATED_MIN = 150  # actions: their number is known to 8% then
SLOWER_MAX, SLOWER_MS_MAX = 2.0, 2.0
"""A candidate may take this many times as long as the live model, and as many milliseconds more: both are the quickest of some calls, and on a
machine with other work those still move by a millisecond."""
SHOWN_SHARE_MIN = 0.5
"""Of the different items that the live model retrieves for the same shoppers: one that shows fewer than half as many has collapsed upon
a few. Honest steps on planted shops keep nine tenths and more."""
UNSERVABLE = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "SaveV2", "Print", "PrintV2"})
"""Operations that TensorFlow has and its model server has not (they call into Python), or that a scorer has no business running. Saving and
printing aside in what TensorFlow itself adds to a SavedModel: its save and restore functions."""


class Verdict(NamedTuple):
    promoted: bool
    reason: str


class Unseen(NamedTuple):
    """One model on examples that no model was trained on: the latest of the shelves really served, those that earlier steps set aside, and
    replayed ones with sampled negatives."""

    recent: Evaluation
    earlier: Evaluation
    replayed: Evaluation

    def named(self, prefix: str) -> dict[str, float]:
        """As flat metrics; a part without samples has none."""
        parts = {"served": self.recent, "earlier": self.earlier, "replayed": self.replayed}
        return {k: v for name, part in parts.items() if part.samples for k, v in part.named(f"{prefix}{name}").items()}


class Served(NamedTuple):
    """What a candidate did in a model server, beside the live model (None where there is none)."""

    rank_ms: float
    """The quickest ranking of the largest usual shelf."""
    live_rank_ms: float | None
    memory_mb: float
    """Of the server, with the candidate alone in it."""
    shoppers: int
    """Whose retrievals were looked at."""
    items: int
    """That the candidate knows."""
    shown_items: int
    """Different ones among the first that are retrieved for those shoppers."""
    live_shown_items: int | None

    def named(self) -> dict[str, float]:
        """As flat metrics, those that exist; `coverage` is the share of its items that a candidate shows."""
        values = self._asdict() | {"coverage": self.shown_items / self.items if self.items and self.shoppers else None}
        del values["shoppers"]
        return {name: float(value) for name, value in values.items() if value is not None}


MEASURED = ("rank_ms", "live_rank_ms", "memory_mb")
"""Metrics that a second run of the same step need not repeat: they are the machine's."""


class Contest(NamedTuple):
    """A candidate beside the live model on the same parts."""

    recent: list[Comparison]
    earlier: list[Comparison]
    replayed: list[Comparison]

    def named(self) -> dict[str, float]:
        """As flat metrics: how much worse, with bounds."""
        found = {}
        for name, part in zip(self._fields, self, strict=True):
            for c in part:
                for measure, worse in (("log_loss", c.log_loss), ("order", c.order)):
                    if worse is not None:
                        for bound, value in worse._asdict().items():
                            found[f"worse_{name}_{c.task}_{measure}_{bound}"] = value
        return found


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


def unservable(operations: Mapping[str, bool]) -> str:
    """Why a stock model server could not run it; empty when it could. `operations`: operation → whether plain TensorFlow has it."""
    wrong = sorted(name for name, known in operations.items() if not known or name in UNSERVABLE)
    return f"a stock model server does not run its operations {', '.join(wrong)}" if wrong else ""


def unfit(served: Served, rank_ms_max: float, memory_mb_max: float) -> str:
    """Why a model that can be served should not be: too slow, too large, or it shows too little of the catalog; empty when it may.

    Args:
        rank_ms_max: what a scorer waits for a ranking.
        memory_mb_max: what a model server with one version may take.
    """
    if not served.rank_ms <= rank_ms_max:
        return f"ranking takes {served.rank_ms:.1f} ms, and scorers wait {rank_ms_max:g} ms for it"
    live_ms = served.live_rank_ms
    if live_ms is not None and served.rank_ms > SLOWER_MAX * live_ms and served.rank_ms > live_ms + SLOWER_MS_MAX:
        return f"ranking takes {served.rank_ms:.1f} ms, the live model {live_ms:.1f} ms"
    if not served.memory_mb <= memory_mb_max:
        return f"a model server with it takes {served.memory_mb:.0f} MB, and may take {memory_mb_max:g} MB"
    shown, live_shown = served.shown_items, served.live_shown_items
    if live_shown is not None and served.shoppers >= UNSEEN_MIN and shown < SHOWN_SHARE_MIN * live_shown:
        return (
            f"it shows {shown} of its {served.items} items first to {served.shoppers} shoppers, the live model {live_shown}: it has "
            "collapsed upon a few"
        )
    return ""


def judge(contest: Contest | None) -> Verdict:
    """Compare on served shelves when there are enough, else on replayed ones, by order alone: their base rate is that of the sampled
    negatives, and learning the real one must not count against a model."""
    if contest is None:
        return Verdict(True, "first model: there is none to compare with")
    parts = (("recent", contest.recent, 1.0), ("earlier", contest.earlier, EARLIER_SLACK))
    judged = [(name, part, slack) for name, part, slack in parts if _shelves(part) >= UNSEEN_MIN]
    for name, part, slack in judged:
        if why := _worse(part, slack) or _miscalibrated(part):
            return Verdict(False, f"worse than the live model on {_shelves(part)} unseen {name} examples: {why}")
    if judged:
        return Verdict(
            True, f"not worse than the live model on {' and '.join(f'{_shelves(p)} unseen {n}' for n, p, _ in judged)} examples"
        )
    if _shelves(contest.replayed) >= UNSEEN_MIN:
        count = _shelves(contest.replayed)
        if why := _worse(contest.replayed, 1.0, by_log_loss=False):
            return Verdict(False, f"worse than the live model on {count} unseen replayed examples: {why}")
        return Verdict(True, f"not worse than the live model on {count} unseen replayed examples")
    few = max(_shelves(part) for part in contest)
    return Verdict(True, f"quality not judged: {few} unseen examples, {UNSEEN_MIN} are needed")


def _shelves(part: list[Comparison]) -> int:
    return part[0].shelves if part else 0


def _worse(part: list[Comparison], slack: float, by_log_loss: bool = True) -> str:
    """In what the candidate is worse; empty when in nothing. A figure that is not a number is worse."""
    for c in part:
        if by_log_loss and (how := _how_sure(c.log_loss, slack * LOG_LOSS_WORSE_MAX, LOG_LOSS_UNSURE_MAX)):
            return f"{c.task}: log loss by {c.log_loss.point:.1%} ({how} {getattr(c.log_loss, BOUND[how]):.1%})"
        if c.order is not None and (how := _how_sure(c.order, slack * ORDER_WORSE_MAX, ORDER_UNSURE_MAX)):
            figures = f"{c.order.point:.4f} more pairs in the wrong order ({how} {getattr(c.order, BOUND[how]):.4f})"
            return f"{c.task}: {figures}, of {c.positives} actions"
    return ""


BOUND = {"surely by": "low", "perhaps by": "high"}


def _how_sure(worse: Worse, tolerated: float, unsure_max: float) -> str:
    if not (worse.point <= tolerated or worse.low <= 0.0):
        return "surely by"
    return "" if worse.high <= unsure_max else "perhaps by"


def _miscalibrated(part: list[Comparison]) -> str:
    for c in part:
        if c.positives < CALIBRATED_MIN:
            continue
        off, live_off = (abs(np.log(max(value, 1e-9))) for value in (c.calibration, c.live_calibration))
        if not (off <= np.log(CALIBRATION_OFF_MAX) or off <= live_off + np.log(CALIBRATION_WORSE_MIN)):
            return f"{c.task}: chances add up to {c.calibration:.2f} of what happened, the live model's to {c.live_calibration:.2f}"
    return ""
