"""`liveshelf features check`: are the settings valid, and do the shop's own events feed every feature?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liveshelf.errors import SettingsError

if TYPE_CHECKING:
    from features.feature_set import FeatureSet

FAULTY = 1


def command(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="The settings file (default: what LIVESHELF_FEATURES_FILE declares).")] = None,
    sample: Annotated[
        Path | None, typer.Option(help="JSON lines: events as browsers send them (GA4), or as they stand in clickstream.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check a feature settings file, by itself and against a sample of the shop's events.

    Faults (exit code 1): the file is not valid (the message names the line), or nothing in the sample feeds a feature, or its items lack a
    field that an affinity needs. Notes: event names that no feature uses, invalid events by reason, and what would become another feature
    version against the registered one. Examples:

        liveshelf features check features.yml

        liveshelf features check features.yml --sample events.jsonl --json
    """
    from features.declarations import read_declarations
    from features.feature_set import FeatureSet, declared_set

    try:
        features = FeatureSet(read_declarations(file)) if file else declared_set(ctx.obj)
    except SettingsError as error:
        _show({"valid": False, "error": str(error), "faults": [str(error)], "notes": []}, as_json)
        raise typer.Exit(FAULTY) from None
    result: dict[str, Any] = {"valid": True, "version": features.version, "features": len(features.declared.features)}
    result |= {"faults": [], "notes": [_against_registered(ctx.obj, features)]}
    if sample is not None:
        _against_sample(ctx.obj, features, sample, result)
    _show(result, as_json)
    if result["faults"]:
        raise typer.Exit(FAULTY)


def _against_registered(settings: Any, features: "FeatureSet") -> str:
    from features.check import changes
    from features.registry import FeatureRegistry

    registry = FeatureRegistry(settings)
    if not registry.registered():
        return f"no version is registered yet: this would be the first, {features.version}"
    if registry.feature_set(features.version) is not None:
        return f"this is version {features.version}, which is registered"
    newest = registry.newest()
    changed = changes(newest, features)
    parts = [f"{what} {', '.join(names)}" for what, names in changed._asdict().items() if names]
    return f"this would be version {features.version}; against {newest.version}: {'; '.join(parts)}"


def _against_sample(settings: Any, features: "FeatureSet", sample: Path, result: dict[str, Any]) -> None:
    from features.check import check_sample
    from streams.sample import read_sample

    read = read_sample(sample, settings)
    checked = check_sample(features, read.events)
    result["sample"] = {
        "valid": len(read.events),
        "invalid": read.invalid,
        "invalid_share": round(sum(read.invalid.values()) / (sum(read.invalid.values()) + len(read.events)), 6),
        **checked._asdict(),
    }
    faults, notes = result["faults"], result["notes"]
    faults += [f"{name} never fires: {why}" for name, why in checked.silent.items()]
    faults += [f"affinities need {field}, which {share:.1%} of the sample's items have" for field, share in checked.lacking.items()]
    notes += [f"{name} also counts {', '.join(names)}, of which the sample has none" for name, names in checked.partly.items()]
    notes += [f"no feature uses {name} ({checked.events[name]:,} in the sample)" for name in checked.unused]
    if read.invalid:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(read.invalid.items(), key=lambda pair: -pair[1]))
        notes.append(
            f"{result['sample']['invalid_share']:.1%} of the sample is invalid: {reasons}. The first, {read.first_invalid}"
        )
    if read.undated:
        notes.append(f"{read.undated:,} events carry no time, and counted as of now")


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(result).decode())
        return
    if result["valid"]:
        typer.echo(f"valid: {result['features']} features, version {result['version']}")
    if "sample" in result:
        counts = ", ".join(f"{name} {count:,}" for name, count in result["sample"]["events"].items())
        typer.echo(f"sample: {counts}")
    for fault in result["faults"]:
        typer.echo(f"fault: {fault}")
    for note in result["notes"]:
        typer.echo(f"note: {note}")
