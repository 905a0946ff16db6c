"""Bytes of a request → validated records and refusals with reasons. Pure: the clock and the key are passed in.

One bad record does not take its batch down. Shopper ids leave here as pseudonyms only, also in what is kept of a refused record;
bytes that are no JSON are kept as they came, but for what is recognisably an id.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b
from secrets import token_hex
from typing import Any, NamedTuple, Self, TypeVar

import msgspec

from features.events import EVENT_NAMES
from liveshelf.settings import Settings
from streams.pseudonym import Pseudonyms
from streams.records import CatalogItem, Event, EventItem, Rejected
from streams.wire import (
    EVENT_BYTES_MAX,
    ITEMS_MAX,
    CatalogEnvelope,
    Envelope,
    Refusal,
    WireCatalogItem,
    WireEvent,
    WireItem,
)

ITEM_EVENTS = frozenset({"view_item_list", "select_item", "view_item", "add_to_cart", "remove_from_cart", "purchase"})
"""Events that say nothing without an item."""

REASONS = (
    "invalid_json",
    "missing_field",
    "wrong_type",
    "unknown_event_name",
    "out_of_range",
    "in_the_future",
    "too_old",
    "too_long",
    "too_short",
    "too_many_items",
    "too_large",
)

ID_FIELDS = frozenset({"user_id", "client_id", "session_id", "userId", "clientId", "sessionId", "user_pseudo_id", "ga_session_id"})
"""Fields blanked in what is kept of a refused record, however deep they stand and also under their common misspellings."""

_ID_IN_PIECES = re.compile(rb'("(?:%s)"\s*:\s*)("(?:[^"\\]|\\.)*"?|[^\s,}\]]+)' % "|".join(sorted(ID_FIELDS)).encode())

ORIGINAL_BYTES_MAX = 65_536  # kept of a refused record; base64 adds a third and Kafka's limit is 1 MB a record
NO_PRICE = EventItem("").price
NO_VALUE = Event(event_id="", event_name="refund", shopper="", time_ms=0).value
"""The defaults themselves: msgspec leaves a float out of the JSON only when it is that very object."""

VALUE_CHARS_MAX = 200  # of an offending value, in an answer


class Times(NamedTuple):
    """What one request's records may say of when they happened, ms since 1970 UTC."""

    now_ms: int
    oldest_ms: int
    latest_ms: int

    @classmethod
    def at(cls, now_ms: int, settings: Settings) -> Self:
        """Settings decide how far around `now_ms`; without a limit on age, whatever `streams.wire` lets pass is young enough."""
        oldest_ms = now_ms - settings.event_age_max_h * 3_600_000 if settings.event_age_max_h else 0
        return cls(now_ms, oldest_ms, now_ms + settings.event_future_tolerance_s * 1000)


