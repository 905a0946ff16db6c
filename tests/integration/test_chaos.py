"""The chaos harness, short: kill -9 over every part; and its own parts, which must be able to go red.

Agents broken on purpose take as long as the run below and belong to `make chaos OPTIONS="--break commit_early"`."""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter

import msgspec
import pytest

from features.declarations import read_declarations
from features.events import Event, EventItem
from features.feature_set import FeatureSet
from streams.records import encode
from tests.chaos import rows
from tests.chaos.schedule import MIX, schedule
from tests.chaos.traffic import DUPLICATE_SHARE, INVALID_SHARE, requests

EVENTS = 4_000
KILLS = 10
TIMEOUT_S = 300


def chaos(*options: str) -> tuple[int, dict[str, object]]:
    command = [
        sys.executable,
        "-m",
        "tests.chaos",
        "--events",
        str(EVENTS),
        "--kills",
        str(KILLS),
        "--seed",
        "1",
        "--json",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ, check=False)
    assert done.stdout.strip(), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_ten_kills_over_every_part_lose_double_and_change_nothing() -> None:
    """Every event answered with 202 is in the rows once, and every row equals an undisturbed fold of the log."""
    code, report = chaos()
    assert {name: report[name] for name in ("lost", "doubled", "different", "rejected_wrongly", "lag")} == dict.fromkeys(
        ("lost", "doubled", "different", "rejected_wrongly", "lag"), 0
    ), report["differences"]
    assert code == 0
    assert report["kills"] == KILLS
    assert report["kills_by_part"].keys() == {"agents", "broker", "collector", "store"}  # type: ignore[attr-defined]
    assert report["events"] == EVENTS
    assert report["duplicates_sent"] > EVENTS * DUPLICATE_SHARE / 2  # type: ignore[operator]


FEATURES = FeatureSet(read_declarations(None))


def logged(events: list[Event]) -> list[tuple[int, int, bytes, bytes]]:
    return [(0, offset, event.shopper.encode(), encode(event)) for offset, event in enumerate(events)]


def test_a_store_that_missed_or_repeated_an_event_is_told_apart() -> None:
    """Rows that lack one of the log's events count as one lost, rows that hold one twice as one doubled, and both as different."""
    events = [
        Event(event_id=f"e{n}", event_name="view_item", shopper="s", time_ms=1_700_000_000_000 + n, items=(EventItem(item_id="i"),))
        for n in range(10)
    ]
    expected = rows.undisturbed(logged(events), FEATURES)
    assert expected.doubled == []
    assert list(rows.differences(expected.rows, expected.rows, FEATURES)) == []
    repeated = [*events, msgspec.structs.replace(events[3], event_id="another id")]
    for others, off_by in ((events[:9], -1), (repeated, 1)):
        found = list(rows.differences(expected.rows, rows.undisturbed(logged(others), FEATURES).rows, FEATURES))
        assert [difference.events for difference in found if "shopper" in difference.text] == [off_by]
        assert [difference.events for difference in found if "item" in difference.text.split()[0]] == [0]
    assert [difference.events for difference in rows.differences(expected.rows, {}, FEATURES) if "shopper" in difference.text] == [
        -10
    ]


def test_item_rows_may_differ_by_rounding_and_shopper_rows_may_not() -> None:
    """The last bit of a float is allowed to an item row, whose contributions are sums, and told of a shopper row."""
    event = Event(event_id="e", event_name="view_item", shopper="s", time_ms=1_700_000_000_000, items=(EventItem(item_id="i"),))
    expected = rows.undisturbed(logged([event]), FEATURES).rows
    nudged = {
        key: msgspec.structs.replace(row, numbers=[math.nextafter(n, 2 * n) for n in row.numbers]) for key, row in expected.items()
    }
    assert [difference.text.split()[0] for difference in rows.differences(expected, nudged, FEATURES)] == ["shopper"]


def test_a_seed_names_one_stream_and_one_schedule() -> None:
    """The same seed sends the same bytes and hits the same parts at the same events; another seed does not."""
    assert requests(1, 500, 0) == requests(1, 500, 0) != requests(2, 500, 0)
    assert schedule(1, 40, 5000) == schedule(1, 40, 5000) != schedule(2, 40, 5000)


@pytest.mark.parametrize("hits", [0, 1, 5, 10, 200])
def test_hits_keep_their_mix_and_come_in_order(hits: int) -> None:
    """As many hits as asked for, every part at its share, each after the one before, no agent twice before both work again."""
    found = schedule(random.randrange(1000), hits, 50_000, lost_writes=True)
    assert len(found) == hits
    assert [hit.at for hit in found] == sorted({hit.at for hit in found})
    if hits == 200:
        assert Counter(hit.part for hit in found) == {part: round(share * hits) for part, share in MIX.items()}
    since: Counter[str] = Counter()
    for hit in found:
        since = Counter() if hit.settled else since
        since[hit.part] += 1
        assert since["agents-1"] <= 1
        assert since["agents-2"] <= 1


def test_the_stream_holds_what_it_promises() -> None:
    """Re-sends are byte for byte what was sent; duplicates and refusable events stand at their shares."""
    events = [event for request in requests(3, 20_000, 0) for event in request.events]
    assert len(events) == 20_000
    first = {event.event_id: event.json for event in events if not event.again}
    again = [event for event in events if event.again]
    assert all(first[event.event_id] == event.json for event in again)
    assert len(again) == pytest.approx(20_000 * DUPLICATE_SHARE, rel=0.2)
    assert sum(bool(event.reason) for event in events) == pytest.approx(20_000 * INVALID_SHARE, rel=0.2)
    assert len({event.reason for event in events}) == 8
