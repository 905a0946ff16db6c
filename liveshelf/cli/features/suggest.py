"""`liveshelf features suggest`: a settings file from a sample of the shop's own events."""

from pathlib import Path
from typing import Annotated

import typer

from liveshelf.errors import ConflictError


def command(
    ctx: typer.Context,
    sample: Annotated[
        Path, typer.Argument(help="JSON lines: events as browsers send them (GA4), or as they stand in clickstream.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the file here (default: to stdout).")] = None,
) -> None:
    """Propose a feature settings file from a sample of the shop's own events, with the reason for every entry.

    Half-lives follow from how soon shoppers come back and how often items are asked for, the end of a visit from the gaps between events,
    the sequence from how long shoppers' histories are; affinities are proposed for item fields that are there and tell shoppers apart.
    A few thousand events of some days say more than a few dozen. Examples:

        liveshelf features suggest events.jsonl -o features.yml

        liveshelf features check features.yml --sample events.jsonl
    """
    from features.declarations import parse_declarations
    from features.suggest import suggest
    from streams.sample import read_sample

    read = read_sample(sample, ctx.obj)
    text = suggest(read.events, sample.name)
    parse_declarations(text, "the proposed file")
    if read.undated:
        typer.echo(f"{read.undated:,} events carry no time and count as of now: lengths of time mean little", err=True)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise ConflictError(f"{output} exists already; name another file, or remove it") from None
    except OSError as error:
        raise ConflictError(f"{output} cannot be written: {error}") from None
    typer.echo(f"Wrote {output}. Next: liveshelf features check {output} --sample {sample}", err=True)
