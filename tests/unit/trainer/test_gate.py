"""The gate: what is broken or worse than the live model is refused, with the reason."""

import numpy as np
import pytest

from trainer.compare import Comparison, Worse
from trainer.gate import UNSEEN_MIN, Contest, Served, judge, unfit, unservable, unsound

SHAPES = {"rank/click": (2, 3), "retrieve/item": (2, 9)}
GOOD = {name: (shape, True) for name, shape in SHAPES.items()}
WEIGHTS = {"item": np.ones((3, 2), np.float32)}
SAME = Worse(0.0, 0.0, 0.0)
NAN = float("nan")
SERVED = Served(rank_ms=2.0, live_rank_ms=2.0, memory_mb=400.0, shoppers=300, items=900, shown_items=70, live_shown_items=80)


def on(
    shelves: int,
    loss: Worse = SAME,
    order: Worse | None = SAME,
    task: str = "click",
    calibration: float = 1.0,
    live: float = 1.0,
    positives: int = 200,
) -> list[Comparison]:
    return [Comparison(task, shelves, positives, loss, order, calibration, live)]


def contest(recent: list[Comparison], earlier: list[Comparison] | None = None, replayed: list[Comparison] | None = None) -> Contest:
    return Contest(recent, earlier or [], replayed or [])


def test_a_sound_model_passes() -> None:
    assert unsound(WEIGHTS, GOOD, SHAPES) == ""
    assert unservable({"MatMul": True}) == ""
    assert unfit(SERVED, rank_ms_max=100.0, memory_mb_max=500.0) == ""
    assert unfit(SERVED._replace(live_rank_ms=None, live_shown_items=None), 100.0, 500.0) == ""


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


@pytest.mark.parametrize(
    ("operations", "named"), [({"MatMul": True, "OurOwn": False}, "OurOwn"), ({"MatMul": True, "EagerPyFunc": True}, "EagerPyFunc")]
)
def test_refuses_operations_that_a_stock_server_has_not(operations: dict[str, bool], named: str) -> None:
    assert unservable(operations) == f"a stock model server does not run its operations {named}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rank_ms": 101.0}, "ranking takes 101.0 ms, and scorers wait 100 ms for it"),
        ({"rank_ms": NAN}, "ranking takes nan ms"),
        ({"rank_ms": 4.1}, "ranking takes 4.1 ms, the live model 2.0 ms"),
        ({"rank_ms": 3.9}, ""),  # by less than twice
        ({"rank_ms": 1.5, "live_rank_ms": 0.5}, ""),  # three times, and by a millisecond
        ({"memory_mb": 501.0}, "a model server with it takes 501 MB, and may take 500 MB"),
        ({"memory_mb": NAN}, "takes nan MB"),
        ({"shown_items": 39}, "it shows 39 of its 900 items first to 300 shoppers, the live model 80: it has collapsed upon a few"),
        ({"shown_items": 40}, ""),
        ({"shown_items": 1, "shoppers": UNSEEN_MIN - 1}, ""),  # too few to tell
    ],
)
def test_refuses_what_is_slow_or_large_or_shows_little(change: dict[str, float], reason: str) -> None:
    found = unfit(SERVED._replace(**change), rank_ms_max=100.0, memory_mb_max=500.0)
    assert reason in found if reason else found == ""


def test_what_was_measured_becomes_metrics() -> None:
    assert SERVED.named()["coverage"] == 70 / 900
    assert set(SERVED.named()) == {"rank_ms", "live_rank_ms", "memory_mb", "coverage", "items", "shown_items", "live_shown_items"}
    alone = SERVED._replace(live_rank_ms=None, live_shown_items=None, shoppers=0, shown_items=0)
    assert set(alone.named()) == {"rank_ms", "memory_mb", "items", "shown_items"}, "nobody to retrieve for says nothing of coverage"


def test_the_first_model_has_nothing_to_beat() -> None:
    assert judge(None).promoted


