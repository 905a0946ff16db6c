"""Item ids ↔ rows of the item table: 0 pads, the next few are shared by unknown ids (by hash), then one row an item.

An item gets a row of its own once it has been sighted often enough, and loses it when nobody has seen it for long, or when the table is full
and it is the one unseen longest. No two items ever share a row. As in Monolith (Liu et al., 2022, section 2.1.2), where filtering by
occurrence and by age keeps the tables small without loss of quality.
"""

from collections import Counter
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

OOV_ROWS = 8  # unknown items share these: enough that two new items on one shelf mostly differ
FIRST_ROW = 1 + OOV_ROWS
EXPIRED_SHARE_MAX = 0.1
"""Of the table's items, at one sighting: a clock that jumps must not empty the table, and what really is unused goes a little later."""
DAY_MS = 24 * 3_600_000

Arrays = dict[str, npt.NDArray[Any]]


class Limits(NamedTuple):
    """What bounds the table."""

    items_max: int = 200_000
    """Items with a row of their own; as many more may be waiting for one."""
    sightings_min: int = 2
    """Sightings before an item gets a row."""
    unused_days_max: int = 90
    """Days without a sighting, by the time of the events, after which an item's row is taken back."""


class Turnover(NamedTuple):
    """What became of the table's rows. A row may be in both: taken from one item and given to another."""

    given: list[int]
    taken: list[int]


class Vocabulary:
    """Which item each row is of. `ids` holds them by row - FIRST_ROW, b"" where a row is free."""

    def __init__(self, ids: Iterable[bytes] = (), limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.ids: list[bytes] = []
        self.time_ms = 0
        """The latest time of a sighting."""
        self._row_of: dict[bytes, int] = {b"": 0}
        self._last_used: list[int] = []
        self._free: list[int] = []  # a heap, so that rows are given in the same order after a restart
        self._waiting: dict[bytes, int] = {}
        self.admit(ids)

    def __len__(self) -> int:
        """Items that have a row."""
        return len(self._row_of) - 1

    @property
    def rows_used(self) -> int:
        """Up to the last row that was ever given."""
        return FIRST_ROW + len(self.ids)

    @property
    def items(self) -> dict[bytes, int]:
        """Item → row, by row."""
        return {item: FIRST_ROW + at for at, item in enumerate(self.ids) if item}

    def admit(self, ids: Iterable[bytes]) -> list[int]:
        """Give each new id a row at once, in the order given, whatever the limits say; the rows given."""
        given = []
        for item in ids:
            if item not in self._row_of:
                given.append(self._give(item))
        return given

    def see(self, sighted: Iterable[bytes], used: Iterable[bytes], time_ms: int) -> Turnover:
        """Count the sightings of items at `time_ms` (of events; an earlier one than before counts as that one) and apply the limits.

        `used` are items that are not to be expired now, but whose appearance is no sighting of its own.
        """
        self.time_ms = max(self.time_ms, time_ms)
        counts = Counter(sighted)
        for item in {**counts, **dict.fromkeys(used)}:
            if (row := self._row_of.get(item, 0)) > 0:
                self._last_used[row - FIRST_ROW] = self.time_ms
        ready = []
        for item, count in counts.items():
            if item not in self._row_of:
                self._waiting[item] = self._waiting.get(item, 0) + count
                if self._waiting[item] >= self.limits.sightings_min:
                    ready.append(item)
        taken = self._expire()
        room = self.limits.items_max - len(self)
        taken += self._make_room(len(ready) - room)
        given = []
        for item in ready[: self.limits.items_max - len(self)]:
            del self._waiting[item]
            given.append(self._give(item))
        self._forget_waiting()
        return Turnover(given, taken)

    def rows(self, items: npt.NDArray[Any], others: dict[bytes, int] | None = None) -> npt.NDArray[np.int32]:
        """Rows of `items` (dtype S, any shape), as the exported graph looks them up: own rows, then those of `others`, then by hash."""
        row_of = self._row_of
        flat = items.ravel()
        found = np.fromiter((row_of.get(item, -1) for item in flat.tolist()), np.int32, items.size)
        if others and (found < 0).any():
            at = np.flatnonzero(found < 0)
            found[at] = [others.get(item, -1) for item in flat[at].tolist()]
        unknown = found < 0
        if unknown.any():
            found[unknown] = 1 + hash_buckets(flat[unknown])
        return found.reshape(items.shape)

    def state(self) -> Arrays:
        """As arrays."""
        return {
            "vocabulary": np.array(self.ids, dtype="S"),
            "last_used": np.array(self._last_used, dtype=np.int64),
            "waiting": np.array(list(self._waiting), dtype="S"),
            "sightings": np.array(list(self._waiting.values()), dtype=np.int64),
            "sighted_at": np.array(self.time_ms, dtype=np.int64),
        }

    def restore(self, state: Arrays) -> None:
        """Take over what `state` returned; the limits stay."""
        self.ids = state["vocabulary"].tolist()
        self._row_of = {b"": 0} | self.items
        self._free = [FIRST_ROW + at for at, item in enumerate(self.ids) if not item]
        self._last_used = state["last_used"].tolist()
        self._waiting = dict(zip(state["waiting"].tolist(), state["sightings"].tolist(), strict=True))
        self.time_ms = int(state["sighted_at"])

    def _give(self, item: bytes) -> int:
        if self._free:
            row = heappop(self._free)
            self.ids[row - FIRST_ROW], self._last_used[row - FIRST_ROW] = item, self.time_ms
        else:
            row = self.rows_used
            self.ids.append(item)
            self._last_used.append(self.time_ms)
        self._row_of[item] = row
        return row

    def _take(self, row: int) -> int:
        del self._row_of[self.ids[row - FIRST_ROW]]
        self.ids[row - FIRST_ROW] = b""
        heappush(self._free, row)
        return row

    def _longest_unused(self, before_ms: int) -> list[int]:
        """Rows whose item was last seen before `before_ms`, the longest unseen first."""
        old = [
            (at_ms, row) for row, at_ms in enumerate(self._last_used, FIRST_ROW) if at_ms < before_ms and self.ids[row - FIRST_ROW]
        ]
        return [row for _, row in sorted(old)]

    def _expire(self) -> list[int]:
        unused = self._longest_unused(self.time_ms - self.limits.unused_days_max * DAY_MS)
        return [self._take(row) for row in unused[: int(len(self) * EXPIRED_SHARE_MAX)]]

    def _make_room(self, needed: int) -> list[int]:
        """Take `needed` rows from the items unseen longest; fewer when the others have just been seen."""
        return [self._take(row) for row in self._longest_unused(self.time_ms)[:needed]] if needed > 0 else []

    def _forget_waiting(self) -> None:
        """Keep no more counts than there may be rows: all of them halve, and those of one sighting go."""
        while len(self._waiting) > self.limits.items_max:
            self._waiting = {item: count // 2 for item, count in self._waiting.items() if count > 1}


def hash_buckets(items: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """The bucket (0 to OOV_ROWS - 1) of each id, by the hash that the graph uses (fingerprint64 modulo the buckets)."""
    import tensorflow as tf

    buckets: npt.NDArray[np.int32] = tf.strings.to_hash_bucket_fast(items, OOV_ROWS).numpy().astype(np.int32)
    return buckets
