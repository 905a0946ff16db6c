"""A small shop for the pipeline's tests: a table of items, a stand-in store and model behind the same methods, and a maker of shelves."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from features.declarations import read_declarations
from features.encoder import Inputs
from features.events import EVENT_INDEX
from features.feature_set import FeatureSet
from features.items import ItemTable
from features.rows import CatalogItem, ItemRow, ShopperRow
from liveshelf.errors import UnavailableError
from serving.candidates import CandidateSource, default_sources
from serving.fallback import Side
from serving.query import Query, Shelf
from serving.shelf import ShelfMaker
from streams.records import Impression

T0 = 1_700_000_000_000
FEATURES = FeatureSet(read_declarations(None))
DEMAND = {slot.event: slot for slot in FEATURES.item_slots["demand"]}
Answer = TypeVar("Answer")


def item_row(
    item: str,
    views: float,
    offset: int = 0,
    neighbours: dict[str, float] | None = None,
    purchases: float = 0.0,
    event: str = "view_item",
) -> ItemRow:
    """A row whose counts are worth these at T0; `views` are of `event`."""
    numbers = [0.0] * FEATURES.item_numbers
    weights = FEATURES.item_half_lives.weights(T0)
    for name, count in ((event, views), ("purchase", purchases)):
        numbers[DEMAND[name].at] = count * weights[DEMAND[name].half_life]
    scale = weights[FEATURES.half_life_at(FEATURES.item_half_lives, FEATURES.covisit.half_life)]
    near = {neighbour: weight * scale for neighbour, weight in (neighbours or {}).items()}
    return ItemRow(item=item, partition=0, offset=offset, time_ms=T0, numbers=numbers, neighbours=near)


def table(n: int = 20) -> ItemTable:
    """Items 0..n-1 in two categories, ever less popular; item 1 leads to item 7; item 3 cannot be had. All old enough not to be new."""
    items = ItemTable(FEATURES)
    long_ago = T0 - 30 * 86_400_000
    for i in range(n):
        items.apply_catalog(
            CatalogItem(
                item_id=f"i{i}",
                item_category=f"c{i % 2}",
                item_brand=f"b{i % 3}",
                price=1.0 + i,
                available=i != 3,
                time_ms=long_ago,
            )
        )
        items.apply(item_row(f"i{i}", 1000.0 - i, i, {"i7": 50.0} if i == 1 else None))
    return items


def shopper_row(*recent: str, event: str = "view_item") -> ShopperRow:
    """A shopper who did `event` with these, the newest first."""
    row = FEATURES.shopper("s")
    row.time_ms, row.partition, row.offset = T0, 0, 41
    row.recent_items, row.recent_events, row.recent_times_ms = list(recent), [EVENT_INDEX[event]] * len(recent), [T0] * len(recent)
    return row


class Store:
    """In place of FeatureRows: `row` for every shopper; `slow_s` and `down` are switched by tests."""

    def __init__(self, row: ShopperRow | None = None) -> None:
        self.row, self.down, self.asked = row, False, 0

    async def shopper(self, shopper: str, features: FeatureSet) -> ShopperRow | None:
        self.asked += 1
        if self.down:
            raise UnavailableError("the store is down")
        if self.row is None:
            return None
        return features.shopper_row(shopper, features.shopper_values(self.row))


class Model:
    """In place of LiveModel: scores by `score(items)`; `fail` and `slow_s` are switched by tests."""

    version, feature_version = 5, FEATURES.version

    def __init__(self, score: Callable[[list[str]], Sequence[float]], retrieved: Sequence[str] = ()) -> None:
        self.score, self.retrieved = score, retrieved
        self.rank_fails: Exception | None = None
        self.retrieve_fails: Exception | None = None
        self.slow_s = 0.0

    async def retrieve(self, shopper: Inputs, timeout_s: float) -> Sequence[str]:
        await asyncio.sleep(self.slow_s)
        if self.retrieve_fails:
            raise self.retrieve_fails
        return self.retrieved

    async def rank(self, inputs: Inputs, count: int, timeout_s: float) -> npt.NDArray[np.float32]:
        await asyncio.sleep(self.slow_s)
        if self.rank_fails:
            raise self.rank_fails
        click = np.array(self.score([item.decode() for item in inputs["candidates"]]), dtype=np.float32)
        assert len(click) == count
        return np.stack([click, click / 10, click / 20], axis=1)


class Models:
    """In place of ModelFollower."""

    reason = "no_model"

    def __init__(self, live: Model | None) -> None:
        self.live, self.refreshed = live, 0
        self.canary: Model | None = None

    def of(self, shopper: str) -> Model | None:
        return self.canary or self.live

    async def refresh(self) -> None:
        self.refreshed += 1


class Shop:
    """Everything around one maker; what it logged is in `logged`."""

    def __init__(self, items: ItemTable, row: ShopperRow | None = None, model: Model | None = None, **options: Any) -> None:
        self.items, self.store, self.model, self.models = items, Store(row), model, Models(model)
        self.side = Side(FEATURES, items)
        self.logged: list[Impression] = []
        self.now_ms = T0
        sources: Sequence[CandidateSource] = options.pop("sources", default_sources(0.05))
        self.maker = ShelfMaker(
            self.store, lambda version: self.side, self.models, sources, self.logged.append, 1.0, lambda: self.now_ms,  # type: ignore[arg-type]
            model_timeout_s=0.05, **options,
        )  # fmt: skip

    async def shelf(self, deadline_s: float = 1.0, **changes: object) -> Shelf:
        shelf = await self.maker.shelf(query(**changes), deadline_s)
        await asyncio.sleep(0)  # the impression is logged after the answer
        return shelf


def query(**changes: object) -> Query:
    return Query(**{"shopper": "s", "session": "", "placement": "home", "count": 5, **changes})  # type: ignore[arg-type]


def items_of(shelf: Shelf) -> list[str]:
    return [s.item for s in shelf.items]


def run(work: Awaitable[Answer]) -> Answer:
    async def awaiting() -> Answer:
        return await work

    return asyncio.run(awaiting())
