"""What the source partitions contribute to one item, packed into bytes: a tenth of the memory of arrays by partition, since most items are
looked at in few partitions, and bytes never change under a reader who kept them.

K numbers of an item. All of an item stands as from the base of its latest event (see `features.decay`): when that moves, what is held is
multiplied by a power of two, which floating point does exactly.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.decay import HalfLives
from features.rows import ItemRow

PART_HEAD = [("partition", "<i4"), ("offset", "<i8"), ("time_ms", "<i8"), ("neighbours", "<i4")]
"""Of one partition: up to where it is folded, its latest event, how many neighbours it has. Its numbers follow."""
HEAD = Struct("<iqqi")  # the same, for one at a time
NEIGHBOUR = np.dtype([("row", "<i4"), ("weight", "<f4")])


class Held(NamedTuple):
    """One item's contributions, in the order of partitions."""

    parts: bytes
    """Each partition's head and numbers, float32 [K]."""
    near: bytes
    """Each partition's neighbours, as NEIGHBOUR."""
    latest_ms: int
    """The latest event of any partition."""


class Layout:
    """Reads and replaces contributions of K numbers each, the k-th of which decays with half-life `half_life_of[k]`."""

    def __init__(self, half_lives: HalfLives, half_life_of: npt.NDArray[np.int64], of_neighbours: int) -> None:
        self._half_lives, self._half_life_of, self._of_neighbours = half_lives, half_life_of, of_neighbours
        self._part = np.dtype([*PART_HEAD, ("numbers", "<f4", (len(half_life_of),))])

    def replaced(self, held: Held, row: ItemRow, neighbours: Sequence[int]) -> Held | None:
        """`held` with `row` as what its partition contributes; None where a row at least as new is held. `neighbours`: rows of the row's."""
        size = self._part.itemsize
        parts, near, latest = held.parts, held.near, held.latest_ms
        start = end = near_start = near_end = 0
        for at in range(0, len(parts), size):
            partition, offset, _, count = HEAD.unpack_from(parts, at)
            if partition < row.partition:
                start = end = at + size
                near_start = near_end = near_end + NEIGHBOUR.itemsize * count
            elif partition == row.partition:
                if row.offset <= offset:
                    return None
                end, near_end = at + size, near_end + NEIGHBOUR.itemsize * count
        numbers, weights = np.array(row.numbers, np.float32), np.fromiter(row.neighbours.values(), np.float32, len(neighbours))
        if row.time_ms > latest:
            if parts:
                parts, near = self._moved(parts, near, latest, row.time_ms)
            latest = row.time_ms
        elif row.time_ms < latest and (factors := self._factors(row.time_ms, latest)) is not None:
            numbers, weights = numbers * factors[self._half_life_of], weights * factors[self._of_neighbours]
        own = HEAD.pack(row.partition, row.offset, row.time_ms, len(neighbours)) + numbers.tobytes()
        pairs = np.empty(len(neighbours), NEIGHBOUR)
        pairs["row"], pairs["weight"] = neighbours, weights
        return Held(parts[:start] + own + parts[end:], near[:near_start] + pairs.tobytes() + near[near_end:], latest)

    def total(self, parts: bytes) -> npt.NDArray[Any]:
        """[K] the sum over partitions."""
        numbers = np.frombuffer(parts, self._part)["numbers"]
        result: npt.NDArray[Any] = numbers[0] if len(numbers) == 1 else numbers.sum(axis=0, dtype=np.float64)
        return result

    def offsets(self, items: Sequence[bytes], partitions: int) -> list[list[int]]:
        """Of each of `items` (its parts), by partition: up to where it was folded, -1 where it contributed nothing."""
        parts = np.frombuffer(b"".join(items), self._part)
        found = np.full((len(items), partitions), -1, dtype=np.int64)
        item = np.repeat(np.arange(len(items)), [len(held) // self._part.itemsize for held in items])
        found[item, parts["partition"]] = parts["offset"]
        of_items: list[list[int]] = found.tolist()
        return of_items

    def _moved(self, parts: bytes, near: bytes, from_ms: int, to_ms: int) -> tuple[bytes, bytes]:
        if (factors := self._factors(from_ms, to_ms)) is None:
            return parts, near
        of_parts, of_near = np.frombuffer(parts, self._part).copy(), np.frombuffer(near, NEIGHBOUR).copy()
        of_parts["numbers"] *= factors[self._half_life_of]
        of_near["weight"] *= factors[self._of_neighbours]
        return of_parts.tobytes(), of_near.tobytes()

    def _factors(self, from_ms: int, to_ms: int) -> npt.NDArray[np.float32] | None:
        """By half-life, what values must be multiplied by when the latest event moves; None where no base does."""
        factors = self._half_lives.moved(from_ms, to_ms)
        return None if factors.count(1.0) == len(factors) else np.array(factors, np.float32)
