"""Keyed pseudonyms in place of shopper and session ids, before anything is stored or sent on.

A keyed hash (HMAC-SHA256) instead of a plain one: ids are short and guessable (e-mail addresses, numbers), so that without the
key a list of pseudonyms could be undone by trying. Whoever deletes the key makes every pseudonym anonymous for good.
"""

import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Self

from liveshelf.errors import ConflictError, CorruptError
from liveshelf.settings import Settings

KEY_FILE = "pseudonym.key"
KEY_BYTES = 32  # as long as SHA-256's output: a longer HMAC key adds nothing
PSEUDONYM_BYTES = 16  # of a hundred million shoppers two meet with a chance of 1 in 10^22


class Pseudonyms:
    """Pseudonyms under one key. The same id under the same key gives the same pseudonym, in every process."""

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._key = key

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Read the key in the data directory; make it if this is the first start.

        Raises:
            CorruptError: the key is not KEY_BYTES long, not a plain file, or others may read it.
            ConflictError: the data directory or the key cannot be read or written.
        """
        path = settings.data_path / KEY_FILE
        try:
            if not path.exists():
                _make_key(path)
            return cls(_read_key(path))
        except OSError as error:
            raise ConflictError(
                f"the pseudonym key {path} cannot be read or made: {error}. Make it yours and its directory writable, "
                "or set LIVESHELF_DATA_DIR elsewhere."
            ) from error

    def shopper(self, user_id: str, client_id: str, session_id: str) -> str:
        """The shopper named by the first non-empty id; "" when there is none.

        The kind of id is hashed too: user 7 and session 7 are two shoppers.
        """
        for kind, raw in (("user", user_id), ("client", client_id), ("session", session_id)):
            if raw:
                return self._hash(f"{kind}:{raw}")
        return ""

    def session(self, session_id: str) -> str:
        """The visit; "" for none. Tagged otherwise than a shopper named by its session, so that the two cannot be joined."""
        return self._hash(f"visit:{session_id}") if session_id else ""

    def _hash(self, tagged: str) -> str:
        return hmac.digest(self._key, tagged.encode(), "sha256")[:PSEUDONYM_BYTES].hex()


def _make_key(path: Path) -> None:
    """Write a new key beside `path` and link it into place: whoever links first wins, and nobody ever sees half a key.

    Collector and scorer start together; the loser of the race goes on to read the winner's key.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())  # a key lost with the power would make every shopper a stranger
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        key = file.read(KEY_BYTES + 1)
    restore = (
        "Restore it from a backup. To start over, delete it together with the log and the store: all shoppers become strangers."
    )
    if not stat.S_ISREG(status.st_mode) or len(key) != KEY_BYTES:
        raise CorruptError(f"the pseudonym key {path} holds {status.st_size} bytes, expected {KEY_BYTES}. {restore}")
    if status.st_mode & 0o077:
        raise CorruptError(
            f"the pseudonym key {path} has mode {stat.S_IMODE(status.st_mode):04o}: others may read it, expected 0600. "
            f"If nobody has, run: chmod 600 {path}"
        )
    return key
