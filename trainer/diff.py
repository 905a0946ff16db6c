"""Two versions side by side: settings, code, lineage, figures, shapes, operations, item tables, and which of them is better.

What stands in the releases is compared as it stands. Quality is measured anew, since the figures of two releases are of different shelves:
both versions answer, in one model server, the shelves that the trainer keeps to judge by, which neither has learnt from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import tensorflow as tf

from liveshelf.errors import NotFoundError
from liveshelf.settings import Settings
from streams.records import Release
from trainer import checkpoint
from trainer.compare import Comparison, Worse, compare
from trainer.export import operations
from trainer.gate import UNSEEN_MIN
from trainer.samples import Samples
from trainer.trial import NotServedError, Trial

NAMED_MAX = 20  # items by name; all of them are counted
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # what TensorFlow calls a variable of a SavedModel; `ids` are the served item table's (see export)


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """Of the second version beside the first, for one objective; below 0 where the second is better."""

    objective: str
    shelves: int
    actions: int
    log_loss: Worse
    """Relative to the first's, with bounds (see `compare`)."""
    order: Worse | None
    """More pairs in the wrong order, as a share."""
    calibration: tuple[float, float]
    """Chances over actions, of the first and the second; 1 is right."""


class Items(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of items that the two know."""

    counts: tuple[int, int]
    added: int
    """Known to the second only."""
    removed: int
    added_first: list[str]
    """Some of them by name."""
    removed_first: list[str]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """From `first` to `second`. Pairs are (first, second); what is equal is left out of the mappings."""

    first: int
    second: int
    lineage: dict[str, tuple[Any, Any]]
    settings: dict[str, tuple[Any, Any]]
    code: dict[str, tuple[Any, Any]]
    offsets: dict[str, tuple[Any, Any]]
    metrics: dict[str, tuple[Any, Any]]
    """As each was judged when it was made, on the shelves of that time."""
    shapes: dict[str, tuple[Any, Any]]
    operations: tuple[list[str], list[str]]
    """That only the first has, and only the second."""
    items: Items | None
    quality: list[Quality]
    missing: list[str]
    """What could not be compared, and why."""


class Exported(NamedTuple):
    """What a version's directory says of it."""

    ids: list[bytes]
    shapes: dict[str, list[int]]
    """Of every variable that is served."""
    operations: set[str]


def diff(settings: Settings, history: Sequence[Release], first: int, second: int) -> Difference:
    """Compare two versions, as the releases, the model directory and the trainer's checkpoint know them.

    Raises:
        NotFoundError: the log knows no such version.
        UnavailableError: the model server that both are asked in did not come up.
    """
    one, other = (_made(history, version) for version in (first, second))
    gone = [version for version in (first, second) if not (settings.model_path / str(version)).is_dir()]
    if gone:
        missing = [f"shapes, operations, items and quality: version {gone[0]} is no longer in the model directory"]
        return difference(one, other, None, [], missing)
    exported = tuple(_exported(settings.model_path / str(version)) for version in (first, second))
    if one.feature_version != other.feature_version:
        missing = [f"quality: they learnt from different features, {one.feature_version} and {other.feature_version}"]
        return difference(one, other, exported, [], missing)
    try:
        return difference(one, other, exported, _quality(settings, one, other), [])
    except (NotFoundError, NotServedError) as error:
        return difference(one, other, exported, [], [f"quality: {error}"])


def difference(
    one: Release, other: Release, exported: tuple[Exported, ...] | None, quality: list[Quality], missing: list[str]
) -> Difference:
    """Of what stands in two releases, and what was found out besides. Pure."""
    made = [release.lineage for release in (one, other)]
    for release in (one, other):
        if release.lineage is None:
            missing = [*missing, f"lineage: version {release.version} was made before it was told"]
    settings, code = ([{} if of is None else getattr(of, name) for of in made] for name in ("settings", "code"))
    runs = [of.operations for of in exported] if exported else [set(), set()]
    return Difference(
        first=one.version,
        second=other.version,
        lineage=_changed(_lineage(one), _lineage(other)),
        settings=_changed(*settings),
        code=_changed(*code),
        offsets=_changed(one.offsets, other.offsets),
        metrics=_changed(one.metrics, other.metrics),
        shapes=_changed(*(of.shapes for of in exported)) if exported else {},
        operations=(sorted(runs[0] - runs[1]), sorted(runs[1] - runs[0])),
        items=compared_items(*(of.ids for of in exported)) if exported else None,
        quality=quality,
        missing=missing,
    )


def compared_items(one: Sequence[bytes], other: Sequence[bytes]) -> Items:
    known, known_other = set(one), set(other)
    added, removed = sorted(known_other - known), sorted(known - known_other)
    return Items(
        counts=(len(known), len(known_other)),
        added=len(added),
        removed=len(removed),
        added_first=[item.decode(errors="replace") for item in added[:NAMED_MAX]],
        removed_first=[item.decode(errors="replace") for item in removed[:NAMED_MAX]],
    )


def _made(history: Sequence[Release], version: int) -> Release:
    """The release of `version`, as the gate told it: what a canary showed comes later."""
    found = next((release for release in history if release.version == version), None)
    if found is None:
        raise NotFoundError(f"the log knows no version {version}; `liveshelf models` lists those that there are")
    return found


def _lineage(release: Release) -> dict[str, Any]:
    told = msgspec.structs.asdict(release.lineage) if release.lineage is not None else {}
    plain = {name: getattr(release, name) for name in ("parent", "outcome", "reason", "examples", "feature_version", "time_ms")}
    return plain | {name: value for name, value in told.items() if name not in ("settings", "code", "reads")}


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name → both values, None where there is none; those that are equal left out."""
    return {
        name: (one.get(name), other.get(name)) for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)
    }


def _exported(version: Path) -> Exported:
    variables = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    shapes = {
        name.removesuffix(VALUE): shape for name, shape in variables.get_variable_to_shape_map().items() if name.endswith(VALUE)
    }
    ids = [
        item for item in variables.get_tensor(f"ids{VALUE}").tolist() if item
    ]  # the last is none: what retrieval finds too little of
    return Exported(ids, shapes, set(operations(version)))


def _quality(settings: Settings, one: Release, other: Release) -> list[Quality]:
    found = checkpoint.load_latest(checkpoint.path_of(settings, one.feature_version))
    if found is None or not found.checkpoint.unseen.size:
        raise NotFoundError("the trainer has set no shelves aside yet")
    samples: Samples = found.checkpoint.unseen
    if samples.served.sum() >= UNSEEN_MIN:  # real shelves say more than replayed ones, as soon as there are some
        samples = samples.take(np.flatnonzero(samples.served))
    with Trial() as trial:
        trial.load("live", one.version, settings.model_path / str(one.version))
        trial.load("candidate", other.version, settings.model_path / str(other.version))
        compared = compare(samples, trial.chances("candidate", samples), trial.chances("live", samples))
    return [_row(c) for c in compared if c.task != "all"] or [_row(c) for c in compared]


def _row(c: Comparison) -> Quality:
    return Quality(
        objective=c.task,
        shelves=c.shelves,
        actions=c.positives,
        log_loss=c.log_loss,
        order=c.order,
        calibration=(c.live_calibration, c.calibration),
    )