class TooManyError(Exception):
    """More records than one request may hold. `count` is how many."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(count)


class RefusalError(Exception):
    """One record does not validate. The rest of its batch goes on."""

    def __init__(self, reason: str, field: str, value: object, expected: str) -> None:
        assert reason in REASONS
        self.reason, self.field, self.value, self.expected = reason, field, value, expected
        super().__init__(reason)

    def at(self, index: int | None) -> Refusal:
        value = self.value
        if not isinstance(value, bool | int | float | None) or (isinstance(value, int) and value.bit_length() > 64):
            text = value if isinstance(value, str) else _encode_lossy(value)
            value = text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"
        return Refusal(index, self.field, value, self.expected, self.reason)


Record = TypeVar("Record")


class Intake(NamedTuple):
    """What one request holds: `accepted` records in their order, `refusals` and, parallel to these, what is kept of them."""

    accepted: list[Any]
    refusals: list[Refusal]
    rejected: list[Rejected]


_events = msgspec.json.Decoder(WireEvent).decode
_catalog_items = msgspec.json.Decoder(WireCatalogItem).decode
_envelope = msgspec.json.Decoder(Envelope).decode
_catalog_envelope = msgspec.json.Decoder(CatalogEnvelope).decode
_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_anything = msgspec.json.Decoder().decode
_NO_DEFAULTS = Envelope(events=[])


def read_events(body: bytes, now_ms: int, settings: Settings, pseudonyms: Pseudonyms) -> Intake:
    """One event, an array or an envelope → Events, in the order given.

    Raises:
        TooManyError: more than settings.events_per_request_max.
    """
    defaults = _NO_DEFAULTS
    times = Times.at(now_ms, settings)

    def split() -> list[bytes | msgspec.Raw]:
        nonlocal defaults
        if _first_byte(body) == b"[":
            return list(_checked(_array, body))
        if "events" in _checked(_object, body):
            defaults = _checked(_envelope, body)
            return list(defaults.events)
        return [body]

    def read(raw: bytes | msgspec.Raw, index: int) -> Event:
        return _event(raw, index, defaults, times, pseudonyms)

    return _read(body, split, read, "event", now_ms, settings.events_per_request_max, pseudonyms)


def read_catalog(body: bytes, now_ms: int, settings: Settings, pseudonyms: Pseudonyms) -> Intake:
    """One catalog item, an array or `{"items": […]}` → CatalogItems, in the order given.

    Raises:
        TooManyError: more than settings.events_per_request_max.
    """

    def split() -> list[bytes | msgspec.Raw]:
        if _first_byte(body) == b"[":
            return list(_checked(_array, body))
        if "items" in _checked(_object, body):
            return list(_checked(_catalog_envelope, body).items)
        return [body]

    times = Times.at(now_ms, settings)

    def read(raw: bytes | msgspec.Raw, index: int) -> CatalogItem:
        return _catalog_item(_checked(_catalog_items, raw), times)

    return _read(body, split, read, "catalog item", now_ms, settings.events_per_request_max, pseudonyms)


def _read(
    body: bytes,
    split: Callable[[], list[bytes | msgspec.Raw]],
    read: Callable[[bytes | msgspec.Raw, int], Any],
    kind: str,
    now_ms: int,
    count_max: int,
    pseudonyms: Pseudonyms,
) -> Intake:
    """Split the body into records and read each; what fails becomes a refusal of that record, or of the whole body."""
    intake = Intake([], [], [])

    def refuse(error: RefusalError, index: int | None, original: bytes) -> None:
        intake.refusals.append(error.at(index))
        kept, cut = _without_ids(original, pseudonyms), ""
        if len(kept) > ORIGINAL_BYTES_MAX:
            kept, cut = kept[:ORIGINAL_BYTES_MAX], f" (the first {ORIGINAL_BYTES_MAX} of {len(kept)} bytes are kept)"
        # No value in the detail: it could be an id.
        detail = f"{kind}: {error.field or 'body'}: expected {error.expected}{cut}"
        intake.rejected.append(Rejected(reason=error.reason, detail=detail, source="collector", time_ms=now_ms, original=kept))

    try:
        records = split()
        if not records:
            raise RefusalError("missing_field", "", [], f"at least one {kind}")
    except RefusalError as error:
        refuse(error, None, body)
        return intake
    if len(records) > count_max:
        raise TooManyError(len(records))
    for index, raw in enumerate(records):
        try:
            if len(memoryview(raw)) > EVENT_BYTES_MAX:
                raise RefusalError("too_large", "", f"{len(memoryview(raw))} bytes", f"at most {EVENT_BYTES_MAX} bytes")
            intake.accepted.append(read(raw, index))
        except RefusalError as error:
            refuse(error, index, bytes(raw))
    return intake


def _event(raw: bytes | msgspec.Raw, index: int, defaults: Envelope, times: Times, pseudonyms: Pseudonyms) -> Event:
    """Validate one event.

    Raises:
        RefusalError: with the reason.
    """
    wire = _checked(_events, raw)
    sources: tuple[Any, ...] = (wire, defaults) if wire.params is None else (wire, wire.params, defaults)
    own = sources[:-1]
    name = wire.name or wire.event_name
    if name is None:
        raise RefusalError("missing_field", "name", None, "one of " + ", ".join(EVENT_NAMES))
    session_id = _id(sources, "session_id")
    shopper, link_to = _who(name, _id(sources, "user_id"), _id(sources, "client_id"), session_id, pseudonyms)
    items = () if name == "login" else _first(own, "items")
    if not items and name in ITEM_EVENTS:
        raise RefusalError("missing_field", "items", items, f"1 to {ITEMS_MAX} items: {name} says nothing without one")
    micros = _first(sources, "timestamp_micros")
    time_ms = times.now_ms if micros is None else micros // 1000
    if time_ms > times.latest_ms:
        raise RefusalError("in_the_future", "timestamp_micros", micros, f"microseconds since 1970, {_until(times)}")
    if time_ms < times.oldest_ms:
        raise RefusalError("too_old", "timestamp_micros", micros, f"microseconds since 1970, {_since(times)}")
    event_id = _first(own, "event_id")
    if event_id is None:
        event_id = token_hex(16) if micros is None else _derived_id(raw, index, shopper, micros)
    return Event(
        event_id=event_id,
        event_name=name,
        shopper=shopper,
        session=pseudonyms.session(session_id),
        time_ms=time_ms,
        items=tuple([_item(item) for item in items or ()]),
        request_id=_first(own, "request_id") or "",
        transaction_id=str(_first(own, "transaction_id") or ""),
        search_term=_first(own, "search_term") or "",
        currency=_first(own, "currency") or "",
        value=_first(own, "value") or NO_VALUE,
        link_to=link_to,
    )


def _who(name: str, user_id: str, client_id: str, session_id: str, pseudonyms: Pseudonyms) -> tuple[str, str]:
    """Pseudonyms of the shopper an event is of and, for a login alone, of the person that shopper turned out to be.

    A login is the browser's event, not the person's: its key puts it into the partition where the anonymous row is folded, after
    everything that the browser sent before.

    Raises:
        RefusalError: nobody is named, or a login names only one of the two.
    """
    if name == "login":
        if not client_id:
            raise RefusalError("missing_field", "client_id", None, "the browser's id: a login links client_id with user_id")
        if not user_id:
            raise RefusalError("missing_field", "user_id", None, "the person's id: a login links client_id with user_id")
        return pseudonyms.shopper("", client_id, ""), pseudonyms.shopper(user_id, "", "")
    shopper = pseudonyms.shopper(user_id, client_id, session_id)
    if not shopper:
        raise RefusalError("missing_field", "client_id", None, "at least one of user_id, client_id, session_id")
    return shopper, ""


def _until(times: Times) -> str:
    return f"at most {(times.latest_ms - times.now_ms) // 1000} s from now"


def _since(times: Times) -> str:
    """The oldest time that is accepted, as it is sent and readable."""
    oldest = datetime.fromtimestamp(times.oldest_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"at least {times.oldest_ms * 1000} ({oldest}): event_age_max_h is {(times.now_ms - times.oldest_ms) // 3_600_000}"


def _derived_id(raw: bytes | msgspec.Raw, index: int, shopper: str, micros: int) -> str:
    """The event id of an event that has a time but no id: the same request sent again gives the same one, so it counts once."""
    return blake2b(b"%d %d %s %s" % (index, micros, shopper.encode(), bytes(raw)), digest_size=16).hexdigest()


def _item(wire: WireItem) -> EventItem:
    return EventItem(
        item_id=str(wire.item_id),
        item_name=wire.item_name or "",
        item_category=wire.item_category or "",
        item_brand=wire.item_brand or "",
        price=wire.price or NO_PRICE,
        quantity=wire.quantity or 1,
        index=-1 if wire.index is None else wire.index,
    )


def _catalog_item(wire: WireCatalogItem, times: Times) -> CatalogItem:
    """Validate one catalog item. It may be as old as it likes: the newest record of an item stands for ever.

    Raises:
        RefusalError: it is of the future, and would outlast every update until then.
    """
    if wire.time_ms is not None and wire.time_ms > times.latest_ms:
        raise RefusalError("in_the_future", "time_ms", wire.time_ms, f"milliseconds since 1970, {_until(times)}")
    return CatalogItem(
        item_id=str(wire.item_id),
        item_name=wire.item_name or "",
        item_category=wire.item_category or "",
        item_brand=wire.item_brand or "",
        price=wire.price or NO_PRICE,
        available=wire.available is not False,
        embedding=tuple(wire.embedding or ()),
        time_ms=times.now_ms if wire.time_ms is None else wire.time_ms,
    )


def _first(sources: tuple[Any, ...], field: str) -> Any:
    for source in sources:
        value = getattr(source, field)
        if value is not None:
            return value
    return None


def _id(sources: tuple[Any, ...], field: str) -> str:
    """The first non-empty one; "" when there is none. A tag manager that has no id often sends an empty one."""
    for source in sources:
        value = getattr(source, field)
        if value is not None and value != "":
            return str(value)
    return ""


def _first_byte(body: bytes) -> bytes:
    return body[:64].lstrip()[:1]


_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`")
_GOT = re.compile(r"Expected (?P<expected>.*), got `.*`")


def _checked(decode: Callable[[Any], Record], raw: bytes | msgspec.Raw) -> Record:
    """Decode, and turn msgspec's errors into a RefusalError with field, value and what was expected."""
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), raw) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # An unfinished or misspelt document: msgspec says at which byte.
        raise RefusalError("invalid_json", "", bytes(raw)[:VALUE_CHARS_MAX].decode(errors="replace"), f"JSON ({error})") from None


