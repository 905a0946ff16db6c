"""Feature rows: what is known of a shopper and of an item, and up to which offset of the log."""

import msgspec

FEATURE_VERSION = "1"
"""Names the set of features below; impressions and models carry it."""


class ShopperRow(msgspec.Struct, omit_defaults=True):
    """One shopper's features, folded from one clickstream partition up to `offset` inclusive.

    Decayed values (`counts`, affinities) are valued at `time_ms`, the latest event time seen.
    """

    shopper: str
    partition: int = -1
    offset: int = -1
    time_ms: int = 0
    recent_items: list[str] = []
    """Newest first by event time, at most `fold.RECENT_MAX`; parallel to the next two."""
    recent_events: list[str] = []
    recent_times_ms: list[int] = []
    counts: dict[str, float] = {}
    """Decayed number of events by event name."""
    category_affinity: dict[str, float] = {}
    brand_affinity: dict[str, float] = {}
    event_ids: list[str] = []
    """The latest event ids, newest last: an event re-sent by a browser folds once."""


class ItemRow(msgspec.Struct, omit_defaults=True):
    """What one clickstream partition contributes to one item, up to `offset` inclusive.

    An item's features are the sum over partitions (see `features.items`), so no two workers ever write the same row and the
    result does not depend on how partitions interleave. Decayed values are valued at `time_ms`.
    """

    item: str
    partition: int
    offset: int = -1
    time_ms: int = 0
    counts: dict[str, float] = {}
    neighbours: dict[str, float] = {}
    """Items looked at in the same visit, with decayed directed weights; at most `fold.NEIGHBOURS_MAX`."""


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


class ItemColumns(msgspec.Struct):
    """Features of C candidates as they were when scored: columns of equal length C."""

    items: list[str]
    counts: list[list[float]]
    """[C][len(EVENT_NAMES)] decayed number of events, valued at scoring time."""
    price: list[float]
    category: list[str]
    brand: list[str]
    covisit: list[float]
    """Weight with which the shopper's latest items lead to this one."""


class FeaturesAsServed(msgspec.Struct):
    """All that the encoder needs to make the model's inputs again, bit for bit."""

    time_ms: int
    shopper: ShopperRow
    candidates: ItemColumns
    version: str = FEATURE_VERSION