@pytest.mark.parametrize(
    ("recent", "promoted"),
    [
        (on(100), True),
        (on(100, loss=Worse(0.009, 0.004, 0.014)), True),  # surely worse, by less than is tolerated
        (on(100, loss=Worse(0.02, -0.01, 0.05)), True),  # perhaps a little worse, perhaps not
        (on(100, loss=Worse(0.03, -0.02, 0.08)), False),  # perhaps far worse
        (on(100, order=Worse(0.00, -0.08, 0.08)), False),
        (on(100, loss=Worse(0.02, 0.001, 0.04)), False),
        (on(100, order=Worse(0.02, 0.001, 0.04)), False),
        (on(100, order=Worse(0.02, -0.001, 0.04)), True),
        (
            on(100, loss=Worse(-0.5, -0.6, -0.4), order=Worse(0.3, 0.2, 0.4)),
            False,
        ),  # better on one measure does not pay for the other
        (on(100, loss=Worse(NAN, NAN, NAN)), False),
        (on(100, order=Worse(NAN, NAN, NAN)), False),
        (on(100, order=None), True),
        (on(100) + on(100, order=Worse(0.02, 0.001, 0.04), task="purchase"), False),  # nor one objective for another
    ],
)
def test_is_refused_when_worse_beyond_tolerance_and_surely(recent: list[Comparison], promoted: bool) -> None:
    verdict = judge(contest(recent))
    assert verdict.promoted is promoted
    assert "100 unseen recent" in verdict.reason


def test_the_reason_names_the_objective_and_both_figures() -> None:
    reason = judge(contest(on(100) + on(100, loss=Worse(0.05, 0.02, 0.08), task="cart"))).reason
    assert reason == "worse than the live model on 100 unseen recent examples: cart: log loss by 5.0% (surely by 2.0%)"


def test_poison_that_is_also_set_aside_shows_on_the_earlier_examples() -> None:
    """Better on the latest, of which most are as wrong as what was learnt; far worse on what was set aside before."""
    verdict = judge(contest(on(200, loss=Worse(-0.3, -0.4, -0.2)), earlier=on(100, loss=Worse(0.2, 0.1, 0.3))))
    assert not verdict.promoted
    assert "100 unseen earlier examples: click: log loss by 20.0%" in verdict.reason
    assert "(perhaps by 9.0%)" in judge(contest(on(200, loss=Worse(0.0, -0.09, 0.09)))).reason
    assert judge(contest(on(200), earlier=on(100, loss=Worse(0.025, 0.02, 0.03)))).promoted, "shoppers may have moved on a little"


@pytest.mark.parametrize(
    ("calibration", "live", "promoted"),
    [(1.25, 1.0, True), (1.35, 1.0, False), (0.7, 1.0, False), (0.7, 0.75, True), (NAN, 1.0, False)],
)
def test_chances_that_no_longer_add_up_are_refused(calibration: float, live: float, promoted: bool) -> None:
    off = on(100, calibration=calibration, live=live)
    for verdict in (judge(contest(off)), judge(contest(on(100), earlier=off))):
        assert verdict.promoted is promoted
        assert promoted or "of what happened" in verdict.reason
    assert judge(contest(on(100, calibration=calibration, live=live, positives=100))).promoted, "few actions add up to anything"


def test_replayed_examples_judge_by_order_alone_while_served_ones_are_few() -> None:
    few = on(UNSEEN_MIN - 1, loss=Worse(9.0, 8.0, 10.0))
    assert judge(contest(few, replayed=on(300, loss=Worse(3.0, 2.0, 4.0)))).promoted
    assert not judge(contest(few, replayed=on(300, order=Worse(0.1, 0.05, 0.15)))).promoted


def test_too_few_unseen_examples_are_not_judged_and_the_reason_says_so() -> None:
    verdict = judge(contest(on(3, loss=Worse(9.0, 8.0, 10.0))))
    assert verdict.promoted
    assert "not judged: 3 unseen examples, 50 are needed" in verdict.reason
