"""`liveshelf sync-table`: what it is worth to a shop, on its own log, that weights follow events soon."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from liveshelf.settings import Settings


def command(
    ctx: typer.Context,
    path: Annotated[
        Path, typer.Argument(exists=True, metavar="DATA", help="A log with times: a file, a tar archive, or a directory of files.")
    ],
    intervals: Annotated[str, typer.Option(help="How often the models take a step.")] = "1d,6h,1h,15m,5m",
    beginning: Annotated[
        str, typer.Option(metavar="DURATION", help="How much of the log the first weights are learnt from (default: a quarter).")
    ] = "",
    events: Annotated[int, typer.Option(min=2, metavar="N", help="Of a longer log, its latest N events.")] = 200_000,
    evaluated: Annotated[int, typer.Option(min=1, metavar="N", help="How many events are told; of more, N by chance.")] = 5_000,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it, too: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Replay a log by event time and tell each event before learning from it, with weights that are updated at different intervals.

    All models begin with the same weights, learnt from the log's beginning; all tell the same events; features, session neighbours and
    popularity are live for all. Formats are those of `liveshelf replay`, and JSON lines of events (GA4), which `liveshelf simulate --log`
    writes. AUC is within a shelf of 21: the item engaged with among others; HR@20 is over the list that the scorer would have shown.
    Intervals of confidence are 95%, by a bootstrap over shoppers.

        liveshelf sync-table events.jsonl --intervals 1d,1h,5m --plot sync.png
    """
    import logging

    import msgspec

    from features.feature_set import declared_set
    from liveshelf.cli.console import progress_bar, table_console
    from liveshelf.evaluation.event_log import read
    from liveshelf.evaluation.sync_table import check_plot, parse_duration, parse_intervals, sync_table
    from liveshelf.evaluation.sync_table import plot as draw

    settings: Settings = ctx.obj
    wanted = parse_intervals(intervals)
    if plot is not None:
        check_plot(plot)
    beginning_ms = parse_duration(beginning, "--beginning") if beginning else None
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of tracing the same code for each of the models
    features = declared_set(settings)
    log = read(path, settings, events)
    with progress_bar("events", quiet=as_json) as (advance, total):
        total(len(log.events))
        result = {"data": path.name} | sync_table(log, wanted, beginning_ms, settings, features, evaluated, advance)
    if plot is not None:
        draw(result, plot)
    if as_json:
        typer.echo(msgspec.json.encode(result))
        return
    table_console().print(_table(result))
    for line in _remarks(result):
        typer.echo(line)


def _table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table("", "AUC", "HR@20", "log loss", "steps", "learnt from", "processor s", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result["rows"]:
        figures = ("{:.4f} [{:.4f}, {:.4f}]".format(*row[measure]) for measure in ("auc", "hr20", "log_loss"))
        table.add_row(row["name"], *figures, f"{row['steps']:,}", f"{row['learnt']:,}", f"{row['cpu_s']:,.1f}")
    return table


def _remarks(result: dict[str, Any]) -> list[str]:
    """What was sampled, what the increments keep, and what pays."""
    lines = [
        f"{result['events']:,} of {result['events_in_log']:,} events, {result['from']} to {result['to']} ({result['format']}); "
        f"{result['evaluated']:,} told, drawn from {result['eligible']:,} after {result['evaluated_from']}, of {result['shoppers']:,} shoppers."
    ]
    if result["unusable_lines"]:
        lines.append(f"{result['unusable_lines']:,} lines were no events.")
    if kept := result["retrain"]:
        hits = kept["hr20"]
        lines.append(
            f"Steps each {kept['interval']} against learning anew ({kept['cpu_s']:.0f} s), from {kept['evaluated_from']}, {kept['evaluated']:,} events: "
            f"HR@20 {hits['incremental'][0]:.4f} and {hits['retrained'][0]:.4f}, {hits['relative']:+.1%} (difference {hits['difference'][0]:+.4f} "
            f"[{hits['difference'][1]:+.4f}, {hits['difference'][2]:+.4f}])."
        )
    return [*lines, result["verdict"]]
