"""`liveshelf features rebuild`: changed features become a new version, folded from the whole log."""

from pathlib import Path
from typing import Annotated, Any

import typer

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def command(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Option(help="The settings file (default: what LIVESHELF_FEATURES_FILE declares).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and no progress bar.")] = False,
) -> None:
    """Make the declared features a new version, folded from the whole log, while everything goes on running.

    The rows of the new version are written beside the old ones. When they are complete the agents keep both up to date, within seconds; the
    model that is live reads the old one until one that was trained on the new one is promoted. Interrupted, or when a part was down, it
    goes on where it stopped when it is run again. Examples:

        liveshelf features rebuild --file features.yml

        LIVESHELF_FEATURES_FILE=features.yml liveshelf features rebuild --json
    """
    from features.declarations import read_declarations
    from features.feature_set import FeatureSet, declared_set
    from liveshelf.cli.console import progress_bar
    from streams.rebuild import rebuild

    features = FeatureSet(read_declarations(file)) if file else declared_set(ctx.obj)
    try:
        with progress_bar("records", quiet=as_json) as (advance, begin):
            outcome = rebuild(ctx.obj, features, advance, begin)
    except KeyboardInterrupt:
        typer.echo("Stopped. Run the same command again to go on from there.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _show(outcome, as_json)


def _show(outcome: Any, as_json: bool) -> None:
    if as_json:
        import msgspec

        events = sum(part.events for part in outcome.partitions)
        result = {
            "version": outcome.version,
            "already": outcome.already,
            "events": events,
            "shoppers": sum(part.shoppers for part in outcome.partitions),
            "items": sum(part.items for part in outcome.partitions),
            "handovers": outcome.handovers,
            "deleted": outcome.deleted,
            "seconds": round(outcome.seconds, 3),
            "partitions": [part._asdict() for part in outcome.partitions],
        }
        typer.echo(msgspec.json.encode(result).decode())
        return
    if outcome.already:
        typer.echo(f"Feature version {outcome.version} is complete already, and the agents keep it up to date.")
        return
    for part in outcome.partitions:
        typer.echo(
            f"partition {part.partition}: {part.events:,} events from offset {part.start} on, "
            f"{part.shoppers:,} shopper rows, {part.items:,} item rows"
        )
    for partition, low in outcome.deleted.items():
        typer.echo(f"partition {partition}: retention has deleted what was before offset {low}; rows begin there", err=True)
    typer.echo(
        f"Feature version {outcome.version} is complete after {outcome.seconds:.1f} s; the agents take it up within seconds."
    )
