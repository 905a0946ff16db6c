"""FEEDBACK → EXAMPLE: the Faust agents that join `impressions` with `clickstream` into `training-examples`. `python -m streams.joiner`.

A purchase that comes when its example is made already, up to `late_purchase_h` later, makes one more (see `streams.late`). What may still be
bought is no state of ours: after a start it is read from `training-examples` itself.

A consumer group of its own: it acknowledges a record only when no open window needs it, so that a crash rebuilds the windows from the
log, and the features' offsets need not wait for that. A crash between producing and committing repeats examples; they carry their
request id, and the trainer takes each once.
"""

import asyncio
import time
from contextlib import suppress
from typing import Any

import faust
import msgspec
import structlog
from prometheus_client import Counter, Gauge

from features.events import Event
from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings, load_settings
from streams.faust_app import create_app, end_of, run_worker
from streams.health import serve_health
from streams.join import Join
from streams.late import Bought, Clicks, Late, corrected
from streams.logs import configure_logs
from streams.partition_log import PartitionLog
from streams.records import Example, Impression, decode, encode
from streams.topics import CLICKSTREAM, IMPRESSIONS, TRAINING_EXAMPLES

log = structlog.get_logger()

CLOSE_EVERY_S = 0.25
EXAMPLES = Counter(
    "liveshelf_joiner_examples_total", "Examples produced, by whether anything on the shelf was clicked", ["clicked"]
)
FEEDBACK = Counter(
    "liveshelf_joiner_feedback_total", "Items of examples by candidate source and what came of them", ["source", "feedback"]
)
UNDECODABLE = Counter(
    "liveshelf_joiner_undecodable_total", "Records passed over (the feature agents put them into clickstream-rejected)"
)
LATE = Counter(
    "liveshelf_joiner_late_purchases_total", "Items bought when the example of their shelf had been made, and told by one more"
)
OPEN = Gauge("liveshelf_joiner_open_impressions", "Impressions whose window is not over", ["partition"])


class Reading:
    """How far each partition was processed, against its end: an idle shop's windows close by the clock once all is read."""

    def __init__(self) -> None:
        self.next_offset: dict[Any, int] = {}
        self._idle_position: dict[Any, int | None] = {}

    async def at_end(self, app: faust.App, tp: Any) -> bool:
        end = end_of(app, tp)
        if end is None:
            return False
        if tp in self.next_offset:
            return self.next_offset[tp] >= end
        # Nothing processed since the assignment: at the end when the position was there a tick ago already, with nothing in between.
        position: int | None = await app.consumer.position(tp)
        was, self._idle_position[tp] = self._idle_position.get(tp), position
        return position is not None and position >= end and was == position


