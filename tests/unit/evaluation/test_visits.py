"""Next-click data is read in both public forms, and what is neither is refused with its place."""

import tarfile
from pathlib import Path

import pytest

from liveshelf.errors import InvalidEventError
from liveshelf.evaluation.visits import Case, cases_of, read

HEADER = "SessionId\tItemId\tTime\n"
DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def written(place: Path, train: str, test: str) -> Path:
    (place / "clicks_train_full.txt").write_text(train)
    (place / "clicks_test.txt").write_text(test)
    return place


def test_every_prefix_of_a_timed_session_is_a_case_in_time_order(tmp_path: Path) -> None:
    visits = read(written(tmp_path, HEADER + "s\tb\t2\ns\ta\t1\nt\tc\t0.5\n", HEADER + "u\ta\t3\nu\tb\t4.5\nu\tc\t9\n"))
    assert visits.timed
    assert [session.items for session in visits.train] == [["c"], ["a", "b"]]
    assert visits.test == [Case(["a"], [3.0], "b"), Case(["a", "b"], [3.0, 4.5], "c")]


def test_lines_of_items_have_their_place_for_a_time(tmp_path: Path) -> None:
    visits = read(written(tmp_path, "1 2\n3 4 5\n", "1 2\t3\n"))
    assert not visits.timed
    assert [session.times for session in visits.train] == [[0.0, 0.0], [1.0, 1.0, 1.0]]
    assert visits.test == [Case(["1", "2"], [2.0, 2.0], "3")]


def test_an_archive_reads_as_its_directory(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    written(place, "1 2\n", "1\t2\n")
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as archive:
        archive.add(place, "data")
    assert read(tmp_path / "data.tar.xz") == read(place)


@pytest.mark.parametrize(
    ("train", "test", "where"),
    [
        (HEADER + "s\ta\n", HEADER, "clicks_train_full.txt:2"),
        ("A\tB\n", HEADER, "clicks_train_full.txt:1"),
        ("1 2\n", "1 2\n", "clicks_test.txt:1"),
        ("1\n2\n", "1\t2\n", "clicks_train_full.txt"),
        ("1 2\n", "", "clicks_test.txt"),
        ("", "", "clicks_train_full.txt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, train: str, test: str, where: str) -> None:
    with pytest.raises(InvalidEventError, match=where):
        read(written(tmp_path, train, test))


def test_neither_archive_nor_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEventError, match="whose name has train in it"):
        read(tmp_path)
    (tmp_path / "x.tar").write_text("no archive")
    with pytest.raises(InvalidEventError, match="a tar archive"):
        read(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "sessions", "cases"), [("yoochoose-100k", 17_794, 10_152), ("diginetica-srgnn-seq", 186_670, 60_858)]
)
def test_the_public_files_hold_what_their_notes_say(name: str, sessions: int, cases: int) -> None:
    path = DATA / f"{name}.tar.xz"
    if not path.exists():
        pytest.skip(f"{path} is not here: the data set's licence keeps it out of the repository")
    visits = read(path)
    assert (len(visits.train), len(visits.test)) == (sessions, cases)
    head, tail = visits.split()
    assert head + tail == visits.train
    assert 0 < len(cases_of(tail)) < len(cases_of(head))
