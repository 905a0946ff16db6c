"""What the collector's HTTP interface takes and answers, as types: decoding, validation and OpenAPI are made from these.

Events have the shape of GA4's Measurement Protocol: one event, an array, or an envelope whose ids and time are defaults for its
events; `params` holds what may as well stand in the event itself. Unknown fields are ignored: shops send more than we read.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from features.events import EventName

# Ids: longer than any in use (GA4 allows 256 for user_id, a UUID has 36), short enough for a Kafka key and a row.
ID_CHARS_MAX = 256
EVENT_ID_CHARS_MAX = 64
ITEM_ID_CHARS_MAX = 128
ITEMS_MAX = 200  # GA4's limit for items[]
ITEM_TEXT_CHARS_MAX = 512
QUANTITY_MAX = 10_000
EMBEDDING_MAX = 4_096  # no published text or image encoder is wider
EVENT_BYTES_MAX = 262_144  # 200 items with long names are 100 kB; with room to Kafka's 1 MB limit on a record
TIME_MIN_US = 788_918_400_000_000  # 1995: before the first web shop; archives of any later year may be replayed

# Some shops' ids are JSON numbers; 64 bits, as all JSON readers agree on no more.
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Annotated[str, Meta(max_length=ID_CHARS_MAX)] | Number | None
ItemId = Annotated[str, Meta(min_length=1, max_length=ITEM_ID_CHARS_MAX)] | Number
Text = Annotated[str, Meta(max_length=ITEM_TEXT_CHARS_MAX)] | None
Amount = Annotated[float, Meta(ge=0)] | None  # JSON has no NaN or infinity, and msgspec refuses 1e999
Micros = Annotated[int, Meta(ge=TIME_MIN_US, le=2**62)] | None

# With descriptions of their own, for readers of the OpenAPI document.
EventId = Annotated[
    Annotated[str, Meta(min_length=1, max_length=EVENT_ID_CHARS_MAX)] | None,
    Meta(
        description="Yours to choose, different for every event of a shopper (a UUID). Sent again with the same id within 24 hours, an "
        "event counts once. Without one, the same request sent again is recognised by its bytes if the event has a timestamp_micros; "
        "an event with neither counts as often as it comes."
    ),
]
EventTime = Annotated[
    Micros,
    Meta(
        description="When it happened, in microseconds since 1970 UTC; by default the time of receipt. Late events and those out of "
        "order are taken, if not older or further in the future than the collector's settings say."
    ),
]


class WireItem(msgspec.Struct):
    """One entry of `items[]`. null means: not given."""

    item_id: ItemId
    item_name: Text = None
    item_category: Text = None
    item_brand: Text = None
    price: Amount = None
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)] | None = None
    index: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    """Position in the list that was shown, from 0."""


class Params(msgspec.Struct):
    """What an event says, in the event itself or in its `params`; the event itself wins."""

    user_id: Id = None
    client_id: Id = None
    session_id: Id = None
    event_id: EventId = None
    timestamp_micros: EventTime = None
    items: Annotated[list[WireItem], Meta(max_length=ITEMS_MAX)] | None = None
    request_id: Annotated[str, Meta(max_length=ID_CHARS_MAX)] | None = None
    """The recommendation that led here."""
    transaction_id: Annotated[str, Meta(max_length=ID_CHARS_MAX)] | Number | None = None
    search_term: Text = None
    currency: Annotated[str, Meta(max_length=3)] | None = None
    value: float | None = None


class WireEvent(Params):
    """One event. At least one of user_id, client_id and session_id names the shopper: the first that is set, in this order.

    But for `login`, which needs client_id and user_id: from then on what the browser did before belongs to the person too. Send it when
    a person signs in, and the person's user_id with every event until they sign out; it needs no items.
    """

    name: EventName | None = None
    event_name: EventName | None = None
    """The same as `name`, as GA4's export spells it."""
    params: Params | None = None


class Envelope(msgspec.Struct):
    """A batch from one visit: ids and time are defaults for its events."""

    events: list[msgspec.Raw]
    user_id: Id = None
    client_id: Id = None
    session_id: Id = None
    timestamp_micros: EventTime = None


class WireCatalogItem(msgspec.Struct):
    """One item of the shop, replacing what was known of it. null means: not given."""

    item_id: ItemId
    item_name: Text = None
    item_category: Text = None
    item_brand: Text = None
    price: Amount = None
    available: bool | None = None
    """False: never shown in a shelf. By default true."""
    embedding: Annotated[list[float], Meta(max_length=EMBEDDING_MAX)] | None = None
    time_ms: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    """When the record was made, ms since 1970 UTC; the newest wins. By default the time of receipt."""


class CatalogEnvelope(msgspec.Struct):
    """A batch of catalog items."""

    items: list[msgspec.Raw]


class Refusal(msgspec.Struct, frozen=True):
    """Why one record was refused. `index` is its place in the request, null when the request as a whole was refused."""

    index: int | None
    field: str
    value: Any
    expected: str
    reason: str


class Answer(msgspec.Struct, frozen=True):
    """202 when at least one record was accepted (it is in Kafka), 400 when none was."""

    accepted: int
    rejected: list[Refusal]


class Failure(msgspec.Struct, frozen=True):
    """Why a request as a whole was not taken: 404, 405, 413, 415, 429, 503. Nothing is claimed accepted."""

    error: str
