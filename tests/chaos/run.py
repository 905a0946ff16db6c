"""One run: start the loop, send, hit, drain, compare."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec

from features.feature_set import declared_set
from liveshelf.settings import Settings
from streams.records import Rejected, decode
from streams.topics import CLICKSTREAM, CLICKSTREAM_REJECTED, kafka_config
from tests.chaos import rows
from tests.chaos.loop import Loop, agents_command
from tests.chaos.schedule import Hit, schedule
from tests.chaos.sender import Sender
from tests.chaos.traffic import Request, requests
from tests.conftest import local_settings, read_all

AGENTS_GROUP = "liveshelf-features"
RUN_UP = 0.6
"""Share of the way to the next hit that is sent while the last one's part comes back; the rest is sent when it has, so that the next
hit falls into full traffic."""
START_BEFORE_MS = 2 * 3_600_000  # event times end an hour before now: nothing of them is in the future
RUN_S, HIT_S, EVENTS_A_S = 300, 20, 200  # the whole run may take this long, this much a hit, and this slow a stream
DRAIN_S = 120.0
QUIET_S = (
    2.0  # after the lag is zero the store must have been left alone for this long: offsets may be committed before rows are stored
)
SHOWN_MAX = 10


class Report(msgspec.Struct, kw_only=True):
    """The last line of a run, as JSON."""

    seed: int
    kills: int
    kills_by_part: dict[str, int]
    lost_writes: int
    """Hits on the store after which the end of its append-only file was gone."""
    died: dict[str, int]
    """Deaths that nobody ordered, by part."""
    events: int
    accepted: int
    """Distinct events that were answered as accepted."""
    rejected: dict[str, int]
    """Refused events by reason, as answered."""
    rejected_wrongly: int
    """Answers other than meant; 0 says that the rejects by reason are exact."""
    rejected_unrecorded: int
    """Refused events that do not stand in `clickstream-rejected`."""
    rejected_by_agents: int
    duplicates_sent: int
    duplicates_in_log: int
    """Records whose event id stands in the log before: re-sends, and what was sent again for want of an answer."""
    retries: int
    lost: int
    lost_in_log: int
    """Accepted events that are not in `clickstream`; the rest of `lost` are in the log and not in the features."""
    doubled: int
    different: int
    rows: int
    handovers: int
    """Sign-ins that had something to hand over."""
    lag: int
    """Records that the agents had not committed when the drain ended."""
    seconds: float
    recovery_s: dict[str, float]
    differences: list[str]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.different or self.rejected_wrongly or self.lag)


async def run(
    home: Path,
    seed: int,
    kills: int,
    events: int,
    *,
    lost_writes: bool,
    break_mode: str,
    on_progress: Callable[[int, int, str], None],
) -> Report:
    """Raises NotRecoveredError when a part does not come back, TimeoutError when the run takes far too long."""
    started = time.monotonic()
    settings = local_settings(home)
    stream = requests(seed, events, int(time.time() * 1000) - START_BEFORE_MS)
    hits = schedule(seed, kills, events, lost_writes)
    async with asyncio.timeout(RUN_S + kills * HIT_S + events / EVENTS_A_S):
        async with Loop(settings, agents_command(break_mode)) as loop:
            sender = Sender(settings.collector_url, stream)
            await _send_under_fire(loop, sender, hits, events, on_progress)
            on_progress(sender.answered, len(hits), "draining")
            await loop.all_healthy()
            lag = await _drained(settings)
            on_progress(sender.answered, len(hits), "comparing")
            return await asyncio.to_thread(_report, settings, seed, hits, stream, sender, loop, lag, started)


async def _send_under_fire(
    loop: Loop, sender: Sender, hits: list[Hit], events: int, on_progress: Callable[[int, int, str], None]
) -> None:
    async def show() -> None:
        while True:
            on_progress(sender.answered, sum(loop.kills.values()), "")
            await asyncio.sleep(0.2)

    async def fire() -> None:
        await sender.allow(hits[0].at if hits else events)
        for hit, following in pairwise([*hits, None]):
            assert hit is not None
            if hit.settled:
                await loop.all_healthy()
                await loop.working()
            else:
                await loop.healthy(hit.part)
            await sender.allow(hit.at)
            await sender.reached(hit.at)
            await loop.kill(hit.part, hit.lost_bytes)
            await sender.allow(hit.at + int((following.at - hit.at) * RUN_UP) if following else events)

    async with asyncio.TaskGroup() as group:
        group.create_task(sender.run())
        showing = group.create_task(show())
        await fire()
        await sender.reached(events)
        showing.cancel()


async def _drained(settings: Settings) -> int:
    """Wait until the agents' group has committed everything and the store is left alone; return what is left of the lag."""
    deadline, quiet_since, size = time.monotonic() + DRAIN_S, time.monotonic(), -1
    lag = -1
    while time.monotonic() < deadline:
        lag = await asyncio.to_thread(lag_of, settings, AGENTS_GROUP)
        now = sum(file.stat().st_size for file in (settings.data_path / "store" / "appendonlydir").glob("*"))
        if lag or now != size:
            quiet_since, size = time.monotonic(), now
        if time.monotonic() - quiet_since >= QUIET_S:
            return 0
        await asyncio.sleep(0.2)
    return lag


