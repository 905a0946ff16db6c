"""`liveshelf features verify`: does the store hold what the log says, and was served what the store held?"""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from streams.verify import Served, Verified

DIFFERENT = 1  # a defect of ours, as `liveshelf.cli.main` lists exit codes
INTERRUPTED = 130


def command(
    ctx: typer.Context,
    version: Annotated[str, typer.Option(help="One feature version (default: every one that is kept up to date).")] = "",
    impressions: Annotated[
        int, typer.Option(min=0, metavar="N", help="Also recompute the features of the N latest impressions as they were served.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Only the last line: one JSON object.")] = False,
) -> None:
    """Fold the log again, without the store, and compare every row with the store: bit for bit.

    The loop may go on meanwhile: each row is compared at the record up to which the store says it was folded. The last line is one JSON
    object; `rows` were compared, `different` of them are not what the log says. Where retention has deleted the beginning of the log, rows
    that differ count as `unverifiable`: they may hold events that nobody can fold again. Exit code 0: nothing differs, 1: something does.
    Examples:

        liveshelf features verify

        liveshelf features verify --impressions 200 --json | jq .different
    """
    from liveshelf.cli.console import progress_bar
    from streams.verify import verify, verify_impressions, version_sets

    began = time.monotonic()
    found: list[Verified] = []
    served: Served | None = None
    try:
        sets = version_sets(ctx.obj, version)
        with progress_bar("records", quiet=as_json) as (advance, begin):
            found = [verify(ctx.obj, features, advance, begin) for features in sets]
            if impressions:
                served = verify_impressions(ctx.obj, impressions, advance, begin)
    except KeyboardInterrupt:
        typer.echo("Stopped; nothing was changed.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        _print(found, served)
    result = _result(found, served, time.monotonic() - began)
    import msgspec

    typer.echo(msgspec.json.encode(result).decode())
    if result["different"] or result.get("impressions_different"):
        raise typer.Exit(DIFFERENT)


def _result(found: "list[Verified]", served: "Served | None", seconds: float) -> dict[str, Any]:
    def total(what: str) -> int:
        return sum(verified.total(what) for verified in found)

    result: dict[str, Any] = {
        "rows": total("shoppers") + total("items"),
        "different": total("different") + sum(verified.handovers_different for verified in found),
        "shoppers": total("shoppers"),
        "items": total("items"),
        "events": total("events"),
        "moved_on": total("moved_on"),
        "unverifiable": total("unverifiable"),
        "handovers": sum(verified.handovers for verified in found),
        "behind": sum(verified.behind for verified in found),
        "versions": [verified.version for verified in found],
        "differences": [difference._asdict() for v in found for part in v.partitions for difference in part.differences],
        "seconds": round(seconds, 3),
    }
    if served is not None:
        result |= {
            "impressions": served.impressions,
            "impressions_different": served.different,
            "impressions_unverifiable": sum(served.unverifiable.values()),
            "impressions_differences": served.differences,
        }
    return result


def _print(found: "list[Verified]", served: "Served | None") -> None:
    for verified in found:
        rows = verified.total("shoppers") + verified.total("items")
        typer.echo(
            f"feature version {verified.version}: {verified.total('events'):,} events, {rows:,} rows compared, "
            f"{verified.total('different'):,} different"
        )
        for partition, low in verified.deleted.items():
            typer.echo(
                f"  partition {partition}: retention has deleted what was before offset {low}. Rows that differ there are not judged: "
                f"{verified.total('unverifiable'):,}"
            )
        if verified.behind:
            typer.echo(f"  {verified.behind:,} records at the end of the log are not folded yet, and were not compared")
        if verified.handovers:
            typer.echo(f"  {verified.handovers:,} sign-ins recomputed, {verified.handovers_different:,} different")
        for difference in (d for part in verified.partitions for d in part.differences):
            typer.echo(f"  {difference.row}, {difference.partition}@{difference.offset}:")
            for line in difference.what:
                typer.echo(f"    {line}")
    if served is not None:
        typer.echo(f"impressions: {served.impressions:,} recomputed as served, {served.different:,} different")
        for reason, count in served.unverifiable.items():
            typer.echo(f"  {count:,} not verifiable: {reason}")
        for line in served.differences:
            typer.echo(f"  {line}")