def _refusal(message: str, raw: bytes | msgspec.Raw) -> RefusalError:
    """msgspec's message, such as "Expected `float` >= 0.0 - at `$.items[0].price`", taken apart."""
    match = _AT.match(message)
    assert match is not None
    what, path = match["what"], (match["path"] or "").lstrip(".")
    if missing := _MISSING.match(what):
        field = f"{path}.{missing['field']}" if path else missing["field"]
        return RefusalError("missing_field", field, None, "this field, it is required")
    value = _value_at(raw, path)
    if what.startswith("Invalid enum value"):
        return RefusalError("unknown_event_name", path, value, "one of " + ", ".join(EVENT_NAMES))
    if got := _GOT.match(what):
        return RefusalError("wrong_type", path, value, got["expected"].replace("`", ""))
    expected = what.removeprefix("Expected ").replace("`", "")
    if "of length" in what:
        reason = "too_short" if ">=" in what else "too_many_items" if path.endswith("items") else "too_long"
        return RefusalError(reason, path, value, expected)
    return RefusalError("out_of_range", path, value, "a number that fits 64 bits" if what.endswith("out of range") else expected)


def _value_at(raw: bytes | msgspec.Raw, path: str) -> Any:
    """What stands at msgspec's `path` (`items[0].price`); None when it cannot be read."""
    try:
        value = _anything(raw)
        for step in re.findall(r"[^.\[\]]+", path):
            value = value[int(step)] if isinstance(value, list) else value[step]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, ValueError):
        return None
    return value


