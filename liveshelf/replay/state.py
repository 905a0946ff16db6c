"""How far a replay has come, kept in the data directory after every acknowledged window of events."""

import hashlib
from pathlib import Path

import msgspec

from liveshelf.errors import ConflictError, CorruptError
from liveshelf.settings import Settings


class ReplayState(msgspec.Struct, kw_only=True):
    """`position` events, in time order, have been answered; all before it are in Kafka or were refused."""

    v: int = 1
    path: str
    format: str
    shift_ms: int
    """Added to the log's times; kept, so that a resumed replay goes on in the same time."""
    position: int = 0
    accepted: int = 0
    rejected: dict[str, int] = {}


def state_path(settings: Settings, digest: str, format_: str, member: str, keep_times: bool) -> Path:
    """Another file, member or kind of time is another replay."""
    key = hashlib.sha256(f"{digest} {format_} {keep_times} {member}".encode()).hexdigest()[:16]
    return settings.data_path / "replay" / f"{key}.json"


def load_state(path: Path) -> ReplayState | None:
    """None when nothing was replayed yet.

    Raises:
        CorruptError: the file cannot be understood.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReplayState)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptError(f"the state of this replay, {path}, cannot be read: {error}. Begin anew with --restart.") from error


def save_state(path: Path, state: ReplayState) -> None:
    """In one step, so that a kill leaves the old state or the new one.

    Raises:
        ConflictError: the data directory is not writable.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(state))
        partial.replace(path)
    except OSError as error:
        raise ConflictError(
            f"the state of this replay cannot be kept in {path}: {error}. Set LIVESHELF_DATA_DIR to a writable place."
        ) from error