def lag_of(settings: Settings, group: str) -> int:
    """Records of the clickstream that the consumer group has not committed."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(kafka_config(settings) | {"group.id": group, "enable.auto.commit": False})
    try:
        partitions = [TopicPartition(CLICKSTREAM, p) for p in range(settings.partitions)]
        committed = consumer.committed(partitions, timeout=10)
        return sum(consumer.get_watermark_offsets(tp, timeout=10)[1] - max(tp.offset, 0) for tp in committed)
    finally:
        consumer.close()


def _report(
    settings: Settings, seed: int, hits: list[Hit], stream: list[Request], sender: Sender, loop: Loop, lag: int, started: float
) -> Report:
    log = read_all(settings, CLICKSTREAM)
    ids = Counter(_event_id(value) for _, _, _, value in log)
    features = declared_set(settings)
    expected = rows.undisturbed(log, features)
    found = rows.stored(settings, list(expected.rows), features)
    differing = list(rows.differences(expected.rows, found, features))
    lost = sorted(sender.accepted - ids.keys())
    rejects = [decode(Rejected, value) for _, _, _, value in read_all(settings, CLICKSTREAM_REJECTED)]
    recorded = {_event_id(reject.original) for reject in rejects if reject.source == "collector"}
    refused = {event.event_id for request in stream for event in request.events if event.reason}
    by_part = Counter(name.partition("-")[0] for name in loop.kills.elements())
    shown = [
        *(f"wrong answer: {text}" for text in sender.wrong),
        *(f"lost: event {event_id} was accepted and is not in the log" for event_id in lost),
        *(
            f"lost: the handover of the sign-in at {name}, or it is not what the browser had done"
            for name in expected.handovers_lost
        ),
        *(f"doubled: event {event_id} was folded again by the fold itself" for event_id in expected.doubled),
        *(f"different: {difference.text}" for difference in differing),
        *(f"unrecorded: refused event {event_id} is not in {CLICKSTREAM_REJECTED}" for event_id in sorted(refused - recorded)),
    ]
    return Report(
        seed=seed,
        kills=sum(by_part.values()),
        kills_by_part=dict(sorted(by_part.items())),
        lost_writes=sum(bool(hit.lost_bytes) for hit in hits),
        died=dict(loop.died),
        events=sum(len(request.events) for request in stream),
        accepted=len(sender.accepted),
        rejected=dict(sorted(sender.rejected.items())),
        rejected_wrongly=len(sender.wrong),
        rejected_unrecorded=len(refused - recorded),
        rejected_by_agents=sum(reject.source == "agent" for reject in rejects),
        duplicates_sent=sum(event.again for request in stream for event in request.events),
        duplicates_in_log=len(log) - len(ids),
        retries=sender.retries,
        lost=len(lost) + len(expected.handovers_lost) + sum(max(0, -difference.events) for difference in differing),
        lost_in_log=len(lost),
        doubled=len(expected.doubled) + sum(max(0, difference.events) for difference in differing),
        different=len(differing),
        rows=len(expected.rows),
        handovers=expected.handovers,
        lag=lag,
        seconds=round(time.monotonic() - started, 1),
        recovery_s=loop.recovery_s,
        differences=shown[:SHOWN_MAX],
    )


_EVENT_ID = re.compile(rb'"event_id":\s*"([^"]*)"')


def _event_id(record: bytes) -> str:
    """Also of a record that is no JSON any more."""
    found = _EVENT_ID.search(record)
    return found[1].decode() if found else ""
