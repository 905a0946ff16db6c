"""What is asked and what is answered, between the gRPC edge and the pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass, field


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


@dataclass(frozen=True)
class Scored:
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
    propensities: list[float] = field(default_factory=list)
