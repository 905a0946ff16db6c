"""RecordEvents: by the collector's rules, into the collector's topics, OK only when the log has it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from liveshelf.client import AsyncClient, Event, EventItem
from liveshelf.errors import InvalidEventError, UnavailableError
from liveshelf.v1 import recommendation_pb2 as pb
from serving.events import _wire
from streams.intake import read_events
from streams.pseudonym import Pseudonyms
from streams.records import Event as Record
from streams.records import Rejected, decode
from tests.scoring_api import Api, scoring_api, until

EVENTS = [
    Event(
        name="purchase", event_id="e1", user_id="u", client_id="c", session_id="s", timestamp_micros=1_763_000_000_000_000,
        items=[EventItem(item_id="a", item_name="A", item_category="hats", item_brand="b", price=0.0, quantity=2, index=0)],
        request_id="r", transaction_id="t", currency="EUR", value=9.5,
    ),
    Event(name="login", event_id="e2", user_id="u", client_id="c"),
    Event(name="view_search_results", event_id="e3", client_id="c", search_term="hat"),
]  # fmt: skip


def over_grpc(tmp_path: Path, ask: Callable[[AsyncClient, Api], Awaitable[Any]], **changes: object) -> Any:
    async def run() -> Any:
        async with scoring_api(tmp_path, **changes) as api, AsyncClient(api.settings.scoring_address, 10_000) as client:
            return await ask(client, api)

    return asyncio.run(run())


def unavailable() -> float:
    return REGISTRY.get_sample_value("liveshelf_scoring_requests_total", {"method": "RecordEvents", "code": "UNAVAILABLE"}) or 0.0


def records(api: Api) -> list[Record]:
    return [decode(Record, value) for _, _, value in api.producer.log.get("clickstream", [])]


def test_events_arrive_as_the_collector_would_have_put_them(tmp_path: Path) -> None:
    """The same Event records, pseudonyms and keys included, as the same events in JSON."""

    async def ask(client: AsyncClient, api: Api) -> None:
        answer = await client.record_events(EVENTS)
        assert (answer.accepted, len(answer.refusals)) == (3, 0)
        as_json = (
            b'[{"name":"purchase","event_id":"e1","user_id":"u","client_id":"c","session_id":"s","timestamp_micros":1763000000000000,'
            b'"items":[{"item_id":"a","item_name":"A","item_category":"hats","item_brand":"b","price":0.0,"quantity":2,"index":0}],'
            b'"request_id":"r","transaction_id":"t","currency":"EUR","value":9.5}]'
        )
        expected = read_events(as_json, 1_763_000_001_000, api.settings, Pseudonyms.open(api.settings)).accepted
        assert records(api)[:1] == expected
        assert [key for _, key, _ in api.producer.log["clickstream"]] == [record.shopper for record in records(api)]
        assert records(api)[1].link_to == expected[0].shopper
        assert records(api)[2].search_term == "hat"

    over_grpc(tmp_path, ask, event_age_max_h=0)


def test_every_field_of_the_collectors_event_can_be_sent() -> None:
    """What the collector reads and what the proto carries are one list; `params` and `event_name` are other places for the same."""
    from streams.wire import WireEvent, WireItem

    assert {f.name for f in pb.Event.DESCRIPTOR.fields} == set(WireEvent.__struct_fields__) - {"params", "event_name"}
    assert {f.name for f in pb.EventItem.DESCRIPTOR.fields} == set(WireItem.__struct_fields__)
    assert _wire(Event(name="x", value=0.0)) == {"name": "x", "value": 0.0}


def test_a_bad_event_is_refused_alone_and_kept_without_its_ids(tmp_path: Path) -> None:
    async def ask(client: AsyncClient, api: Api) -> None:
        bad = Event(name="view_item", client_id="secret", items=[EventItem(item_id="a", price=float("nan"))])
        answer = await client.record_events([EVENTS[1], bad, Event(name="nonsense", client_id="secret")])
        assert answer.accepted == len(records(api)) == 1
        assert [(r.index, r.field, r.value, r.reason) for r in answer.refusals] == [
            (1, "items[0].price", '"nan"', "wrong_type"),
            (2, "name", '"nonsense"', "unknown_event_name"),
        ]
        kept = [decode(Rejected, value) for _, _, value in api.producer.log["clickstream-rejected"]]
        assert [(r.reason, r.source) for r in kept] == [("wrong_type", "scoring"), ("unknown_event_name", "scoring")]
        assert all(b"secret" not in r.original for r in kept)
        with pytest.raises(InvalidEventError) as caught:
            await client.record_events([bad])
        assert caught.value.field == "events[0].items[0].price"

    over_grpc(tmp_path, ask)


def test_without_kafka_nothing_is_claimed_and_the_same_objects_count_once(tmp_path: Path) -> None:
    """The client gives ids before it sends, keeps asking while the log is away, and gives up with an error of the tree."""

    async def ask(client: AsyncClient, api: Api) -> None:
        api.producer.down = True
        event = {"name": "view_item", "client_id": "c", "items": [{"item_id": "a"}]}
        with pytest.raises(UnavailableError):
            await client.record_events([event], deadline_ms=300)
        assert records(api) == []
        first_id = event["event_id"]
        sending = asyncio.create_task(client.record_events([event]))
        before = unavailable()
        await until(lambda: unavailable() > before)  # asked once and told to come again
        api.producer.down = False
        await sending
        await client.record_events([event])
        assert {r.event_id for r in records(api)} == {first_id}
        assert len({r.time_ms for r in records(api)}) == 1

    over_grpc(tmp_path, ask)


def test_too_many_records_in_flight_is_resource_exhausted(tmp_path: Path) -> None:
    async def ask(client: AsyncClient, api: Api) -> grpc.StatusCode:
        api.producer.inflight_max = 0
        call = client._calls["RecordEvents"](pb.RecordEventsRequest(events=EVENTS[1:2]), timeout=0.5)
        return await call.code()  # type: ignore[no-any-return]

    assert over_grpc(tmp_path, ask) == grpc.StatusCode.RESOURCE_EXHAUSTED
