"""What is asked and what is answered, between the gRPC edge and the pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from features.catalog import Rows
from features.rows import CatalogItem


@dataclass(frozen=True)
class Filters:
    """What may be shown, as the caller narrows it. An item without catalog record has no category, brand or price."""

    categories: frozenset[str] = frozenset()
    brands: frozenset[str] = frozenset()
    price_min: float | None = None
    price_max: float | None = None
    include_unavailable: bool = False

    def allow(self, item: CatalogItem | None) -> bool:
        """Whether an item with this catalog record may be shown."""
        if item is None:
            return not self.categories and not self.brands and self.price_min is None and self.price_max is None
        return (
            (item.available or self.include_unavailable)
            and (not self.categories or item.item_category in self.categories)
            and (not self.brands or item.item_brand in self.brands)
            and (self.price_min is None or item.price >= self.price_min)
            and (self.price_max is None or item.price <= self.price_max)
        )


ANYTHING = Filters()


@dataclass(frozen=True)
class Query:
    """One request. Ids of people are pseudonyms already."""

    shopper: str
    session: str
    placement: str
    count: int
    context: tuple[str, ...] = ()
    exclude: frozenset[str] = frozenset()
    candidates: tuple[str, ...] = ()
    """The caller's own candidates (Rank); empty: find some (Recommend)."""
    filters: Filters = ANYTHING
    """Of what is found; the caller's own candidates are ranked as they are."""


class Scored(NamedTuple):
    """One item of a shelf, or a candidate on its way there."""

    item: str
    source: str
    score: float
    click: float = 0.0
    cart: float = 0.0
    purchase: float = 0.0


@dataclass
class Shelf:
    """The ordered result."""

    request_id: str
    items: Sequence[Scored]
    model_version: int = 0
    degraded: str = ""
    """Why a simpler source answered; empty when none had to."""
    features_offset: int = -1
    feature_version: str = ""
    propensities: list[float] = field(default_factory=list)
    rows: Rows | None = None
    """[items] their rows in the catalog; None where nobody looked."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Stage → milliseconds, in the order of the stages."""


class Shelves(Protocol):
    """The pipeline, as the edge sees it."""

    async def shelf(self, query: Query, deadline_s: float) -> Shelf:
        """The shelf for `query`, within `deadline_s`, whatever is down. Cancelled, it stops what it asked of others."""
        ...
