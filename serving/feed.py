"""Records from a thread that waits for Kafka to what only the event loop may touch: a few between two requests."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

APPLIED_AT_ONCE = 40  # records between two requests: 0.5 ms of the event loop
RUNNING_BEHIND_S = 10.0  # a batch that the event loop did not take for so long: it is stopping

FOLLOWING = {"group.id": "liveshelf-scorer", "enable.auto.commit": False, "reconnect.backoff.max.ms": 1_000, "log_level": 2}
"""librdkafka's settings of a thread that follows a topic into memory: nothing is committed, a start reads anew."""

Record = TypeVar("Record")


class Feed(Generic[Record]):
    """`apply` is called on the event loop that is running now."""

    def __init__(self, apply: Callable[[Record], Any]) -> None:
        self._apply = apply
        self._waiting: deque[Record] = deque()
        self._taken = threading.Event()
        self._loop = asyncio.get_running_loop()

    def hand_over(self, records: Sequence[Record]) -> None:
        """From the thread: have the event loop apply `records`, and wait for it. Whatever the log's pace, no more than one batch waits."""
        self._taken.clear()

        def take() -> None:
            self._waiting.extend(records)
            self._apply_some()

        self.on_loop(take)
        self._taken.wait(RUNNING_BEHIND_S)

    def on_loop(self, call: Callable[[], Any]) -> None:
        """From the thread: have the event loop call it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    def stop(self) -> None:
        """Let the thread go on: nothing is applied any more."""
        self._taken.set()

    def _apply_some(self) -> None:
        for _ in range(min(APPLIED_AT_ONCE, len(self._waiting))):
            self._apply(self._waiting.popleft())
        if self._waiting:
            self._loop.call_soon(self._apply_some)
        else:
            self._taken.set()
