"""Item ids as row numbers, and what the catalog says of each, as columns: shared by the item tables of every feature version.

n items. A row never moves, so row numbers stand for ids everywhere behind the edge of a process.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from features.fold import price_band
from features.rows import CatalogColumns, CatalogItem

Rows = npt.NDArray[np.int32]

ROWS_AT_FIRST = 1024  # grown by half whenever full
FIELDS = ("item_category", "item_brand", "price_band")
UNKNOWN = -1
"""As a row: an id never seen. As a code: no catalog record."""


class Catalog:
    """Growable columns. Not thread-safe: one owner applies and reads."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.wire = np.full(ROWS_AT_FIRST, b"", dtype=object)
        """[n] ids as the model reads them: bytes."""
        self.available = np.ones(ROWS_AT_FIRST, dtype=bool)
        """False only when the catalog says so: an item seen in events may be shown before its record comes."""
        self.price = np.zeros(ROWS_AT_FIRST)
        self.time_ms = np.full(ROWS_AT_FIRST, UNKNOWN, dtype=np.int64)
        """When the record held was made; UNKNOWN where there is none."""
        self.since_ms = np.full(ROWS_AT_FIRST, UNKNOWN, dtype=np.int64)
        """When the first record seen of the item was made."""
        self.code = {field: np.full(ROWS_AT_FIRST, UNKNOWN, dtype=np.int32) for field in FIELDS}
        self.codes: dict[str, dict[str, int]] = {field: {} for field in FIELDS}
        """By field: value → its code."""
        self.values: dict[str, list[str]] = {field: [] for field in FIELDS}
        self._row_of: dict[str, int] = {}
        self._first = np.zeros(ROWS_AT_FIRST, dtype=np.int32)  # scratch of `distinct`
        self._mark = np.zeros(ROWS_AT_FIRST, dtype=bool)  # likewise of `among`: all False between calls
        self._in_category: defaultdict[int, array[int]] = defaultdict(lambda: array("i"))
        """By code: rows that are or were of the category."""
        self._names: list[str] = []
        self._named = np.zeros(ROWS_AT_FIRST, dtype=bool)
        self._embedding_at: dict[int, int] = {}  # row → place in _embeddings
        self._embeddings = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, item: str) -> int:
        """The row of `item`, made if there is none."""
        at = self._row_of.get(item)
        if at is None:
            at = self._row_of[item] = len(self.ids)
            self.ids.append(item)
            self._names.append("")
            if at == len(self.available):
                self._grow(at + at // 2)
            self.wire[at] = item.encode()
        return at

    def find(self, item: str) -> int:
        """The row of `item`, UNKNOWN when it was never seen."""
        return self._row_of.get(item, UNKNOWN)

    def rows(self, items: Sequence[str]) -> Rows:
        """[len(items)] rows, UNKNOWN where an id was never seen."""
        return np.array(list(map(self._row_of.get, items, repeat(UNKNOWN))), dtype=np.int32)

    def rows_made(self, items: Iterable[str]) -> list[int]:
        """Rows of `items`, made where there is none."""
        find = self._row_of.get
        return [at if (at := find(item)) is not None else self.row(item) for item in items]

    def distinct(self, rows: Rows) -> npt.NDArray[np.intp]:
        """Places in known `rows` where each row stands first, ascending."""
        return first_places(rows, self._first)

    def among(self, rows: Rows, others: Rows) -> npt.NDArray[np.bool_]:
        """[len(rows)] which of known `rows` stand in `others`, UNKNOWN ones among these."""
        others = others[others >= 0]
        self._mark[others] = True
        found: npt.NDArray[np.bool_] = self._mark.take(rows)
        self._mark[others] = False
        return found

    def items(self, rows: Rows) -> list[str]:
        """Ids of known `rows`."""
        ids = self.ids
        return [ids[at] for at in rows.tolist()]

    def apply(self, item: CatalogItem) -> bool:
        """Take the catalog's word on one item; False when a newer record is held already."""
        at = self.row(item.item_id)
        if item.time_ms < self.time_ms[at]:
            return False
        if self.since_ms[at] == UNKNOWN:
            self.since_ms[at] = item.time_ms
        self.time_ms[at], self.available[at], self.price[at] = item.time_ms, item.available, item.price
        self._names[at], self._named[at] = item.item_name, bool(item.item_name)
        before = self.code["item_category"][at]
        for field, value in zip(FIELDS, (item.item_category, item.item_brand, price_band(item.price)), strict=True):
            self.code[field][at] = self._code(field, value)
        if (category := int(self.code["item_category"][at])) != before:
            self._in_category[category].append(at)
        if item.embedding:
            self._embed(at, item.embedding)
        return True

    def record(self, at: int) -> CatalogItem | None:
        """The record held for the row `at`; None when none came. Embeddings come back as they are held, in single precision."""
        if self.time_ms[at] == UNKNOWN:
            return None
        place = self._embedding_at.get(at)
        return CatalogItem(
            item_id=self.ids[at],
            item_name=self._names[at],
            item_category=self._value("item_category", at),
            item_brand=self._value("item_brand", at),
            price=float(self.price[at]),
            available=bool(self.available[at]),
            embedding=() if place is None else tuple(self._embeddings[place].tolist()),
            time_ms=int(self.time_ms[at]),
        )

    def labels(self, rows: Rows) -> tuple[list[str], list[str], list[str], list[float]]:
        """Names, categories, brands and prices of `rows`: empty and 0 where there is no record."""
        names = self._names
        category, brand = (
            [values[code] if code >= 0 else "" for code in np.where(rows >= 0, self.code[field][rows], UNKNOWN).tolist()]
            for field, values in (("item_category", self.values["item_category"]), ("item_brand", self.values["item_brand"]))
        )
        prices: list[float] = np.where(rows >= 0, self.price[rows], 0.0).tolist()
        return [names[at] if at >= 0 else "" for at in rows.tolist()], category, brand, prices

    def columns(self, rows: Rows) -> CatalogColumns:
        """What the encoder reads of `rows`, UNKNOWN ones among them."""
        unknown = np.flatnonzero(rows < 0)
        columns = CatalogColumns(
            time_ms=self.time_ms.take(rows),
            price=self.price.take(rows),
            named=self._named.take(rows),
            code={field: code.take(rows) for field, code in self.code.items()},
            codes=self.codes,
        )
        if len(unknown):
            columns.price[unknown], columns.named[unknown], columns.time_ms[unknown] = 0.0, False, UNKNOWN
            for code in columns.code.values():
                code[unknown] = UNKNOWN
        return columns

    def embeddings(self, rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """([len(rows), D] unit vectors, zero where there is none; [len(rows)] whether there is one)."""
        place = np.array([self._embedding_at.get(row, UNKNOWN) for row in rows.tolist()], dtype=np.int64)
        has = place >= 0
        out = np.zeros((len(rows), self._embeddings.shape[1]), dtype=np.float32)
        out[has] = self._embeddings[place[has]]
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return out / np.maximum(length, 1e-12), has

    def in_category(self, code: int) -> Rows:
        """Rows of one category, ascending."""
        rows: Rows = np.unique(np.array(self._in_category[code], dtype=np.int32))
        still: Rows = rows[self.code["item_category"][rows] == code]
        return still

    def _value(self, field: str, at: int) -> str:
        return self.values[field][int(self.code[field][at])]

    def _code(self, field: str, value: str) -> int:
        codes = self.codes[field]
        code = codes.get(value)
        if code is None:
            code = codes[value] = len(codes)
            self.values[field].append(value)
        return code

    def _embed(self, at: int, embedding: Iterable[float]) -> None:
        vector = np.asarray(tuple(embedding), dtype=np.float32)
        if self._embeddings.shape[1] != len(vector):  # another embedder: vectors of both lengths cannot be compared
            self._embedding_at.clear()
            self._embeddings = np.zeros((ROWS_AT_FIRST, len(vector)), dtype=np.float32)
        place = self._embedding_at.setdefault(at, len(self._embedding_at))
        if place == len(self._embeddings):
            self._embeddings = grown(self._embeddings, place + place // 2)
        self._embeddings[place] = vector

    def _grow(self, capacity: int) -> None:
        self.available, self.wire = grown(self.available, capacity, True), grown(self.wire, capacity, b"")
        self.price, self._named = grown(self.price, capacity), grown(self._named, capacity)
        self._first, self._mark = grown(self._first, capacity), grown(self._mark, capacity)
        self.time_ms, self.since_ms = grown(self.time_ms, capacity, UNKNOWN), grown(self.since_ms, capacity, UNKNOWN)
        self.code = {field: grown(code, capacity, UNKNOWN) for field, code in self.code.items()}


def first_places(numbers: npt.NDArray[np.integer], scratch: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    """Places in `numbers` where each stands first, ascending, without sorting. `scratch` has a place for every number; what it holds is lost."""
    places = np.arange(len(numbers), dtype=scratch.dtype)
    scratch[numbers[::-1]] = places[::-1]  # of a number that stands there twice, what is written last stays
    found: npt.NDArray[np.intp] = np.flatnonzero(scratch.take(numbers) == places)
    return found


def grown(column: npt.NDArray[Any], capacity: int, fill: Any = 0) -> npt.NDArray[Any]:
    """`column` with `capacity` rows. New zeros are pages that the system has not given yet: they cost no memory until written."""
    out = np.zeros((capacity, *column.shape[1:]), dtype=column.dtype)
    out[: len(column)] = column
    if fill or column.dtype == object:
        out[len(column) :] = fill
    return out
