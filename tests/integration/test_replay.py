"""`liveshelf replay` and `liveshelf catalog load` through a real collector into real Kafka."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from liveshelf.settings import Settings
from streams.pseudonym import KEY_FILE, Pseudonyms
from streams.records import CatalogItem, Event, decode
from streams.topics import CATALOG, CLICKSTREAM
from tests.integration.test_collector import collector, on_free_ports, records

DATA = Path(__file__).parents[3] / "shared" / "data"
DEADLINE_S = 60


def needed(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs the data file {name} in {DATA}, which is not committed")
    return path


@pytest.fixture(scope="module")
def served(kafka: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, httpx.Client]]:
    home = tmp_path_factory.mktemp("replay")
    settings = on_free_ports(kafka, home)
    with collector(settings, home / "collector.log") as (_, client):
        yield settings, client


def command(settings: Settings, *arguments: str | Path) -> subprocess.Popen[str]:
    environment = {
        "LIVESHELF_DATA_DIR": settings.data_dir,
        "LIVESHELF_COLLECTOR_PORT": str(settings.collector_port),
    }
    words = [sys.executable, "-m", "liveshelf.cli.main", *map(str, arguments)]
    return subprocess.Popen(words, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(settings: Settings, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    process = command(settings, *arguments, "--json")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def otto(path: Path, sessions: int, events: int, step_ms: int) -> Path:
    """A log in OTTO's format; sessions interleave. The path makes its content, hence its event ids, its own."""
    start = 1_600_000_000_000 + abs(hash(str(path))) % 10**9
    with path.open("w") as file:
        for session in range(sessions):
            ones = [
                {"aid": at, "ts": start + step_ms * (at * sessions + session), "type": ("clicks", "carts", "orders")[at % 3]}
                for at in range(events)
            ]
            file.write(json.dumps({"session": session, "events": ones}) + "\n")
    return path


def stored(settings: Settings, log: Path) -> list[Event]:
    """Events in clickstream that come from `log`."""
    from hashlib import sha256

    prefix = sha256(log.read_bytes()).hexdigest()[:12]
    events = (decode(Event, value) for _, _, value in records(settings, CLICKSTREAM))
    return [event for event in events if event.event_id.startswith(prefix)]


def test_replayed_log_stands_in_clickstream_once_and_in_order(served: tuple[Settings, httpx.Client], tmp_path: Path) -> None:
    settings, _ = served
    log = otto(tmp_path / "otto.jsonl", sessions=30, events=40, step_ms=1000)
    answer = result(settings, "replay", log, "--format", "otto")
    assert (answer["sent"], answer["accepted"], answer["rejected"]) == (1200, 1200, {})
    events = stored(settings, log)
    assert Counter(event.event_name for event in events) == {"view_item": 420, "add_to_cart": 390, "purchase": 390}
    assert len({event.event_id for event in events}) == len(events) == 1200
    assert abs(max(event.time_ms for event in events) - time.time() * 1000) < DEADLINE_S * 1000, "the last one is now"
    pseudonyms = Pseudonyms((settings.data_path / KEY_FILE).read_bytes())
    by_shopper = defaultdict(list)
    for event in events:
        by_shopper[event.shopper].append(event.items[0].item_id)
    assert by_shopper[pseudonyms.shopper("", "", "7")] == [str(at) for at in range(40)], "what recommend --session 7 asks for"

    again = result(settings, "replay", log, "--format", "otto")
    assert (again["sent"], again["position"]) == (0, 1200)


def test_interrupted_replay_goes_on_where_it_stopped(served: tuple[Settings, httpx.Client], tmp_path: Path) -> None:
    settings, _ = served
    log = otto(tmp_path / "otto.jsonl", sessions=4, events=100, step_ms=1000)  # 400 s of log
    process = command(settings, "replay", log, "--format", "otto", "--speed", "20x")
    deadline = time.monotonic() + DEADLINE_S
    while not stored(settings, log):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Run the same command again" in err
    first = len(stored(settings, log))
    assert 0 < first < 400

    answer = result(settings, "replay", log, "--format", "otto")
    assert answer["position"] == 400
    assert answer["sent"] <= 400 - first + 100, "only the window that was under way is sent again"
    events = stored(settings, log)
    assert len({event.event_id for event in events}) == 400
    times = {(event.event_id, event.time_ms) for event in events}
    assert len(times) == 400, "the second run shifts by as much as the first"


def test_kept_times_and_rejected_lines(served: tuple[Settings, httpx.Client], kafka: Settings, tmp_path: Path) -> None:
    """A collector that takes no archives is told apart at once, by the name of the setting; one that does takes the log as it is."""
    log = tmp_path / "y.txt"
    log.write_text(f"SessionId\tItemId\tTime\n1\t{tmp_path.name}\t1396860669.277\n1\tb\tnoon\n1\tc\t100\n")
    process = command(served[0], "replay", log, "--format", "yoochoose", "--keep-times")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert "LIVESHELF_EVENT_AGE_MAX_H=0" in err

    settings = msgspec.structs.replace(on_free_ports(kafka, tmp_path), event_age_max_h=0)
    with collector(settings, tmp_path / "collector.log"):
        answer = result(settings, "replay", log, "--format", "yoochoose", "--keep-times")
    assert answer["rejected"] == {"malformed_line": 1, "out_of_range": 1}
    assert answer["malformed_lines"][0].startswith("y.txt:3: ")
    (event,) = stored(settings, log)
    assert event.time_ms == 1_396_860_669_277


@pytest.mark.parametrize(
    ("name", "format_", "more"),
    [("otto-sample.jsonl", "otto", []), ("yoochoose-100k.tar.xz", "yoochoose", ["--limit", "3000"])],
)
def test_real_logs(served: tuple[Settings, httpx.Client], name: str, format_: str, more: list[str]) -> None:
    settings, _ = served
    log = needed(name)
    answer = result(settings, "replay", log, "--format", format_, *more)
    expected = 3000 if more else 862
    assert (answer["sent"], answer["accepted"], answer["rejected"]) == (expected, expected, {})
    assert len({event.event_id for event in stored(settings, log)}) == expected


def test_catalog_load_names_the_lines_that_were_refused(served: tuple[Settings, httpx.Client], tmp_path: Path) -> None:
    settings, _ = served
    file = tmp_path / "items.jsonl"
    name = tmp_path.name
    file.write_text(f'{{"item_id":"{name}-a","price":3}}\noops\n\n{{"item_id":"{name}-b","price":-1}}\n{{"item_id":"{name}-c"}}\n')
    answer = result(settings, "catalog", "load", file, code=2)
    assert (answer["accepted"], answer["rejected"]) == (2, 2)
    assert [refusal.split(":")[0] for refusal in answer["refusals"]] == ["items.jsonl, line 2", "items.jsonl, line 4"]
    items = [decode(CatalogItem, value) for _, key, value in records(settings, CATALOG) if key and key.startswith(name)]
    assert sorted(item.item_id for item in items) == [f"{name}-a", f"{name}-c"]


def test_wrong_format_is_exit_2_and_names_the_line(tmp_path: Path) -> None:
    log = otto(tmp_path / "o.jsonl", 1, 1, 1)
    process = command(msgspec.structs.replace(Settings(), data_dir=str(tmp_path)), "replay", log, "--format", "yoochoose")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    assert "o.jsonl, line 1" in err
