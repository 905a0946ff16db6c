"""RecordEvents: events of backends over gRPC, by the collector's own rules (streams/intake.py), into the same topics."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from google.protobuf.message import Message as ProtoMessage
from prometheus_client import Counter

from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings
from liveshelf.v1 import recommendation_pb2 as pb
from serving import status
from streams.intake import Intake, TooManyError, read_events
from streams.producer import Delivery, InflightLimitError, Message, Producer
from streams.pseudonym import Pseudonyms
from streams.records import encode
from streams.topics import CLICKSTREAM, CLICKSTREAM_REJECTED
from streams.tracing import Tracing
from streams.wire import Refusal

log = structlog.get_logger()

EVENTS = Counter("liveshelf_scoring_events_total", "Events taken over gRPC, by outcome and reason", ["outcome", "reason"])

PROBE_INTERVAL_S = 2.0  # as the collector's
PROBE_TIMEOUT_S = 2.0
READY_WITHIN_S = 10.0  # no answer from Kafka for longer than this: not ready. A broker's restart takes 3 s
RETRY_S = 1.0  # a broker that restarts is back within seconds


class EventRecorder:
    """The call of EventService. `producer` is open; `follow` runs as long as it does."""

    def __init__(self, producer: Producer, settings: Settings, pseudonyms: Pseudonyms, tracing: Tracing | None = None) -> None:
        self._producer, self._settings, self._pseudonyms, self._tracing = producer, settings, pseudonyms, tracing
        self._seen_s = float("-inf")

    @property
    def ready(self) -> bool:
        """Whether Kafka answered lately, and has the topics."""
        return time.monotonic() - self._seen_s < READY_WITHIN_S and not self._producer.fatal

    async def follow(self, on_change: Callable[[bool], Awaitable[None]]) -> None:
        """Keep asking whether Kafka answers; `on_change` hears of every change of `ready`, the first included."""
        said: bool | None = None
        while True:
            if await self._producer.reachable(PROBE_TIMEOUT_S):
                self._seen_s = time.monotonic()
            if self.ready != said:
                said = self.ready
                await on_change(said)
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def record_events(self, request: pb.RecordEventsRequest, left_s: float | None) -> pb.RecordEventsResponse:
        """Return when Kafka has acknowledged every accepted event. Refused ones go along to the rejects' topic, and are not waited for.

        Raises:
            ApiError: INVALID_ARGUMENT, RESOURCE_EXHAUSTED or UNAVAILABLE.
        """
        if self._seen_s == float("-inf"):  # a record sent before its topic exists would make some brokers create it, wrongly
            raise status.unavailable(f"Kafka at {self._settings.kafka_address} has not answered yet", "KAFKA_UNAVAILABLE", RETRY_S)
        taken = self._read(request)
        for rejected in taken.rejected:
            self._producer.send_nowait(CLICKSTREAM_REJECTED, None, encode(msgspec.structs.replace(rejected, source="scoring")))
        for refusal in taken.refusals:
            EVENTS.labels("rejected", refusal.reason).inc()
        if not taken.accepted:
            raise status.invalid([_violation(refusal) for refusal in taken.refusals])
        headers = self._tracing.headers() if self._tracing else ()
        delivered = await self._deliver(
            [Message(CLICKSTREAM, event.shopper, encode(event), headers=headers) for event in taken.accepted]
        )
        if self._tracing is not None:
            self._tracing.recorded([event.event_id for event in taken.accepted], delivered)
        EVENTS.labels("accepted", "").inc(len(taken.accepted))
        return pb.RecordEventsResponse(accepted=len(taken.accepted), refusals=[_refusal(refusal) for refusal in taken.refusals])

    def _read(self, request: pb.RecordEventsRequest) -> Intake:
        body = msgspec.json.encode([_wire(event) for event in request.events])
        try:
            return read_events(body, time.time_ns() // 1_000_000, self._settings, self._pseudonyms)
        except TooManyError as error:
            expected = f"at most {self._settings.events_per_request_max}"
            raise status.invalid([status.violation("events", f"{error.count} events", expected, "TOO_MANY")]) from None

    async def _deliver(self, messages: list[Message]) -> list[Delivery]:
        try:
            outcomes = await self._producer.send_all(messages)
        except InflightLimitError as error:
            raise status.overloaded(str(error)) from None
        failed = [outcome for outcome in outcomes if isinstance(outcome, UnavailableError)]
        if failed:
            log.warning("not_acknowledged", records=len(failed), of=len(messages), error=str(failed[0]))
            raise status.unavailable(
                f"{failed[0]} Send the same request again: events that carry an id count once", "KAFKA_UNAVAILABLE", RETRY_S
            )
        return [outcome for outcome in outcomes if isinstance(outcome, Delivery)]


def _wire(message: ProtoMessage) -> dict[str, Any]:
    """The JSON that the collector would have got. Fields bear the same names; one that is not set, or empty, is not given."""
    return {
        field.name: [_wire(item) for item in value] if field.name == "items" else _json_value(value)
        for field, value in message.ListFields()
    }


def _json_value(value: Any) -> Any:
    """JSON knows no NaN and no infinity, and msgspec would write null, "not given": as text they are refused as what they are."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _path(refusal: Refusal) -> str:
    if refusal.index is None:
        return "events"
    return f"events[{refusal.index}].{refusal.field}" if refusal.field else f"events[{refusal.index}]"


def _violation(refusal: Refusal) -> status.Violation:
    return status.violation(_path(refusal), status.quoted(refusal.value), refusal.expected, refusal.reason.upper())


def _refusal(refusal: Refusal) -> pb.EventRefusal:
    return pb.EventRefusal(
        index=refusal.index or 0,
        field=refusal.field,
        value=msgspec.json.encode(refusal.value).decode(),
        expected=refusal.expected,
        reason=refusal.reason,
    )
