"""Starts the parts, keeps them running, stops them.

    async with Supervisor(settings) as running:   # every part is healthy here, or it has raised and stopped what it had started
        await running.wait()                      # until Ctrl-C, SIGTERM (`liveshelf down`) or cancellation

Each part has one task: wait for those it comes after, start, ask for health until it answers, then keep asking; when the process
dies, start it again with growing pauses. Parts in no relation start at the same time. They stop in reverse order.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Self

from liveshelf.errors import LiveshelfError, UnavailableError
from liveshelf.local import ports, state
from liveshelf.local.parts import Part, parts, role_environment
from liveshelf.local.process import OWN_SESSION, dying_with_parent
from liveshelf.local.state import PartState, RunState
from liveshelf.settings import Settings

# From start to the first healthy answer. TensorFlow imports in 7 s on an idle core; several roles start at once on two.
READY_TIMEOUT_S = 180.0
# Somebody else's part runs already, or it does not.
READY_TIMEOUT_YOURS_S = 20.0
# A part that dies this often before it was ever healthy will not get better by itself.
DEATHS_BEFORE_READY_MAX = 3
PROBE_STARTING_S = 0.1
PROBE_HEALTHY_S = 1.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 10.0
# Healthy for this long: the next death is a new story and gets the short pause again.
BACKOFF_RESET_S = 30.0
# Faust leaves its group and Kafka closes its segments in 1 to 3 s; longer is a hang.
STOP_TIMEOUT_S = 15.0
LOG_BYTES_MAX = 10_000_000


class Supervisor:
    """The parts of one data directory, as long as the `async with` block lasts.

    Raises on entry:
        ConflictError: data directory taken or not writable, or a port in use.
        UnavailableError: a part did not get healthy; the message ends with the last line of its log.
    """

    def __init__(
        self, settings: Settings, parts_: list[Part] | None = None, on_change: Callable[[PartState], None] = lambda _: None
    ) -> None:
        self.settings = settings
        self.parts = parts(settings) if parts_ is None else parts_
        self.state = RunState(
            pid=os.getpid(), started_s=state.creation_time(os.getpid()), parts=[self._first_state(p) for p in self.parts]
        )
        self._on_change = on_change
        self._ready = {part.name: asyncio.Event() for part in self.parts}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lock: IO[str] | None = None
        self._told_to_stop = False

    def _first_state(self, part: Part) -> PartState:
        log_file = str(self.settings.data_path / "logs" / f"{part.name}.log") if part.command else ""
        return PartState(name=part.name, address=part.address, ours=part.command is not None, log=log_file)

    async def __aenter__(self) -> Self:
        self._lock = state.lock_data_dir(self.settings)
        try:
            state.end_leftovers(self.settings)
            ports.require_free(self.parts, self.settings.host)
            self._listen_to_signals()
            state.write_state(self.settings, self.state)
            for part, part_state in zip(self.parts, self.state.parts, strict=True):
                self._tasks[part.name] = asyncio.create_task(self._keep(part, part_state), name=part.name)
            await self._all_ready()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._end()

    async def _end(self) -> None:
        await self._stop()
        if self._told_to_stop:
            raise KeyboardInterrupt

    def _listen_to_signals(self) -> None:
        """SIGTERM (`liveshelf down`) and SIGHUP (the terminal is gone) end the block in order, and then the program as Ctrl-C does."""
        main = asyncio.current_task()
        assert main is not None

        def stop() -> None:
            self._told_to_stop = True
            main.cancel()

        with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread: then whoever owns that decides
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    asyncio.get_running_loop().add_signal_handler(number, stop)

    async def wait(self) -> None:
        """Until cancelled; a part's task ends by a defect of ours only, and that is raised here."""
        done, _ = await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def _all_ready(self) -> None:
        async def every_event() -> None:
            for event in self._ready.values():
                await event.wait()

        ready = asyncio.create_task(every_event())
        try:
            await asyncio.wait({ready, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks.values():
                if task.done():
                    task.result()
        finally:
            ready.cancel()

    # one part

    async def _keep(self, part: Part, seen: PartState) -> None:
        """Start `part` and restart it, for ever. Somebody else's part is only asked."""
        for name in part.after:
            if name in self._ready:
                await self._ready[name].wait()
        first_start = time.monotonic()
        backoff = BACKOFF_FIRST_S
        while True:
            try:
                process = await self._start(part, seen) if part.command else None
            except LiveshelfError as error:
                if not self._ready[part.name].is_set():
                    raise
                manner = str(error)  # it ran once: what is in the way now (a full disk, say) may go away
            else:
                healthy_s = await self._watch(part, seen, process, first_start)
                assert process is not None, "only the end of a process ends its watch"
                backoff = BACKOFF_FIRST_S if healthy_s > BACKOFF_RESET_S else backoff
                manner = _manner_of_death(process.returncode)
                _kill_session(process.pid)
            seen.restarts += 1
            self._changed(seen, state.RESTARTING, f"{manner}; starts again in {backoff:.2g} s", pid=0)
            if not self._ready[part.name].is_set() and seen.restarts >= DEATHS_BEFORE_READY_MAX:
                raise UnavailableError(self._cannot_start(seen, f"died {seen.restarts} times ({manner})"))
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _start(self, part: Part, seen: PartState) -> asyncio.subprocess.Process:
        assert part.command is not None
        try:
            # Each time anew: storage, jars and free ports may have changed since.
            command = await asyncio.to_thread(part.command)
            with _open_log(seen.log) as output:
                process = await asyncio.create_subprocess_exec(
                    *dying_with_parent(command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=role_environment(self.settings, os.environ),
                    **OWN_SESSION,
                )
        except OSError as error:
            raise UnavailableError(f"{part.name} cannot be started: {error}. Try `liveshelf doctor`.") from error
        self._processes[part.name] = process
        self._changed(seen, state.STARTING, pid=process.pid, started_s=state.creation_time(process.pid))
        return process

    async def _watch(self, part: Part, seen: PartState, process: asyncio.subprocess.Process | None, first_start: float) -> float:
        """Ask for health until the process ends; return for how many seconds it had been healthy then."""
        forever = asyncio.Event()
        died = asyncio.ensure_future(process.wait() if process else forever.wait())
        healthy_since = 0.0
        try:
            while True:
                # Death is seen at once, even while a question to the dead waits for its time-out.
                probe = asyncio.create_task(_problem(part))
                try:
                    await asyncio.wait({probe, died}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    probe.cancel()
                if died.done():
                    return time.monotonic() - healthy_since if healthy_since else 0.0
                if problem := probe.result():
                    healthy_since = 0.0
                    self._changed(seen, state.STARTING if seen.health == state.STARTING else state.UNHEALTHY, problem)
                    self._require_patience(part, seen, first_start)
                else:
                    healthy_since = healthy_since or time.monotonic()
                    await self._is_healthy(part, seen, first_start)
                await asyncio.wait({died}, timeout=PROBE_STARTING_S if seen.health == state.STARTING else PROBE_HEALTHY_S)
        finally:
            died.cancel()

    def _require_patience(self, part: Part, seen: PartState, first_start: float) -> None:
        limit_s = READY_TIMEOUT_S if part.command else READY_TIMEOUT_YOURS_S
        if not self._ready[part.name].is_set() and time.monotonic() - first_start > limit_s:
            raise UnavailableError(self._cannot_start(seen, f"is not healthy after {limit_s:.0f} s ({seen.detail})"))

    async def _is_healthy(self, part: Part, seen: PartState, first_start: float) -> None:
        if not self._ready[part.name].is_set():
            if part.when_ready:
                await asyncio.to_thread(part.when_ready)
            seen.version = await asyncio.to_thread(part.version)
            seen.ready_s = round(time.monotonic() - first_start, 2)
        self._changed(seen, state.HEALTHY)
        self._ready[part.name].set()

    def _changed(self, seen: PartState, health: str, detail: str = "", **fields: float) -> None:
        before = (seen.health, seen.detail, seen.pid)
        seen.health, seen.detail = health, detail
        for name, value in fields.items():
            setattr(seen, name, value)
        if before != (seen.health, seen.detail, seen.pid) or (health == state.HEALTHY and not self._ready[seen.name].is_set()):
            with contextlib.suppress(OSError):  # a full disk must not take the parts down: then other terminals see an older state
                state.write_state(self.settings, self.state)
            self._on_change(seen)

    def _cannot_start(self, seen: PartState, why: str) -> str:
        return (
            f"{seen.name} at {seen.address} {why}. {_last_line(seen.log)}See `liveshelf logs {seen.name}` and `liveshelf doctor`."
        )

    # the end

    async def _stop(self) -> None:
        """Stop every part after those that need it; then forget the run. Safe to call twice."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        stopped = {part.name: asyncio.Event() for part in self.parts}
        await asyncio.gather(
            *(self._stop_part(part, seen, stopped) for part, seen in zip(self.parts, self.state.parts, strict=True))
        )
        if self._lock:
            with contextlib.suppress(OSError):
                state.state_file(self.settings).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    async def _stop_part(self, part: Part, seen: PartState, stopped: dict[str, asyncio.Event]) -> None:
        for other in self.parts:
            if part.name in other.after:
                await stopped[other.name].wait()
        process = self._processes.pop(part.name, None)
        if process:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                seen.detail = f"did not stop in {STOP_TIMEOUT_S:.0f} s: killed"
            _kill_session(process.pid)
            await process.wait()
        seen.health, seen.pid = state.STOPPED, 0
        self._on_change(seen)
        stopped[part.name].set()


async def _problem(part: Part) -> str:
    """Why the part is not healthy; empty when it is. Only UnavailableError means that; anything else is a defect and goes up."""
    try:
        await part.health()
    except UnavailableError as error:
        return str(error)
    return ""


def _kill_session(leader: int) -> None:
    """Whatever a part had started itself goes with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _open_log(path: str) -> IO[bytes]:
    """Append, after setting aside a log that has grown too large. One old log is kept."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(path) > LOG_BYTES_MAX:
            os.replace(path, path + ".1")
    return open(path, "ab")


def _last_line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f'Its log ends: "{last[:300]}". ' if last else ""


def _manner_of_death(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit {returncode}"
