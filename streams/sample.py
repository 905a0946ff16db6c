"""A sample of a shop's events from a file of JSON lines: as browsers send them (GA4), or as they stand in `clickstream`."""

import secrets
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from features.events import Event
from liveshelf.errors import SettingsError
from liveshelf.settings import Settings
from streams.intake import TooManyError, read_events
from streams.pseudonym import KEY_BYTES, Pseudonyms
from streams.records import decode

LINES_MAX = 1_000_000  # about 1 kB each in memory; distributions do not change beyond


class Sample(NamedTuple):
    """`events` in the order of the file; `invalid` by reason, and the first one's line and why."""

    events: list[Event]
    invalid: dict[str, int]
    first_invalid: str
    lines: int
    undated: int
    """Events without a time: they count as if they had happened now."""


def read_sample(path: Path, settings: Settings) -> Sample:
    """Read the first LINES_MAX lines.

    Raises:
        SettingsError: the file cannot be read, or holds no line.
    """
    events: list[Event] = []
    invalid: dict[str, int] = {}
    first, lines, undated = "", 0, 0
    now_ms = int(time.time() * 1000)
    pseudonyms = Pseudonyms(secrets.token_bytes(KEY_BYTES))  # a key for this sample alone: nothing of it is kept
    ageless = msgspec.structs.replace(settings, event_age_max_h=0)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if not line:
                    continue
                if lines == LINES_MAX:
                    break
                lines += 1
                found, refused = _read(line, now_ms, ageless, pseudonyms)
                events += found
                undated += sum(event.time_ms == now_ms for event in found)
                for reason, detail in refused:
                    invalid[reason] = invalid.get(reason, 0) + 1
                    first = first or f"line {number}: {detail}"
    except OSError as error:
        raise SettingsError(f"the sample {path} cannot be read: {error}") from None
    if not lines:
        raise SettingsError(f"the sample {path} is empty; expected JSON lines, one event each")
    if not events:
        raise SettingsError(f"the sample {path} holds no valid event in {lines} lines; the first: {first}")
    return Sample(events, invalid, first, lines, undated)


def _read(line: bytes, now_ms: int, settings: Settings, pseudonyms: Pseudonyms) -> tuple[list[Event], list[tuple[str, str]]]:
    try:
        return [decode(Event, line)], []
    except msgspec.DecodeError:
        pass
    try:
        intake = read_events(line, now_ms, settings, pseudonyms)
    except TooManyError as error:
        return [], [("too_many_events", f"{error.count} events in one line, at most {settings.events_per_request_max}")]
    return intake.accepted, [
        (refusal.reason, f"{refusal.field or 'the line'}: expected {refusal.expected}") for refusal in intake.refusals
    ]
