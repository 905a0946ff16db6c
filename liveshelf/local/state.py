"""What runs in a data directory: the lock that its supervisor holds, and the state file that other terminals read.

run.lock   held with flock by the supervisor; the kernel lets go of it when the supervisor dies, however it dies
run.json   `RunState`, replaced atomically at each change; stale (and ignored) when the process that wrote it is gone
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

import msgspec
import psutil

from liveshelf.errors import ConflictError
from liveshelf.settings import Settings

STARTING = "starting"
HEALTHY = "healthy"
UNHEALTHY = "unhealthy"
RESTARTING = "restarting"
STOPPED = "stopped"


class PartState(msgspec.Struct, kw_only=True):
    """One part as its supervisor last saw it."""

    name: str
    address: str
    ours: bool
    """False: somebody else's, which we only ask."""
    pid: int = 0
    """0: not running, or not ours."""
    started_s: float = 0.0
    """The process's creation time (Unix seconds): tells it from a later one of the same pid."""
    version: str = ""
    ready_s: float = 0.0
    """Seconds from its own first start to its first healthy answer."""
    restarts: int = 0
    health: str = STARTING
    detail: str = ""
    """Why it is not healthy."""
    log: str = ""


class RunState(msgspec.Struct, kw_only=True):
    """One supervisor and its parts, in start order."""

    v: int = 1
    pid: int
    started_s: float
    parts: list[PartState]

    @property
    def healthy(self) -> bool:
        return all(part.health == HEALTHY for part in self.parts)


def creation_time(pid: int) -> float:
    """Unix seconds; 0 for a process that is gone, or a zombie."""
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return 0.0


def is_alive(pid: int, started_s: float) -> bool:
    """True for that very process, not for a later one of the same pid. (Creation times shift a little when the clock is set.)"""
    return pid > 0 and abs(creation_time(pid) - started_s) < 2


def state_file(settings: Settings) -> Path:
    return settings.data_path / "run.json"


def write_state(settings: Settings, state: RunState) -> None:
    file = state_file(settings)
    partial = file.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    partial.replace(file)


def read_state(settings: Settings) -> RunState | None:
    """The last written state, whether its supervisor still lives or not; None when there is none that can be read."""
    try:
        return msgspec.json.decode(state_file(settings).read_bytes(), type=RunState)
    except (OSError, msgspec.DecodeError):
        return None  # it describes processes, not data: what cannot be read is treated as gone


def running_state(settings: Settings) -> RunState | None:
    """The state of the supervisor that runs now; None when none does."""
    state = read_state(settings)
    return state if state is not None and is_alive(state.pid, state.started_s) else None


def lock_data_dir(settings: Settings) -> IO[str]:
    """Make the data directory if need be and take its lock; keep the file open as long as the lock is wanted.

    Raises:
        ConflictError: the directory cannot be written, or another supervisor holds it (the message names its pid).
    """
    path = settings.data_path
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "logs").mkdir(exist_ok=True)
        file = (path / "run.lock").open("a+")
    except OSError as error:
        raise ConflictError(
            f"data directory {path} cannot be written: {error.strerror}. Set LIVESHELF_DATA_DIR to one that can."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ConflictError(
            f"Liveshelf already runs in {path} (pid {holder}). See `liveshelf status`, stop it with `liveshelf down`, "
            "or start another beside it with its own LIVESHELF_DATA_DIR and ports."
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def end_leftovers(settings: Settings) -> None:
    """Kill parts that outlived their supervisor, and wait until their ports are free. Call with the lock held.

    On Linux the kernel kills them with it, so they are at most still dying; elsewhere they may be alive.
    """
    stale = read_state(settings)
    left = []
    for part in stale.parts if stale else []:
        if is_alive(part.pid, part.started_s):
            with contextlib.suppress(psutil.Error):
                left.append(psutil.Process(part.pid))
                left[-1].kill()
    psutil.wait_procs(left, timeout=10)
