"""`liveshelf models promote`: a version answers everybody, or a share of the shoppers."""

from typing import Annotated

import typer


def command(
    ctx: typer.Context,
    version: Annotated[int, typer.Argument(min=1, help="A version in the model directory; see `liveshelf models`.")],
    canary: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Only for this share of the shoppers (0.1: a tenth).")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: live, automatic, canary, share.")] = False,
) -> None:
    """Have a version answer everybody; with --canary a share of the shoppers, the same ones each time, and newer versions wait.

    It is loaded and warmed up first, while the others answer. The newest version promoted to everybody, later ones take over by themselves
    again. Examples:

        liveshelf models promote 8 --canary 0.1

        liveshelf models promote 8
    """
    from liveshelf.cli.models.route import put

    put(ctx.obj, lambda promotion: promotion.promote(version, canary), as_json)
