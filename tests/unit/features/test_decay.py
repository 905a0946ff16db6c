"""Forward decay: weights halve exactly where they should, bases move by exact powers of two, and nothing overflows."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.decay import SPAN, HalfLives, base_ms
from tests.folding import DAY_MS, HOUR_MS, T0

HALF_LIVES = [HOUR_MS, 3 * HOUR_MS, DAY_MS, 14 * DAY_MS]
TIMES = st.integers(1, 4_102_444_799_999)  # what an event's time may be: up to 2100


def value(half_lives: HalfLives, stored: list[float], row_ms: int, time_ms: int) -> list[float]:
    scale = half_lives.scale(np.asarray(row_ms), time_ms).tolist()
    return [one * factor for one, factor in zip(stored, scale, strict=True)]


@given(TIMES, st.integers(0, 40))
def test_a_value_halves_every_half_life(time_ms: int, halvings: int) -> None:
    half_lives = HalfLives(HALF_LIVES)
    stored = half_lives.weights(time_ms)
    for at, half_life in enumerate(HALF_LIVES):
        later = value(half_lives, stored, time_ms, time_ms + halvings * half_life)[at]
        assert later == pytest.approx(0.5**halvings, rel=1e-12)


@given(TIMES, TIMES)
def test_moving_a_base_multiplies_by_an_exact_power_of_two(one: int, other: int) -> None:
    """So a value's digits stay, and moving in several steps is moving at once."""
    early, late = sorted((one, other))
    half_lives = HalfLives(HALF_LIVES)
    for factor, half_life in zip(half_lives.moved(early, late), HALF_LIVES, strict=True):
        distance = (base_ms(early, half_life) - base_ms(late, half_life)) / half_life
        assert distance == int(distance)
        assert factor == math.ldexp(1.0, max(int(distance), -5000))
        if factor >= 2.0**-1000:
            assert math.frexp(factor)[0] == 0.5
            assert 1.1 * factor / factor == 1.1
    middle = (early + late) // 2
    first, second = half_lives.moved(early, middle), half_lives.moved(middle, late)
    assert [a * b for a, b in zip(first, second, strict=True)] == half_lives.moved(early, late)


def test_bases_are_multiples_of_the_span_at_or_before_a_time() -> None:
    span = SPAN * HOUR_MS
    assert [base_ms(t, HOUR_MS) for t in (0, span - 1, span, span + 1)] == [0, 0, span, span]


@given(st.lists(st.tuples(TIMES, TIMES), max_size=20))
def test_weights_do_not_depend_on_what_was_asked_before(asked: list[tuple[int, int]]) -> None:
    """Neighbouring events share their bases; whatever came in between, the answer is that of a fresh instance."""
    shared = HalfLives(HALF_LIVES)
    for time_ms, row_ms in asked:
        assert shared.weights(time_ms, row_ms) == HalfLives(HALF_LIVES).weights(time_ms, row_ms)
        assert shared.since_ms <= max(time_ms, row_ms) < shared.until_ms


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_absurd_times_neither_overflow_nor_become_infinite(one: int, other: int) -> None:
    early, late = sorted((one, other))
    half_lives = HalfLives([1000, *HALF_LIVES])
    for time_ms in (early, late):
        assert all(0.0 <= weight < 2.0**SPAN for weight in half_lives.weights(time_ms, late))
    assert all(0.0 <= factor <= 1.0 for factor in half_lives.moved(early, late))
    with np.errstate(over="raise", invalid="raise"):
        for row_ms, now_ms in ((early, late), (late, early)):
            scale = half_lives.scale(np.array([row_ms]), now_ms)
            assert np.isfinite(scale).all()
            assert (scale <= 1.0).all()


def test_a_row_is_never_valued_before_its_latest_event() -> None:
    half_lives = HalfLives(HALF_LIVES)
    stored = half_lives.weights(T0)
    assert value(half_lives, stored, T0, T0 - DAY_MS) == value(half_lives, stored, T0, T0) == pytest.approx([1.0] * 4)
