"""`liveshelf up`: every part on this machine, kept running."""

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from liveshelf.errors import LiveshelfError, UnavailableError
from liveshelf.settings import Settings

if TYPE_CHECKING:
    from liveshelf.local.state import PartState, RunState

# The supervisor gives up on a part after 180 s; at first start Kafka's jars (45 MB) come on top.
DETACHED_START_TIMEOUT_S = 400


def command(
    ctx: typer.Context,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once every part is healthy; stop with `liveshelf down`.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when every part is healthy, and no table.")
    ] = False,
) -> None:
    """Start every part on this machine, wait until each is healthy, and keep it running.

    Stays in the foreground until Ctrl-C, which stops every process that it started. A part that dies is started again. Data is kept in
    LIVESHELF_DATA_DIR (.liveshelf here). To use a Kafka, Redis or TensorFlow Serving of yours in place of a part, set LIVESHELF_KAFKA,
    LIVESHELF_STORE or LIVESHELF_MODEL_SERVER to its address.
    """
    if detach:
        state = _start_detached(ctx.obj)
        _announce(state, as_json)
    else:
        asyncio.run(_stay_up(ctx.obj, as_json))


async def _stay_up(settings: Settings, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from liveshelf.cli.status import parts_table
    from liveshelf.local.supervisor import Supervisor

    console = Console(stderr=True)
    ready = False

    def changed(part: "PartState") -> None:
        if ready:
            console.print(
                f"{time.strftime('%H:%M:%S')} {part.name} {part.health} {part.detail}".rstrip(), markup=False, soft_wrap=True
            )

    supervisor = Supervisor(settings, on_change=changed)
    with Live(console=console, get_renderable=lambda: parts_table(supervisor.state), transient=True) as live:
        # A log or a pipe gets the finished table alone.
        live.auto_refresh = console.is_terminal
        async with supervisor as running:
            live.stop()
            _announce(running.state, as_json)
            console.print("Every part is healthy. Ctrl-C stops them all.")
            ready = True
            await running.wait()


def _announce(state: "RunState", as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(state).decode(), flush=True)  # noqa: T201
    else:
        from liveshelf.cli.console import table_console
        from liveshelf.cli.status import parts_table

        table_console().print(parts_table(state))


def _start_detached(settings: Settings) -> "RunState":
    """Run `liveshelf up` in a session of its own, logging to logs/up.log; return its state once every part is healthy."""
    from liveshelf.local.parts import role_environment
    from liveshelf.local.state import lock_data_dir, running_state

    lock_data_dir(settings).close()  # a second start or an unwritable directory is said here, and not in a log
    log = settings.data_path / "logs" / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "liveshelf.cli.main", "up"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=role_environment(settings, os.environ),
        )
    deadline = time.monotonic() + DETACHED_START_TIMEOUT_S
    while time.monotonic() < deadline:
        state = running_state(settings)
        if state is not None and state.pid == process.pid and state.healthy:
            return state
        if process.poll() is not None:
            raise _as_raised_there(process.returncode, log.read_text(errors="replace"))
        time.sleep(0.1)
    process.terminate()
    raise UnavailableError(f"not every part was healthy after {DETACHED_START_TIMEOUT_S} s. See `liveshelf status` and {log}.")


def _as_raised_there(exit_code: int, output: str) -> LiveshelfError:
    """The error that ended the other process, with its message and exit code."""
    last = output.strip().splitlines()[-1:] or [f"`liveshelf up` ended with exit code {exit_code} and said nothing"]
    error = LiveshelfError(last[0].removeprefix("liveshelf: "))
    error.exit_code = exit_code
    return error
