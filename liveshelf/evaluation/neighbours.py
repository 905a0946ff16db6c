"""Session neighbours alone, learning with every event, and how their scores are read as chances."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.events import ENGAGEMENT, Event
from features.sessions import SessionIndex
from trainer.samples import UNKNOWN

AT = 20  # places of a list that is judged
SESSIONS_MAX = 500_000
CALIBRATED_ON = 2_000  # shelves of the beginning from which scores that are no chances are read as chances

Floats = npt.NDArray[Any]


class Neighbours:
    """Session kNN alone: it learns with every event."""

    def __init__(self) -> None:
        self._index = SessionIndex(SESSIONS_MAX)
        self._rows: dict[str, int] = {}
        self._items: list[str] = [""]
        self._visits: dict[str, list[int]] = {}

    def see(self, event: Event) -> None:
        if event.event_name not in ENGAGEMENT:
            return
        session = event.session or event.shopper
        visit = self._visits.setdefault(session, [])
        for item in event.items:
            row = self._rows.setdefault(item.item_id, len(self._items))
            if row == len(self._items):
                self._items.append(item.item_id)
            visit.append(row)
            self._index.see(session, row, event.time_ms / 1000)

    def scores(self, event: Event, items: Sequence[str]) -> tuple[Floats, list[str]]:
        """[len(items)] scores for the session that `event` goes on with, and the first AT of all items."""
        visit = self._visits.get(event.session or event.shopper, [])
        found, of = self._index.neighbours(visit, event.time_ms / 1000)
        if not len(found):
            return np.zeros(len(items)), []
        rows = np.array([self._rows.get(item, 0) for item in items])
        spot = np.minimum(np.searchsorted(found, rows), len(found) - 1)
        return np.where(found[spot] == rows, of[spot], 0.0), [
            self._items[row] for row in found[np.argsort(-of, kind="stable")[:AT]]
        ]


class Chances:
    """Scores that are no chances, read as such: a logistic curve over their logarithm, fitted to the shelves before the first evaluated one
    (Platt, 1999)."""

    def __init__(self) -> None:
        self._scores: list[Floats] = []
        self._clicks: list[Floats] = []
        self._curve: Floats | None = None

    def note(self, labels: Floats, scores: Floats) -> None:
        known = labels[:, 0] != UNKNOWN
        self._scores.append(scores[known])
        self._clicks.append(labels[known, 0])
        del self._scores[:-CALIBRATED_ON], self._clicks[:-CALIBRATED_ON]

    def of(self, scores: Floats) -> Floats:
        if self._curve is None:
            self._curve = logistic(np.concatenate(self._scores or [np.zeros(1)]), np.concatenate(self._clicks or [np.zeros(1)]))
        intercept, slope = self._curve
        chances: Floats = 1.0 / (1.0 + np.exp(-np.clip(intercept + slope * _log(scores), -30.0, 30.0)))
        return chances


def logistic(scores: Floats, clicks: Floats) -> Floats:
    """(intercept, slope) of the log odds of a click by the logarithm of its score; a ridge of 1e-3 keeps separable scores finite."""
    x = np.stack([np.ones(len(scores)), _log(scores)], axis=1)
    curve = np.zeros(2)
    for _ in range(25):  # Newton's method: it doubles the digits at each step
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ curve, -30.0, 30.0)))
        curve += np.linalg.solve((x.T * (p * (1 - p))) @ x + 1e-3 * np.eye(2), x.T @ (clicks - p) - 1e-3 * curve)
    return curve


def _log(scores: Floats) -> Floats:
    return np.log(np.maximum(scores, 0.0) + 1e-3)
