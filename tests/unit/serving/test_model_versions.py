"""Which versions are wanted, and in which order they come and go."""

from pathlib import Path

import pytest

from serving.model_server.config import ModelConfig
from serving.model_server.versions import State, aspired_versions, next_action, versions_on_disk


def config(**policy: object) -> ModelConfig:
    return ModelConfig("m", Path("m"), **policy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ({}, {7}),
        ({"latest": 2}, {5, 7}),
        ({"latest": 9}, {1, 5, 7}),
        ({"all": True}, {1, 5, 7}),
        ({"specific": frozenset({1, 6})}, {1}),
    ],
)
def test_policies(policy: dict[str, object], wanted: set[int]) -> None:
    assert aspired_versions(config(**policy), {5, 1, 7}) == wanted


def steps(aspired: set[int], states: dict[int, State], failing: frozenset[int] = frozenset()) -> list[str]:
    """The actions until nothing is left to do, with loads that succeed unless `failing`."""
    taken = []
    while action := next_action(aspired, states):
        kind, version = action
        taken.append(f"{kind} {version}")
        if kind == "load":
            states[version] = State.END if version in failing else State.AVAILABLE
        else:
            del states[version]
    return taken


def test_highest_version_loads_first() -> None:
    assert steps({1, 2, 3}, {}) == ["load 3", "load 2", "load 1"]


def test_new_version_loads_before_the_old_one_goes() -> None:
    assert steps({2, 3}, {1: State.AVAILABLE, 2: State.AVAILABLE}) == ["load 3", "unload 1"]


def test_failed_version_leaves_its_predecessor_serving() -> None:
    assert steps({2}, {1: State.AVAILABLE}, failing=frozenset({2})) == ["load 2"]


def test_nothing_wanted_unloads_everything_lowest_first() -> None:
    assert steps(set(), {1: State.AVAILABLE, 2: State.AVAILABLE}) == ["unload 1", "unload 2"]


def test_only_numbered_directories_with_a_saved_model_count(tmp_path: Path) -> None:
    for name in ("1", "00000012", ".tmp-3", "3.tmp", "-4", "five", "٦"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "7").mkdir()  # half-written
    (tmp_path / "8").touch()
    assert versions_on_disk(tmp_path) == {1: tmp_path / "1", 12: tmp_path / "00000012"}


def test_missing_base_path_is_not_the_same_as_an_empty_one(tmp_path: Path) -> None:
    assert versions_on_disk(tmp_path) == {}
    assert versions_on_disk(tmp_path / "absent") is None
