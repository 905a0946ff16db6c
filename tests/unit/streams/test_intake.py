"""What a request's bytes become: events, refusals with reasons, and nothing that names a person."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from liveshelf.settings import Settings
from streams.intake import ORIGINAL_BYTES_MAX, REASONS, Intake, TooManyError, read_catalog, read_events
from streams.pseudonym import Pseudonyms
from streams.records import CatalogItem, Event, EventItem, Rejected, decode, encode
from streams.wire import EVENT_BYTES_MAX, ITEMS_MAX

GOLDEN = Path(__file__).parent / "golden"
NOW_MS = 1_700_001_000_000
SETTINGS = Settings()
PSEUDONYMS = Pseudonyms(b"k" * 32)
VIEW: dict[str, Any] = {"name": "view_item", "client_id": "c", "items": [{"item_id": "a"}]}


def take(value: object) -> Intake:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return read_events(body, NOW_MS, SETTINGS, PSEUDONYMS)


def one(value: object) -> Event:
    intake = take(value)
    assert intake.refusals == []
    (event,) = intake.accepted
    assert isinstance(event, Event)
    return event


def test_golden_event_v1() -> None:
    """Version 1 of the records, byte for byte. A change here is a new wire version: add a file, keep this one readable."""
    intake = take((GOLDEN / "event_v1.request.json").read_bytes())
    written = b"".join(encode(event) + b"\n" for event in intake.accepted)
    assert written == (GOLDEN / "event_v1.records.jsonl").read_bytes()
    refused = b"".join(encode(rejected) + b"\n" for rejected in intake.rejected)
    assert refused == (GOLDEN / "rejected_v1.records.jsonl").read_bytes()


def test_golden_records_can_still_be_read() -> None:
    first, purchase, search = (decode(Event, line) for line in (GOLDEN / "event_v1.records.jsonl").read_bytes().splitlines())
    assert first.items == (EventItem("SKU_1", "Crème brûlée dish", "Kitchen", "Ardèche", 12.5, 1, 0),)
    assert (purchase.transaction_id, purchase.value, purchase.time_ms) == ("4711", 37.5, 1_700_000_200_000)
    assert purchase.shopper == PSEUDONYMS.shopper("ann@shop.example", "", "")
    assert purchase.session == first.session == PSEUDONYMS.session("1700000123")
    assert (search.search_term, search.request_id) == ("dish", "r-9")
    assert search.session != first.session
    (rejected,) = (decode(Rejected, line) for line in (GOLDEN / "rejected_v1.records.jsonl").read_bytes().splitlines())
    assert rejected.reason == "out_of_range"
    assert b"ann@" not in rejected.original
    assert PSEUDONYMS.shopper("ann@shop.example", "", "").encode() in rejected.original


FULL = Event(
    event_id="e-1",
    event_name="purchase",
    shopper="176ed188327b1f0d32714a84240f1a84",
    session="e961de1d6076079ffb372a5ec1fd2a44",
    time_ms=1_700_000_200_000,
    items=(EventItem("SKU_1", "Crème brûlée dish", "Kitchen", "Ardèche", 12.5, 3, 4), EventItem("22")),
    request_id="r-9",
    transaction_id="4711",
    search_term="dish",
    currency="EUR",
    value=37.5,
)
LINK = Event(
    event_id="e-2",
    event_name="login",
    shopper="a108dc1499009df63a9fc6726de1da82",
    session="e961de1d6076079ffb372a5ec1fd2a44",
    time_ms=1_700_000_123_456,
    link_to="176ed188327b1f0d32714a84240f1a84",
)


@pytest.mark.parametrize(("name", "event"), [("stored_event_v1.json", FULL), ("stored_login_v1.json", LINK)])
def test_golden_record_of_version_1_means_the_same_for_ever(name: str, event: Event) -> None:
    """As it stands in logs that are out there: with its version written out, and every field set that its kind has."""
    stored = (GOLDEN / name).read_bytes()
    assert json.loads(stored)["v"] == 1
    assert decode(Event, stored) == event
    assert decode(Event, encode(event)) == event


def test_time_is_that_of_receipt_unless_given_and_params_come_second() -> None:
    assert one(VIEW).time_ms == NOW_MS
    event = one(VIEW | {"session_id": "own", "params": {"session_id": "params", "search_term": "params"}})
    assert event.session == PSEUDONYMS.session("own")
    assert event.search_term == "params"


def test_envelope_gives_defaults_and_an_empty_id_is_no_id() -> None:
    envelope = {"client_id": "c", "user_id": "", "events": [VIEW | {"client_id": ""}]}
    assert one(envelope).shopper == PSEUDONYMS.shopper("", "c", "")


def test_event_id_is_derived_when_there_is_a_time_and_random_when_there_is_none() -> None:
    timed = {"client_id": "c", "timestamp_micros": NOW_MS * 1000, "events": [VIEW, VIEW]}
    first, again = take(timed).accepted, take(timed).accepted
    assert [event.event_id for event in first] == [event.event_id for event in again]
    assert first[0].event_id != first[1].event_id
    assert one(VIEW).event_id != one(VIEW).event_id


def test_nested_path_is_named() -> None:
    (refusal,) = take(VIEW | {"params": {"items": [{"item_id": "a"}, {"item_id": "b", "price": "3"}]}}).refusals
    assert (refusal.field, refusal.value, refusal.expected) == ("params.items[1].price", "3", "float | null")


LATEST_MS = NOW_MS + SETTINGS.event_future_tolerance_s * 1000
OLDEST_MS = NOW_MS - SETTINGS.event_age_max_h * 3_600_000
LOGIN: dict[str, Any] = {"name": "login", "client_id": "7", "user_id": "7"}
REFUSED = [
    (b"", "invalid_json", ""),
    (b'{"name":', "invalid_json", ""),
    (b'{"client_id": "\xff", "name": "view_item"}', "invalid_json", ""),
    (b"[" * 100_000, "invalid_json", ""),
    (b"3", "wrong_type", ""),
    ([], "missing_field", ""),
    ({"events": []}, "missing_field", ""),
    ({"events": 3}, "wrong_type", "events"),
    ({}, "missing_field", "name"),
    ({"name": "view_itm", "client_id": "c"}, "unknown_event_name", "name"),
    ({"name": "view_item", "items": [{"item_id": "a"}]}, "missing_field", "client_id"),
    ({"name": "view_item", "client_id": "c"}, "missing_field", "items"),
    ({"name": "purchase", "client_id": "c", "items": []}, "missing_field", "items"),
    (VIEW | {"items": [{}]}, "missing_field", "items[0].item_id"),
    (VIEW | {"items": [{"item_id": ""}]}, "too_short", "items[0].item_id"),
    (VIEW | {"items": [{"item_id": "a" * 129}]}, "too_long", "items[0].item_id"),
    (VIEW | {"items": [{"item_id": True}]}, "wrong_type", "items[0].item_id"),
    (VIEW | {"items": [{"item_id": "a"}] * (ITEMS_MAX + 1)}, "too_many_items", "items"),
    (VIEW | {"items": [{"item_id": "a", "price": -0.01}]}, "out_of_range", "items[0].price"),
    (b'{"name":"view_item","client_id":"c","items":[{"item_id":"a","price":1e999}]}', "out_of_range", "items[0].price"),
    (VIEW | {"items": [{"item_id": "a", "quantity": 0}]}, "out_of_range", "items[0].quantity"),
    (VIEW | {"items": [{"item_id": "a", "quantity": 10_001}]}, "out_of_range", "items[0].quantity"),
    (VIEW | {"event_id": "e" * 65}, "too_long", "event_id"),
    (VIEW | {"client_id": "c" * 257}, "too_long", "client_id"),
    (VIEW | {"client_id": 10**30}, "out_of_range", "client_id"),
    (VIEW | {"client_id": ["c"]}, "wrong_type", "client_id"),
    (VIEW | {"timestamp_micros": (LATEST_MS + 1) * 1000}, "in_the_future", "timestamp_micros"),
    (VIEW | {"timestamp_micros": OLDEST_MS * 1000 - 1}, "too_old", "timestamp_micros"),
    ({"timestamp_micros": OLDEST_MS * 1000 - 1, "events": [VIEW]}, "too_old", "timestamp_micros"),
    (LOGIN | {"timestamp_micros": OLDEST_MS * 1000 - 1}, "too_old", "timestamp_micros"),
    (LOGIN | {"user_id": ""}, "missing_field", "user_id"),
    ({"name": "login", "client_id": "c", "session_id": "s"}, "missing_field", "user_id"),
    ({"name": "login", "user_id": "u", "session_id": "s"}, "missing_field", "client_id"),
    ({"client_id": "c", "events": [{"name": "login", "params": {"user_id": None}}]}, "missing_field", "user_id"),
    (VIEW | {"timestamp_micros": NOW_MS}, "out_of_range", "timestamp_micros"),
    (VIEW | {"filler": "x" * EVENT_BYTES_MAX}, "too_large", ""),
]


@pytest.mark.parametrize(("value", "reason", "field"), REFUSED, ids=[f"{r}-{f}-{i}" for i, (_, r, f) in enumerate(REFUSED)])
def test_refusals(value: object, reason: str, field: str) -> None:
    intake = take(value)
    assert intake.accepted == []
    (refusal,), (rejected,) = intake.refusals, intake.rejected
    assert (refusal.reason, refusal.field) == (reason, field)
    assert reason in REASONS
    assert refusal.expected
    assert (rejected.reason, rejected.source, rejected.time_ms) == (reason, "collector", NOW_MS)
    assert len(rejected.original) <= ORIGINAL_BYTES_MAX
    msgspec.json.encode(refusal)


def test_limits_themselves_are_accepted() -> None:
    items = [{"item_id": "a" * 128, "price": 0, "quantity": 10_000}] * ITEMS_MAX
    event = one(VIEW | {"event_id": "e" * 64, "items": items, "timestamp_micros": LATEST_MS * 1000 + 999})
    assert len(event.items) == ITEMS_MAX
    assert event.time_ms == LATEST_MS
    assert one(VIEW | {"timestamp_micros": OLDEST_MS * 1000}).time_ms == OLDEST_MS


def test_a_refusal_for_age_says_the_oldest_time_that_is_taken_and_the_setting() -> None:
    (refusal,) = take(VIEW | {"timestamp_micros": 800_000_000_000_000}).refusals
    assert refusal.expected == (
        f"microseconds since 1970, at least {OLDEST_MS * 1000} (2023-08-16T22:30:00.000Z): event_age_max_h is {SETTINGS.event_age_max_h}"
    )


def test_archives_may_be_old_where_the_setting_says_so() -> None:
    body = json.dumps(VIEW | {"timestamp_micros": 800_000_000_000_000}).encode()
    intake = read_events(body, NOW_MS, msgspec.structs.replace(SETTINGS, event_age_max_h=0), PSEUDONYMS)
    assert [event.time_ms for event in intake.accepted] == [800_000_000_000]


def test_login_is_the_browsers_event_and_names_the_person() -> None:
    event = one(
        LOGIN | {"event_id": "e", "timestamp_micros": NOW_MS * 1000 - 5_000, "session_id": "s", "params": {"method": "Google"}}
    )
    assert event == Event(
        event_id="e",
        event_name="login",
        shopper=PSEUDONYMS.shopper("", "7", ""),
        session=PSEUDONYMS.session("s"),
        time_ms=NOW_MS - 5,
        link_to=PSEUDONYMS.shopper("7", "", ""),
    )
    assert event.shopper != event.link_to, "client 7 and user 7 are two shoppers"
    assert one(VIEW | {"client_id": "7"}).shopper == event.shopper
    assert one(VIEW | {"client_id": "7", "user_id": "7"}).shopper == event.link_to


def test_login_takes_its_ids_from_the_envelope_and_no_items() -> None:
    event = one({"client_id": "c", "user_id": "u", "events": [{"name": "login", "items": [{"item_id": "a"}]}]})
    assert (event.shopper, event.link_to, event.items) == (PSEUDONYMS.shopper("", "c", ""), PSEUDONYMS.shopper("u", "", ""), ())


def test_no_other_event_links() -> None:
    assert one(VIEW | {"user_id": "u"}).link_to == ""


def test_one_bad_event_leaves_its_batch_alone() -> None:
    intake = take([VIEW, {"name": "nope", "client_id": "c"}, 3, VIEW])
    assert len(intake.accepted) == 2
    assert [(refusal.index, refusal.reason) for refusal in intake.refusals] == [(1, "unknown_event_name"), (2, "wrong_type")]


def test_too_many_events() -> None:
    take([VIEW] * SETTINGS.events_per_request_max)
    with pytest.raises(TooManyError):
        take([VIEW] * (SETTINGS.events_per_request_max + 1))


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "x", "user_id": "raw-ann", "params": {"client_id": "raw-ann", "deep": [{"session_id": "raw-ann"}]}}',
        b'{"name": "x", "userId": "raw-ann", "sessionId": ["raw-ann"]}',
        b'{"user_id": "raw-ann", "events": 3}',
        b'{"user_id" : "raw-ann", "events": [{"session_id":"raw-ann',
        b'{"name": "x", "user_id": "raw-ann", "note": "\xff"}',
        b'{"name": 1e999, "user_id": "raw-ann"}',
    ],
)
def test_ids_are_blanked_in_what_is_kept_of_a_refused_event(body: bytes) -> None:
    (rejected,) = take(body).rejected
    assert b"raw-ann" not in rejected.original
    assert "raw-ann" not in rejected.detail


def test_original_of_a_refused_event_is_readable_json_with_its_unknown_fields() -> None:
    (rejected,) = take({"name": "view_item", "client_id": "c", "item": "typo"}).rejected
    assert json.loads(rejected.original) == {"name": "view_item", "client_id": PSEUDONYMS.shopper("", "c", ""), "item": "typo"}


def test_catalog_items() -> None:
    body = {
        "items": [{"item_id": 5, "item_name": "N", "price": 2, "embedding": [0.5, 1]}, {"item_id": "b", "available": False}, {}]
    }
    intake = read_catalog(json.dumps(body).encode(), NOW_MS, SETTINGS, PSEUDONYMS)
    assert intake.accepted == [
        CatalogItem(item_id="5", item_name="N", price=2.0, embedding=(0.5, 1.0), time_ms=NOW_MS),
        CatalogItem(item_id="b", available=False, time_ms=NOW_MS),
    ]
    (refusal,) = intake.refusals
    assert (refusal.index, refusal.field, refusal.reason) == (2, "item_id", "missing_field")


def test_catalog_record_may_be_old_but_not_of_the_future_where_it_would_outlast_every_update() -> None:
    body = json.dumps([{"item_id": "a", "time_ms": time_ms} for time_ms in (0, LATEST_MS, LATEST_MS + 1, 2**53)]).encode()
    intake = read_catalog(body, NOW_MS, SETTINGS, PSEUDONYMS)
    assert [item.time_ms for item in intake.accepted] == [0, LATEST_MS]
    assert [(r.index, r.field, r.reason) for r in intake.refusals] == [
        (2, "time_ms", "in_the_future"),
        (3, "time_ms", "in_the_future"),
    ]
