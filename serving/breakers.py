"""Circuit breakers: a part that fails again and again is left alone for a moment, and found again by itself.

The states are purgatory's. What is added: a reason fit for counting, one probe at a time when the circuit is half open (its other callers
would all wait for the part's timeout together), and that lateness alone says little about the part: a caller's deadline may be tiny, and
when our own event loop stands still, everybody who waits is late at once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from prometheus_client import Counter, Gauge
from purgatory.domain.model import CLOSED, HALF_OPENED, OPENED, Context, OpenedState

from liveshelf.errors import UnavailableError

log = structlog.get_logger()
Answer = TypeVar("Answer")

FAILURES_MAX = 5  # in a row; a single late answer is no outage
SILENT_S = 0.25  # a part is only given up for being late when nothing came from it for so long
OPEN_S = 1.0  # how long the part is left alone; also how much later than possible its recovery may be noticed
TELLING_S = 0.01  # a caller who waited less than this, and less than the part's timeout, learnt nothing about it

OPEN = Gauge("liveshelf_scoring_breaker_open", "1 while the part is not asked", ["part"])
OPENED_TIMES = Counter("liveshelf_scoring_breaker_opened_total", "Times that the part was given up", ["part"])


class PartUnavailableError(UnavailableError):
    """A part failed, was late, or is not asked for now. `reason` is fit for counting and for a degraded answer."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Breaker:
    """Guards one part. `late` is the reason given when it does not answer in time. For one event loop."""

    def __init__(self, part: str, late: str, timeout_s: float) -> None:
        self.part, self._late, self.timeout_s = part, late, timeout_s
        self._context = Context(part, FAILURES_MAX, OPEN_S)
        self._reason = late
        self._probing = False
        self._silent_since_s: float | None = None  # when the first of the calls in a row that failed began
        OPEN.labels(part).set(0)

    @property
    def open(self) -> bool:
        return bool(self._context.state == OPENED)

    async def ask(self, call: Callable[[float], Awaitable[Answer]], left_s: float) -> Answer:
        """`call(timeout)`, unless the circuit is open. `left_s` is what the request has left for it.

        Raises:
            PartUnavailableError: open, late, or `call` raised UnavailableError (its `reason` is kept where it has one; one with a true `late` is as
                late as if it had not come).
        """
        timeout_s = min(self.timeout_s, max(left_s, 0.0))
        self._enter()
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await call(timeout_s)
        except TimeoutError:
            telling = self._silent(began_s) and timeout_s >= min(self.timeout_s, TELLING_S)
            raise self._failed(self._late, f"{self.part} did not answer within {1000 * timeout_s:.0f} ms", telling) from None
        except UnavailableError as error:
            telling = self._silent(began_s) or not getattr(error, "late", False)
            raise self._failed(getattr(error, "reason", f"{self.part}_unavailable"), str(error), telling) from error
        except BaseException:
            self._probing = False  # neither says anything about the part: the caller gave up, or we have a bug
            raise
        self._succeeded()
        return answer

    def _silent(self, began_s: float) -> bool:
        """Whether it is long that nothing came from the part, after a call that began at `began_s` failed too."""
        if self._silent_since_s is None:
            self._silent_since_s = began_s
        return self._context.state != CLOSED or time.perf_counter() - self._silent_since_s >= SILENT_S

    def _enter(self) -> None:
        if self._context.state == HALF_OPENED and self._probing:
            raise PartUnavailableError(self._reason, f"{self.part} is being tried by another request")
        try:
            self._context.handle_new_request()
        except OpenedState as error:
            raise PartUnavailableError(self._reason, f"{self.part} is left alone for {OPEN_S:g} s: it failed repeatedly") from error
        self._probing = bool(self._context.state == HALF_OPENED)

    def _failed(self, reason: str, message: str, telling: bool) -> PartUnavailableError:
        was = self._context.state
        self._probing = False
        if telling:
            self._reason = reason
            self._context.handle_exception(PartUnavailableError(reason, message))
            self._context.messages.clear()  # purgatory's events, which nobody listens to
            if self._context.state == OPENED and was != OPENED:
                OPEN.labels(self.part).set(1)
                OPENED_TIMES.labels(self.part).inc()
                if was == CLOSED:
                    log.warning("part given up for a while", part=self.part, reason=reason, error=message)
        return PartUnavailableError(reason, message)

    def _succeeded(self) -> None:
        was = self._context.state
        self._probing, self._silent_since_s = False, None
        self._context.handle_end_request()
        self._context.messages.clear()
        if was == HALF_OPENED:
            OPEN.labels(self.part).set(0)
            log.info("part is back", part=self.part)
