"""The commands as a shop runs them: a log of the simulator written, replayed and drawn; errors that say what is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")

ROOT = Path(__file__).parents[2]


def liveshelf(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIVESHELF_")} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, "-m", "liveshelf.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500, cwd=cwd)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of a small shop."""
    home = tmp_path_factory.mktemp("sync")
    words = ("simulate", "--history", 3, "--shoppers", 60, "--items", 60, "--seed", 5, "--drift", 5, "--log", "shop.jsonl")
    done = liveshelf(*words, cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "shop.jsonl"


def test_a_log_becomes_a_table_a_plot_and_a_sentence(log: Path) -> None:
    lines = log.read_text().splitlines()
    words = ("sync-table", log, "--intervals", "1d,2h", "--beginning", "1d", "--evaluated", 200, "--plot", "sync.png", "--json")
    done = liveshelf(*words, cwd=log.parent)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["data"], result["format"], result["events"], result["unusable_lines"]) == ("shop.jsonl", "events", len(lines), 0)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["batch", "1d", "2h", "neighbours", "popular"]
    assert 50 < result["evaluated"] <= 200 < result["eligible"]
    for row in rows.values():
        for measure in ("auc", "hr20", "log_loss"):
            point, low, high = row[measure]
            assert low <= point <= high, (row["name"], measure)
    assert rows["batch"]["steps"] == 1
    assert rows["1d"]["steps"] in (1, 2), "midnights after the first day"
    assert rows["2h"]["steps"] > 5 * rows["1d"]["steps"]
    assert rows["2h"]["learnt"] >= rows["1d"]["learnt"] > 0
    assert [(gain["interval"], gain["over"]) for gain in result["gains"]] == [("1d", "batch"), ("2h", "1d")]
    assert "pay" in result["verdict"]
    assert (log.parent / "sync.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_replayed_is_refused_with_what_is_needed(log: Path) -> None:
    home = log.parent
    (home / "train.txt").write_text("1 2 3\n")
    taken = liveshelf("simulate", "--history", 1, "--log", log, cwd=home)
    assert (taken.returncode, "exists already" in taken.stderr) == (5, True)
    other = liveshelf("sync-table", home / "train.txt", cwd=home)
    assert (other.returncode, "a log with a time for every event" in other.stderr) == (2, True), other.stderr
    interval = liveshelf("sync-table", log, "--intervals", "1d,often", cwd=home)
    assert (interval.returncode, "--intervals often: expected a whole number" in interval.stderr) == (2, True)
    beginning = liveshelf("sync-table", log, "--beginning", "9d", cwd=home)
    assert (beginning.returncode, "--beginning" in beginning.stderr) == (2, True)
    plot = liveshelf("sync-table", log, "--intervals", "1d", "--evaluated", 20, "--plot", "sync.xyz", cwd=home)
    assert (plot.returncode, "--plot sync.xyz" in plot.stderr) == (2, True), "said before the work is done"


def test_recommendations_are_measured_in_a_closed_loop(tmp_path: Path) -> None:
    words = ("simulate", "--evaluate", "--seeds", 2, "--shoppers", 20, "--items", 60, "--days", 0.5, "--drift", 8, "--json")
    done = liveshelf(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [world["drift"] for world in result["worlds"]] == [0.0, 8.0]
    for world in result["worlds"]:
        assert set(world["ours_over"]) == {"frozen", "popular", "popular_in_category"}
        shelves = {figures["shelves"] for figures in world["recommenders"].values()}
        assert len(shelves) == 1
        assert shelves.pop() > 10
