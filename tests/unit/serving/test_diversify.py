"""Variety of a shelf."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.diversify import Kinds, diversify

SCORES = np.array([1.0, 0.99, 0.98, 0.97, 0.5, 0.4, 0.0])
CATEGORY = np.array([0, 0, 0, 0, 1, 2, 3], dtype=np.int32)
BRAND = np.array([0, 0, 1, 1, 2, 2, -1], dtype=np.int32)


def shelf(strength: float, count: int = 3) -> list[int]:
    return diversify(SCORES, np.arange(7), Kinds(CATEGORY, BRAND), count, strength)[:count].tolist()


def test_strength_trades_relevance_for_variety() -> None:
    assert shelf(0.0) == [0, 1, 2]
    assert shelf(0.2) == [0, 2, 1]  # of the same category, the one of another brand
    assert shelf(1.0) == [0, 4, 2]


def test_unknown_kinds_are_like_nothing() -> None:
    none = np.full(7, -1, dtype=np.int32)
    assert diversify(SCORES, np.arange(7), Kinds(none, none), 5, 1.0).tolist() == list(range(7))


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=60),
    st.integers(1, 12),
    st.floats(0, 1),
)
def test_the_best_comes_first_and_nothing_is_lost(items: list[tuple[float, int, int]], count: int, strength: float) -> None:
    scores = np.array([s for s, _, _ in items])
    kinds = Kinds(np.array([c for _, c, _ in items], dtype=np.int32), np.array([b for _, _, b in items], dtype=np.int32))
    order = np.argsort(-scores, kind="stable")
    found = diversify(scores, order, kinds, count, strength)
    assert sorted(found.tolist()) == list(range(len(items)))
    assert found[0] == order[0]
