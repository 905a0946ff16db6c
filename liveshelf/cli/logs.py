"""`liveshelf logs PART`: what a part wrote."""

import subprocess
from typing import Annotated

import typer

from liveshelf.errors import NotFoundError


def command(
    ctx: typer.Context,
    part: Annotated[str, typer.Argument(help="kafka, store, model-server, collector, agents, scoring or trainer.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing as the part writes, over its restarts, until Ctrl-C.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines to print first.")] = 50,
) -> None:
    """Print the end of a part's log.

    Logs are kept in the data directory under logs/, also after `liveshelf down`.
    """
    folder = ctx.obj.data_path / "logs"
    log = folder / f"{part}.log"
    there = sorted(file.stem for file in folder.glob("*.log"))
    if part not in there:
        raise NotFoundError(
            f"no log of {part!r} in {folder}. There are: {', '.join(there) or 'none; nothing was started here yet'}."
        )
    # -F, not -f: the log is set aside when it has grown large, and a new one begun under its name.
    done = subprocess.run(["tail", "-n", str(lines), *(["-F"] if follow else []), str(log)], check=False)  # noqa: S603, S607
    raise typer.Exit(done.returncode)
