"""The real parts as processes of their own, each restarted at once when it dies, whoever killed it."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from liveshelf.errors import UnavailableError
from liveshelf.local.parts import Part, parts, role_environment
from liveshelf.local.probes import Probe
from liveshelf.local.process import OWN_SESSION, dying_with_parent
from liveshelf.settings import Settings
from streams.topics import ensure_topics
from tests.conftest import QUICK_JVM, free_port

HEALTHY_S = 60.0  # deadline for a killed part to answer again: ten times what the slowest, the broker, takes
WORKING_S = (
    90.0  # deadline for both agents to have partitions: a dead member is missed after 10 s, and two deaths may come in a row
)
PROBE_S = 0.05
OWN_DEATH_PAUSE_S = 0.25  # as the supervisor's first pause
STOP_S = 15.0


class NotRecoveredError(Exception):
    """A part that was killed did not come back in time; the message ends with its log."""


class _Kept:
    """One part and its current process."""

    def __init__(self, name: str, part: Part, settings: Settings, healthy: Probe, command: Callable[[], list[str]]) -> None:
        self.name, self.part, self.settings, self.healthy, self.command = name, part, settings, healthy, command
        self.log = settings.data_path / "logs" / f"{name}.log"
        self.process: asyncio.subprocess.Process | None = None
        self.running = asyncio.Event()
        self.killed = False
        self.before_restart: Callable[[], None] = lambda: None
        self.keeper: asyncio.Task[None] | None = None


class Loop:
    """Kafka, Valkey, the collector and two agent workers in `settings.data_dir`, as long as the `async with` block lasts."""

    def __init__(self, settings: Settings, agents_command: list[str] | None = None) -> None:
        """`agents_command`: what runs in place of the agents (see broken_agents.py)."""
        self.settings = settings
        self.kills: Counter[str] = Counter()
        self.died: Counter[str] = Counter()
        """Deaths that nobody ordered, by part."""
        self.recovery_s: dict[str, float] = {}
        """Longest time from a kill to the first healthy answer, by part; `takeover`: until both agents had partitions."""
        self._parts: dict[str, _Kept] = {}
        self._recovering: dict[str, asyncio.Task[None]] = {}
        self._agent_killed_s = 0.0
        self._agents: list[Part] = []
        table = {part.name: part for part in parts(settings)}
        for name, source in (("broker", "kafka"), ("store", "store"), ("collector", "collector")):
            self._add(name, table[source], settings)
        for name, mine in (
            ("agents-1", settings),
            ("agents-2", msgspec.structs.replace(settings, agents_metrics_port=free_port())),
        ):
            part = next(p for p in parts(mine) if p.name == "agents")
            self._agents.append(part)
            self._add(name, part, mine, agents_command, _answers(mine))

    def _add(
        self, name: str, part: Part, settings: Settings, command: list[str] | None = None, healthy: Probe | None = None
    ) -> None:
        assert part.command is not None
        self._parts[name] = _Kept(name, part, settings, healthy or part.health, (lambda: command) if command else part.command)

    async def __aenter__(self) -> Self:
        (self.settings.data_path / "logs").mkdir(parents=True, exist_ok=True)
        try:
            for kept in self._parts.values():
                kept.keeper = asyncio.create_task(self._keep(kept))
                if kept.name in ("broker", "store"):
                    await self._until(kept.healthy, kept.name, HEALTHY_S)
                if kept.name == "broker":
                    await asyncio.to_thread(ensure_topics, self.settings)
            await self._until(self._parts["collector"].healthy, "collector", HEALTHY_S)
            await self.working()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stop()

    async def kill(self, name: str, lost_bytes: int = 0) -> None:
        """Kill -9, restart at once; return when the new process runs. `healthy` says when it answers.

        `lost_bytes`: cut from the end of the store's append-only file in between.
        """
        kept = self._parts[name]
        await kept.running.wait()
        kept.running.clear()
        kept.killed = True
        if lost_bytes:
            kept.before_restart = lambda: _cut_append_only_file(self.settings.data_path / "store", lost_bytes)
        assert kept.process is not None
        self.kills[name] += 1
        started = time.monotonic()
        if name.startswith("agents"):
            self._agent_killed_s = started
        _kill(kept.process.pid)
        await kept.running.wait()
        self._recovering[name] = asyncio.create_task(self._recover(kept, started))

    async def healthy(self, name: str) -> None:
        """Wait until `name` has answered since its last kill.

        Raises:
            NotRecoveredError
        """
        if task := self._recovering.pop(name, None):
            await task

    async def all_healthy(self) -> None:
        for name in self._parts:
            await self.healthy(name)

    async def working(self) -> None:
        """Wait until both agents have partitions and say that they make progress.

        Raises:
            NotRecoveredError
        """
        for name, part in zip(("agents-1", "agents-2"), self._agents, strict=True):
            await self._until(part.health, name, WORKING_S)
        if self._agent_killed_s:
            self._note("takeover", time.monotonic() - self._agent_killed_s)
            self._agent_killed_s = 0.0

    async def _recover(self, kept: _Kept, started: float) -> None:
        await self._until(kept.healthy, kept.name, HEALTHY_S)
        self._note(kept.name.partition("-")[0], time.monotonic() - started)

    def _note(self, what: str, seconds: float) -> None:
        self.recovery_s[what] = round(max(seconds, self.recovery_s.get(what, 0.0)), 2)

    async def _until(self, probe: Probe, name: str, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                return await probe()
            except UnavailableError as error:
                if time.monotonic() > deadline:
                    log = self._parts[name].log
                    ending = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                    raise NotRecoveredError(f"{name} not within {deadline_s:.0f} s: {error}. Its log ends:\n{ending}") from error
            await asyncio.sleep(PROBE_S)

    async def _keep(self, kept: _Kept) -> None:
        while True:
            command = await asyncio.to_thread(kept.command)
            kept.before_restart()
            kept.before_restart = lambda: None
            with kept.log.open("ab") as output:
                kept.process = await asyncio.create_subprocess_exec(
                    *dying_with_parent(command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=role_environment(kept.settings, os.environ) | QUICK_JVM,
                    **OWN_SESSION,
                )
            kept.running.set()
            await kept.process.wait()
            kept.running.clear()
            if not kept.killed:
                self.died[kept.name] += 1
                await asyncio.sleep(OWN_DEATH_PAUSE_S)
            kept.killed = False

    async def _stop(self) -> None:
        tasks = [*self._recovering.values(), *(k.keeper for k in self._parts.values() if k.keeper)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for kept in reversed(self._parts.values()):
            if kept.process is None or kept.process.returncode is not None:
                continue
            _kill(kept.process.pid)  # nothing here is to be kept
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(kept.process.wait(), STOP_S)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _answers(settings: Settings) -> Probe:
    """Alive: /healthz answers anything. A worker that waits for its group to notice a death has no partitions, and is not to blame."""
    url = f"http://{settings.host}:{settings.agents_metrics_port}/healthz"

    async def ask() -> None:
        import httpx

        try:
            async with httpx.AsyncClient(timeout=3, trust_env=False, verify=False) as client:
                await client.get(url)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{url} does not answer") from error

    return ask


def _cut_append_only_file(store: Path, lost_bytes: int) -> None:
    """What a loss of power does: the end is gone, in the middle of a command. Valkey drops the torn command when it loads
    (`aof-load-truncated`, on by default)."""
    files = sorted((store / "appendonlydir").glob("*.incr.aof"))
    if files:
        size = files[-1].stat().st_size
        os.truncate(files[-1], max(0, size - lost_bytes))


def agents_command(break_mode: str) -> list[str] | None:
    return [sys.executable, "-P", "-m", "tests.chaos.broken_agents", break_mode] if break_mode else None