def _without_ids(original: bytes, pseudonyms: Pseudonyms) -> bytes:
    """The bytes as they came, with every id replaced by its pseudonym. The rest of valid JSON keeps its meaning, not its spacing.

    Bytes that are no JSON stay as they are, but for what looks like an id in JSON cut short.
    """
    try:
        document = _anything(original.decode(errors="replace"))
        return msgspec.json.encode(_blanked(document, pseudonyms)) if isinstance(document, dict | list) else original
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError, ValueError):
        return _ID_IN_PIECES.sub(rb"\1null", original)


def _blanked(document: Any, pseudonyms: Pseudonyms) -> Any:
    if isinstance(document, list):
        return [_blanked(entry, pseudonyms) for entry in document]
    if not isinstance(document, dict):
        return document
    return {
        key: _pseudonym(key, value, pseudonyms) if key in ID_FIELDS else _blanked(value, pseudonyms)
        for key, value in document.items()
    }


def _pseudonym(field: str, value: Any, pseudonyms: Pseudonyms) -> Any:
    """The pseudonym that an accepted event would carry; null for a value that is no id."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return "" if value == "" else None
    raw = str(value)
    if field == "user_id":
        return pseudonyms.shopper(raw, "", "")
    if field == "session_id":
        return pseudonyms.session(raw)
    return pseudonyms.shopper("", raw, "")


def _encode_lossy(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (OverflowError, RecursionError, ValueError, UnicodeError):
        return type(value).__name__
