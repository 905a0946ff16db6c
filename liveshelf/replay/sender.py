"""Sends records to the collector in batches, several requests at once, and tries again when it is told to wait."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self
from zlib import crc32

import httpx
import msgspec

from liveshelf.batching import batches
from liveshelf.errors import LiveshelfError, SettingsError, UnavailableError
from liveshelf.replay.logs import ClickLog, LogEvent
from liveshelf.replay.state import ReplayState
from liveshelf.settings import Settings

LANES = 4  # requests at once; a session stays in one lane, so its events keep their order. More gain nothing on two cores
LANE_FILL = 0.9  # of a request: hashing spreads sessions unevenly, and a lane over the limit would need a second request
REQUEST_TIMEOUT_S = 30.0  # the collector itself waits up to 10 s for Kafka
PATIENCE_S = 120.0  # without any answer: killed parts are back in 30 s, with backoff in 60
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 5.0
TOO_OLD = "too_old"  # as `streams.intake.REASONS` spells it
TICK_S = 0.05  # paced replays send what is due in steps this long, rather than one request an event


class Refused(msgspec.Struct):
    """One refused record, as the collector answers. `index` is its place in the request."""

    index: int | None
    field: str
    value: Any
    expected: str
    reason: str


class Receipt(msgspec.Struct):
    """The collector's answer to one request."""

    accepted: int
    rejected: list[Refused]


class Sender:
    """One collector, over kept connections."""

    def __init__(
        self, settings: Settings, patience_s: float = PATIENCE_S, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`transport` is for tests, which reach a collector in their own process by one."""
        self.url = settings.collector_url
        self.records_max = settings.events_per_request_max
        self._bytes_max = settings.event_body_bytes_max
        self._patience_s = patience_s
        # Loopback: no proxy of the environment.
        self._http = httpx.AsyncClient(base_url=self.url, timeout=REQUEST_TIMEOUT_S, trust_env=False, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def post(self, path: str, records: Sequence[bytes]) -> AsyncIterator[Receipt]:
        """Send JSON records in order, in as many requests as the limits ask for; a receipt for each request.

        Raises:
            UnavailableError: the collector does not answer, or stays overloaded, for `patience_s`.
            LiveshelfError: an answer that the collector should not give.
        """
        for batch in batches(records, self.records_max, self._bytes_max):
            yield await self._post(path, batch)

    async def _post(self, path: str, batch: list[bytes]) -> Receipt:
        body = b"[" + b",".join(batch) + b"]"
        deadline = time.monotonic() + self._patience_s
        backoff_s = BACKOFF_S_MIN
        while True:
            try:
                answer = await self._http.post(path, content=body, headers={"content-type": "application/json"})
            except httpx.TransportError as error:
                wait_s, problem = backoff_s, f"does not answer: {error or type(error).__name__}"
                backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
            else:
                if answer.status_code not in (429, 503):
                    return self._receipt(answer, len(batch))
                wait_s, problem = _retry_after_s(answer), f"answers {answer.status_code}: {answer.text[:300]}"
            if time.monotonic() + wait_s > deadline:
                raise UnavailableError(f"the collector at {self.url} {problem}. Is it up? See `liveshelf status`.")
            await asyncio.sleep(wait_s)

    def _receipt(self, answer: httpx.Response, records: int) -> Receipt:
        if answer.status_code not in (202, 400):
            raise LiveshelfError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
        try:
            receipt = msgspec.json.decode(answer.content, type=Receipt)
        except msgspec.DecodeError as error:
            raise LiveshelfError(
                f"{answer.request.url} answered {answer.status_code} with {answer.text[:300]!r}. Is that a Liveshelf collector?"
            ) from error
        if receipt.accepted + len(receipt.rejected) != records:
            raise LiveshelfError(
                f"{answer.request.url} was sent {records} records and accounts for another number: {answer.text[:300]}"
            )
        return receipt


def _retry_after_s(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), BACKOFF_S_MAX) if text.isdecimal() else 1.0


class _Item(msgspec.Struct):
    item_id: str


class _Event(msgspec.Struct):
    """One event as POST /v1/events takes it."""

    name: str
    event_id: str
    session_id: str
    timestamp_micros: int
    items: tuple[_Item]


class Pace(NamedTuple):
    """`speed` times as fast as it happened; 0: as fast as it goes."""

    speed: float

    async def windows(self, events: Iterable[LogEvent], size: int) -> AsyncIterator[list[LogEvent]]:
        """Cut `events` into lists of at most `size`, each yielded when its events are due."""
        window: list[LogEvent] = []
        started, first_ms = time.monotonic(), None
        for event in events:
            first_ms = event.time_ms if first_ms is None else first_ms
            if self.speed and started + (event.time_ms - first_ms) / 1000 / self.speed > time.monotonic():
                if window:
                    yield window
                    window = []
                due_s = started + (event.time_ms - first_ms) / 1000 / self.speed - time.monotonic()
                await asyncio.sleep(max(due_s, TICK_S))
            window.append(event)
            if len(window) == size:
                yield window
                window = []
        if window:
            yield window


async def replay(log: ClickLog, state: ReplayState, stop: int, pace: Pace, sender: Sender, on_window: Callable[[], None]) -> None:
    """Send events `state.position` to `stop` of `log`; after each window that was answered, move `state` on and call `on_window`.

    The first event goes alone: it is the oldest, and a collector that refuses its time would refuse all others of that time.

    Raises:
        SettingsError: the collector takes no events this old.
        what Sender.post raises.
    `state` then stands at the last window that was answered as a whole; the next run sends the begun one again, and its events fold once.
    """
    encode = msgspec.json.Encoder().encode

    async def send_lane(lane: list[LogEvent]) -> list[Receipt]:
        records = [
            encode(
                _Event(
                    event.name, log.event_id(event), event.session, (event.time_ms + state.shift_ms) * 1000, (_Item(event.item),)
                )
            )
            for event in lane
        ]
        return [receipt async for receipt in sender.post("/v1/events", records)]

    async def send_window(window: list[LogEvent]) -> None:
        lanes: list[list[LogEvent]] = [[] for _ in range(LANES)]
        for event in window:
            lanes[crc32(event.session.encode()) % LANES].append(event)
        answers = await asyncio.gather(*(send_lane(lane) for lane in lanes if lane))
        receipts = [receipt for answer in answers for receipt in answer]
        refusals = [refused for receipt in receipts for refused in receipt.rejected]
        for refused in refusals:
            if refused.reason == TOO_OLD:
                raise SettingsError(_too_old(refused, state))
        state.accepted += sum(receipt.accepted for receipt in receipts)
        for refused in refusals:
            state.rejected[refused.reason] = state.rejected.get(refused.reason, 0) + 1
        state.position += len(window)
        on_window()

    window_size = int(LANES * sender.records_max * LANE_FILL) or 1
    alone = True
    async for window in pace.windows(log.events(state.position, stop), window_size):
        for part in (window[:1], window[1:]) if alone else (window,):
            if part:
                await send_window(part)
        alone = False


def _too_old(refused: Refused, state: ReplayState) -> str:
    shifted = "even shifted, this log reaches further back" if state.shift_ms else "--keep-times sends this log's own times"
    return (
        f"the collector refuses events that happened too long ago ({refused.field}: {refused.value}, expected {refused.expected}), and "
        f"{shifted}. For archives, start it with the setting event_age_max_h 0 (LIVESHELF_EVENT_AGE_MAX_H=0 liveshelf up), then run this "
        "command again: it goes on where it stopped."
    )
