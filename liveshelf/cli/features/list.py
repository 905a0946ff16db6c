"""`liveshelf features list`: what is declared, what it compiles to, and which versions are registered."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liveshelf.errors import NotFoundError

if TYPE_CHECKING:
    from features.feature_set import FeatureSet


def command(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Option(help="A settings file (default: what LIVESHELF_FEATURES_FILE declares).")] = None,
    version: Annotated[str, typer.Option(help="A registered feature version instead of a file.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: version, features, registered versions.")] = False,
) -> None:
    """List every declared feature: kind, entity, parameters, meaning, and where it stands in Feast and in the model's input.

    Below, the feature versions that are registered, newest last. `view` stands for the view's name with the version, such as
    shopper_features_1a2b3c4d. Examples:

        liveshelf features list

        liveshelf features list --file features.yml --json
    """
    import msgspec

    from features.declarations import read_declarations
    from features.feature_set import FeatureSet, declared_set
    from features.readable import declared_features
    from features.registry import FeatureRegistry

    registry = FeatureRegistry(ctx.obj)
    registered = registry.feature_sets() if registry.registered() else {}
    rebuilding = registry.rebuilding()
    features: FeatureSet
    if version:
        found = registry.feature_set(version)
        if found is None:
            raise NotFoundError(f"feature version {version!r} is not registered; there are: {', '.join(registered) or 'none yet'}")
        features = found
    else:
        features = FeatureSet(read_declarations(file)) if file else declared_set(ctx.obj)
    versions = [
        {"version": name, "newest": name == list(registered)[-1], "state": "kept up to date", "declared": name == features.version}
        for name in registered
    ]
    versions += [
        {"version": name, "newest": False, "state": "being rebuilt", "declared": name == features.version}
        for name in sorted(rebuilding)
    ]
    result = {"version": features.version, "features": declared_features(features), "registered": versions}
    if as_json:
        typer.echo(msgspec.json.encode(result).decode())
        return
    _print(result, features)


def _print(result: dict[str, Any], features: "FeatureSet") -> None:
    from rich.table import Table

    from liveshelf.cli.console import table_console

    console = table_console()
    console.print(f"feature version {result['version']}, {len(result['features'])} features", style="bold", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "kind", "entity"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "Feast", "model's columns", "meaning"):
        table.add_column(name, overflow="fold")
    for feature in result["features"]:
        table.add_row(
            feature["name"],
            feature["kind"],
            feature["entity"],
            _parameters(feature["parameters"]),
            "\n".join(field.replace(f"_{result['version']}", "") for field in feature["fields"]),
            _columns(feature["columns"]),
            feature["meaning"],
        )
    console.print(table)
    if not result["registered"]:
        console.print("\nNo version is registered yet: the agents register the declared one when they first start.")
        return
    console.print()
    for version in result["registered"]:
        marks = [version["state"], *["newest"] * version["newest"], *["as declared above"] * version["declared"]]
        console.print(f"{version['version']}  {', '.join(marks)}", highlight=False)
    if not any(version["declared"] for version in result["registered"]):
        console.print(
            f"\nWhat is declared is none of these: `liveshelf features rebuild` makes it version {result['version']}.",
            highlight=False,
        )


def _parameters(parameters: dict[str, Any]) -> str:
    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {of:g}" for name, of in value.items())
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    return "; ".join(f"{name}: {words(value)}" for name, value in parameters.items())


def _columns(columns: list[str]) -> str:
    return "\n".join(columns) if len(columns) <= 3 else f"{columns[0]}\n… {len(columns) - 2} more …\n{columns[-1]}"
