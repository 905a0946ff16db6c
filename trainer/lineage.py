"""What a version was made of: code, settings and a hash of its weights. Pure, but for reading our own source files once."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np

import features
import liveshelf
import streams
import trainer
from liveshelf.settings import Settings
from trainer.samples import Array

SETTINGS = (
    "partitions",
    "seed",
    "train_examples_max",
    "train_item_sightings_min",
    "train_item_unused_days_max",
    "train_items_max",
)
"""Those that decide what is learnt from a given log. By name: a list that took all of them would tell passwords to the log."""
LIBRARIES = ("keras", "numpy", "tensorflow")
LEARNT = ("content", "vocabulary", "weight/")
"""Arrays of a learner's state that what it answers depends on."""


def settings_of(settings: Settings) -> dict[str, int]:
    return {name: getattr(settings, name) for name in SETTINGS}


@cache
def code() -> dict[str, str]:
    """Version by what it is of; `source` is a hash of every Python file of what makes a model of the log."""
    digest = hashlib.sha256()
    for package in (features, streams, trainer):
        assert package.__file__
        home = Path(package.__file__).parent
        for file in sorted(home.rglob("*.py")):
            digest.update(f"{home.name}/{file.relative_to(home)}\n".encode() + file.read_bytes())
    return {
        "liveshelf": liveshelf.__version__,
        "source": digest.hexdigest()[:16],
        "python": python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def hash_of(state: dict[str, Array]) -> str:
    """SHA-256 over LEARNT, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if name.startswith(LEARNT):
            value = np.ascontiguousarray(state[name])
            digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode() + value.tobytes())
    return digest.hexdigest()
