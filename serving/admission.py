"""Admission control: what is under way is bounded, and what is over the bound is refused before any work is done. There is no queue."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.status import overloaded


class Admission:
    """A count of requests under way, on one event loop.

    A queue would only make everybody wait: at a load above what the scorer can do it never empties, and requests would be answered after
    their callers have gone. Refusing at once keeps the time of the admitted ones, and costs a fraction of what answering does.
    """

    def __init__(self, limit: int, what: str) -> None:
        assert limit >= 1
        self.limit, self.under_way, self._what = limit, 0, what

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot.

        Raises:
            ApiError: RESOURCE_EXHAUSTED, all are taken.
        """
        if self.under_way >= self.limit:
            raise overloaded(
                f"{self.under_way} {self._what} are under way, as many as this scorer takes at once. Try again in a moment."
            )
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    @contextmanager
    def more(self, wanted: int) -> Iterator[int]:
        """Hold up to `wanted` further slots, at most half of the free ones so that others get in, and say how many; possibly none."""
        granted = max(min(wanted, (self.limit - self.under_way) // 2), 0)
        self.under_way += granted
        try:
            yield granted
        finally:
            self.under_way -= granted
