"""The trainer's service, the very one that `liveshelf up` runs, with three things around it that the harness asks for: a note of how each
step went, a death by kill -9 at a given moment, and code that is broken on purpose.

    python -m tests.chaos.trainer_process '{"kill": {"step": 3, "operation": 17}}'
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from liveshelf.settings import load_settings
from trainer import checkpoint, service, step

OPERATIONS = frozenset({"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"})
"""Of the audit events that Python raises (PEP 578), each just before it is done, those that make a crash see something else on the disk."""


class Kill(msgspec.Struct, frozen=True, omit_defaults=True):
    """Die in step `step` (or in the first one that follows, should that one be done already): before its `operation`-th file operation, or
    `after_s` seconds after it began."""

    step: int
    operation: int = 0
    after_s: float = 0.0


class Orders(msgspec.Struct, frozen=True, omit_defaults=True):
    kill: Kill | None = None
    record: str = ""
    """A file that gets one line of JSON a step: [file operations, seconds]."""
    broken: str = ""
    """One of MODES."""


class Watch:
    """Counts the file operations in the data directory, step by step, and dies when it is told to."""

    def __init__(self, orders: Orders, data: Path) -> None:
        self._orders, self._data = orders, str(data)
        self._operations = 0
        self._now, self._timed = -1, False
        sys.addaudithook(self._on_event)
        take = step.Trainer.step

        def watched(trainer: step.Trainer) -> step.StepResult:
            self._begin(trainer._state.steps)
            start = time.monotonic()
            result = take(trainer)
            if orders.record and result.consumed:
                with Path(orders.record).open("a") as file:
                    file.write(msgspec.json.encode([self._operations, time.monotonic() - start]).decode() + "\n")
            return result

        step.Trainer.step = watched  # type: ignore[method-assign]

    def _begin(self, number: int) -> None:
        self._now, self._operations = number, 0
        kill = self._orders.kill
        if kill is not None and kill.step <= number and not kill.operation and not self._timed:
            self._timed = True
            timer = threading.Timer(kill.after_s, _die)
            timer.daemon = True
            timer.start()

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not arguments or self._now < 0:
            return
        where = arguments[0]
        if not isinstance(where, str | os.PathLike) or not os.fspath(where).startswith(self._data):
            return
        self._operations += 1
        kill = self._orders.kill
        if kill is not None and kill.step <= self._now and kill.operation == self._operations:
            _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def offsets_first() -> None:
    """The log's offsets stand on the disk before the weights that they belong to: a death in between skips a step's examples."""
    save = checkpoint.save

    def twice(directory: Path, made: checkpoint.Checkpoint) -> int:
        if (before := checkpoint.load_latest(directory)) is not None:
            old = before.checkpoint
            state = msgspec.structs.replace(old.state, offsets=made.state.offsets, consumed=made.state.consumed)
            save(directory, msgspec.structs.replace(old, state=state))
        return save(directory, made)

    checkpoint.save = twice


def offsets_last() -> None:
    """The weights stand on the disk before the offsets that they belong to: a death in between learns a step's examples twice."""
    save = checkpoint.save

    def twice(directory: Path, made: checkpoint.Checkpoint) -> int:
        if (before := checkpoint.load_latest(directory)) is not None:
            old = before.checkpoint.state
            save(directory, msgspec.structs.replace(made, state=old))
        return save(directory, made)

    checkpoint.save = twice


def optimizer_forgotten() -> None:
    """Adam's moments are not taken up again: what a restart then learns differs in its last digits, and nothing else shows it."""
    restore = step.Learner.restore

    def without(learner: Any, state: dict[str, Any]) -> None:
        restore(learner, {name: value * 0 if name.startswith("optimizer/") else value for name, value in state.items()})

    step.Learner.restore = without  # type: ignore[method-assign]


MODES = {mode.__name__: mode for mode in (offsets_first, offsets_last, optimizer_forgotten)}

if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Orders)
    if given.broken:
        MODES[given.broken]()
    Watch(given, load_settings().data_path)
    sys.exit(service.main())
