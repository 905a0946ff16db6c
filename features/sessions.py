"""An index of recent sessions, and what followed in those that resemble a shopper's: session kNN, pure NumPy.

Items are rows ≥ 1; 0 stands for none. Times are in any one unit (seconds, or places in a log that has no times).
"""

import math
from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.catalog import first_places

LENGTH = 20  # latest items that are kept of a session: 99% of real ones are shorter
SCORES = ("neighbours", "fresh_neighbours", "pairs", "next", "together")

Rows = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Chosen on the last day of Yoochoose-100k's training data."""

    recency: float = 2.5 * 86_400
    """A session's weight falls by e in that time."""
    query: int = 10
    """The shopper's latest items that are looked up."""
    position: float = 2.5
    """An item's weight falls by e in so many places back in the shopper's visit."""
    sessions_max: int = 1_500
    """Of one item, the latest."""
    neighbours: int = 500
    distance: float = 3.0
    """A neighbour's item counts by its distance from the latest item in common, falling by e in so many places."""
    back: float = 0.6
    """What stands before that item, or is it, against what follows."""
    length: float = 0.25
    """Long sessions have something in common with everybody: similarity is divided by length to this power."""


class Found(NamedTuple):
    rows: Rows
    """[n] distinct, ascending."""
    scores: Floats
    """[n, 5] as SCORES: by neighbours; by fresh ones (recency cubed); directed pairs with the latest item, by distance; what came right after
    it; and neighbours without regard to place."""


class _Alike(NamedTuple):
    """Sessions that resemble a visit: where they stand, how much, how recent, and the places of the visit's items in it."""

    near: npt.NDArray[np.int64]
    match: Floats
    recency: Floats
    places: dict[int, int]


class _Clicks(NamedTuple):
    """All clicks of such sessions: the sessions' rows; of which session a click is, at which place, of which item; the distinct items,
    ascending, and which of them each is; and a click's weight by its distance from what its session has in common with the visit."""

    rows: Rows
    """[sessions, LENGTH]"""
    of: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    items: Rows
    found: Rows
    where: npt.NDArray[np.int64]
    by_distance: Floats


NONE = Found(np.zeros(0, np.int32), np.zeros((0, len(SCORES))))


