"""Work spread over processes of its own: one call a part, at most as many at a time as there are cores."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from queue import Empty
from typing import Any, TypeVar

from liveshelf.errors import ConflictError, CorruptError, LiveshelfError, NotFoundError, SettingsError, UnavailableError

POLL_S = 0.1

Progress = Callable[[int], None]
"""Told how much more is done."""
PartT = TypeVar("PartT")
Result = TypeVar("Result")

_told: "Queue[int] | None" = None


def in_processes(work: Callable[[PartT, Progress], Result], parts: Sequence[PartT], progress: Progress) -> list[Result]:
    """`work(part, progress)` of each part, in their order. `work` is a function of a module, parts and results can be pickled.

    Processes are not forked from this one, since librdkafka's threads do not survive that, but from a server that has imported what they
    need and nothing more: importing Feast takes seconds. Leaving early, by an error or Ctrl-C, ends them. What a process raises is raised here: a LiveshelfError as the one of `liveshelf.errors` that it is a kind of.
    """
    if not parts:
        return []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])  # counts for the first call of this process, which starts the server
    told: Queue[int] = context.Queue()
    with context.Pool(min(len(parts), os.cpu_count() or 1), _begin, (told,)) as pool:
        waiting = [pool.apply_async(_call, (work, part)) for part in parts]
        while not all(result.ready() for result in waiting):
            _drain(told, progress, POLL_S)
            for result in waiting:
                if result.ready():
                    _outcome(result.get())
        _drain(told, progress, 0.0)
        return [_outcome(result.get()) for result in waiting]


def _begin(told: "Queue[int]") -> None:
    """In each process, first. Ctrl-C is the parent's business, which ends its processes. And they live too short to collect garbage: rows
    make no cycles, and looking for some among millions of them takes a third of the time."""
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()


def _call(work: Callable[[Any, Progress], Any], part: Any) -> tuple[type[LiveshelfError] | None, Any]:
    assert _told is not None
    try:
        return None, work(part, _told.put)
    except LiveshelfError as error:  # some cannot be pickled
        kinds = (SettingsError, UnavailableError, NotFoundError, ConflictError, CorruptError, LiveshelfError)
        return next(kind for kind in kinds if isinstance(error, kind)), str(error)


def _outcome(result: tuple[type[LiveshelfError] | None, Any]) -> Any:
    kind, value = result
    if kind is not None:
        raise kind(value)
    return value


def _drain(told: "Queue[int]", progress: Progress, wait_s: float) -> None:
    try:
        progress(told.get(timeout=wait_s) if wait_s else told.get_nowait())
        while True:
            progress(told.get_nowait())
    except Empty:
        return
