"""The Feast objects: entities, views and services, built here and applied with an explicit list.

Field names are those of `features.rows`; a map of the row (`counts`, affinities, `neighbours`) stands in two fields, `NAME_keys`
and `NAME_values`.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Bool, Float64, Int64, String
from feast.value_type import ValueType

SHOPPER = Entity(name="shopper", join_keys=["shopper"], value_type=ValueType.STRING, description="Keyed pseudonym of a person")
ITEM = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING, description="The shop's item id")
SOURCE_PARTITION = Entity(
    name="source_partition",
    join_keys=["source_partition"],
    value_type=ValueType.INT64,
    description="Clickstream partition that contributed",
)

_OFFSETS = [Field(name="offset", dtype=Int64), Field(name="time_ms", dtype=Int64)]


def _weights(name: str) -> list[Field]:
    return [Field(name=f"{name}_keys", dtype=Array(String)), Field(name=f"{name}_values", dtype=Array(Float64))]


def _view(name: str, entities: list[Entity], schema: list[Field], offline_path: Path) -> FeatureView:
    batch = FileSource(name=f"{name}_history", path=str(offline_path / f"{name}.parquet"), timestamp_field="event_timestamp")
    return FeatureView(
        name=name,
        entities=entities,
        ttl=timedelta(0),  # rows do not expire: decay is part of their arithmetic
        schema=[*(Field(name=e.join_key, dtype=Int64 if e is SOURCE_PARTITION else String) for e in entities), *schema],
        source=PushSource(name=f"{name}_push", batch_source=batch),
    )


def build(offline_path: Path) -> dict[str, Any]:
    """All Feast objects by name. `offline_path` is the directory of the views' parquet history."""
    shopper = _view(
        "shopper_features",
        [SHOPPER],
        [
            Field(name="partition", dtype=Int64),
            *_OFFSETS,
            Field(name="recent_items", dtype=Array(String)),
            Field(name="recent_events", dtype=Array(String)),
            Field(name="recent_times_ms", dtype=Array(Int64)),
            *_weights("counts"),
            *_weights("category_affinity"),
            *_weights("brand_affinity"),
            Field(name="event_ids", dtype=Array(String)),
        ],
        offline_path,
    )
    item = _view("item_features", [ITEM, SOURCE_PARTITION], [*_OFFSETS, *_weights("counts"), *_weights("neighbours")], offline_path)
    catalog = _view(
        "item_catalog",
        [ITEM],
        [
            Field(name="item_name", dtype=String),
            Field(name="item_category", dtype=String),
            Field(name="item_brand", dtype=String),
            Field(name="price", dtype=Float64),
            Field(name="available", dtype=Bool),
            Field(name="time_ms", dtype=Int64),
        ],
        offline_path,
    )
    views = [shopper, item, catalog]
    services = [FeatureService(name=view.name, features=[view]) for view in views]
    return {
        o.name if not isinstance(o, FeatureService) else f"service:{o.name}": o
        for o in [SHOPPER, ITEM, SOURCE_PARTITION, *views, *services]
    }