def create(settings: Settings) -> faust.App:
    """The app with its agents and the task that closes windows."""
    app = create_app("liveshelf-joiner", settings, CLICKSTREAM, IMPRESSIONS)
    clickstream = app.topic(CLICKSTREAM, value_type=bytes, key_type=bytes)
    impressions = app.topic(IMPRESSIONS, value_type=bytes, key_type=bytes)
    examples = app.topic(TRAINING_EXAMPLES, value_type=bytes, key_type=bytes)
    joins: dict[int, Join[Any]] = {}
    bought: dict[int, Bought] = {}
    made = PartitionLog(settings, TRAINING_EXAMPLES)
    span_ms = settings.late_purchase_h * 3_600_000
    reading = Reading()
    closed_at = time.monotonic()

    def readiness() -> tuple[bool, dict[str, Any]]:
        alive = time.monotonic() - closed_at < 100 * CLOSE_EVERY_S
        return bool(joins) and alive, {
            "partitions": sorted(joins),
            "open": {str(p): len(join) for p, join in sorted(joins.items())},
            "clicked": {str(p): len(shelves) for p, shelves in sorted(bought.items())},
        }

    @app.task
    async def start() -> None:
        await serve_health(settings.host, settings.joiner_metrics_port, readiness)

    @app.on_partitions_assigned.connect
    async def assigned(sender: faust.App, assigned: set[Any], **_: Any) -> None:
        # Everything that was not acknowledged comes again, so the windows are built anew.
        reading.next_offset.clear()
        joins.clear()
        bought.clear()
        joins.update({tp.partition: Join(settings.feedback_window_s * 1000) for tp in assigned if tp.topic == IMPRESSIONS})
        log.info("partitions assigned", partitions=sorted(joins))

    @app.agent(clickstream)
    async def take_events(stream: faust.StreamT) -> None:
        async for event in stream.noack().events():
            _take(event, Event, Join.add_event)

    @app.agent(impressions)
    async def take_impressions(stream: faust.StreamT) -> None:
        async for event in stream.noack().events():
            _take(event, Impression, Join.add_impression)

    def _take(event: faust.EventT, kind: Any, add: Any) -> None:
        message = event.message
        reading.next_offset[message.tp] = message.offset + 1
        join = joins.get(message.partition)
        try:
            record = decode(kind, event.value)
        except msgspec.DecodeError:
            UNDECODABLE.inc()
            event.ack()
            return
        if join is not None:
            add(join, record, int(message.timestamp * 1000), event)

    @app.task
    async def close_windows() -> None:
        nonlocal closed_at
        while not app.should_stop:
            await app.sleep(CLOSE_EVERY_S)
            closed_at = time.monotonic()
            for tp in list(app.consumer.assignment()):
                join, clicked = joins.get(tp.partition), bought.get(tp.partition)
                if join is None or clicked is None or tp.topic != IMPRESSIONS:
                    continue
                now_ms = int(time.time() * 1000)  # before the look at the ends: what comes after it is newer
                if all([await reading.at_end(app, tp._replace(topic=name)) for name in (CLICKSTREAM, IMPRESSIONS)]):
                    join.caught_up(now_ms)
                await _produce(tp.partition, join, clicked)

    @app.task
    async def remember() -> None:
        while not app.should_stop:
            for partition, join in list(joins.items()):
                if partition not in bought:
                    try:
                        found = await asyncio.to_thread(_clicked, made, partition, span_ms)
                    except UnavailableError as error:
                        log.warning("clicks not read, will try again", reason=str(error))
                        continue
                    if joins.get(partition) is join:  # not given away meanwhile
                        bought[partition] = found
            await app.sleep(CLOSE_EVERY_S)

    async def _produce(partition: int, join: Join[Any], clicked: Bought) -> None:
        closed = join.close()
        await _send(partition, closed.examples, clicked)
        purchases = closed.purchases if span_ms else []
        if late := [late for purchase in purchases for late in clicked.buy(purchase)]:
            await _send(partition, await asyncio.to_thread(_corrected, made, partition, late), clicked)
        for example, sources in zip(closed.examples, closed.sources, strict=True):
            EXAMPLES.labels("yes" if any(example.clicked) else "no").inc()
            _count_feedback(example, sources)
        for event in closed.tokens:
            event.ack()
        OPEN.labels(partition).set(len(join))

    async def _send(partition: int, new: list[Example], clicked: Bought) -> None:
        sent = [await examples.send(key=e.shopper.encode(), value=encode(e), partition=partition) for e in new]
        for example, written in zip(new, await asyncio.gather(*sent), strict=True):
            clicked.note(example, written.offset)

    return app


def _clicked(made: PartitionLog, partition: int, span_ms: int) -> Bought:
    """Of the examples made in the last `span_ms`."""
    bought = Bought(span_ms)
    start = made.offset_at(partition, int(time.time() * 1000) - span_ms)
    for batch in made.read(partition, start, made.ends(partition)[1]) if start >= 0 else ():
        for raw in batch:
            with suppress(msgspec.DecodeError):  # not ours
                bought.note(decode(Clicks, raw.value), raw.offset)
    return bought


def _corrected(made: PartitionLog, partition: int, late: list[Late]) -> list[Example]:
    """One more example for each of `late`."""
    examples = []
    for one in late:
        raw = next((raw for batch in made.read(partition, one.offset, one.offset + 1) for raw in batch), None)
        if raw is not None:  # the topic keeps it longer than we remember it, unless told otherwise
            examples.append(corrected(decode(Example, raw.value), one))
            LATE.inc(len(one.items))
    return examples


def _count_feedback(example: Example, sources: list[str]) -> None:
    """Shown, clicked, carted and purchased items of each candidate source: what the source is worth."""
    for at, source in enumerate(sources):
        FEEDBACK.labels(source, "shown").inc()
        for feedback in ("clicked", "carted", "purchased"):
            if getattr(example, feedback)[at]:
                FEEDBACK.labels(source, feedback).inc()


def main() -> None:
    configure_logs()
    settings = load_settings()
    run_worker(lambda: create(settings))


if __name__ == "__main__":
    main()
