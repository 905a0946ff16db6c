"""The session index: answers as plain loops do, whichever way it was fed, and forgets what it displaced."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.sessions import LENGTH, NONE, SessionIndex, Weights

Session = list[int]
SESSIONS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=26), min_size=1, max_size=12)
VISIT = st.lists(st.integers(1, 14), min_size=1, max_size=14)
WEIGHTS = Weights(recency=5.0)


def fed(sessions: list[Session], capacity: int = 100, weights: Weights = WEIGHTS) -> SessionIndex:
    index = SessionIndex(capacity, weights)
    index.extend((key, items, float(key)) for key, items in enumerate(sessions))
    return index


def plainly(sessions: list[Session], visit: Session, time: float) -> dict[int, list[float]]:
    """The definition, session by session and click by click."""
    w, latest = WEIGHTS, visit[-WEIGHTS.query :][::-1]
    places: dict[int, int] = {}
    for place, item in enumerate(latest):
        places.setdefault(item, place)
    scores: dict[int, list[float]] = {}
    for at, whole in enumerate(sessions):
        kept = whole[-LENGTH:]
        shared = set(kept) & set(places)
        if not shared:
            continue
        holding = {item: sum(item in other[-LENGTH:] for other in sessions) for item in shared}
        idf = {item: math.log(1 + (len(sessions) + 1) / (holding[item] + 1)) for item in shared}
        recency = math.exp(-(time - at) / w.recency)
        match = sum(math.exp(-places[item] / w.position) * idf[item] for item in shared) / len(kept) ** w.length * recency
        best = min(places[item] for item in shared)
        pivot = max(k for k, item in enumerate(kept) if places.get(item) == best)
        last = max((k for k, item in enumerate(kept) if item == latest[0]), default=None)
        for k, item in enumerate(kept):
            near = math.exp(-abs(k - pivot) / w.distance) * (1.0 if k > pivot else w.back)
            pair = 0.0 if last is None or k == last else (1.0 if k > last else w.back) / abs(k - last) * recency
            after = recency if k and kept[k - 1] == latest[0] else 0.0
            of = scores.setdefault(item, [0.0] * 5)
            for column, value in enumerate((match * near, match * recency**2 * near, pair, after, match)):
                of[column] += value
    return scores


@settings(deadline=None)
@given(SESSIONS, VISIT)
def test_a_query_answers_as_plain_loops_do(sessions: list[Session], visit: Session) -> None:
    index = fed(sessions)
    found = index.query(visit, float(len(sessions)))
    rows, weights = index.neighbours(visit, float(len(sessions)))
    assert (rows.tolist(), weights.tolist()) == (found.rows.tolist(), found.scores[:, 0].tolist())
    expected = plainly(sessions, visit, float(len(sessions)))
    assert found.rows.tolist() == sorted(expected)
    np.testing.assert_allclose(found.scores, np.array([expected[row] for row in sorted(expected)]).reshape(-1, 5), rtol=1e-9)


@settings(deadline=None)
@given(SESSIONS, VISIT, st.randoms(use_true_random=False), st.integers(1, 12))
def test_fed_click_by_click_it_is_as_built_at_once(sessions: list[Session], visit: Session, order: object, capacity: int) -> None:
    """Also when sessions interleave, and when the oldest are displaced."""
    capacity = max(capacity, len(sessions) if order.random() < 0.5 else capacity)  # type: ignore[attr-defined]
    slow = SessionIndex(capacity, WEIGHTS)
    if capacity >= len(sessions):  # displaced sessions end with their displacement, so only living ones may interleave
        for key, items in enumerate(sessions):
            slow.see(key, items[0], float(key))
        rest = [(key, at) for key, items in enumerate(sessions) for at in range(1, len(items))]
        order.shuffle(rest)  # type: ignore[attr-defined]
        rest.sort(key=lambda click: click[1])
    else:
        rest = [(key, at) for key, items in enumerate(sessions) for at in range(len(items))]
    for key, at in rest:
        slow.see(key, sessions[key][at], float(key))
    once, time = fed(sessions, capacity).query(visit, 20.0), 20.0
    click_by_click = slow.query(visit, time)
    assert click_by_click.rows.tolist() == once.rows.tolist()
    np.testing.assert_allclose(click_by_click.scores, once.scores, rtol=1e-9)


@settings(deadline=None)
@given(SESSIONS, VISIT, st.integers(1, 12))
def test_what_is_displaced_leaves_no_trace(sessions: list[Session], visit: Session, capacity: int) -> None:
    full = fed(sessions, capacity)
    kept = SessionIndex(capacity, WEIGHTS)
    kept.extend((key, items, float(key)) for key, items in list(enumerate(sessions))[-capacity:])
    assert len(full) == len(kept) == min(capacity, len(sessions))
    found, expected = full.query(visit, 20.0), kept.query(visit, 20.0)
    assert found.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9)


def test_nothing_in_common_finds_nothing() -> None:
    assert fed([[1, 2]]).query([3], 1.0) is NONE
    assert fed([[1, 2]]).query([], 1.0) is NONE


def test_an_items_latest_sessions_are_looked_at() -> None:
    index = fed([[1, 2], [1, 3], [1, 4]], weights=Weights(recency=5.0, sessions_max=2))
    assert index.query([1], 3.0).rows.tolist() == [1, 3, 4]


def test_popularity_halves_with_age() -> None:
    index = fed([[1], [1, 2]])
    np.testing.assert_allclose(index.popularity(3, 1.0, (1.0,))[:, 0], [0.0, 1.5, 1.0])
