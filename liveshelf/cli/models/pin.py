"""`liveshelf models pin`: a version stays, whatever the trainer promotes."""

from typing import Annotated

import typer


def command(
    ctx: typer.Context,
    version: Annotated[int, typer.Argument(min=0, help="0: the one that answers now.")] = 0,
    off: Annotated[bool, typer.Option("--off", help="Hold nothing: the newest version answers, and later ones take over.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: live, automatic, canary, share.")] = False,
) -> None:
    """Hold a version for everybody: newer ones wait, and a canary ends.

    Examples:

        liveshelf models pin

        liveshelf models pin 7

        liveshelf models pin --off
    """
    from liveshelf.cli.models.route import put
    from liveshelf.errors import SettingsError

    if off and version:
        raise SettingsError(f"pin {version} --off: name a version to hold it, or --off to hold none")
    put(ctx.obj, lambda promotion: promotion.unpin() if off else promotion.pin(version), as_json)
