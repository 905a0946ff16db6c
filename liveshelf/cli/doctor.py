"""`liveshelf doctor`: is this machine fit, and what to do if not."""

import asyncio
from typing import Annotated

import msgspec
import typer

COLORS = {"ok": "green", "warning": "yellow", "failed": "red"}
SOMETHING_FAILED = 3


def command(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of {name, result, found, todo}.")] = False,
) -> None:
    """Check this machine: Python, Java, Kafka's jars, Valkey, ports, disk, memory, and every address in your settings.

    Changes nothing. Exits 0 when nothing failed (warnings are fine), 3 otherwise.
    """
    from liveshelf.local.doctor import FAILED, examine, worst

    checks = asyncio.run(examine(ctx.obj))
    if as_json:
        print(msgspec.json.encode(checks).decode())  # noqa: T201
    else:
        from rich.table import Table
        from rich.text import Text

        from liveshelf.cli.console import table_console

        table = Table("check", "result", "found", "what to do", box=None, pad_edge=False, header_style="bold")
        for check in checks:
            table.add_row(check.name, Text(check.result, style=COLORS[check.result]), Text(check.found), Text(check.todo))
        table_console().print(table)
    raise typer.Exit(SOMETHING_FAILED if worst(checks) == FAILED else 0)