class SessionIndex:
    """The `capacity` sessions that began last. Fed click by click; the result depends on the order of clicks within sessions and on the order
    in which sessions began, not on how they interleave. Not for several threads."""

    def __init__(self, capacity: int, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()
        self.capacity = capacity
        self.began = 0
        self._items = np.zeros((capacity, LENGTH), np.int32)
        self._length = np.zeros(capacity, np.int32)
        self._time = np.zeros(capacity)
        self._keys: list[Hashable] = [None] * capacity
        self._number: dict[Hashable, int] = {}
        # Item → numbers of the sessions that hold it, ascending; a session stands at its number modulo the capacity.
        self._sessions: dict[int, array[int]] = defaultdict(lambda: array("q"))
        self._by_length = np.arange(LENGTH + 1) ** self.weights.length
        distances = np.arange(1 - LENGTH, LENGTH)
        self._by_distance = np.exp(-np.abs(distances) / self.weights.distance) * np.where(distances > 0, 1.0, self.weights.back)
        self._weight = np.zeros(capacity)  # scratch, zero between queries
        self._first = np.zeros(capacity, np.int64)  # scratch
        self._place = np.zeros(1024, np.int64)  # scratch, by item

    def __len__(self) -> int:
        return min(self.began, self.capacity)

    def see(self, session: Hashable, item: int, time: float) -> None:
        """One click. A session that was displaced by newer ones begins anew."""
        number = self._number.get(session)
        if number is None:
            number = self._begin(session)
        at = number % self.capacity
        row, n = self._items[at], int(self._length[at])
        if n == LENGTH:
            gone = int(row[0])
            row[:-1] = row[1:]
            row[-1] = item
            if gone not in row:
                self._sessions[gone].remove(number)
        else:
            row[n] = item
            self._length[at] = n + 1
        holding = self._sessions[item]
        if not holding or (holding[-1] != number and (holding[-1] < number or not _holds(holding, number))):
            insort(holding, number)
        self._time[at] = max(float(self._time[at]), time)
        if item >= len(self._place):
            self._place = np.zeros(2 * item, np.int64)

    def extend(self, sessions: Iterable[tuple[Hashable, Sequence[int], float]]) -> None:
        """Whole sessions, by their beginning: key, items, time of the last click."""
        for key, items, time in sessions:
            for item in items[-LENGTH:]:
                self.see(key, item, time)

    def _begin(self, session: Hashable) -> int:
        number, self.began = self.began, self.began + 1
        at = number % self.capacity
        if number >= self.capacity:
            for item in set(self._items[at].tolist()) - {0}:
                assert self._sessions[item][0] == number - self.capacity, (item, number)
                del self._sessions[item][0]
            del self._number[self._keys[at]]
            self._items[at], self._length[at], self._time[at] = 0, 0, 0.0
        self._number[session], self._keys[at] = number, session
        return number

    def sessions_of(self, rows: Sequence[int] | Rows) -> Floats:
        """[len(rows)] how many sessions hold each."""
        return np.array([len(self._sessions[int(row)]) if int(row) in self._sessions else 0 for row in rows], dtype=np.float64)

    def popularity(self, items: int, time: float, half_lives: Sequence[float]) -> Floats:
        """[items, len(half_lives)] clicks, each halving in every half-life since its session's last; a look at everything, not for requests."""
        n = len(self)
        rows = self._items[:n]
        age = np.maximum(time - self._time[:n], 0.0)
        counted = [
            np.bincount(rows.ravel(), np.repeat(0.5 ** (age / half), LENGTH) * (rows.ravel() > 0), items) for half in half_lives
        ]
        return np.stack(counted, axis=1)

    def query(self, visit: Sequence[int], time: float) -> Found:
        """What shoppers went on to whose sessions have items of `visit` (oldest first) in common with it."""
        alike = self._alike(visit, time)
        if alike is None:
            return NONE
        _, match, recency, _ = alike
        rows, of, at, items, found, where, by_distance = self._clicks(alike)
        w, latest = self.weights, visit[-1]
        hit = rows == latest
        has = hit.any(axis=1)
        gap = at - (LENGTH - 1 - np.argmax(hit[:, ::-1], axis=1))[of]
        pair = np.where(gap > 0, 1.0, w.back) / np.maximum(np.abs(gap), 1) * ((gap != 0) & has[of]) * recency[of]
        after = np.zeros(len(of))
        after[1:] = (items[:-1] == latest) & (of[1:] == of[:-1])
        of_session, fresh = match[of], (match * recency**2)[of]
        values = (of_session * by_distance, fresh * by_distance, pair, after * recency[of], of_session)
        return Found(found, np.stack([np.bincount(where, value, len(found)) for value in values], axis=1))

    def neighbours(self, visit: Sequence[int], time: float) -> tuple[Rows, Floats]:
        """What `query` finds, and the first of its scores alone: in two thirds of the time."""
        alike = self._alike(visit, time)
        if alike is None:
            return NONE.rows, np.zeros(0)
        clicks = self._clicks(alike)
        weights = np.bincount(clicks.where, alike.match[clicks.of] * clicks.by_distance, len(clicks.found))
        return clicks.found, weights.astype(np.float64, copy=False)

    def _alike(self, visit: Sequence[int], time: float) -> _Alike | None:
        w, latest = self.weights, visit[-self.weights.query :][::-1]
        places: dict[int, int] = {}
        for place, item in enumerate(latest):
            places.setdefault(item, place)
        near, match = self._near(places)
        if not len(near):
            return None
        recency = np.exp(-np.maximum(time - self._time[near], 0.0) / w.recency)
        match = match / self._by_length[self._length[near]] * recency
        if len(near) > w.neighbours:
            top = np.argpartition(-match, w.neighbours)[: w.neighbours]
            near, match, recency = near[top], match[top], recency[top]
        return _Alike(near, match, recency, places)

    def _near(self, places: dict[int, int]) -> tuple[npt.NDArray[np.int64], Floats]:
        """Places of the sessions that share an item, and the weight of what they share."""
        parts: list[bytes] = []
        shared: list[float] = []
        held: list[int] = []
        for item, place in places.items():
            if holding := self._sessions.get(item):
                latest = holding[-self.weights.sessions_max :]
                parts.append(latest.tobytes())
                held.append(len(latest))
                # An item that every session holds still tells them from none.
                shared.append(math.exp(-place / self.weights.position) * math.log(1.0 + (len(self) + 1) / (len(holding) + 1)))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0)
        at = np.frombuffer(b"".join(parts), np.int64) % self.capacity
        np.add.at(self._weight, at, np.repeat(shared, held))
        near = at[first_places(at, self._first)]
        match = self._weight.take(near)
        self._weight[near] = 0.0
        return near, match

    def _clicks(self, alike: _Alike) -> _Clicks:
        rows = self._items[alike.near]
        flat = np.flatnonzero(rows)
        of, at = np.divmod(flat, LENGTH)
        items = rows.ravel()[flat]
        found, where = self._numbered(items)
        wanted = np.zeros(len(found))
        for item, place in alike.places.items():
            spot = int(np.searchsorted(found, item))
            if spot < len(found) and found[spot] == item:
                wanted[spot] = math.exp(-place / self.weights.position)
        shared = np.zeros(rows.shape)
        shared.ravel()[flat] = wanted[where]
        pivot = LENGTH - 1 - np.argmax(shared[:, ::-1], axis=1)
        return _Clicks(rows, of, at, items, found, where, self._by_distance[at - pivot[of] + LENGTH - 1])

    def _numbered(self, items: Rows) -> tuple[Rows, npt.NDArray[np.int64]]:
        """Distinct items, ascending, and each one's place among them; without sorting them all."""
        distinct = np.sort(items[first_places(items, self._place)])
        self._place[distinct] = np.arange(len(distinct))
        return distinct, self._place[items]


def _holds(holding: "array[int]", number: int) -> bool:
    at = bisect_left(holding, number)
    return at < len(holding) and holding[at] == number
