"""What a shelf is made of when a part is down: heuristics with the last good scores, what is popular, and a list on disk."""

import asyncio
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from features import declarations
from features.catalog import Catalog, Rows
from features.encoder import Encoder
from features.feature_set import FeatureSet
from features.items import ItemTable
from serving.candidates import Lists

log = structlog.get_logger()
Scores = npt.NDArray[np.float32]

# Order of a shelf without a model, by kind of feature: neighbours first, then what fits the shopper's taste, then what is popular.
COVISIT_WEIGHT, MATCH_WEIGHT, DEMAND_WEIGHT = 1.0, 0.3, 0.1
DEMAND_COLUMN = re.compile(r"^log_.*_(view_item|purchase)_[0-9.]+h$")

LAST_GOOD_WEIGHT = 1.0  # as a neighbour looked at e - 1 times: the model's word of minutes ago against what happened since
LAST_GOOD_MS_MAX = 10 * 60_000
LAST_GOOD_SHOPPERS = 10_000  # of 50 items each: 6 MB
LAST_GOOD_ITEMS = 50

STATIC_ITEMS, STATIC_ITEMS_IN_CATEGORY, STATIC_CATEGORIES = 500, 50, 500
STATIC_EVERY_S = 60.0


class Side:
    """All that one feature version needs to be served."""

    def __init__(self, features: FeatureSet, items: ItemTable) -> None:
        self.features, self.items = features, items
        self.encoder = Encoder(features)
        self.lists = Lists(items)
        self._heuristic = np.array([self._weight(name) for name in features.candidate_columns], dtype=np.float32)

    def _weight(self, column: str) -> float:
        kinds = {f.name: f for f in self.features.declared.features}
        if column == f"log_{self.features.covisit.name}":
            return COVISIT_WEIGHT
        if isinstance(kinds.get(column), declarations.Match):
            return MATCH_WEIGHT
        return DEMAND_WEIGHT if DEMAND_COLUMN.search(column) else 0.0

    def by_heuristics(self, candidate_features: Scores) -> Scores:
        """[C] scores from [C, F] candidate features."""
        result: Scores = candidate_features @ self._heuristic
        return result


class _Good(NamedTuple):
    time_ms: int
    rows: Rows
    scores: Scores


class LastGood:
    """The model's best scores of each shopper's latest shelf, for when it does not answer."""

    def __init__(self) -> None:
        self._shoppers: OrderedDict[str, _Good] = OrderedDict()

    def keep(self, shopper: str, time_ms: int, rows: Rows, scores: Scores) -> None:
        """At most LAST_GOOD_ITEMS `rows` and `scores`, best first; they are held, not copied."""
        self._shoppers[shopper] = _Good(time_ms, rows, scores)
        self._shoppers.move_to_end(shopper)
        if len(self._shoppers) > LAST_GOOD_SHOPPERS:
            self._shoppers.popitem(last=False)

    def scores(self, shopper: str, time_ms: int, rows: Rows) -> Scores | None:
        """[len(rows)] from 0 to LAST_GOOD_WEIGHT, 0 for rows that had none; None when nothing recent is held."""
        good = self._shoppers.get(shopper)
        if good is None or time_ms - good.time_ms > LAST_GOOD_MS_MAX or not len(good.scores):
            return None
        order = np.argsort(good.rows)
        place = np.minimum(np.searchsorted(good.rows, rows, sorter=order), len(order) - 1)
        held = order[place]
        scale = LAST_GOOD_WEIGHT / max(float(good.scores[0]), 1e-9)
        result: Scores = np.where(good.rows[held] == rows, good.scores[held] * scale, 0.0).astype(np.float32)
        return result


class StaticLists(msgspec.Struct, frozen=True):
    """What was popular when it was written; item ids."""

    popular: list[str] = []
    by_category: dict[str, list[str]] = {}


class StaticShelves:
    """The list on disk: written from time to time, read once at start; it needs no other part to be up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lists = StaticLists()

    def read(self) -> None:
        """Take what is on disk; a file that is not there or unreadable leaves the lists empty."""
        try:
            self.lists = msgspec.json.decode(self._path.read_bytes(), type=StaticLists)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("static shelf cannot be read", file=str(self._path), error=str(error))

    def items(self, categories: Sequence[str] = ()) -> list[str]:
        """Popular ids, those of `categories` first."""
        first = [item for category in categories for item in self.lists.by_category.get(category, ())]
        return list(dict.fromkeys([*first, *self.lists.popular]))

    def take(self, items: ItemTable, lists: Lists, time_ms: int) -> bool:
        """Remember what is popular now and write it; False when nothing is known, and what was held stays."""
        records = items.records
        popular = records.items(lists.popular(time_ms)[:STATIC_ITEMS])
        if not popular:
            return False
        by_category: dict[str, list[str]] = {}
        for category in self._categories(records, lists.popular(time_ms)):
            code = records.codes["item_category"][category]
            by_category[category] = records.items(lists.popular_in(code, time_ms)[:STATIC_ITEMS_IN_CATEGORY])
        self.lists = StaticLists(popular, by_category)
        return True

    def write(self) -> None:
        """Beside it, then into place: a reader never sees half of it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(msgspec.json.encode(self.lists))
        beside.replace(self._path)

    async def keep_written(self, side: Callable[[], Side], clock_ms: Callable[[], int]) -> None:
        while True:
            try:
                current = side()
                if self.take(current.items, current.lists, clock_ms()):
                    await asyncio.to_thread(self.write)
                    await asyncio.sleep(STATIC_EVERY_S)
                    continue
            except OSError as error:
                log.warning("static shelf cannot be written", file=str(self._path), error=str(error))
            await asyncio.sleep(1.0)

    @staticmethod
    def _categories(records: Catalog, popular: Rows) -> list[str]:
        """Those of the popular items, the most popular first."""
        code = records.code["item_category"][popular].tolist()
        names = (records.values["item_category"][c] for c in code if c >= 0)
        return [name for name in dict.fromkeys(names) if name][:STATIC_CATEGORIES]
