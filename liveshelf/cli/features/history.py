"""`liveshelf features history`: the features as they were at every moment, as parquet."""

import time
from pathlib import Path
from typing import Annotated

import typer

from liveshelf.errors import SettingsError

INTERRUPTED = 130


def command(
    ctx: typer.Context,
    version: Annotated[str, typer.Option(help="The feature version (default: the newest).")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Directory for the files (default: beside Feast's registry, where its views look for them).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and no progress bar.")] = False,
) -> None:
    """Write the features' history, folded from the log: what Feast's get_historical_features reads.

    One directory of parquet files a view, a row for every change, `event_timestamp` the event time since when it was so. With the default
    directory Feast finds it by itself: point-in-time joins on the views give what was served. Examples:

        liveshelf features history

        liveshelf features history --version 1a2b3c4d --out /data/history
    """
    import msgspec

    from features.registry import FeatureRegistry
    from liveshelf.cli.console import progress_bar
    from streams.history import write_history
    from streams.verify import version_sets

    began = time.monotonic()
    features = version_sets(ctx.obj, version)[-1]
    directory = out or FeatureRegistry(ctx.obj).path.parent
    try:
        with progress_bar("records", quiet=as_json) as (advance, begin):
            events, rows = write_history(ctx.obj, features, directory, advance, begin)
    except KeyboardInterrupt:
        typer.echo("Stopped; an earlier history stays as it was.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except ModuleNotFoundError as error:  # the images of agents and scoring are without what writes parquet
        raise SettingsError(f"{error}, or run this in the trainer's container") from error
    views = [features.shopper_view.name, features.item_view.name]
    seconds = time.monotonic() - began
    if as_json:
        result = {"version": features.version, "events": events, "rows": rows, "directory": str(directory), "views": views}
        typer.echo(msgspec.json.encode(result | {"seconds": round(seconds, 3)}).decode())
        return
    typer.echo(f"{rows:,} rows of history from {events:,} events in {seconds:.1f} s, in {directory}:")
    for view in views:
        typer.echo(f"  {view}.parquet")
