"""The gate: what is broken or worse than the live model is refused, with the reason."""

import numpy as np
import pytest

from trainer.gate import UNSEEN_MIN, Unseen, judge, unsound
from trainer.metrics import Evaluation

SHAPES = {"rank/click": (2, 3), "retrieve/item": (2, 9)}
GOOD = {name: (shape, True) for name, shape in SHAPES.items()}
WEIGHTS = {"item": np.ones((3, 2), np.float32)}


def on(samples: int, log_loss: float = 0.5, auc: float | None = 0.7) -> Evaluation:
    return Evaluation(samples=samples, log_loss=log_loss, auc=auc, mrr=None)


def unseen(served: Evaluation, earlier: Evaluation | None = None, replayed: Evaluation | None = None) -> Unseen:
    return Unseen(served=served, earlier=earlier or on(0), replayed=replayed or on(0))


def test_a_sound_model_passes() -> None:
    assert unsound(WEIGHTS, GOOD, SHAPES) == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_weights_that_are_not_finite(value: float) -> None:
    weights = {"item": np.array([1.0, value])}
    assert "item holds 1 numbers that are not finite" in unsound(weights, GOOD, SHAPES)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (GOOD | {"rank/click": ((2, 4), True)}, r"rank/click has shape (2, 4), expected (2, 3)"),
        (GOOD | {"rank/click": ((2, 3), False)}, "rank/click holds numbers that are not finite"),
        ({"rank/click": ((2, 3), True)}, "retrieve/item is missing"),
    ],
)
def test_refuses_wrong_outputs(outputs: dict[str, tuple[tuple[int, ...], bool]], reason: str) -> None:
    assert reason in unsound(WEIGHTS, outputs, SHAPES)


def test_the_first_model_has_nothing_to_beat() -> None:
    assert judge(unseen(on(500)), None).promoted


@pytest.mark.parametrize(
    ("candidate", "live", "promoted"),
    [
        (on(100, 0.50, 0.70), on(100, 0.50, 0.70), True),
        (on(100, 0.504, 0.695), on(100, 0.50, 0.70), True),  # within tolerance
        (on(100, 0.51, 0.70), on(100, 0.50, 0.70), False),
        (on(100, 0.50, 0.68), on(100, 0.50, 0.70), False),
        (on(100, float("nan"), 0.70), on(100, 0.50, 0.70), False),
        (on(100, 0.40, None), on(100, 0.50, None), True),  # no click among them
    ],
)
def test_is_judged_on_unseen_served_examples(candidate: Evaluation, live: Evaluation, promoted: bool) -> None:
    verdict = judge(unseen(candidate), unseen(live))
    assert verdict.promoted is promoted
    assert "100 unseen served" in verdict.reason


def test_poison_that_is_also_set_aside_shows_on_the_earlier_examples() -> None:
    """Better on everything set aside, of which half is as wrong as what was learnt; far worse on what was set aside before."""
    candidate, live = unseen(on(200, 0.8), earlier=on(100, 0.9)), unseen(on(200, 1.2), earlier=on(100, 0.5))
    verdict = judge(candidate, live)
    assert not verdict.promoted
    assert "100 unseen earlier served examples: log loss 0.9000, live 0.5000" in verdict.reason


def test_replayed_examples_judge_by_auc_alone_while_served_ones_are_few() -> None:
    few = on(UNSEEN_MIN - 1, 9.0, 0.1)
    assert judge(unseen(few, replayed=on(300, 0.9, 0.70)), unseen(on(49), replayed=on(300, 0.3, 0.70))).promoted
    assert not judge(unseen(few, replayed=on(300, 0.3, 0.60)), unseen(on(49), replayed=on(300, 0.3, 0.70))).promoted


def test_too_few_unseen_examples_are_not_judged_and_the_reason_says_so() -> None:
    verdict = judge(unseen(on(3, 9.0)), unseen(on(3, 0.1)))
    assert verdict.promoted
    assert "not judged: 3 unseen examples, 50 are needed" in verdict.reason
