"""`liveshelf down`: stop what `up` started."""

import os
import signal
import time

import typer

from liveshelf.errors import UnavailableError

# Every part gets 15 s to stop, in two or three steps one after the other.
STOP_TIMEOUT_S = 60


def command(ctx: typer.Context) -> None:
    """Stop every part that `liveshelf up` started in this data directory, in reverse order. Data is kept.

    Exits 0 also when nothing was running.
    """
    from liveshelf.local.state import is_alive, running_state

    state = running_state(ctx.obj)
    if state is None:
        typer.echo(f"Nothing runs in {ctx.obj.data_path}.")
        return
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while is_alive(state.pid, state.started_s):
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"the supervisor (pid {state.pid}) still runs after {STOP_TIMEOUT_S} s. `kill -9 {state.pid}` ends it and its parts."
            )
        time.sleep(0.05)
    typer.echo(f"Stopped {len([part for part in state.parts if part.ours])} parts.")
