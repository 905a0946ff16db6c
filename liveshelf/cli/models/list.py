"""`liveshelf models list`: what became of each model version, and which one is live."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("log_loss", "auc", "mrr")  # of the unseen examples a version was judged on; `--json` has them all


def command(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: model, live version, releases oldest first.")] = False,
) -> None:
    """List model versions: parent, outcome, reason and metrics of each, and which one is live.

    `liveshelf models` alone does so too. Example:

        liveshelf models list
    """
    from liveshelf.cli.train import ask
    from streams.route import read_route

    answer = ask(ctx.obj, "/v1/models")
    route = read_route(ctx.obj.model_path)
    answer["live"] = route.stable or answer["live"]
    if as_json:
        typer.echo(msgspec.json.encode(answer))
        return
    from liveshelf.cli.console import table_console

    console = table_console()
    if not answer["releases"]:
        console.print("No model yet. `liveshelf train` makes the first one once the log holds events.")
        return
    console.print(models_table(answer, route.canary))


def models_table(answer: dict[str, Any], canary: int = 0) -> "Table":
    """One line a version, newest last; the live one is marked."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "version", "parent", "made (UTC)", "examples"):
        table.add_column(name, justify="right" if name in ("version", "parent", "examples") else "left", no_wrap=True)
    for name in SHOWN:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("reason")
    for release in answer["releases"]:
        live = release["version"] == answer["live"]
        metrics = release["metrics"]
        figures = [metrics.get(f"served_{name}", metrics.get(f"replayed_{name}")) for name in SHOWN]
        made = datetime.fromtimestamp(release["time_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        cells = [
            "live" if live else "canary" if canary and release["version"] == canary else "",
            str(release["version"]),
            str(release.get("parent", 0) or ""),
            made,
            str(release["examples"]),
            *("" if figure is None else f"{figure:.4f}" for figure in figures),
            release["outcome"],
            release.get("reason", ""),
        ]
        style = "green" if live else "yellow" if release["outcome"] == "refused" else ""
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table
