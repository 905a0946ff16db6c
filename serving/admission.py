"""Admission control: what is under way is bounded, and what cannot be answered in time is refused before any work is done."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from serving.status import overloaded

WORKING_MAX = 16  # requests worked on together, as many as the model server is asked for at once; more only make turns of the event loop longer
HOME_S = 0.015  # of a call's deadline, kept for its answer's way home when the scorer is never idle
DEVIATIONS = 4  # that a request may take longer than the mean, as in TCP's retransmission timer (RFC 6298)
IDLE_SHARE_MAX = 0.25  # of the time between calls
BUSY_SHARE_MIN = 0.5  # likewise, of the event loop's processor time: who only waits for a part that is late is not overloaded
BRING_IN_S = 0.002  # what gRPC may take to bring in a call that waits; nothing is done meanwhile, and yet it is not idle
RECENT = 1 / 32  # weight of the latest call in what is remembered of all


class Admission:
    """A count of requests under way, on one event loop.

    A queue only makes everybody wait: at a load above what the scorer can do it never empties, and requests would be answered after their
    callers have gone. So there are two bounds: `limit`, and the caller's own deadline, which must leave time for those that wait before it
    (by Little's law, their number times the pace at which requests are done) and for its own work (nearly every request's time at work).

    gRPC keeps a queue of its own, which nobody sees: it brings in one call a turn of the event loop, the oldest first. Under overload those
    have almost no time left, and working on them makes the next ones just as old: at 3 x capacity 18 % of it was answered in time. Refusing
    them costs a tenth of answering, and lets younger calls in.
    """

    def __init__(
        self,
        limit: int,
        what: str,
        clock_s: Callable[[], float] = time.perf_counter,
        processor_s: Callable[[], float] = time.thread_time,
    ) -> None:
        assert limit >= 1
        self.limit, self.under_way, self._clock_s, self._processor_s = limit, 0, clock_s, processor_s
        # Made once: under overload most of the time goes into refusing.
        self._full = overloaded(f"{limit} {what} are under way, as many as this scorer takes at once. Try again in a moment.")
        self._too_late = overloaded(f"So many {what} are under way that this one would not be done in time. Try again in a moment.")
        self._working = asyncio.Semaphore(WORKING_MAX)
        self._waiting = self._at_work = 0
        self._pace_s = 0.0  # from one request done to the next
        self._work_s = self._deviation_s = 0.0  # of the time that one is worked on
        self._done_s = 0.0  # when the last one was done
        self._came_s = self._spent_s = 0.0  # when the last call came, and the processor time spent until then
        self._gap_s = self._idle_s = self._busy_s = 0.0  # between two calls; how much of it nothing was done; processor time in it

    @contextmanager
    def slot(self, left_s: float | None = None) -> Iterator[None]:
        """Hold one slot. `left_s` is what is left of the caller's deadline, None without one.

        Raises:
            ApiError: RESOURCE_EXHAUSTED, all are taken, or it would not be answered in time.
        """
        self._note_call()
        if self.under_way >= self.limit:
            raise self._full.with_traceback(None)
        if left_s is not None and self._saturated and left_s < self._needed_s:
            raise self._too_late.with_traceback(None)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
            self._done_s = self._clock_s()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """With a slot held: wait until it is this request's turn to be worked on."""
        self._waiting += 1
        try:
            await self._working.acquire()
        finally:
            self._waiting -= 1
        self._at_work += 1
        began_s = self._clock_s()
        try:
            yield
        finally:
            self._note_work(self._clock_s() - began_s)
            self._at_work -= 1
            self._working.release()

    @property
    def _saturated(self) -> bool:
        """Whether calls come faster than they are dealt with, as far as the latest ones tell."""
        return self._idle_s < IDLE_SHARE_MAX * self._gap_s and self._busy_s > BUSY_SHARE_MIN * self._gap_s

    @property
    def _needed_s(self) -> float:
        """What a call needs that came now: its turn, nearly every request's time at work, its answer's way home."""
        return self._waiting * self._pace_s + self._work_s + DEVIATIONS * self._deviation_s + HOME_S

    def _note_work(self, took_s: float) -> None:
        self._pace_s += RECENT * (took_s / self._at_work - self._pace_s)
        self._deviation_s += RECENT * (abs(took_s - self._work_s) - self._deviation_s)
        self._work_s += RECENT * (took_s - self._work_s)

    def _note_call(self) -> None:
        now_s = self._clock_s()
        idle_s = 0.0 if self.under_way else max(now_s - max(self._done_s, self._came_s) - BRING_IN_S, 0.0)
        self._gap_s += RECENT * (min(now_s - self._came_s, 1.0) - self._gap_s)
        self._idle_s += RECENT * (min(idle_s, 1.0) - self._idle_s)
        spent_s = self._processor_s()
        self._busy_s += RECENT * (min(spent_s - self._spent_s, 1.0) - self._busy_s)
        self._came_s, self._spent_s = now_s, spent_s

    @contextmanager
    def more(self, wanted: int) -> Iterator[int]:
        """Hold up to `wanted` further slots, at most half of the free ones so that others get in, and say how many; possibly none."""
        granted = max(min(wanted, (self.limit - self.under_way) // 2), 0)
        self.under_way += granted
        try:
            yield granted
        finally:
            self.under_way -= granted
