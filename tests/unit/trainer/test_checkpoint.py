"""Checkpoints come back as they were written, and a damaged one gives way to the last good one."""

from pathlib import Path

import numpy as np
import pytest

from liveshelf.errors import CorruptError
from tests.planted_shop import FEATURES, PlantedShop
from trainer.checkpoint import KEPT, Checkpoint, State, load_latest, save
from trainer.examples import samples_of
from trainer.retry import nothing
from trainer.samples import empty


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def make(steps: int) -> Checkpoint:
    shop = PlantedShop()
    shop.events(50)
    samples, _ = samples_of(shop.examples(3, "r"), shop.encoder)
    state = State(
        feature_version=FEATURES.version,
        steps=steps,
        live_version=steps,
        last_version=steps,
        offsets={"training-examples/0": steps},
        consumed=["r-0"],
    )
    learner = {"weight/00/item": np.arange(6.0).reshape(2, 3) + steps, "vocabulary": np.array([b"a", b"bc"])}
    return Checkpoint(
        state=state, learner=learner, reservoir=samples, unseen=empty(FEATURES), retry=nothing(FEATURES).with_refused(samples)
    )


def test_comes_back_as_it_was_written(directory: Path) -> None:
    written = make(1)
    assert save(directory, written) == 1
    loaded = load_latest(directory)
    assert loaded is not None
    assert loaded.checkpoint.state == written.state
    assert loaded.skipped == []
    for name, value in written.learner.items():
        assert np.array_equal(loaded.checkpoint.learner[name], value)
    for wrote, read in zip(
        (*written.reservoir, *written.unseen, *written.retry.samples, written.retry.refusals),
        (
            *loaded.checkpoint.reservoir,
            *loaded.checkpoint.unseen,
            *loaded.checkpoint.retry.samples,
            loaded.checkpoint.retry.refusals,
        ),
        strict=True,
    ):
        assert np.array_equal(wrote, read)
        assert wrote.dtype == read.dtype


def test_none_at_all_is_no_error(directory: Path) -> None:
    assert load_latest(directory) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing"])
@pytest.mark.parametrize("name", ["state.json", "learner.npz", "samples.npz", "sha256.json"])
def test_a_damaged_one_gives_way_to_the_last_good_one_and_is_named(directory: Path, name: str, damage: str) -> None:
    save(directory, make(1))
    save(directory, make(2))
    file = directory / "00000002" / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    loaded = load_latest(directory)
    assert loaded is not None
    assert loaded.checkpoint.state.offsets == {"training-examples/0": 1}
    assert len(loaded.skipped) == 1
    assert "00000002" in loaded.skipped[0]


def test_nothing_readable_says_what_to_do(directory: Path) -> None:
    for steps in (1, 2):
        save(directory, make(steps))
        (directory / f"{steps:08}" / "learner.npz").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"none of the 2 checkpoints .* backup, or move"):
        load_latest(directory)


def test_keeps_the_newest_and_ignores_what_a_crash_left(directory: Path) -> None:
    for steps in range(1, KEPT + 3):
        save(directory, make(steps))
    (directory / ".partial-00000099").mkdir()
    assert sorted(entry.name for entry in directory.iterdir() if entry.name[0] != ".") == ["00000003", "00000004", "00000005"]
    loaded = load_latest(directory)
    assert loaded is not None
    assert loaded.sequence == KEPT + 2
    assert save(directory, make(9)) == KEPT + 3
    assert not list(directory.glob(".partial-*"))
