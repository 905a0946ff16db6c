"""A recorded log with times, in any format that Liveshelf reads, as one list of events in time order.

yoochoose, otto   what `liveshelf replay` reads: a plain file, a tar archive, or a directory of such files
events            JSON lines, as browsers send them (GA4) or as they stand in `clickstream`; what `liveshelf simulate --log` writes
"""

from pathlib import Path
from typing import NamedTuple

from features.events import Event, EventItem
from liveshelf.errors import InvalidEventError, LiveshelfError, SettingsError
from liveshelf.evaluation import visits
from liveshelf.replay.logs import READERS, ClickLog
from liveshelf.settings import Settings
from streams.sample import read_sample

EVENTS = "events"


class EventLog(NamedTuple):
    """`events` are the latest ones of `found`, by event time; `format` names how the file is written, `unusable` counts lines that are no
    event."""

    events: list[Event]
    found: int
    format: str
    unusable: int


def read(path: Path, settings: Settings, events_max: int) -> EventLog:
    """At most the latest `events_max` events of `path`.

    Raises:
        InvalidEventError: it is in none of these formats, holds no event, or says no times.
    """
    seen: object = ""
    for format_ in sorted(READERS):
        try:
            return _clicks(path, format_, events_max)
        except InvalidEventError as error:
            seen = error.value
    try:
        return _events(path, settings, events_max)
    except SettingsError:
        pass
    if _untimed(path):
        raise InvalidEventError(
            str(path),
            "sessions without times",
            "a time for every event: without one nothing says what a model could have known. `liveshelf evaluate` reads this file",
        )
    raise InvalidEventError(
        str(path),
        seen,
        "a log with a time for every event: tab-separated SessionId, ItemId and Time (yoochoose), one session a line in JSON (otto), or "
        "one event a line in JSON, as POST /v1/events takes it (events)",
    )


def _clicks(path: Path, format_: str, events_max: int) -> EventLog:
    log = ClickLog(path, format_)
    try:
        events = [
            Event(
                event_id=log.event_id(found),
                event_name=found.name,  # type: ignore[arg-type]  # one of OTTO_NAMES, or view_item
                shopper=found.session,
                session=found.session,
                time_ms=found.time_ms,
                items=(EventItem(found.item),),
            )
            for found in log.events(max(log.count - events_max, 0), log.count)
        ]
        return EventLog(events, log.count, format_, log.malformed_count)
    finally:
        log.close()


def _events(path: Path, settings: Settings, events_max: int) -> EventLog:
    sample = read_sample(path, settings)
    if sample.undated:
        raise InvalidEventError(
            str(path),
            f"{sample.undated} of {len(sample.events)} events without timestamp_micros",
            "a time for every event: without one nothing says what a model could have known",
        )
    events = sorted(sample.events, key=lambda event: event.time_ms)
    return EventLog(events[-events_max:], len(events), EVENTS, sum(sample.invalid.values()))


def _untimed(path: Path) -> bool:
    """Whether it is what `liveshelf evaluate` reads, but has no times."""
    try:
        return not visits.read(path).timed
    except (LiveshelfError, OSError):
        return False
