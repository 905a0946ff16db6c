"""Feature rows: what is known of a shopper and of an item, and up to which offset of the log.

Which features there are, and which place in the lists is whose, says `features.feature_set`. Decayed values stand as forward decay
leaves them (see `features.decay`): as they would be at a fixed point in time, so that adding an event touches no other value.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt


class ShopperRow(msgspec.Struct, omit_defaults=True):
    """One shopper's features, folded from one clickstream partition up to `offset` inclusive."""

    shopper: str
    partition: int = -1
    offset: int = -1
    time_ms: int = 0
    """The latest event time folded."""
    recent_items: list[str] = []
    """Newest first by event time, at most the sequence's n; parallel to the next two."""
    recent_events: list[int] = []
    """Index in EVENT_NAMES."""
    recent_times_ms: list[int] = []
    numbers: list[float] = []
    """Decayed counts, every decayed_count after the other."""
    marks: list[int] = []
    """Times and counts of recency and session features, one after the other."""
    affinities: list[dict[str, float]] = []
    """By affinity feature: decayed weight by field value."""
    seen: dict[int, int] = {}
    """Event id (as `fold.event_key` makes it) → hour of event time: a re-sent event folds once."""
    hour: int = 0
    """The latest hour of event time with an event, and how many came in it."""
    hour_events: int = 0
    links: list[tuple[int, str]] = []
    """An anonymous browser's sign-ins, oldest first: (event time in ms, pseudonym of the person)."""
    merged: list[str] = []
    """A person's latest handovers already folded, newest last."""


class ItemRow(msgspec.Struct, omit_defaults=True):
    """What one clickstream partition contributes to one item, up to `offset` inclusive.

    An item's features are the sum over partitions (see `features.items`), so no two workers ever write the same row and the
    result does not depend on how partitions interleave.
    """

    item: str
    partition: int
    offset: int = -1
    time_ms: int = 0
    numbers: list[float] = []
    """Decayed counts: of every decayed_count, rate and trend of items."""
    neighbours: dict[str, float] = {}
    """Items looked at in the same visit, with decayed directed weights."""


class CatalogItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One catalog record, under GA4's item field names."""

    item_id: str
    item_name: str = ""
    item_category: str = ""
    item_brand: str = ""
    price: float = 0.0
    available: bool = True
    embedding: tuple[float, ...] = ()
    time_ms: int = 0
    """When the record was made; the newest wins."""


class CatalogColumns(NamedTuple):
    """What the catalog says of C candidates: columns of length C. Codes stand for values, see `codes`; -1 where there is no record."""

    time_ms: npt.NDArray[np.int64]
    """When the record was made; -1 where there is none."""
    price: npt.NDArray[np.float64]
    """0 where there is no record."""
    named: npt.NDArray[np.bool_]
    code: dict[str, npt.NDArray[np.int32]]
    """By field: item_category, item_brand and price_band."""
    codes: dict[str, dict[str, int]]
    """By field: value → code."""


class CandidateColumns(NamedTuple):
    """What is known of C candidates when they are scored: columns of length C. K = item numbers."""

    ids: npt.NDArray[np.object_]
    """[C] item ids as bytes."""
    recent: npt.NDArray[np.int32]
    """[C] where the candidate stands first among the shopper's recent items, -1 where it does not."""
    numbers: npt.NDArray[np.float64]
    """[K, C] decayed counts, valued at scoring time."""
    covisit: npt.NDArray[np.float64]
    """[C] weight with which the shopper's latest items lead to this one."""
    catalog: CatalogColumns
    offsets: Callable[[Sequence[int]], dict[str, list[int]]]
    """Of the candidates at these places, and of the latest items that lead to them: by partition up to where its contribution was folded,
    -1 where there was none."""


class FeaturesAsServed(msgspec.Struct, frozen=True, kw_only=True):
    """The model's inputs as they were when a shelf was scored, and where in the log they come from.

    Arrays are little-endian bytes (base64 in JSON): exactly what the model read, at a quarter of the size of their digits. C candidates
    in shelf order, F candidate features, S shopper features, R' items in the sequence.
    """

    version: str
    """Feature version."""
    time_ms: int
    partition: int = -1
    """Where the shopper's row was folded up to; -1 when there was no row."""
    offset: int = -1
    recent_items: list[str] = []
    """Newest first: the page's context items, then the row's."""
    recent_events: bytes = b""
    """int32 [R'], as encoded: 1 + index in EVENT_NAMES."""
    recent_age: bytes = b""
    """float32 [R']."""
    shopper_features: bytes
    """float32 [S]."""
    candidates: list[str]
    candidate_features: bytes
    """float32 [C, F]."""
    item_offsets: dict[str, list[int]] = {}
    """As `CandidateColumns.offsets` gives them."""
    catalog_ms: list[int] = []
    """[C] `time_ms` of the candidate's catalog record; -1 where there was none."""
