"""`liveshelf models show`: which version answers whom, or what became of one."""

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from liveshelf.errors import NotFoundError


def command(
    ctx: typer.Context,
    version: Annotated[int, typer.Argument(min=0, help="Its release: outcome, reason, metrics. 0: which versions answer.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show which version answers whom, and which ones the model server has loaded; or, of one version, what became of it.

    Examples:

        liveshelf models show

        liveshelf models show 8
    """
    if version:
        _show_release(ctx, version, as_json)
        return
    from liveshelf.cli.models.route import tell
    from serving.model_client import ModelClient
    from serving.promotion import Promotion
    from streams.route import read_route

    async def ask() -> tuple[int, list[int]]:
        async with ModelClient(ctx.obj) as client:
            return await Promotion(ctx.obj, client).live(), await client.versions()

    live, loaded = asyncio.run(ask())
    route = read_route(ctx.obj.model_path)
    tell(route, live, as_json)
    if not as_json:
        typer.echo(f"Loaded: {', '.join(map(str, loaded)) or 'none'}.")
        if route.canary:
            typer.echo(_standing(ctx))


def _standing(ctx: typer.Context) -> str:
    """What shoppers have said of the canary so far."""
    from liveshelf.cli.train import ask
    from liveshelf.errors import UnavailableError

    try:
        found = ask(ctx.obj, "/v1/canary")
    except UnavailableError as error:
        return f"How the canary stands is not known: {error}"
    return f"Canary: {found['reason']}." if found else "Canary: nothing is known of it yet."


def _show_release(ctx: typer.Context, version: int, as_json: bool) -> None:
    import msgspec

    from liveshelf.cli.train import ask

    found = [release for release in ask(ctx.obj, "/v1/models")["releases"] if release["version"] == version]
    if not found:
        raise NotFoundError(f"the log knows no version {version}; `liveshelf models` lists those that there are")
    canary = [release for release in found if release["outcome"].startswith("canary_")]
    if as_json:
        typer.echo(msgspec.json.encode(found[0] | {"canary": canary}))
        return
    for release in [found[0], *canary]:  # what became of it as a canary comes after what the gate said
        for name, figure in _flat(release):
            typer.echo(f"{name}: {figure}")


def _flat(value: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{before}{name} ")
        else:
            yield f"{before}{name}", inner
