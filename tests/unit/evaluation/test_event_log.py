"""Logs of every format as one list of events; a log without times is refused, and says what is needed."""

import tarfile
from pathlib import Path

import msgspec
import pytest

from liveshelf.errors import InvalidEventError
from liveshelf.evaluation.event_log import read
from liveshelf.settings import Settings
from liveshelf.simulator.history import history, shifted
from liveshelf.simulator.shop import Shop

YOOCHOOSE = "SessionId\tItemId\tTime\n1\ta\t1396437466.5\n2\tb\t1396437460\n1\tc\t1396437470\n"
OTTO = '{"session": 7, "events": [{"aid": 1, "ts": 1659304800025, "type": "clicks"}, {"aid": 1, "ts": 1659304900000, "type": "orders"}]}\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_click_logs_come_in_time_order(tmp_path: Path) -> None:
    log = read(write(tmp_path / "clicks.dat", YOOCHOOSE), Settings(), 100)
    assert [(event.shopper, event.items[0].item_id, event.time_ms) for event in log.events] == [
        ("2", "b", 1396437460000),
        ("1", "a", 1396437466500),
        ("1", "c", 1396437470000),
    ]
    assert (log.format, log.found, log.unusable) == ("yoochoose", 3, 0)
    otto = read(write(tmp_path / "otto.jsonl", OTTO), Settings(), 100)
    assert [event.event_name for event in otto.events] == ["view_item", "purchase"]


def test_a_directory_and_an_archive_hold_the_same_events(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "clicks_train.txt", YOOCHOOSE)
    write(parts / "clicks_test.txt", YOOCHOOSE.replace("\ta\t", "\tz\t"))
    with tarfile.open(tmp_path / "parts.tar.xz", "w:xz") as archive:
        archive.add(parts, "parts")
    logs = [read(path, Settings(), 100).events for path in (parts, tmp_path / "parts.tar.xz")]
    assert len(logs[0]) == 6
    assert [(e.shopper, e.items, e.time_ms) for e in logs[0]] == [(e.shopper, e.items, e.time_ms) for e in logs[1]]


def test_what_the_simulator_writes_is_read(tmp_path: Path) -> None:
    events = shifted(history(Shop(7, items=60, shoppers=10), 2), 1_700_000_000_000)
    lines = b"\n".join(msgspec.json.encode(event) for event in events)
    (tmp_path / "shop.jsonl").write_bytes(lines + b"\nno event\n")
    log = read(tmp_path / "shop.jsonl", Settings(), 10**6)
    assert [(e.event_id, e.time_ms) for e in log.events] == [(e.event_id, e.timestamp_micros // 1000) for e in events]
    assert log.events[0].items[0].item_category == events[0].items[0].item_category
    assert log.unusable == 1


def test_of_a_long_log_the_latest_events_are_taken(tmp_path: Path) -> None:
    log = read(write(tmp_path / "clicks.dat", YOOCHOOSE), Settings(), 2)
    assert ([event.items[0].item_id for event in log.events], log.found) == (["a", "c"], 3)


def test_sessions_without_times_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train_sessions.txt", "1 2 3\n4 5\n")
    write(tmp_path / "test_prefix_target.tsv", "1 2\t3\n")
    with pytest.raises(InvalidEventError, match=r"sessions without times.*a time for every event.*liveshelf evaluate"):
        read(tmp_path, Settings(), 100)


def test_events_without_times_are_refused(tmp_path: Path) -> None:
    line = '{"name": "view_item", "client_id": "1.2", "items": [{"item_id": "a"}]}\n'
    with pytest.raises(InvalidEventError, match="2 of 2 events without timestamp_micros"):
        read(write(tmp_path / "events.jsonl", 2 * line), Settings(), 100)


def test_another_file_is_refused_with_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidEventError, match=r"got 'name,price'.*yoochoose.*otto.*events"):
        read(write(tmp_path / "prices.csv", "name,price\nhat,3\n"), Settings(), 100)
