"""`liveshelf evaluate`: what the served pipeline would have told on a recorded log, beside simpler ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table


def command(
    path: Annotated[
        Path, typer.Argument(exists=True, metavar="DATA", help="A tar archive or a directory: one file train, one test.")
    ],
    protocol: Annotated[Literal["next-click"], typer.Option(help="What is asked.")] = "next-click",
    baseline: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="popular, sr, vsknn, stan or gru; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON object alone, and no table.")] = False,
) -> None:
    """Learn from the log's training part, then tell the next click of every prefix of its test part, over all items.

    What answers is what is served: candidate sources, the SavedModel run by the model server's own code, ranking. The last line is one
    JSON object: hr20 (how often the next click is among the first 20), mrr20 (the mean of one over its place there), predictions, seconds.
    """
    import msgspec

    from liveshelf.cli.console import progress_bar, table_console
    from liveshelf.evaluation.next_click import evaluate
    from liveshelf.evaluation.visits import read

    result = evaluate(read(path), baseline or (), progress_bar)
    if not as_json:
        table_console().print(_table(result))
    typer.echo(msgspec.json.encode({"protocol": protocol, "data": path.name} | result))


def _table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table("", "HR@20", "MRR@20", "ms each", box=None)
    for name, figures in (*result.get("baselines", {}).items(), ("ours", result)):
        table.add_row(name, f"{figures['hr20']:.4f}", f"{figures['mrr20']:.4f}", f"{figures['ms_per_prediction']:.2f}")
    return table
