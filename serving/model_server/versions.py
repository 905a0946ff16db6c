"""Which versions should be served, and what to do next about it. Pure, but for one directory listing."""

from collections.abc import Collection, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Literal

from serving.model_server.config import ModelConfig


class State(IntEnum):
    """tensorflow.serving.ModelVersionStatus.State"""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


def versions_on_disk(base_path: Path) -> dict[int, Path] | None:
    """Version → directory; None when the base path cannot be listed.

    A version is a directory with a number for a name and a `saved_model.pb` in it. TensorFlow Serving takes every number; asking for the
    file too means that a version written in place is not tried while it is empty. Exporters should still write under another
    name (`.tmp-7`) and rename.
    """
    try:
        children = sorted(base_path.iterdir())
    except OSError:
        return None
    found: dict[int, Path] = {}
    for child in children:
        if child.name.isascii() and child.name.isdigit() and (child / "saved_model.pb").is_file():
            found.setdefault(int(child.name), child)
    return found


def aspired_versions(model: ModelConfig, on_disk: Collection[int]) -> set[int]:
    """Those that the model's policy wants, of those there are."""
    if model.all:
        return set(on_disk)
    if model.specific:
        return set(on_disk) & model.specific
    return set(sorted(on_disk)[-model.latest :])


def next_action(aspired: Collection[int], states: Mapping[int, State]) -> tuple[Literal["load", "unload"], int] | None:
    """The next step from `states` (of versions that may still change; absent: never loaded) towards `aspired`.

    New versions come first, the highest of them first; then the lowest unwanted one goes, provided that a wanted one can answer or none is
    wanted. So a model that served never stops: a version that fails to load leaves its predecessor in place. TensorFlow Serving's
    availability_preserving_policy.cc unloads before it loads where one wanted version is up already; loading first costs the
    memory of one more version for a moment, and whoever pinned the oldest has until the newest is up to move on.
    """
    new = [version for version in aspired if version not in states]
    if new:
        return "load", max(new)
    unwanted = [version for version, state in states.items() if state is State.AVAILABLE and version not in aspired]
    if unwanted and (not aspired or any(states[version] is State.AVAILABLE for version in aspired)):
        return "unload", min(unwanted)
    return None
