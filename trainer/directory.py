"""The model directory: numbered versions that model servers watch. Each comes and goes whole. No TensorFlow here."""

import os
import shutil
from pathlib import Path

from liveshelf.errors import CorruptError
from streams.route import read_route

KEPT = 10  # a version a minute would fill the disk; ten allow a roll-back past several bad releases
PARTIAL = ".partial-"  # model servers look at numbered directories only


def versions(model_path: Path) -> list[int]:
    """Versions in the directory, oldest first."""
    if not model_path.is_dir():
        return []
    return sorted(int(entry.name) for entry in model_path.iterdir() if entry.name.isdigit() and entry.is_dir())


def live_version(model_path: Path) -> int:
    """The version that model servers answer with unless others are held (see `streams.route`): the newest; 0 when there is none."""
    return max(versions(model_path), default=0)


def partial(model_path: Path, version: int) -> Path:
    """A clean place to write `version` at, on the same file system; what earlier exports left there is removed."""
    discard(model_path)
    model_path.mkdir(parents=True, exist_ok=True)
    return model_path / f"{PARTIAL}{version}"


def publish(written: Path, version: int) -> Path:
    """Give a written model its number, in one step, once all of it is on the disk; drop the versions beyond KEPT."""
    model_path = written.parent
    for path in sorted(written.rglob("*")):
        sync(path)
    target = model_path / str(version)
    written.rename(target)
    sync(model_path)
    try:
        held = read_route(model_path).held  # a version that answers, or may be rolled back to, stays however old it is
    except CorruptError:
        return target  # nobody knows what is held, so nothing goes
    for old in [v for v in versions(model_path)[:-KEPT] if v not in held]:
        doomed = model_path / f"{PARTIAL}old-{old}"
        (model_path / str(old)).rename(doomed)  # a server never sees half a version, going as little as coming
        shutil.rmtree(doomed)
    return target


def anew(model_path: Path, version: int) -> Path:
    """A clean place to write `version` at for a model directory that is not there. Model servers go on with what they have loaded while there is
    no directory, and let go of it when they see an empty one."""
    beside = model_path.with_name(f"{PARTIAL}{model_path.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    return beside / str(version)


def appear(written: Path, model_path: Path) -> None:
    """Put the directory made by `anew` into its place, in one step."""
    for path in (*sorted(written.rglob("*")), written, written.parent):
        sync(path)
    written.parent.rename(model_path)
    sync(model_path.parent)


def discard(model_path: Path) -> None:
    """Remove what a refused or interrupted export left."""
    for leftover in model_path.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)


def sync(path: Path) -> None:
    """Force a file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
