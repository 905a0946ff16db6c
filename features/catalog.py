"""Item ids as row numbers, and what the catalog says of each, as columns: shared by the item tables of every feature version.

n items. A row never moves, so row numbers stand for ids everywhere behind the edge of a process.
"""

from collections.abc import Iterable, Sequence
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
        return at

    def find(self, item: str) -> int:
        """The row of `item`, UNKNOWN when it was never seen."""
        return self._row_of.get(item, UNKNOWN)

    def rows(self, items: Sequence[str]) -> Rows:
        """[len(items)] rows, UNKNOWN where an id was never seen."""
        find = self._row_of.get
        return np.array([find(item, UNKNOWN) for item in items], dtype=np.int32)

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
        for field, value in zip(FIELDS, (item.item_category, item.item_brand, price_band(item.price)), strict=True):
            self.code[field][at] = self._code(field, value)
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

    def columns(self, rows: Rows) -> CatalogColumns:
        """What the encoder reads of `rows`, UNKNOWN ones among them."""
        known = rows >= 0
        at = np.where(known, rows, 0)
        time_ms = np.where(known, self.time_ms[at], UNKNOWN)
        recorded = time_ms != UNKNOWN
        return CatalogColumns(
            time_ms=time_ms,
            price=np.where(recorded, self.price[at], 0.0),
            named=recorded & self._named[at],
            code={field: np.where(recorded, code[at], UNKNOWN) for field, code in self.code.items()},
            codes=self.codes,
        )

    def embeddings(self, rows: Rows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """([len(rows), D] unit vectors, zero where there is none; [len(rows)] whether there is one)."""
        place = np.array([self._embedding_at.get(row, UNKNOWN) for row in rows.tolist()], dtype=np.int64)
        has = place >= 0
        out = np.zeros((len(rows), self._embeddings.shape[1]), dtype=np.float32)
        out[has] = self._embeddings[place[has]]
        length = np.linalg.norm(out, axis=1, keepdims=True)
        return out / np.maximum(length, 1e-12), has

    def in_category(self, code: int) -> Rows:
        """Rows of one category."""
        return np.flatnonzero(self.code["item_category"][: len(self.ids)] == code).astype(np.int32)

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
        self.available = grown(self.available, capacity, True)
        self.price, self._named = grown(self.price, capacity), grown(self._named, capacity)
        self.time_ms, self.since_ms = grown(self.time_ms, capacity, UNKNOWN), grown(self.since_ms, capacity, UNKNOWN)
        self.code = {field: grown(code, capacity, UNKNOWN) for field, code in self.code.items()}


def grown(array: npt.NDArray[Any], capacity: int, fill: Any = 0) -> npt.NDArray[Any]:
    """`array` with `capacity` rows. New zeros are pages that the system has not given yet: they cost no memory until written."""
    out = np.zeros((capacity, *array.shape[1:]), dtype=array.dtype)
    out[: len(array)] = array
    if fill:
        out[len(array) :] = fill
    return out
