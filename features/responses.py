"""Feast's answer to `get_online_features` for the plain request: features of one view, by its own join keys.

Feast resolves, converts and fills in protobuf objects one by one: 0.3 ms for a row. Here what does not depend on the entities is worked out
once (`Request`), and the answer is put together as bytes and parsed once. It equals Feast's own, message for message.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from feast import FeatureView, ValueType
from feast.protos.feast.serving.ServingService_pb2 import (
    FeatureList,
    FieldStatus,
    GetOnlineFeaturesResponse,
    GetOnlineFeaturesResponseMetadata,
)
from feast.protos.feast.types.Value_pb2 import Value

from features.packed import Packed
from features.values import View, delimited, encode_string, entity_key, timestamp

_PYTHON = {ValueType.STRING: str, ValueType.INT64: int}
_METADATA, _RESULT, _VALUES, _STATUSES, _TIMESTAMPS = 1 << 3 | 2, 2 << 3 | 2, 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2
_PRESENT = bytes([FieldStatus.PRESENT])
_NO_VALUE, _NO_TIMESTAMP = delimited(_VALUES, b""), delimited(_TIMESTAMPS, b"")


def view_of(table: FeatureView) -> View:
    """Feast's view as the store sees it."""
    keys = tuple((column.name, _PYTHON[column.dtype.to_value_type()]) for column in table.entity_columns)
    return View(table.name, keys, tuple((field.name, field.dtype.to_value_type().name.lower()) for field in table.features))


class Request:
    """What Feast resolved a request to; `context` is its `_get_cached_request_context`. `plain` says whether it can be answered here."""

    def __init__(self, context: tuple[Any, ...], full_feature_names: bool) -> None:
        _, on_demand, _, types, _, grouped, _, request_data, entityless = context
        self.context = context
        self.plain = (
            not (on_demand or request_data or entityless)
            and len(grouped) == 1
            and isinstance(table := grouped[0][0], FeatureView)
            and not (table.projection.join_key_map or getattr(table.projection, "version_tag", None))
            and all(types.get(key) in _PYTHON for key in table.join_keys)
        )
        if self.plain:
            self._prefix = f"{table.projection.name_to_use()}__" if full_feature_names else ""
            self._names = list(grouped[0][1])
            self.view = view_of(table)
            self._columns = [(at, self.view.encoders[at]) for at in (self.view.place[name] for name in self._names)]
            self.grouped = grouped
            self._metadata_of: dict[tuple[str, ...], bytes] = {}

    @cached_property
    def feature_types(self) -> dict[str, ValueType]:
        from feast.infra.online_stores.online_store import OnlineStore

        types: dict[str, ValueType] = OnlineStore._build_feature_types(self.grouped)
        return types

    def keys(self, entities: Mapping[str, Any]) -> list[bytes] | None:
        """Entity keys of the rows asked for; None when the entities are not plain strings and integers, which Feast then sorts out."""
        if entities.keys() != {name for name, _ in self.view.keys}:
            return None
        columns = [entities[name] for name, _ in self.view.keys]
        if len({len(column) for column in columns if isinstance(column, list)}) != 1 or not columns[0]:
            return None
        for (_, kind), column in zip(self.view.keys, columns, strict=True):
            if not isinstance(column, list) or not all(type(value) is kind and value != "" for value in column):
                return None
        return [entity_key(self.view, *values) for values in zip(*columns, strict=True)]

    def answer(self, entities: Mapping[str, Any], rows: Sequence[Packed | None]) -> GetOnlineFeaturesResponse:
        """`rows`: for each entity its row; None where there is none."""
        statuses = delimited(_STATUSES, _PRESENT * len(rows))  # Feast's Redis store says so for missing rows too
        parts = [self._metadata(tuple(entities))]
        for column in entities.values():
            values = b"".join([delimited(_VALUES, _entity_value(value)) for value in column])
            parts.append(delimited(_RESULT, values + statuses + _NO_TIMESTAMP * len(rows)))
        ending = statuses + b"".join([delimited(_TIMESTAMPS, timestamp(row.time_ms)) if row else _NO_TIMESTAMP for row in rows])
        for place, encode in self._columns:
            values = b"".join([delimited(_VALUES, encode(row.values[place])) if row else _NO_VALUE for row in rows])
            parts.append(delimited(_RESULT, values + ending))
        response: GetOnlineFeaturesResponse = GetOnlineFeaturesResponse.FromString(b"".join(parts))
        return response

    def _metadata(self, entities: tuple[str, ...]) -> bytes:
        if entities not in self._metadata_of:
            names = [*entities, *(self._prefix + name for name in self._names)]
            metadata = GetOnlineFeaturesResponseMetadata(feature_names=FeatureList(val=names))
            self._metadata_of[entities] = delimited(_METADATA, metadata.SerializeToString())
        return self._metadata_of[entities]


def _entity_value(value: str | int) -> bytes:
    return encode_string(value) if isinstance(value, str) else Value(int64_val=value).SerializeToString()
