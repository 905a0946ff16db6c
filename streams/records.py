"""What stands in the topics besides events: impressions, examples, rejects and releases. JSON values, msgspec structs, versioned."""

from typing import Any, Literal, TypeVar

import msgspec

from features.events import Event, EventItem
from features.rows import CatalogItem, FeaturesAsServed, ItemRow

__all__ = [
    "UNKNOWN",
    "CatalogItem",
    "Event",
    "EventItem",
    "Example",
    "Impression",
    "ItemRow",
    "Lineage",
    "Rejected",
    "Release",
    "decode",
    "encode",
]


class Impression(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One shelf that was answered: topic `impressions`, key shopper. Lists are in shelf order and of equal length."""

    v: Literal[1] = 1
    request_id: str
    shopper: str
    session: str = ""
    time_ms: int
    placement: str = ""
    context_items: list[str] = []
    """Items on the page; in `features` they already stand among the shopper's recent ones."""
    model_version: int = 0
    degraded: str = ""
    items: list[str]
    scores: list[float]
    sources: list[str]
    propensities: list[float]
    features: FeaturesAsServed
    """`features.candidates.items` equals `items`."""


UNKNOWN = -1
"""A label of which an example says nothing."""


class Example(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An impression joined with what the shopper did next: topic `training-examples`, key shopper. Labels are 0 or 1 by position, or UNKNOWN."""

    v: Literal[1] = 1
    request_id: str
    late: str = ""
    """The event id of a purchase that came when the example of this request had been made: what it adds to that one (see `streams.late`)."""
    shopper: str
    time_ms: int
    placement: str = ""
    model_version: int = 0
    items: list[str]
    propensities: list[float]
    clicked: list[int]
    carted: list[int]
    purchased: list[int]
    features: FeaturesAsServed


class Rejected(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What did not validate or could not be applied: topic `clickstream-rejected`."""

    v: Literal[1] = 1
    reason: str
    """A few words of fixed spelling, fit for counting: `invalid_json`, `missing_field`, `unknown_event_name`, …"""
    detail: str = ""
    source: str
    """Where it was refused: `collector` or `agent`."""
    time_ms: int
    original: bytes
    """The bytes as they came (base64 in JSON)."""


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a model version was made of. Together with the log, and the releases before it, enough to make it again bit for bit."""

    kind: str
    """`bootstrap` or `step`."""
    step: int
    """Steps that the trainer had taken before; with the seed, this fixes the random numbers."""
    reads: list[dict[str, int]] = []
    """Where earlier reads ended (`topic/partition` → next offset) that came after the release before and led to none: they held nothing but
    examples to judge by."""
    retried: int = 0
    """Examples of steps refused before that were learnt from again."""
    held_back: list[str] = []
    """Items whose clicks were not believed, and the shelves with them not learnt from."""
    settings: dict[str, int]
    """Those that decide what is learnt."""
    code: dict[str, str]
    """Versions of what computed it; `source`: a hash of our own files."""
    weights: str
    """A hash of every weight and of the item table."""
    items: int
    """That the model knows by themselves or by their content."""


class Release(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of one model version: topic `model-releases`, key model."""

    v: Literal[1] = 1
    model: str
    version: int
    parent: int = 0
    outcome: str
    """`promoted` or `refused` by the gate; of a canary, later, `canary_promoted` or `canary_rolled_back` by what shoppers did."""
    reason: str = ""
    metrics: dict[str, float]
    offsets: dict[str, int]
    """Trained up to: `topic/partition` → next offset."""
    examples: int
    feature_version: str
    time_ms: int
    lineage: Lineage | None = None
    """None in records of before it was told, and of canaries."""


Record = TypeVar("Record")
encode = msgspec.json.Encoder().encode
_decoders: dict[Any, Any] = {}


def decode(kind: type[Record], value: bytes) -> Record:
    """Decode one record of `kind`.

    Raises:
        msgspec.DecodeError: not JSON, or not of this shape (ValidationError, its subclass); the message names the path.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder.decode(value)  # type: ignore[no-any-return]
