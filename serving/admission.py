"""Admission control: what is under way is bounded, and what is over the bound is refused before any work is done. There is no queue."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from serving.status import overloaded

WORKING_MAX = 8  # requests worked on together: what the model server batches; more only make each turn of the event loop longer
QUIET_TURNS = 4  # of the event loop, within which grpc would have brought in a call that waits


class Admission:
    """A count of requests under way, on one event loop.

    A queue would only make everybody wait: at a load above what the scorer can do it never empties, and requests would be answered after
    their callers have gone. Refusing at once keeps the time of the admitted ones, and costs a fraction of what answering does.
    """

    def __init__(self, limit: int, what: str) -> None:
        assert limit >= 1
        self.limit, self.under_way, self._what = limit, 0, what
        self._came = 0
        self._working = asyncio.Semaphore(WORKING_MAX)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot.

        Raises:
            ApiError: RESOURCE_EXHAUSTED, all are taken.
        """
        self._came += 1
        if self.under_way >= self.limit:
            raise overloaded(
                f"{self.under_way} {self._what} are under way, as many as this scorer takes at once. Try again in a moment."
            )
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """With a slot held: wait until it is this request's turn to be worked on.

        grpc brings in one call a turn of the event loop. While requests are worked on in long turns, calls wait in grpc, where nobody
        refuses them, until their callers have gone: at 3 x capacity 5 % of it was answered in time. So those who wait come in first, and
        are admitted or refused; that costs a tenth of answering them.
        """
        async with self._working:
            if self.under_way > 1:
                came, quiet = self._came, 0
                while quiet < QUIET_TURNS:
                    await asyncio.sleep(0)
                    quiet = quiet + 1 if came == self._came else 0
                    came = self._came
            yield

    @contextmanager
    def more(self, wanted: int) -> Iterator[int]:
        """Hold up to `wanted` further slots, at most half of the free ones so that others get in, and say how many; possibly none."""
        granted = max(min(wanted, (self.limit - self.under_way) // 2), 0)
        self.under_way += granted
        try:
            yield granted
        finally:
            self.under_way -= granted
