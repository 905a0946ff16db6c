"""`liveshelf features retire`: stop keeping a feature version up to date."""

from typing import Annotated

import typer

from liveshelf.errors import ConflictError


def command(
    ctx: typer.Context,
    version: Annotated[str, typer.Argument(help="The version, as `liveshelf features list` names it.")],
) -> None:
    """Stop keeping a feature version up to date: the agents fold it no more, within seconds.

    Refused for the only version, and for the one that the live model reads: promote a model of another version first. Its rows stay in the
    store until the store is emptied; a rebuild of the same features goes on from them. Example:

        liveshelf features retire 1a2b3c4d
    """
    from features.registry import FeatureRegistry
    from trainer.releases import history

    live = [release for release in history(ctx.obj) if release.outcome == "promoted"][-1:]
    if live and live[0].feature_version == version:
        raise ConflictError(
            f"model version {live[0].version} is live and reads feature version {version}. Train on another one first: "
            "`liveshelf train --bootstrap` after `liveshelf features rebuild`"
        )
    FeatureRegistry(ctx.obj).retire(version)
    typer.echo(f"Feature version {version} is retired.")
