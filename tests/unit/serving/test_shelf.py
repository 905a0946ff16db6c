"""A shelf with every other part down: real clients, nobody listening. It must be answered all the same, and say so."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pytest

from features.encoder import Encoder
from features.items import ItemTable
from features.rows import CatalogItem
from features.store import FeatureRows
from serving.candidates import default_sources
from serving.live_model import ModelFollower
from serving.model_client import ModelClient
from serving.query import Query, Shelf
from serving.shelf import ShelfMaker, Side
from streams.records import Impression
from tests.conftest import local_settings
from tests.small_shop import FEATURES, T0, item_row

Answer = TypeVar("Answer")


def table() -> ItemTable:
    """Items 0..19 in two categories, ever less popular; item 1 leads to item 7; item 3 cannot be had."""
    items = ItemTable(FEATURES)
    for n in range(20):
        items.apply_catalog(CatalogItem(item_id=f"i{n}", item_category=f"c{n % 2}", price=1.0, available=n != 3, time_ms=T0))
        items.apply(item_row(f"i{n}", 20.0 - n, n, {"i7": 50.0} if n == 1 else None))
    return items


def alone(tmp_path: Path, items: ItemTable, ask: Callable[[ShelfMaker], Awaitable[Answer]]) -> tuple[Answer, list[Impression]]:
    """Ask a maker whose store and model server are free ports."""
    settings = local_settings(tmp_path)
    logged: list[Impression] = []

    async def run() -> Answer:
        async with ModelClient(settings) as client:
            models = ModelFollower(client, 0.1, lambda _: True)
            await models.refresh()
            rows = FeatureRows(settings, 0.05)
            rows.register_first()
            side = Side(FEATURES, items)
            maker = ShelfMaker(rows, lambda _: side, models, default_sources(), logged.append, 10.0, lambda: T0)
            answer = await ask(maker)
            await asyncio.sleep(0)  # the impression is logged after the answer
            return answer

    return asyncio.run(run()), logged


def query(**changes: object) -> Query:
    return Query(**{"shopper": "s", "session": "", "placement": "home", "count": 5, **changes})  # type: ignore[arg-type]


def items_of(shelf: Shelf) -> list[str]:
    return [s.item for s in shelf.items]


def test_with_nothing_else_up_the_shelf_is_what_is_popular(tmp_path: Path) -> None:
    shelf, logged = alone(tmp_path, table(), lambda maker: maker.shelf(query(), 10.0))  # the first read costs Feast 100 ms and more
    assert items_of(shelf) == ["i0", "i1", "i2", "i4", "i5"]
    assert shelf.degraded == "store_unavailable"
    assert shelf.model_version == 0
    assert [(i.items, i.degraded, i.request_id) for i in logged] == [(items_of(shelf), shelf.degraded, shelf.request_id)]
    assert logged[0].features.candidates == items_of(shelf)
    views = Encoder(FEATURES).decode(logged[0].features)["candidate_features"][
        :, FEATURES.candidate_columns.index("log_demand_view_item_72h")
    ]
    assert views == pytest.approx(np.log1p([20, 19, 18, 16, 15]))


def test_items_on_the_page_lead_to_their_neighbours_and_are_not_shown(tmp_path: Path) -> None:
    shelf, logged = alone(tmp_path, table(), lambda maker: maker.shelf(query(context=("i1",)), 1.0))
    assert (shelf.items[0].item, shelf.items[0].source) == ("i7", "covisit")
    assert "i1" not in items_of(shelf)
    assert logged[0].features.recent_items == ["i1"]
    assert logged[0].features.item_offsets["i1"] == [1], "its row led to the neighbour"
    assert logged[0].context_items == ["i1"]


def test_excluded_items_are_never_shown(tmp_path: Path) -> None:
    shelf, _ = alone(tmp_path, table(), lambda maker: maker.shelf(query(exclude=frozenset({"i0", "i2"})), 1.0))
    assert items_of(shelf) == ["i1", "i4", "i5", "i6", "i7"]


def test_the_callers_candidates_all_come_back(tmp_path: Path) -> None:
    """Rank answers as many as it was asked, unknown and unavailable ones too."""
    wanted = ("i3", "nobody-knows-it", "i0")
    shelf, _ = alone(tmp_path, table(), lambda maker: maker.shelf(query(candidates=wanted, count=3), 1.0))
    assert sorted(items_of(shelf)) == sorted(wanted)
    assert items_of(shelf)[0] == "i0"


@pytest.mark.parametrize("candidates", [(), ("i5", "i2")])
def test_no_time_left_answers_from_memory(tmp_path: Path, candidates: tuple[str, ...]) -> None:
    shelf, _ = alone(tmp_path, table(), lambda maker: maker.shelf(query(candidates=candidates, count=2), 0.0))
    assert shelf.degraded == "deadline"
    assert items_of(shelf) == list(candidates or ("i0", "i1"))


def test_an_empty_catalog_answers_an_empty_shelf(tmp_path: Path) -> None:
    shelf, logged = alone(tmp_path, ItemTable(FEATURES), lambda maker: maker.shelf(query(), 1.0))
    assert list(shelf.items) == []
    assert shelf.degraded
    assert logged == []


def test_being_listed_often_makes_no_item_popular(tmp_path: Path) -> None:
    """Without a model the order is by views and purchases; showing an item, which we do ourselves, says nothing of it."""
    items = table()
    items.apply(msgspec.structs.replace(item_row("i19", 10_000.0, event="view_item_list"), partition=1))
    shelf, _ = alone(tmp_path, items, lambda maker: maker.shelf(query(), 1.0))
    assert items_of(shelf) == ["i0", "i1", "i2", "i4", "i5"]
