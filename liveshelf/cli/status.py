"""`liveshelf status`: the parts as their supervisor sees them."""

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

if TYPE_CHECKING:
    from rich.table import Table

    from liveshelf.local.state import RunState

NOT_HEALTHY = 3

COLORS = {"healthy": "green", "starting": "yellow", "restarting": "yellow", "unhealthy": "red", "stopped": "dim"}


def command(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as one JSON object: null when nothing runs.")] = False,
) -> None:
    """Show each part of the running Liveshelf: address, version, health, restarts.

    Exits 0 when every part is healthy, 3 otherwise: fit for a script that waits.
    """
    from liveshelf.local.state import running_state

    state = running_state(ctx.obj)
    if as_json:
        print(msgspec.json.encode(state).decode())  # noqa: T201
    else:
        from liveshelf.cli.console import table_console

        table_console().print(
            parts_table(state) if state else f"Nothing runs in {ctx.obj.data_path}. Start it with `liveshelf up`."
        )
    raise typer.Exit(0 if state and state.healthy else NOT_HEALTHY)


def parts_table(state: "RunState") -> "Table":
    """part, address, version, seconds to ready, health; restarts and reasons where there are any."""
    from rich.table import Table
    from rich.text import Text

    table = Table("part", "address", "version", "ready s", "health", box=None, pad_edge=False, header_style="bold")
    table.columns[1].min_width = max(
        (len(part.address) for part in state.parts), default=0
    )  # an address is there to be copied: whole
    table.columns[3].justify = "right"
    for part in state.parts:
        restarts = f", {part.restarts} restart{'s' * (part.restarts > 1)}" if part.restarts else ""
        # While a part starts, a refused connection is no news.
        detail = f": {part.detail}" if part.detail and part.health != "starting" else ""
        health = Text(part.health + restarts + detail, style=COLORS.get(part.health, ""))
        ready = f"{part.ready_s:.1f}" if part.ready_s else ""
        table.add_row(part.name, Text(part.address), Text(part.version), ready, health)
    return table
