"""What the supervisor promises, shown on small HTTP parts: order, restarts, a clean end, and nobody left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from liveshelf.errors import ConflictError, UnavailableError
from liveshelf.local import state
from liveshelf.local.parts import Part, parts
from liveshelf.local.probes import http_probe
from liveshelf.local.supervisor import Supervisor
from liveshelf.settings import Settings
from tests.conftest import free_port, local_settings

# Answers 200 to every GET. `stubborn` ignores SIGTERM; `brood` starts a child of its own.
PART = """
import http.server, signal, subprocess, sys, time
port, *habits = sys.argv[1:]
if "stubborn" in habits:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "brood" in habits:
    subprocess.Popen([sys.executable, "-c", "import signal; signal.alarm(600); signal.pause()"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""
DEADLINE_S = 30


def small_part(name: str, *habits: str, after: tuple[str, ...] = (), port: int = 0, **fields: object) -> Part:
    port = port or free_port()
    return Part(
        name=name,
        address=f"http://127.0.0.1:{port}",
        command=lambda: [sys.executable, "-c", PART, str(port), *habits],
        ports={f"{name}_port": port},
        health=http_probe(f"http://127.0.0.1:{port}/"),
        after=after,
        **fields,  # type: ignore[arg-type]
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def supervised(settings: Settings, *some: Part) -> AsyncIterator[dict[str, state.PartState]]:
    async with Supervisor(settings, list(some)) as running:
        yield {part.name: part for part in running.state.parts}


def test_parts_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    """`when_ready` of the first has run before the second starts, and every process is gone at the end."""
    order: list[str] = []
    settings = local_settings(tmp_path)
    first = small_part("first", when_ready=lambda: order.append("first is ready"))
    second = small_part("second", after=("first",), when_ready=lambda: order.append("second is ready"))

    def changed(part: state.PartState) -> None:
        order.append(f"{part.name} {part.health}")

    async def run() -> list[int]:
        # Given in the wrong order: `after` decides, not the list.
        async with Supervisor(settings, [second, first], on_change=changed) as running:
            assert running.state.healthy
            assert state.running_state(settings) == running.state
            assert all(part.ready_s > 0 for part in running.state.parts)
            return [part.pid for part in running.state.parts]

    pids = asyncio.run(run())
    assert order.index("first is ready") < order.index("first healthy") < order.index("second starting")
    assert order.index("second stopped") < order.index("first stopped")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert state.read_state(settings) is None


def test_a_killed_part_comes_back(tmp_path: Path) -> None:
    """kill -9 of a part: another process, healthy, one restart counted, its neighbour untouched."""

    async def run() -> None:
        async with supervised(local_settings(tmp_path), small_part("victim", "brood"), small_part("bystander")) as seen:
            victim, old, bystander = seen["victim"], seen["victim"].pid, seen["bystander"].pid
            brood = psutil.Process(old).children()
            os.kill(old, signal.SIGKILL)
            await until(lambda: victim.health == state.HEALTHY and victim.pid not in (0, old), "victim healthy again")
            await http_probe(victim.address)()
            assert (victim.restarts, seen["bystander"].pid, seen["bystander"].restarts) == (1, bystander, 0)
            await until(lambda: not any(child.is_running() for child in brood), "children of the killed part gone")

    asyncio.run(run())


def test_pauses_between_restarts_grow(tmp_path: Path) -> None:
    """A part that died again soon after is started after a longer pause, and the state says why and when."""
    details: list[str] = []

    def changed(part: state.PartState) -> None:
        if part.health == state.RESTARTING:
            details.append(part.detail)

    async def run() -> None:
        async with Supervisor(local_settings(tmp_path), [small_part("victim")], on_change=changed) as running:
            victim = running.state.parts[0]
            for deaths in (1, 2):
                os.kill(victim.pid, signal.SIGKILL)
                await until(lambda n=deaths: victim.restarts == n and victim.health == state.HEALTHY, "healthy again")

    asyncio.run(run())
    assert details == ["killed by SIGKILL; starts again in 0.25 s", "killed by SIGKILL; starts again in 0.5 s"]


def test_a_part_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liveshelf.local.supervisor.STOP_TIMEOUT_S", 0.3)

    async def run() -> int:
        async with supervised(local_settings(tmp_path), small_part("deaf", "stubborn")) as seen:
            return seen["deaf"].pid

    assert not psutil.pid_exists(asyncio.run(run()))


def test_a_part_that_cannot_start_ends_the_run(tmp_path: Path) -> None:
    """The message has the part, how it died and the last line of its log; the others are stopped."""
    broken = Part(
        name="broken",
        address="127.0.0.1:1",
        command=lambda: [sys.executable, "-c", "import sys; sys.exit('no such model')"],
        health=http_probe("http://127.0.0.1:1/"),
    )
    settings = local_settings(tmp_path)
    fine = small_part("fine")

    async def run() -> None:
        async with supervised(settings, fine, broken):
            pass

    with pytest.raises(UnavailableError, match=r"broken at 127.0.0.1:1 died 3 times \(exit 1\).*no such model"):
        asyncio.run(run())
    with pytest.raises(httpx.ConnectError):
        httpx.get(fine.address)
    state.lock_data_dir(settings).close()  # the lock is free again


def test_a_part_whose_files_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    """A regular file stands where Valkey's directory should be: said in one line, and nothing is left."""
    (tmp_path / "store").touch()
    settings = local_settings(tmp_path)

    async def run() -> None:
        async with supervised(settings, *(part for part in parts(settings) if part.name == "store")):
            pass

    with pytest.raises(UnavailableError, match=r"store cannot be started: .*liveshelf doctor"):
        asyncio.run(run())
    assert state.read_state(settings) is None


def test_port_in_use_names_part_port_setting_and_holder(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    port = free_port()
    holder = subprocess.Popen([sys.executable, "-c", PART, str(port)])
    try:

        async def run() -> None:
            await until(lambda: bool(psutil.Process(holder.pid).net_connections()), "the holder listens")
            async with supervised(settings, small_part("collector", port=port)):
                pass

        expected = rf"port {port} of collector is in use by .*\(pid {holder.pid}\).*LIVESHELF_COLLECTOR_PORT"
        with pytest.raises(ConflictError, match=expected):
            asyncio.run(run())
    finally:
        holder.kill()
        holder.wait()


def test_second_supervisor_is_refused_by_pid(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)

    async def run() -> None:
        async with supervised(settings, small_part("one")) as seen:
            with pytest.raises(ConflictError, match=rf"already runs in {tmp_path} \(pid {os.getpid()}\)"):
                await Supervisor(settings, [small_part("two")]).__aenter__()
            await http_probe(seen["one"].address)()
            assert state.running_state(settings) is not None

    asyncio.run(run())


def test_unwritable_data_dir(tmp_path: Path) -> None:
    """A path under a regular file cannot be made, not even by root."""
    (tmp_path / "file").touch()

    async def run() -> None:
        async with supervised(local_settings(tmp_path / "file" / "data"), small_part("one")):
            pass

    with pytest.raises(ConflictError, match=r"cannot be written.*LIVESHELF_DATA_DIR"):
        asyncio.run(run())


SUPERVISOR = """
    import asyncio, msgspec, sys
    from pathlib import Path
    from liveshelf.local.supervisor import Supervisor
    from liveshelf.settings import Settings
    from tests.integration.test_supervisor import small_part

    async def main():
        parts = [small_part("one"), small_part("two", *sys.argv[2:], after=("one",))]
        async with Supervisor(Settings(data_dir=sys.argv[1]), parts) as running:
            print(msgspec.json.encode(running.state).decode(), flush=True)
            await running.wait()

    asyncio.run(main())
"""


@contextmanager
def supervisor_process(data_dir: Path, *habits: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A supervisor in a process of its own, its parts healthy; and their processes."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", textwrap.dedent(SUPERVISOR), str(data_dir), *habits]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ | {"PYTHONPATH": root})
    assert process.stdout is not None
    try:
        yield process, [psutil.Process(part["pid"]) for part in json.loads(process.stdout.readline())["parts"]]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_kill_9_of_the_supervisor_leaves_nobody(tmp_path: Path) -> None:
    """The kernel ends the parts; the stale state is seen as such; the next supervisor starts in the same directory."""
    with supervisor_process(tmp_path) as (process, parts):
        process.kill()
        process.wait()
        gone, alive = psutil.wait_procs(parts, timeout=10)
    assert (len(gone), alive) == (2, [])

    settings = Settings(data_dir=str(tmp_path))
    stale = state.read_state(settings)
    assert stale is not None
    assert stale.pid == process.pid
    assert state.running_state(settings) is None

    async def run() -> None:
        async with supervised(settings, small_part("three")) as now:
            assert list(now) == ["three"]
            found = state.running_state(settings)
            assert found is not None
            assert [part.name for part in found.parts] == ["three"]

    asyncio.run(run())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_in_order(number: signal.Signals, tmp_path: Path) -> None:
    """Every process of every part is gone, grandchildren too, and the state file with them."""
    with supervisor_process(tmp_path, "brood") as (process, parts):
        family = [*parts, *(child for part in parts for child in part.children())]
        assert len(family) == 3
        process.send_signal(number)
        process.wait(20)
        gone, alive = psutil.wait_procs(family, timeout=5)
    assert (len(gone), alive) == (3, [])
    assert state.read_state(Settings(data_dir=str(tmp_path))) is None


def test_other_terminals_see_and_stop_it(tmp_path: Path) -> None:
    """status, logs and down find the supervisor by its data directory."""
    root = str(Path(__file__).parents[2])

    def liveshelf(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": root, "LIVESHELF_DATA_DIR": str(tmp_path)}
        command = [sys.executable, "-m", "liveshelf.cli.main", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    with supervisor_process(tmp_path) as (process, parts):
        status = liveshelf("status", "--json")
        assert status.returncode == 0
        seen = json.loads(status.stdout)
        assert (seen["pid"], [part["pid"] for part in seen["parts"]]) == (process.pid, [part.pid for part in parts])
        assert liveshelf("logs", "one", "-n", "1").stdout.splitlines()[0].endswith("200 -")
        down = liveshelf("down")
        assert (down.returncode, down.stdout) == (0, "Stopped 2 parts.\n")
        assert psutil.wait_procs(parts, timeout=5)[1] == []
        assert liveshelf("status").returncode == 3
