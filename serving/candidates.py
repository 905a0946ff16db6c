"""Candidate sources: small objects behind one interface, each with a name and a quota."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from features.items import ItemTable
from features.rows import ShopperRow
from serving.live_model import LiveModel


@dataclass(frozen=True)
class Visit:
    """What a source may look at."""

    shopper: ShopperRow
    time_ms: int
    items: ItemTable
    model: LiveModel | None


class CandidateSource(Protocol):
    """Finds items that the shopper may want. `name` goes with its candidates into the answer and the impression."""

    name: str

    async def candidates(self, visit: Visit) -> Sequence[str]:
        """At most the source's quota, best first.

        Raises:
            UnavailableError: what the source asks does not answer; the others go on without it.
        """
        ...


class Retrieval:
    """Nearest items to the shopper's vector, found inside the SavedModel."""

    name = "retrieval"

    def __init__(self, quota: int) -> None:
        self._quota = quota

    async def candidates(self, visit: Visit) -> Sequence[str]:
        if visit.model is None or not visit.shopper.recent_items:
            return ()
        return (await visit.model.retrieve(visit.shopper, visit.time_ms))[: self._quota]


class CoVisit:
    """Neighbours of the shopper's latest items."""

    name = "covisit"
    LATEST = 5  # items whose neighbours are taken, one row of neighbours after the other

    def __init__(self, quota: int) -> None:
        self._quota = quota

    async def candidates(self, visit: Visit) -> Sequence[str]:
        weights: dict[str, float] = {}
        for rank, recent in enumerate(visit.shopper.recent_items[: self.LATEST]):
            for item, weight in visit.items.neighbours(recent, visit.time_ms):
                weights[item] = weights.get(item, 0.0) + weight / (1 + rank)
        return sorted(weights, key=lambda item: (-weights[item], item))[: self._quota]


class Recent:
    """What the shopper looked at before: people come back to it."""

    name = "recent"

    def __init__(self, quota: int) -> None:
        self._quota = quota

    async def candidates(self, visit: Visit) -> Sequence[str]:
        return list(dict.fromkeys(visit.shopper.recent_items))[: self._quota]


class Trending:
    """The items with the most recent engagement."""

    name = "trending"

    def __init__(self, quota: int) -> None:
        self._quota = quota

    async def candidates(self, visit: Visit) -> Sequence[str]:
        return [item for item, _ in visit.items.popular(visit.time_ms, self._quota)]


def default_sources() -> tuple[CandidateSource, ...]:
    """In order of precedence: an item found by several is credited to the first. Quotas sum to about 300, ranked in about a millisecond."""
    return (CoVisit(80), Retrieval(120), Recent(20), Trending(80))
