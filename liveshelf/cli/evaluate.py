"""`liveshelf evaluate`: what the served pipeline would have told on a recorded log, or earned, beside simpler ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table


def command(
    ctx: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            exists=True,
            metavar="DATA",
            help="A tar archive or a directory: one file train, one test; for off-policy POLICY/CAMPAIGN/.",
        ),
    ],
    protocol: Annotated[Literal["next-click", "off-policy"], typer.Option(help="What is asked.")] = "next-click",
    baseline: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="popular, sr, vsknn, stan or gru; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON object alone, and no table.")] = False,
) -> None:
    """What would have been told, or earned, on a recorded log. The last line is one JSON object.

    next-click: learn from the log's training part, then tell the next click of every prefix of its test part, over all items. What
    answers is what is served: candidate sources, the SavedModel run by the model server's own code, ranking. hr20 is how often the next click
    is among the first 20, mrr20 the mean of one over its place there.

    off-policy: of impressions logged with their propensities (the Open Bandit data's files), learn to tell which are clicked on, and estimate
    the clicks a round that our ranking would have earned in place of the random policy: ips, snips and dr, each with its interval of 95%.
    """
    import msgspec

    from liveshelf.cli.console import progress_bar, table_console

    if protocol == "off-policy":
        if baseline:
            raise SettingsError(
                f"--baseline {baseline[0]} goes with next-click; off-policy compares with the policies that the log holds"
            )
        result, table = _off_policy(path, ctx.obj, progress_bar)
    else:
        result, table = _next_click(path, baseline or (), progress_bar)
    if not as_json:
        table_console().print(table)
    typer.echo(msgspec.json.encode({"protocol": protocol, "data": path.name} | result))


def _next_click(path: Path, baselines: Sequence[str], bar: Any) -> tuple[dict[str, Any], "Table"]:
    from rich.table import Table

    from liveshelf.evaluation.next_click import evaluate
    from liveshelf.evaluation.visits import read

    result = evaluate(read(path), baselines, bar)
    table = Table("", "HR@20", "MRR@20", "ms each", box=None)
    for name, figures in (*result.get("baselines", {}).items(), ("ours", result)):
        table.add_row(name, f"{figures['hr20']:.4f}", f"{figures['mrr20']:.4f}", f"{figures['ms_per_prediction']:.2f}")
    return result, table


def _off_policy(path: Path, settings: Settings, bar: Any) -> tuple[dict[str, Any], "Table"]:
    from rich.table import Table

    from features.feature_set import declared_set
    from liveshelf.evaluation.impressions import evaluate
    from liveshelf.evaluation.open_bandit import read

    result = evaluate(read(path), declared_set(settings), bar)
    table = Table("clicks a round", "IPS", "SNIPS", "DR", "DR above random", "rounds", box=None)

    def told(interval: list[float]) -> str:
        return "{:.4f} [{:.4f}, {:.4f}]".format(*interval)

    for policy in ("random", "bts"):
        if policy in result:
            table.add_row(f"{policy}, as logged", told(result[policy]))
    for policy in ("ranked", "sampled"):
        found = result[policy]
        table.add_row(f"ours, {policy}", *(told(found[name]) for name in ("ips", "snips", "dr", "gain")), str(found["rounds_used"]))
    return result, table
