"""The features' history as parquet, one file of a view and partition: what Feast's get_historical_features reads.

A row of history is a row of the store as it was from its `event_timestamp` on: the latest event time that it was folded up to, which is
also its timestamp in the online store. Of changes at one such time the last counts (several events of one millisecond; a late event, which
changes a row without moving its time).
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.feature_set import FeatureSet, ViewSpec
from features.rows import ItemRow, ShopperRow

TIMESTAMP = "event_timestamp"
ROWS_BUFFERED = 5_000  # a row group; at 2 kB a row 10 MB, and as much again as Arrow holds it

_TYPES = {
    "int64": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
    "int64_list": pa.list_(pa.int64()),
    "double_list": pa.list_(pa.float64()),
    "float_list": pa.list_(pa.float32()),
    "string_list": pa.list_(pa.string()),
}


def history_path(directory: Path, view: ViewSpec) -> Path:
    """Where Feast looks for the history of `view`: a directory of parquet files (see `definitions.feast_view`)."""
    return directory / f"{view.name}.parquet"


def schema(view: ViewSpec) -> pa.Schema:
    keys = [(name, pa.int64() if kind is int else pa.string()) for name, kind in view.keys]
    return pa.schema([*keys, (TIMESTAMP, pa.timestamp("ms", tz="UTC")), *((name, _TYPES[kind]) for name, kind, _ in view.fields)])


class PartitionHistory:
    """Writes the history of one clickstream partition: two files, one of each view. A context manager; nothing is complete before its end."""

    def __init__(self, features: FeatureSet, directory: Path, partition: int) -> None:
        self._features = features
        self._shoppers = _ViewHistory(features.shopper_view, directory, partition)
        self._items = _ViewHistory(features.item_view, directory, partition)

    @property
    def rows(self) -> int:
        return self._shoppers.rows + self._items.rows

    def __enter__(self) -> "PartitionHistory":
        return self

    def __exit__(self, *_: object) -> None:
        self._shoppers.close()
        self._items.close()

    def changed(self, shopper: ShopperRow, items: Iterable[ItemRow]) -> None:
        """Take rows down as they are now."""
        if shopper.time_ms:  # a row that only knows of a handover yet has no time
            self._shoppers.add((shopper.shopper,), shopper.time_ms, self._features.shopper_values(shopper))
        for row in items:
            self._items.add((row.item, row.partition), row.time_ms, self._features.item_values(row))


class _ViewHistory:
    def __init__(self, view: ViewSpec, directory: Path, partition: int) -> None:
        path = history_path(directory, view)
        path.mkdir(parents=True, exist_ok=True)
        self._schema = schema(view)
        self._writer = pq.ParquetWriter(path / f"partition-{partition}.parquet", self._schema, compression="zstd")
        self._latest: dict[tuple[Any, ...], tuple[int, list[Any]]] = {}
        self._buffer: list[list[Any]] = []
        self.rows = 0

    def add(self, key: tuple[Any, ...], time_ms: int, values: list[Any]) -> None:
        before = self._latest.get(key)
        if before is not None and before[0] < time_ms:
            self._write(key, *before)
        # Lists of a row change in place when the next event is folded.
        self._latest[key] = (time_ms, [list(value) if isinstance(value, list) else value for value in values])

    def close(self) -> None:
        for key, latest in self._latest.items():
            self._write(key, *latest)
        self._flush()
        self._writer.close()

    def _write(self, key: tuple[Any, ...], time_ms: int, values: list[Any]) -> None:
        self._buffer.append([*key, time_ms, *values])
        self.rows += 1
        if len(self._buffer) == ROWS_BUFFERED:
            self._flush()

    def _flush(self) -> None:
        columns = [
            pa.array(column, type=field.type) for column, field in zip(zip(*self._buffer, strict=True), self._schema, strict=False)
        ]
        if columns:
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._buffer.clear()


def put_in_place(features: FeatureSet, fresh: Path, directory: Path) -> None:
    """Move the complete history in `fresh` to `directory`, in place of an earlier one."""
    for view in (features.shopper_view, features.item_view):
        target = history_path(directory, view)
        if target.exists():
            shutil.rmtree(target)
        history_path(fresh, view).rename(target)
