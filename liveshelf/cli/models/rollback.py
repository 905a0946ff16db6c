"""`liveshelf models rollback`: the version before answers again."""

from typing import Annotated

import typer


def command(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: live, automatic, canary, share.")] = False,
) -> None:
    """End the canary; without one, have the version before answer. It is loaded still, so this takes no longer than a scorer's next look.

    Newer versions, which learnt from where the bad one did, wait until `liveshelf models pin --off`. Example:

        liveshelf models rollback
    """
    from liveshelf.cli.models.route import put

    put(ctx.obj, lambda promotion: promotion.rollback(), as_json)
