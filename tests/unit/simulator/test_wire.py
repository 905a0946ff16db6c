"""What the simulator sends is what the collector takes: its own validation reads every event and record, losing nothing."""

import msgspec

from features.rows import CatalogItem
from liveshelf.batching import batches
from liveshelf.settings import Settings
from liveshelf.simulator.feed import BATCH_BYTES_MAX, BATCH_RECORDS_MAX
from liveshelf.simulator.history import history, shifted
from liveshelf.simulator.shop import Shop
from streams.intake import read_catalog, read_events
from streams.pseudonym import Pseudonyms

NOW_MS = 1_800_000_000_000
SETTINGS = Settings()
PSEUDONYMS = Pseudonyms(b"k" * 32)


def test_the_collector_takes_every_event_as_it_was_meant() -> None:
    events = shifted(history(Shop(3, items=120, shoppers=30), 4, sign_in_share=1.0), NOW_MS)
    taken = []
    for batch in batches(map(msgspec.json.encode, events), BATCH_RECORDS_MAX, BATCH_BYTES_MAX):
        intake = read_events(b'{"events":[' + b",".join(batch) + b"]}", NOW_MS, SETTINGS, PSEUDONYMS)
        assert not intake.refusals
        taken += intake.accepted
    assert [event.event_id for event in taken] == [event.event_id for event in events]
    for sent, got in zip(events, taken, strict=True):
        assert (got.event_name, got.items, got.time_ms) == (sent.event_name, sent.items, sent.timestamp_micros // 1_000)
        assert (got.transaction_id, got.currency, got.value) == (sent.transaction_id, sent.currency, sent.value)
        person, browser = PSEUDONYMS.shopper(sent.user_id, "", ""), PSEUDONYMS.shopper("", sent.client_id, "")
        if sent.event_name == "login":
            assert (got.shopper, got.link_to) == (browser, person)
        else:
            assert (got.shopper, got.link_to) == (person or browser, "")
    assert {"login", "view_item"} <= {event.event_name for event in taken}


def test_the_collector_takes_every_catalog_record() -> None:
    stamped = [msgspec.structs.replace(item, time_ms=NOW_MS) for item in Shop(3).catalog]
    taken: list[CatalogItem] = []
    for batch in batches(map(msgspec.json.encode, stamped), BATCH_RECORDS_MAX, BATCH_BYTES_MAX):
        intake = read_catalog(b'{"items":[' + b",".join(batch) + b"]}", NOW_MS, SETTINGS, PSEUDONYMS)
        assert not intake.refusals
        taken += intake.accepted
    assert taken == stamped


def test_batches_fit_the_collectors_own_limits() -> None:
    assert SETTINGS.events_per_request_max >= BATCH_RECORDS_MAX
    assert SETTINGS.event_body_bytes_max >= BATCH_BYTES_MAX
