"""Exponential decay in event time, without touching what is already counted.

A value halves every `half_life`. Instead of ageing every value at every event, an event at time t adds 2^((t - base) / half_life) and
whoever reads at time T multiplies by 2^((base - T) / half_life): forward decay (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay: A
Practical Time Decay Model for Streaming Systems", ICDE 2009). `base` is the latest multiple of SPAN half-lives at or before the row's
latest event: when it moves, values are multiplied by a power of two, which floating point does exactly.
"""

from math import exp2

import numpy as np
import numpy.typing as npt

SPAN = 64  # half-lives from base to base: weights stay below 2^64, far from float64's 2^1024

Floats = npt.NDArray[np.float64]


def base_ms(time_ms: int, half_life_ms: int) -> int:
    """What a row whose latest event is at `time_ms` counts from."""
    span = SPAN * half_life_ms
    return time_ms // span * span


class HalfLives:
    """The half-lives of one kind of row, each once; features name theirs by position."""

    def __init__(self, half_lives_ms: list[int]) -> None:
        self.ms = half_lives_ms
        self._array = np.array(half_lives_ms, dtype=np.int64)
        self.since_ms, self.until_ms = 0, 0
        """Rows whose latest event lies in [since_ms, until_ms) share the bases of the latest call of `weights`."""
        self._bases: list[tuple[int, int]] = []  # (base, half-life)

    def weights(self, time_ms: int, row_ms: int = 0) -> list[float]:
        """Weights, by half-life, of an event at `time_ms` in a row whose latest event is at `row_ms` (by default: is this event)."""
        if time_ms > row_ms:
            row_ms = time_ms
        if not self.since_ms <= row_ms < self.until_ms:  # neighbouring events share their bases
            self._bases = [(base_ms(row_ms, h), h) for h in self.ms]
            self.since_ms = max((base for base, _ in self._bases), default=0)
            self.until_ms = min((base + SPAN * h for base, h in self._bases), default=2**62)
        return [exp2((time_ms - base) / h) for base, h in self._bases]

    def moved(self, from_ms: int, to_ms: int) -> list[float]:
        """What values must be multiplied by when the row's latest event moves; powers of two."""
        return [2.0 ** (SPAN * (from_ms // (SPAN * h) - to_ms // (SPAN * h))) for h in self.ms]

    def scale_of(self, row_ms: int, time_ms: int) -> Floats:
        """[H] as `scale`, of one row."""
        now = max(time_ms, row_ms)
        factor: Floats = np.exp2(np.array([(base_ms(row_ms, h) - now) / h for h in self.ms]))
        return factor

    def share_bases(self, earliest_ms: int, latest_ms: int) -> bool:
        """Whether all rows whose latest events lie between these count from the same."""
        return all(base_ms(earliest_ms, h) == base_ms(latest_ms, h) for h in self.ms)

    def scale(self, row_ms: npt.NDArray[np.int64], time_ms: int) -> Floats:
        """[…, H] what a stored value is to be multiplied by to be valued at `time_ms`, for rows whose latest events are at `row_ms` […].

        Never valued before the row's latest event: events stand at most the collector's tolerance ahead of now.
        """
        row = row_ms[..., None]
        base = row // (SPAN * self._array) * (SPAN * self._array)
        factor: Floats = np.exp2((base - np.maximum(time_ms, row)) / self._array)
        return factor
