"""The Open Bandit data: read as it is published, refused where it is not, and told before it is learnt from."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from features.declarations import read_declarations
from features.feature_set import FeatureSet
from liveshelf.errors import InvalidEventError
from liveshelf.evaluation import impressions
from liveshelf.evaluation.open_bandit import read

ITEMS = ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n"
ROUNDS = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3\n"
WORTH = (0.02, 0.02, 0.05, 0.6)
"""Chance of a click by item."""


@contextmanager
def bar(_: str) -> Iterator[tuple[object, object]]:
    yield (lambda n: None), (lambda n: None)


def at(n: int) -> str:
    return f"2019-11-{24 + n // 86_400:02d} {n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}.5+00:00"


def written(place: Path, lines: dict[str, list[str]], items: int = len(WORTH)) -> Path:
    for policy, rounds in lines.items():
        folder = place / policy / "men"
        folder.mkdir(parents=True)
        (folder / "item_context.csv").write_text(ITEMS + "".join(f"{n},{n},0.1,c{n % 2},b,x\n" for n in range(items)))
        (folder / "men.csv").write_text(ROUNDS + "".join(f"{n},{line}\n" for n, line in enumerate(rounds)))
    return place


def logged(seed: int, rounds: int) -> list[str]:
    """Of a random policy: every item alike."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(len(WORTH), size=rounds)
    clicked = rng.random(rounds) < np.array(WORTH)[shown]
    return [f"{at(40 * n)},{item},{1 + n % 3},{int(clicked[n])},0.25,u{n % 7},a,b,c" for n, item in enumerate(shown)]


def test_an_archive_reads_as_its_directory_by_time_and_by_campaign(tmp_path: Path) -> None:
    lines = {"random": [f"{at(9)},1,3,0,0.25,u,a,b,c", f"{at(1)},2,1,1,0.25,u,a,b,c"], "bts": [f"{at(5)},0,2,0,0.7,u,a,b,c"]}
    place = written(tmp_path / "data", lines)
    (campaign,) = read(place)
    assert campaign.name == "men"
    assert [item.item_id for item in campaign.items] == ["men/0", "men/1", "men/2", "men/3"]
    assert [(one.policy, one.item, one.position, one.clicked, one.propensity) for one in campaign.rounds] == [
        ("random", "men/2", 0, True, 0.25),
        ("bts", "men/0", 1, False, 0.7),
        ("random", "men/1", 2, False, 0.25),
    ]
    assert campaign.rounds[1].time_ms - campaign.rounds[0].time_ms == 4_000
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as archive:
        archive.add(place, "data")
    assert read(tmp_path / "data.tar.xz") == [campaign]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{at(1)},1,0,0,0.25,u,a,b,c", r"men\.csv:2: got .*, expected a position from 1 on"),
        (f"{at(1)},1,1,0,0.0,u,a,b,c", r"a propensity above 0"),
        (f"{at(1)},1,1,2,0.5,u,a,b,c", r"a click of 0 or 1"),
        ("yesterday,1,1,0,0.5,u,a,b,c", r"men\.csv:2: got .*yesterday"),
        (f"{at(1)},1", r"men\.csv:2: got"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InvalidEventError, match=said):
        read(written(tmp_path / "data", {"random": [line]}))


def test_what_is_no_such_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEventError, match=r"POLICY/CAMPAIGN/ with item_context\.csv"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InvalidEventError, match=r"a tar archive, or a directory"):
        read(tmp_path / "a.txt")


def test_a_ranking_that_learnt_what_is_clicked_is_worth_what_it_would_have_earned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(impressions, "FIRST", 500)
    monkeypatch.setattr(impressions, "STEP", 250)
    found = impressions.evaluate(
        read(written(tmp_path / "data", {"random": logged(0, 2_000)})), FeatureSet(read_declarations(None)), bar
    )
    assert found["rounds"] == 1_000
    assert found["click_auc"] > 0.8
    assert found["click_log_loss"] < found["click_log_loss_of_the_mean"]
    low, high = found["random"][1:]
    assert low < np.mean(WORTH) < high
    truth = (WORTH[3] + WORTH[2] + WORTH[0]) / 3  # by place: the best, the second, one of two alike
    for name in ("ips", "snips", "dr"):
        assert found["ranked"][name][1] < truth < found["ranked"][name][2], (name, found["ranked"])
    assert found["sampled"]["dr"][1] > found["random"][2]
    assert found["sampled"]["gain"][1] > 0
    assert 200 < found["ranked"]["rounds_used"] < 300  # a quarter was shown where it would have stood


def test_a_log_too_short_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEventError, match=r"the log: got '40 rounds', expected 10000 or more"):
        impressions.evaluate(read(written(tmp_path / "data", {"random": logged(1, 40)})), FeatureSet(read_declarations(None)), bar)


def test_a_log_without_random_rounds_or_with_an_unknown_item_is_refused(tmp_path: Path) -> None:
    features = FeatureSet(read_declarations(None))
    with pytest.raises(InvalidEventError, match=r"expected rounds of policy random in its second half"):
        impressions.evaluate(read(written(tmp_path / "one", {"bts": logged(1, 20)})), features, bar)
    with pytest.raises(InvalidEventError, match=r"campaign men: got 'men/3', expected an item of its item_context\.csv"):
        impressions.evaluate(read(written(tmp_path / "two", {"random": logged(1, 20)}, items=3)), features, bar)
