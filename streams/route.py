"""Which model versions answer, and whom: `serving.json` in the model directory, which trainer, scorers and the model server all see.

Without the file the newest version answers everybody, and the next one takes over by itself. With it, versions are held: `stable` answers,
`canary` answers its share of shoppers, and newer ones wait. The file comes whole and is read again whenever it changes.
"""

import hashlib
import os
from pathlib import Path

import msgspec

from liveshelf.errors import CorruptError

FILE = "serving.json"  # model servers look at numbered directories only
STABLE, CANARY = "stable", "canary"
"""Labels of the versions in the model server's own configuration."""


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Version 0 is none."""

    stable: int = 0
    """0: the newest version that can be served."""
    canary: int = 0
    share: float = 0.0
    """Of the shoppers, 0 to 1, that the canary answers."""
    before: int = 0
    """What answered before `stable` did; kept loaded, so that `rollback` needs no load."""
    since_ms: int = 0
    """When the canary began to answer; what shoppers did before says nothing of it."""

    @property
    def held(self) -> set[int]:
        """Versions that must stay loaded, and on the disk."""
        return {version for version in (self.stable, self.canary, self.before) if version} if self.stable else set()

    @property
    def labels(self) -> dict[str, int]:
        return {label: version for label, version in ((STABLE, self.stable), (CANARY, self.canary)) if version}

    def picks_canary(self, shopper: str) -> bool:
        """Whether the canary answers this shopper: the same way each time, and other shoppers at the next canary."""
        if not self.canary or self.share <= 0.0:
            return False
        digest = hashlib.blake2b(f"{self.canary}:{shopper}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64


AUTOMATIC = Route()


def read_route(model_path: Path) -> Route:
    """What stands in the file; AUTOMATIC without one.

    Raises:
        CorruptError: it cannot be read.
    """
    file = model_path / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Route)
    except FileNotFoundError:
        return AUTOMATIC
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptError(f"{file}: {error}. Write it anew with `liveshelf models pin VERSION`, or delete it.") from error


def write_route(model_path: Path, route: Route) -> None:
    """Beside it, then into place: a reader never sees half of it."""
    model_path.mkdir(parents=True, exist_ok=True)
    beside = model_path / f".{FILE}.{os.getpid()}"
    beside.write_bytes(msgspec.json.encode(route))
    beside.replace(model_path / FILE)
