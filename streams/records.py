"""What stands in the topics besides events: impressions, examples, rejects and releases. JSON values, msgspec structs, versioned."""

from typing import Any, Literal, TypeVar

import msgspec

from features.events import Event, EventItem
from features.rows import CatalogItem, FeaturesAsServed, ItemRow

__all__ = [
    "CatalogItem",
    "Event",
    "EventItem",
    "Example",
    "Impression",
    "ItemRow",
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


class Example(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An impression joined with what the shopper did next: topic `training-examples`, key shopper. Labels are 0 or 1 by position."""

    v: Literal[1] = 1
    request_id: str
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


class Release(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of one model version: topic `model-releases`, key model."""

    v: Literal[1] = 1
    model: str
    version: int
    parent: int = 0
    outcome: str
    """`promoted` or `refused`."""
    reason: str = ""
    metrics: dict[str, float]
    offsets: dict[str, int]
    """Trained up to: `topic/partition` → next offset."""
    examples: int
    feature_version: str
    time_ms: int


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
