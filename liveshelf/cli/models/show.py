"""`liveshelf models show`: which version answers whom, or what became of one."""

import asyncio
from typing import Annotated

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
    tell(read_route(ctx.obj.model_path), live, as_json)
    if not as_json:
        typer.echo(f"Loaded: {', '.join(map(str, loaded)) or 'none'}.")


def _show_release(ctx: typer.Context, version: int, as_json: bool) -> None:
    import msgspec

    from liveshelf.cli.train import ask

    found = [release for release in ask(ctx.obj, "/v1/models")["releases"] if release["version"] == version]
    if not found:
        raise NotFoundError(f"the log knows no version {version}; `liveshelf models` lists those that there are")
    if as_json:
        typer.echo(msgspec.json.encode(found[-1]))
        return
    for name, value in found[-1].items():
        for key, figure in value.items() if isinstance(value, dict) else [("", value)]:
            typer.echo(f"{name}{' ' + key if key else ''}: {figure}")
