"""What the next-click model is asked: candidates and their columns, made in one place for training and for serving."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.sessions import LENGTH, SCORES, SessionIndex

NEIGHBOURS, RETRIEVED, PAIRS, RECENT = 60, 60, 10, 10
CANDIDATES = NEIGHBOURS + RETRIEVED + RECENT
COLUMNS = (*SCORES, "sessions", "popular_now", "popular_lately", "popular")
VISIT_COLUMNS = ("dwell", "sessions_of_latest")

Array = npt.NDArray[Any]


class Asker:
    """Over an index that stands still: popularity is taken when made, at the index's time `time`."""

    def __init__(self, index: SessionIndex, items: int, time: float) -> None:
        recency = index.weights.recency
        self.index, self.time = index, time
        self._popular = np.log1p(index.popularity(items, time, (0.1 * recency, 0.4 * recency, 1e12)))
        self._sessions = np.log1p(index.sessions_of(range(items)))

    def ask(self, visits: Sequence[Sequence[int]], times: Sequence[Sequence[float]], retrieved: Array) -> dict[str, Array]:
        """Rows of `visits` (oldest first, all known) and what the encoder `retrieved` [B, n] → recent [B, LENGTH] (latest first), candidates
        [B, CANDIDATES], candidate_features [B, CANDIDATES, len(COLUMNS)], visit_features [B, len(VISIT_COLUMNS)]."""
        b = len(visits)
        recent = np.zeros((b, LENGTH), np.int32)
        candidates = np.zeros((b, CANDIDATES), np.int32)
        columns = np.zeros((b, CANDIDATES, len(COLUMNS)), np.float32)
        side = np.zeros((b, len(VISIT_COLUMNS)), np.float32)
        for k, (visit, at) in enumerate(zip(visits, times, strict=True)):
            latest = visit[-LENGTH:][::-1]
            recent[k, : len(latest)] = latest
            found = self.index.query(visit, at[-1] if at else self.time)
            by_neighbours = found.rows[np.argsort(-found.scores[:, 0], kind="stable")[:NEIGHBOURS]]
            by_pairs = found.rows[np.argsort(-found.scores[:, 2], kind="stable")[:PAIRS]]
            chosen = dict.fromkeys(
                [*latest[:RECENT], *by_neighbours.tolist(), *retrieved[k][:RETRIEVED].tolist(), *by_pairs.tolist()]
            )
            rows = np.array([row for row in chosen if row][:CANDIDATES], np.int32)
            candidates[k, : len(rows)] = rows
            if len(found.rows) and len(rows):
                spot = np.minimum(np.searchsorted(found.rows, rows), len(found.rows) - 1)
                columns[k, : len(rows), : len(SCORES)] = found.scores[spot] * (found.rows[spot] == rows)[:, None]
            columns[k, : len(rows), len(SCORES)] = self._sessions[rows]
            columns[k, : len(rows), len(SCORES) + 1 :] = self._popular[rows]
            side[k, 0] = np.log1p(max(at[-1] - at[-2], 0.0)) if len(at) > 1 else 0.0
            side[k, 1] = self._sessions[latest[0]] if latest else 0.0
        return {"recent": recent, "candidates": candidates, "candidate_features": columns, "visit_features": side}
