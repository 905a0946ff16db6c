"""The Feast objects: entities, views and services, built from feature sets and applied with an explicit list.

Every feature version has views of its own, so that one model's features stay while the next one's are folded. A service carries the
declarations of its version as a tag: the registry is where every role learns which versions there are.
"""

from collections.abc import Collection, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.types import Array, Bool, Bytes, Float32, Float64, Int64, String
from feast.value_type import ValueType

from features.feature_set import FeatureSet, ViewSpec, to_text

DECLARATIONS = "declarations"
"""Tag of a shopper service: the settings file of its version, as text."""

CATALOG_VIEW = ViewSpec(
    "item_catalog",
    (("item", str),),
    (
        ("item_name", "string", "title"),
        ("item_category", "string", "category"),
        ("item_brand", "string", "brand"),
        ("price", "double", "price in the shop's currency"),
        ("available", "bool", "false: never shown"),
        ("time_ms", "int64", "when the record was made"),
    ),
)

ORDER = "order"
"""Tag of a shopper service: its place among the versions, the newest last."""

REBUILDING = "rebuilding"
"""Tag of a shopper service whose version `liveshelf features rebuild` is folding: not yet for agents, models or trainers."""

_TYPES = {
    "int64": Int64,
    "double": Float64,
    "string": String,
    "bool": Bool,
    "bytes": Bytes,
    "int64_list": Array(Int64),
    "double_list": Array(Float64),
    "float_list": Array(Float32),
    "string_list": Array(String),
}
_ENTITIES = {
    "shopper": Entity(
        name="shopper", join_keys=["shopper"], value_type=ValueType.STRING, description="Keyed pseudonym of a person or browser"
    ),
    "item": Entity(name="item", join_keys=["item"], value_type=ValueType.STRING, description="The shop's item id"),
    "source_partition": Entity(
        name="source_partition",
        join_keys=["source_partition"],
        value_type=ValueType.INT64,
        description="Clickstream partition that contributed",
    ),
}


def feast_view(view: ViewSpec, offline_path: Path) -> FeatureView:
    """`view` as Feast has it; its history, when there is one, is `offline_path`/NAME.parquet."""
    batch = FileSource(
        name=f"{view.name}_history", path=str(offline_path / f"{view.name}.parquet"), timestamp_field="event_timestamp"
    )
    keys = [Field(name=name, dtype=Int64 if kind is int else String) for name, kind in view.keys]
    return FeatureView(
        name=view.name,
        entities=[_ENTITIES[name] for name, _ in view.keys],
        ttl=timedelta(0),  # rows do not expire: decay is part of their arithmetic
        schema=[*keys, *(Field(name=name, dtype=_TYPES[kind], description=meaning) for name, kind, meaning in view.fields)],
        source=PushSource(name=f"{view.name}_push", batch_source=batch),
    )


def build(feature_sets: Iterable[FeatureSet], offline_path: Path, rebuilding: Collection[str] = ()) -> dict[str, Any]:
    """All Feast objects by name (services as `service:NAME`) for the catalog and these feature versions, oldest first."""
    objects: dict[str, Any] = dict(_ENTITIES)
    views: list[tuple[ViewSpec, dict[str, str]]] = [(CATALOG_VIEW, {})]
    for order, features in enumerate(feature_sets):
        tags = {DECLARATIONS: to_text(features), ORDER: str(order)}
        views.append((features.shopper_view, tags | ({REBUILDING: "yes"} if features.version in rebuilding else {})))
        views.append((features.item_view, {}))
    for view, tags in views:
        objects[view.name] = feast_view(view, offline_path)
        objects[f"service:{view.name}"] = FeatureService(name=view.name, features=[objects[view.name]], tags=tags)
    return objects
