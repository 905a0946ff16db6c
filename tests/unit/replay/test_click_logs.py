"""Reading click logs: order, archives, lines that are none, files of another format."""

import io
import json
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest

from liveshelf.errors import InvalidEventError
from liveshelf.replay.logs import MALFORMED_KEPT_MAX, ClickLog, LogEvent

DATA = Path(__file__).parents[4] / "shared" / "data"
HEADER = b"SessionId\tItemId\tTime\n"


def needed(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs the data file {name} in {DATA}, which is not committed")
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def all_events(log: ClickLog) -> list[LogEvent]:
    return list(log.events(0, log.count))


def test_yoochoose_events_come_in_time_order_over_all_sessions(tmp_path: Path) -> None:
    log = ClickLog(written(tmp_path / "y.txt", HEADER + b"1\ta\t20.5\n1\tb\t30\n2\tc\t10.001\r\n2\td\t30"), "yoochoose")
    assert [(e.time_ms, e.session, e.item, e.name) for e in all_events(log)] == [
        (10_001, "2", "c", "view_item"),
        (20_500, "1", "a", "view_item"),
        (30_000, "1", "b", "view_item"),
        (30_000, "2", "d", "view_item"),
    ]
    assert (log.first_ms, log.last_ms, log.malformed_count) == (10_001, 30_000, 0)
    assert list(log.events(1, 3)) == all_events(log)[1:3]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    log = ClickLog(written(tmp_path / "y.txt", b"Time\tCategory\tItemId\tSessionId\n5\tx\ta\t1\n"), "yoochoose")
    assert all_events(log)[0][4:6] == ("1", "a")


def test_otto_types_become_event_names(tmp_path: Path) -> None:
    events = [{"aid": 7, "ts": 30, "type": "orders"}, {"aid": 7, "ts": 10, "type": "clicks"}, {"aid": 7, "ts": 20, "type": "carts"}]
    line = json.dumps({"session": 3, "events": events}).encode()
    log = ClickLog(written(tmp_path / "o.jsonl", line + b"\n"), "otto")
    assert [(e.session, e.item, e.name) for e in all_events(log)] == [
        ("3", "7", "view_item"),
        ("3", "7", "add_to_cart"),
        ("3", "7", "purchase"),
    ]


def test_event_ids_tell_events_apart_and_stay_the_same(tmp_path: Path) -> None:
    line = json.dumps({"session": 1, "events": [{"aid": 1, "ts": 1, "type": "clicks"}] * 3}).encode()
    path = written(tmp_path / "o.jsonl", line + b"\n" + line)
    logs = [ClickLog(path, "otto") for _ in range(2)]
    ids = [[log.event_id(event) for event in all_events(log)] for log in logs]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 6
    other = ClickLog(written(tmp_path / "other.jsonl", line), "otto")
    assert not {other.event_id(event) for event in all_events(other)} & set(ids[0])


def test_malformed_lines_are_counted_and_named(tmp_path: Path) -> None:
    bad = [b"1\ta", b"1\ta\tnoon", b"1\t\t3", b"1\ta\tnan", b"1\ta\tinf", b"1\ta\t-1", b"\xff\xfe\t\t", b"1\ta\t1e300"]
    log = ClickLog(written(tmp_path / "y.txt", HEADER + b"1\ta\t1\n" + b"\n".join(bad) + b"\n\n1\tb\t2\n"), "yoochoose")
    assert [event.item for event in all_events(log)] == ["a", "b"]
    assert log.malformed_count == len(bad)
    assert [(line.file, line.line) for line in log.malformed] == [("y.txt", 3 + i) for i in range(len(bad))]


def test_malformed_otto_lines(tmp_path: Path) -> None:
    good = b'{"session":1,"events":[{"aid":1,"ts":1,"type":"clicks"}]}\n'
    bad = b'{"session":1,"events":[{"aid":1,"ts":1,"type":"views"}]}\nnot json\n{"session":1}\n'
    log = ClickLog(written(tmp_path / "o.jsonl", good + bad * MALFORMED_KEPT_MAX), "otto")
    assert (log.count, log.malformed_count, len(log.malformed)) == (1, 3 * MALFORMED_KEPT_MAX, MALFORMED_KEPT_MAX)


@pytest.mark.parametrize(
    ("content", "format_", "message"),
    [
        (b"1\t214\t1396860669.277\n", "yoochoose", r"x, line 1: got '1\\t214\\t1396860669.277', expected yoochoose format.*header"),
        (HEADER + b"1\ta\t1\n", "otto", r"x, line 1: got 'SessionId.*expected otto format.*Try --format yoochoose"),
        (b"\x89PNG\r\n\x1a\n\x00", "otto", "x, line 1"),
        (b"", "yoochoose", "x, line 1"),
        (HEADER, "yoochoose", "expected an event in yoochoose format"),
        (HEADER + b"oops\n", "yoochoose", "x, line 2"),
    ],
)
def test_wrong_format_names_the_first_offending_line(tmp_path: Path, content: bytes, format_: str, message: str) -> None:
    with pytest.raises(InvalidEventError, match=message):
        ClickLog(written(tmp_path / "x", content), format_)


def test_archive_members_are_merged_by_time_or_chosen(tmp_path: Path) -> None:
    path = archive(tmp_path / "y.tar.xz", {"y/test.txt": HEADER + b"2\tb\t2\n", "y/train.txt": HEADER + b"1\ta\t1\n3\tc\t3\n"})
    assert [event.item for event in all_events(ClickLog(path, "yoochoose"))] == ["a", "b", "c"]
    for member in ("y/train.txt", "train.txt"):
        assert [event.item for event in all_events(ClickLog(path, "yoochoose", member))] == ["a", "c"]
    with pytest.raises(InvalidEventError, match=r"--member.*one of y/test.txt, y/train.txt"):
        ClickLog(path, "yoochoose", "rain.txt")


def test_archive_cut_short_is_named(tmp_path: Path) -> None:
    whole = archive(
        tmp_path / "y.tar.xz", {"y.txt": HEADER + b"".join(b"1\ta%d\t%d\n" % (i * 7919 % 1000, i) for i in range(20_000))}
    )
    cut = written(tmp_path / "cut.tar.xz", whole.read_bytes()[:-2000])
    with pytest.raises(InvalidEventError, match=r"cut\.tar\.xz"):
        ClickLog(cut, "yoochoose")


def test_real_yoochoose_archive() -> None:
    log = ClickLog(needed("yoochoose-100k.tar.xz"), "yoochoose")
    assert (log.count, log.malformed_count) == (70_278 + 13_568, 0)
    events = all_events(log)
    assert len({event.session for event in events}) == 17_794 + 3_416
    assert all(a.time_ms <= b.time_ms for a, b in pairwise(events))


def test_real_otto_sample() -> None:
    log = ClickLog(needed("otto-sample.jsonl"), "otto")
    names = [event.name for event in all_events(log)]
    assert [names.count(name) for name in ("view_item", "add_to_cart", "purchase")] == [800, 52, 10]
