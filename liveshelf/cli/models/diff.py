"""`liveshelf models diff`: what is different between two versions, and which of them is better."""

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

if TYPE_CHECKING:
    from rich.console import Console

PLAIN = ("lineage", "settings", "code", "offsets", "shapes", "metrics")


def command(
    ctx: typer.Context,
    first: Annotated[int, typer.Argument(min=1, help="A version; see `liveshelf models`.")],
    second: Annotated[int, typer.Argument(min=1, help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Set two versions side by side: settings, code, lineage, figures, shapes, operations, items known; and quality, objective by objective.

    Quality is measured now: both versions answer, in a model server of their own, the shelves that the trainer keeps to judge by, which
    neither has learnt from. Bounds are one-sided, at 99.4% each. Versions that are no longer in the model directory cannot be asked. Example:

        liveshelf models diff 7 8
    """
    from rich.console import Console

    from liveshelf.cli.train import ask

    with Console(stderr=True).status("asking both versions"):
        found = ask(ctx.obj, f"/v1/models/diff?first={first}&second={second}")
    if as_json:
        typer.echo(msgspec.json.encode(found))
        return
    from liveshelf.cli.console import table_console

    show(found, table_console())


def show(found: dict[str, Any], console: "Console") -> None:
    """Print a difference; what is equal is not named."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", f"version {found['first']}", f"version {found['second']}"):
        table.add_column(name, overflow="fold")
    for part in PLAIN:
        for name, (one, other) in found[part].items():
            table.add_row(f"{part} {name}", _cell(one), _cell(other))
    table.add_row("operations of one only", *(", ".join(names) or "none" for names in found["operations"]))
    if (items := found["items"]) is not None:
        table.add_row("items known", *map(str, items["counts"]))
        table.add_row(
            f"items of one only ({items['removed']}, {items['added']})",
            *(", ".join(items[name]) or "none" for name in ("removed_first", "added_first")),
        )
    console.print(table)
    if found["quality"]:
        console.print()
        console.print(_quality_table(found))
    for why in found["missing"]:
        console.print(f"not compared: {why}", style="yellow", markup=False, highlight=False)


def _quality_table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    names = ("objective", "shelves", "actions", "log loss of the second", "pairs in wrong order", "calibration")
    table = Table(box=None, pad_edge=False, header_style="bold", title="on unseen shelves; below 0 the second is better")
    for name in names:
        table.add_column(name, justify="left" if name == "objective" else "right")
    for row in found["quality"]:
        loss, order = row["log_loss"], row["order"]
        table.add_row(
            row["objective"],
            str(row["shelves"]),
            str(row["actions"]),
            "{:+.2%} [{:+.2%}, {:+.2%}]".format(*loss),
            "too few actions" if order is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*order),
            "{:.2f}, {:.2f}".format(*row["calibration"]),
        )
    return table


def _cell(value: Any) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
