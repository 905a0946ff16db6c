"""Checkpoints: the trainer's whole state in one directory each, written whole or not at all, and checked when read.

    checkpoints/<model>/<feature version>/00000012/
        state.json      offsets, versions, release, counts
        learner.npz     weights, optimiser state, vocabulary with sightings and last use, frequencies
        samples.npz     reservoir, unseen samples, and those of refused steps
        sha256.json     hash of each file above

Offsets stand beside the weights they produced, so a crash neither skips nor repeats an example.
"""

import hashlib
import shutil
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import structlog

from liveshelf.errors import ConflictError, CorruptError
from liveshelf.settings import Settings
from streams.records import Release
from trainer.directory import sync
from trainer.retry import Retry
from trainer.samples import Array, Samples

log = structlog.get_logger()

KEPT = 3  # the newest, and two to fall back on
PARTIAL = ".partial-"
FORMAT = 4
READABLE = (3, FORMAT)  # 3 kept no examples of refused steps
FILES = ("state.json", "learner.npz", "samples.npz")

Arrays = dict[str, Array]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is not an array."""

    format: int = FORMAT
    feature_version: str
    steps: int
    """Steps taken; with the seed it fixes the step's random numbers."""
    live_version: int
    """The version that the weights are those of; 0 before the first."""
    last_version: int
    """The last number given, to a refused model too."""
    refused_in_a_row: int = 0
    offsets: dict[str, int]
    """`topic/partition` → next offset."""
    consumed: list[str]
    """The latest request ids learnt from or set aside, oldest first."""
    reads: list[dict[str, int]] = []
    """Offsets at the end of each read since the last release that led to none."""
    suspected: dict[str, int] = {}
    """Item → for how many steps in a row its clicks have not been what the model expects (see `screen`)."""
    release: Release | None = None
    """What the step that wrote this decided; published after the checkpoint stands, and again at a restart if it was not."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    state: State
    learner: Arrays
    reservoir: Samples
    unseen: Samples
    retry: Retry


class Loaded(msgspec.Struct, frozen=True):
    checkpoint: Checkpoint
    sequence: int
    skipped: list[str]
    """Newer checkpoints that could not be read, and why."""


def path_of(settings: Settings, feature_version: str) -> Path:
    """Where the checkpoints of a model on one feature version are."""
    return settings.data_path / "checkpoints" / settings.model_name / feature_version


def save(directory: Path, checkpoint: Checkpoint) -> int:
    """Write `checkpoint` after the ones in `directory`, then drop all but KEPT; return its sequence number.

    Raises:
        ConflictError: the directory cannot be written.
    """
    sequence = max(_sequences(directory), default=0) + 1
    partial = directory / f"{PARTIAL}{sequence:08}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"{PARTIAL}*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        (partial / "state.json").write_bytes(msgspec.json.encode(checkpoint.state))
        np.savez(partial / "learner.npz", **checkpoint.learner)  # type: ignore[arg-type]
        np.savez(
            partial / "samples.npz",
            **{f"reservoir/{name}": column for name, column in checkpoint.reservoir._asdict().items()},
            **{f"unseen/{name}": column for name, column in checkpoint.unseen._asdict().items()},
            **{f"retry/{name}": column for name, column in checkpoint.retry.samples._asdict().items()},
            refusals=checkpoint.retry.refusals,
        )
        (partial / "sha256.json").write_bytes(msgspec.json.encode({name: _sha256(partial / name) for name in FILES}))
        for name in (*FILES, "sha256.json", "."):
            sync(partial / name)
        partial.rename(directory / f"{sequence:08}")
        sync(directory)
        for old in _sequences(directory)[:-KEPT]:
            shutil.rmtree(directory / f"{old:08}")
    except OSError as error:
        raise ConflictError(f"cannot write a checkpoint to {directory}: {error}. Free space or make it writable.") from error
    return sequence


def load_latest(directory: Path) -> Loaded | None:
    """The newest checkpoint that can be read; None when there are none at all.

    Raises:
        CorruptError: there are checkpoints, and none can be read.
    """
    skipped: list[str] = []
    for sequence in reversed(_sequences(directory)):
        path = directory / f"{sequence:08}"
        try:
            return Loaded(_load(path), sequence, skipped)
        except (CorruptError, OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
            skipped.append(f"{path.name}: {error}")
            log.error("checkpoint_unreadable", checkpoint=str(path), reason=str(error))
    if skipped:
        raise CorruptError(
            f"none of the {len(skipped)} checkpoints in {directory} can be read ({'; '.join(skipped)}). Restore one from a backup, or move "
            f"the directory away: the trainer then learns anew from the log. The models already released stay and go on answering."
        )
    return None


def _load(path: Path) -> Checkpoint:
    expected = msgspec.json.decode((path / "sha256.json").read_bytes(), type=dict[str, str])
    for name in FILES:
        if _sha256(path / name) != expected.get(name):
            raise CorruptError(f"{name} does not match its checksum")
    state = msgspec.json.decode((path / "state.json").read_bytes(), type=State)
    if state.format not in READABLE:
        raise CorruptError(f"is of format {state.format}, this trainer reads {' and '.join(map(str, READABLE))}")
    with np.load(path / "learner.npz", allow_pickle=False) as arrays:
        learner = {name: arrays[name] for name in arrays.files}
    with np.load(path / "samples.npz", allow_pickle=False) as arrays:
        parts = ("reservoir", "unseen", "retry") if state.format == FORMAT else ("reservoir", "unseen")
        reservoir, unseen, *others = (Samples(*(arrays[f"{part}/{name}"] for name in Samples._fields)) for part in parts)
        retry = Retry(others[0], arrays["refusals"]) if others else Retry(unseen.take(np.arange(0)), np.zeros(0, np.int64))
    return Checkpoint(state=state, learner=learner, reservoir=reservoir, unseen=unseen, retry=retry)


def _sequences(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit() and entry.is_dir())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
