"""Sending a log to the real collector app in this process: order, waiting, resuming, pace."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from liveshelf.errors import ConflictError, CorruptError, LiveshelfError, SettingsError, UnavailableError
from liveshelf.replay.logs import ClickLog, LogEvent
from liveshelf.replay.sender import Pace, Sender, replay
from liveshelf.replay.state import ReplayState, load_state, save_state, state_path
from liveshelf.settings import Settings
from streams.collector import create_app
from streams.producer import MemoryProducer
from streams.pseudonym import Pseudonyms
from streams.records import Event, decode

SETTINGS = msgspec.structs.replace(Settings(), events_per_request_max=20, event_age_max_h=0)  # the logs below are of 2001
PSEUDONYMS = Pseudonyms(b"k" * 32)
Answers = Callable[[httpx.Request], httpx.Response | None]


class Collector(httpx.AsyncBaseTransport):
    """The real collector behind a wire on which `instead` may answer in its place."""

    def __init__(self, instead: Answers = lambda request: None, settings: Settings = SETTINGS) -> None:
        self.producer = MemoryProducer(10_000)
        self.app = create_app(settings, self.producer, PSEUDONYMS)
        self.app.state.collector.topics_made = True
        self._inner = httpx.ASGITransport(self.app)
        self._instead = instead

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._instead(request) or await self._inner.handle_async_request(request)

    def events(self) -> list[Event]:
        return [decode(Event, value) for _, _, value in self.producer.log.get("clickstream", [])]


def log_of(tmp_path: Path, events: int, sessions: int) -> ClickLog:
    lines = b"".join(b"%d\titem%d\t%d\n" % (i * 7 % sessions, i, 1_000_000_000 + i) for i in range(events))
    path = tmp_path / "log.txt"
    path.write_bytes(b"SessionId\tItemId\tTime\n" + lines)
    return ClickLog(path, "yoochoose")


def fresh_state(shift_ms: int = 0) -> ReplayState:
    return ReplayState(path="", format="yoochoose", shift_ms=shift_ms)


def send(
    collector: httpx.AsyncBaseTransport, log: ClickLog, state: ReplayState, patience_s: float = 5.0, on_window: Any = lambda: None
) -> None:
    async def run() -> None:
        async with Sender(SETTINGS, patience_s, transport=collector) as sender:
            await replay(log, state, log.count, Pace(0), sender, on_window)

    asyncio.run(run())


def test_every_event_arrives_once_and_sessions_keep_their_order(tmp_path: Path) -> None:
    collector, log, state = Collector(), log_of(tmp_path, 500, 9), fresh_state(shift_ms=5_000)
    send(collector, log, state)
    events = collector.events()
    assert sorted(event.items[0].item_id for event in events) == sorted(f"item{i}" for i in range(500))
    by_session = defaultdict(list)
    for event in events:
        by_session[event.session].append(event.time_ms)
    assert len(by_session) == 9
    assert all(times == sorted(times) for times in by_session.values())
    assert min(event.time_ms for event in events) == 1_000_000_005_000
    assert events[0].session in {PSEUDONYMS.session(str(i)) for i in range(9)}
    assert (state.position, state.accepted, state.rejected) == (500, 500, {})


def test_rejected_events_are_counted_by_reason(tmp_path: Path) -> None:
    collector, log = Collector(), log_of(tmp_path, 100, 3)
    state = fresh_state(shift_ms=(time.time_ns() // 1_000_000 - 1_000_000_000_000) + 3_600_000 - 50_000)
    send(collector, log, state)
    assert state.accepted + state.rejected["in_the_future"] == state.position == 100
    assert 40 <= state.rejected["in_the_future"] <= 51
    assert len(collector.events()) == state.accepted


def test_collector_that_takes_no_archives_is_said_once_and_its_setting_named(tmp_path: Path) -> None:
    """One event is refused, not the whole log; once the setting is right, the same replay goes on."""
    young_only = msgspec.structs.replace(SETTINGS, event_age_max_h=24 * 90)
    collector, log, state = Collector(settings=young_only), log_of(tmp_path, 500, 9), fresh_state()
    with pytest.raises(SettingsError, match=r"--keep-times .*event_age_max_h 0 .*LIVESHELF_EVENT_AGE_MAX_H=0"):
        send(collector, log, state)
    assert len(collector.producer.log["clickstream-rejected"]) == 1
    assert (state.position, state.rejected, collector.events()) == (0, {}, [])
    archive = Collector()
    send(archive, log, state)
    assert state.accepted == len(archive.events()) == 500


def test_log_that_reaches_too_far_back_when_shifted_is_said_too(tmp_path: Path) -> None:
    age_ms = 24 * 3_600_000
    young_only = msgspec.structs.replace(SETTINGS, event_age_max_h=24)
    state = fresh_state(shift_ms=time.time_ns() // 1_000_000 - 1_000_000_000_000 - age_ms - 60_000)
    with pytest.raises(SettingsError, match="even shifted"):
        send(Collector(settings=young_only), log_of(tmp_path, 100, 3), state)


def test_collector_that_is_busy_or_away_is_asked_again(tmp_path: Path) -> None:
    refusals = [429, 503, None, 429]

    def instead(request: httpx.Request) -> httpx.Response | None:
        if not refusals:
            return None
        if (status := refusals.pop()) is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, headers={"retry-after": "0"}, request=request)

    collector, state = Collector(instead), fresh_state()
    send(collector, log_of(tmp_path, 60, 5), state)
    assert not refusals
    assert len(collector.events()) == state.accepted == 60


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    asked: list[float] = []

    def instead(request: httpx.Request) -> httpx.Response | None:
        asked.append(time.monotonic())
        return httpx.Response(429, headers={"retry-after": "1"}, request=request) if len(asked) == 1 else None

    send(Collector(instead), log_of(tmp_path, 1, 1), fresh_state())
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1


def test_patience_ends(tmp_path: Path) -> None:
    def instead(request: httpx.Request) -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    state = fresh_state()
    with pytest.raises(UnavailableError, match="liveshelf status"):
        send(Collector(instead), log_of(tmp_path, 5, 5), state, patience_s=0.3)
    assert state.position == 0


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(404, text="no"), httpx.Response(202, text="hello"), httpx.Response(202, json={"accepted": 0, "rejected": []})],
)
def test_something_else_at_that_address_is_an_error(tmp_path: Path, answer: httpx.Response) -> None:
    def instead(request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(answer.status_code, content=answer.content, request=request)

    with pytest.raises(LiveshelfError, match="v1/events"):
        send(Collector(instead), log_of(tmp_path, 5, 1), fresh_state())


def test_resumed_after_a_stop_at_any_window_nothing_is_missing(tmp_path: Path) -> None:
    collector, log = Collector(), log_of(tmp_path, 300, 6)
    kept = tmp_path / "state" / "s.json"
    state: ReplayState | None = fresh_state()
    runs = 0
    while state is not None and state.position < log.count:
        runs += 1

        def stop_after_one_window(state: ReplayState = state) -> None:
            save_state(kept, state)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            send(collector, log, state, on_window=stop_after_one_window)
        state = load_state(kept)
    assert runs > 1
    ids = [event.event_id for event in collector.events()]
    assert sorted(ids) == sorted(log.event_id(event) for event in log.events(0, 300)), "each once: windows end at requests"


def test_begun_window_is_sent_again_with_the_same_ids(tmp_path: Path) -> None:
    broken = True

    def instead(request: httpx.Request) -> httpx.Response | None:
        nonlocal broken
        if broken and b'"session_id":"1"' in request.content:
            return httpx.Response(500, text="boom", request=request)
        return None

    collector, log, state = Collector(instead), log_of(tmp_path, 40, 8), fresh_state()
    with pytest.raises(LiveshelfError, match="500"):
        send(collector, log, state)
    assert state.position == 1, "the first event, which goes alone"
    broken = False
    send(collector, log, state)
    ids = {event.event_id for event in collector.events()}
    assert len(ids) == 40
    assert state.accepted == 40


def gathered(pace: Pace, events: list[LogEvent], size: int) -> list[tuple[float, int]]:
    """(seconds since the start, number of events) of each window."""

    async def run() -> list[tuple[float, int]]:
        began = time.monotonic()
        return [(time.monotonic() - began, len(window)) async for window in pace.windows(events, size)]

    return asyncio.run(run())


def test_pace() -> None:
    events = [LogEvent(1000 * i, 0, i, 0, "s", "i", "view_item") for i in range(5)]
    assert [count for _, count in gathered(Pace(0), events, 2)] == [2, 2, 1]
    paced = gathered(Pace(10), events, 100)
    assert sum(count for _, count in paced) == 5
    sent = 0
    for at_s, count in paced:
        sent += count
        assert at_s >= (sent - 1) / 10 - 0.001, "no event before it is due"


def test_state_is_found_by_what_is_replayed(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, data_dir=str(tmp_path))
    paths = {
        state_path(settings, d, f, m, k) for d in "ab" for f in ("otto", "yoochoose") for m in ("", "x") for k in (True, False)
    }
    assert len(paths) == 16
    path = paths.pop()
    assert load_state(path) is None
    state = ReplayState(path="p", format="otto", shift_ms=-5, position=7, accepted=6, rejected={"wrong_type": 1})
    save_state(path, state)
    assert load_state(path) == state
    assert list(path.parent.iterdir()) == [path]


def test_state_that_cannot_be_read_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(b'{"position": ')
    with pytest.raises(CorruptError, match="--restart"):
        load_state(path)
    with pytest.raises(ConflictError, match="LIVESHELF_DATA_DIR"):
        save_state(path / "below a file.json", fresh_state())
