"""`liveshelf catalog load FILE`: send the shop's items to the collector."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from liveshelf.errors import InvalidEventError
from liveshelf.settings import Settings

REFUSED = 2  # as InvalidEventError: some items were refused
REFUSALS_SHOWN_MAX = 20
LINES_AT_ONCE = 5_000  # read, sent and forgotten: a catalog of millions of items need not fit in memory


def command(
    ctx: typer.Context,
    action: Annotated[Literal["load"], typer.Argument(help="load: add or replace items.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="One JSON object a line.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Load the shop's items from a file with one JSON object a line.

    Fields: item_id (required), item_name, item_category, item_brand, price, available, embedding. An item replaces what was known under
    its item_id. Exits with 2 when some were refused; the others are loaded all the same.
    """
    import asyncio

    settings: Settings = ctx.obj
    began = time.monotonic()
    result = asyncio.run(_load(file, settings))
    result["seconds"] = round(time.monotonic() - began, 3)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(result))
    else:
        typer.echo(f"accepted  {result['accepted']:>10,}")
        typer.echo(f"rejected  {result['rejected']:>10,}")
        for refusal in result["refusals"]:
            typer.echo(f"  {refusal}")
        typer.echo(f"seconds   {result['seconds']:>10,.1f}")
    if result["rejected"]:
        raise typer.Exit(REFUSED)


async def _load(file: Path, settings: Settings) -> dict[str, Any]:
    """Send every line; refusals name their line."""
    from liveshelf.replay.sender import Sender

    result: dict[str, Any] = {"accepted": 0, "rejected": 0, "refusals": []}

    def refuse(line: int, why: str) -> None:
        result["rejected"] += 1
        if len(result["refusals"]) < REFUSALS_SHOWN_MAX:
            result["refusals"].append(f"{file.name}, line {line}: {why}")

    async with Sender(settings) as sender:
        numbers: list[int] = []
        records: list[bytes] = []

        async def send() -> None:
            done = 0
            async for receipt in sender.post("/v1/catalog", records):
                result["accepted"] += receipt.accepted
                for one in receipt.rejected:
                    refuse(numbers[done + (one.index or 0)], f"{one.field}: got {one.value!r}, expected {one.expected}")
                done += receipt.accepted + len(receipt.rejected)
            numbers.clear()
            records.clear()

        with file.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                line = text.strip()
                if not line:
                    continue
                if problem := _problem(line):
                    refuse(number, problem)
                    continue
                numbers.append(number)
                records.append(line)
                if len(records) == LINES_AT_ONCE:
                    await send()
        await send()
    if not result["accepted"] and not result["rejected"]:
        raise InvalidEventError(str(file), "no line", "one JSON object a line")
    return result


def _problem(line: bytes) -> str:
    """Why this line cannot stand in a request at all; empty when it can. The collector says what is wrong with the item itself."""
    import msgspec

    try:
        msgspec.json.decode(line.decode(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"not a JSON object: {error}"
    return ""
