"""Rows and declarations for people: each feature by its name, with values as they are now."""

from collections.abc import Sequence
from typing import Any

from features import declarations as d
from features.decay import HalfLives
from features.events import EVENT_NAMES
from features.feature_set import FeatureSet, Slot
from features.items import ItemTable
from features.rows import CatalogItem, ItemRow, ShopperRow

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))


def ago(time_ms: int, now_ms: int) -> str:
    """`3 h ago`, `never` for 0; a browser's clock may be ahead: `in 5 s`."""
    if not time_ms:
        return "never"
    distance = abs(now_ms - time_ms)
    words = next((f"{distance // ms} {unit}" for unit, ms in _UNITS if distance >= ms), "0 s")
    return f"{words} ago" if now_ms >= time_ms else f"in {words}"


def shopper_features(features: FeatureSet, row: ShopperRow, now_ms: int) -> dict[str, Any]:
    """Every shopper feature of `row`, valued at `now_ms`, and where the row comes from."""
    out: dict[str, Any] = {}
    scale = features.shopper_half_lives.scale_of(row.time_ms, now_ms).tolist()
    for feature in features.declared.features:
        value: Any
        match feature:
            case d.LastN():
                steps = zip(row.recent_items, row.recent_events, row.recent_times_ms, strict=True)
                value = [
                    {"item": item, "event": EVENT_NAMES[event], "time_ms": time_ms, "when": ago(time_ms, now_ms)}
                    for item, event, time_ms in steps
                ]
            case d.DecayedCount(entity="shopper"):
                value = _counts(features.shopper_slots[feature.name], row.numbers, features.shopper_half_lives, scale)
            case d.Recency():
                at = features.mark_at[feature.name]
                value = {event: ago(row.marks[at + i], now_ms) for i, event in enumerate(feature.events)}
            case d.Session():
                value = _session(feature, row.marks[features.mark_at[feature.name] :][:4], now_ms)
            case d.Affinity():
                at = next(i for i, affinity in enumerate(features.affinities) if affinity is feature)
                factor = scale[features.half_life_at(features.shopper_half_lives, feature.half_life)]
                heaviest = sorted(row.affinities[at].items(), key=lambda pair: (-pair[1], pair[0]))
                value = {_named(feature.field, key): weight * factor for key, weight in heaviest}
            case _:
                continue
        out[feature.name] = {"kind": kind_of(feature), "meaning": feature.meaning, "value": value}
    return {
        "shopper": row.shopper,
        "version": features.version,
        "sources": [_source(row.partition, row.offset, row.time_ms, now_ms)],
        "sign_ins": [{"person": person, "when": ago(time_ms, now_ms)} for time_ms, person in row.links],
        "handovers": row.merged,
        "features": out,
    }


def item_features(
    features: FeatureSet, item: str, rows: Sequence[ItemRow], catalog: CatalogItem | None, now_ms: int
) -> dict[str, Any]:
    """Every item feature, summed over partitions and valued at `now_ms`, and which rows it comes from."""
    table = ItemTable(features)
    for row in rows:
        table.apply(row)
    numbers = table.columns([item], features.shopper(""), now_ms).numbers[:, 0]
    out: dict[str, Any] = {}
    for feature in features.declared.features:
        value: Any
        slots = features.item_slots.get(feature.name, [])
        of_feature = [float(numbers[slot.at]) for slot in slots]
        match feature:
            case d.DecayedCount(entity="item"):
                value = _counts(slots, numbers.tolist(), features.item_half_lives, [1.0] * len(features.item_half_lives.ms))
            case d.Rate():
                of, to = of_feature
                value = {
                    "rate": (of + feature.prior_of) / (to + feature.prior_to),
                    f"{feature.of}": of,
                    f"{feature.to}": to,
                }
            case d.Trend():
                half = len(of_feature) // 2
                short, long = sum(of_feature[:half]), sum(of_feature[half:])
                value = {f"within {feature.short}": short, f"within {feature.long}": long}
            case d.Covisit():
                value = dict(table.neighbours(item, now_ms)[: feature.k])
            case d.Field():
                value = None if catalog is None else getattr(catalog, feature.field)
            case _:
                continue
        out[feature.name] = {"kind": kind_of(feature), "meaning": feature.meaning, "value": value}
    return {
        "item": item,
        "version": features.version,
        "sources": [_source(row.partition, row.offset, row.time_ms, now_ms) for row in sorted(rows, key=lambda r: r.partition)],
        "catalog": None if catalog is None else {name: getattr(catalog, name) for name in _CATALOG},
        "features": out,
    }


_CATALOG = ("item_name", "item_category", "item_brand", "price", "available", "time_ms")


def declared_features(features: FeatureSet) -> list[dict[str, Any]]:
    """Each declaration with what it compiles to: Feast's `view.field`s and the model's columns."""
    return [_declared(features, feature) for feature in features.declared.features]


def _declared(features: FeatureSet, feature: d.AnyDeclaration) -> dict[str, Any]:
    parameters = {name: getattr(feature, name) for name in feature.__struct_fields__ if name not in ("name", "meaning", "entity")}
    return {
        "name": feature.name,
        "kind": kind_of(feature),
        "entity": entity_of(feature),
        "meaning": feature.meaning,
        "parameters": parameters,
        "fields": fields_of(features, feature),
        "columns": columns_of(features, feature),
    }


def kind_of(feature: d.AnyDeclaration) -> str:
    return str(type(feature).__struct_config__.tag)


def entity_of(feature: d.AnyDeclaration) -> str:
    """Whose row it stands in; `candidate` for what is made of both sides, or of neither, when a shelf is scored."""
    match feature:
        case d.DecayedCount():
            return feature.entity
        case d.LastN() | d.Affinity() | d.Recency() | d.Session():
            return "shopper"
        case d.Rate() | d.Trend() | d.Covisit() | d.Field():
            return "item"
    return "candidate"


def fields_of(features: FeatureSet, feature: d.AnyDeclaration) -> list[str]:
    """Where the feature stands in Feast, as `view.field`."""
    name = feature.name
    match feature:
        case d.LastN():
            return [f"{features.shopper_view.name}.{name}_{part}" for part in ("items", "events", "times_ms")]
        case d.Affinity():
            return [f"{features.shopper_view.name}.{name}_{part}" for part in ("keys", "values")]
        case d.Covisit():
            return [f"{features.item_view.name}.{name}_{part}" for part in ("keys", "values")]
        case d.Field():
            return [f"item_catalog.{feature.field}"]
        case d.Match() | d.Position():
            return []
    view = features.shopper_view if entity_of(feature) == "shopper" else features.item_view
    return [f"{view.name}.{name}"]


def columns_of(features: FeatureSet, feature: d.AnyDeclaration) -> list[str]:
    """The model's columns that the feature gives by itself; a shopper's affinities reach the model by the matches that name them."""
    name = feature.name
    if isinstance(feature, d.Recency):
        return [f"log_hours_{name}_{event}" for event in feature.events]
    if isinstance(feature, d.Session):
        return [f"log_{name}_{what}" for what in ("depth", "items", "dwell")]
    if isinstance(feature, d.LastN):
        return ["recent_items", "recent_events", "recent_age", f"{name}_seen", f"{name}_rank"]
    if isinstance(feature, d.DecayedCount):
        columns = features.shopper_columns if feature.entity == "shopper" else features.candidate_columns
        return [column for column in columns if column.startswith(f"log_{name}_") and _counts_event(column, name, feature)]
    return [column for column in features.candidate_columns if column in (name, f"log_{name}", f"has_{name}")]


def _counts_event(column: str, name: str, feature: d.DecayedCount) -> bool:
    return column.removeprefix(f"log_{name}_").rpartition("_")[0] in feature.events


def _counts(slots: list[Slot], numbers: list[float], half_lives: HalfLives, scale: Sequence[float]) -> dict[str, float]:
    label = FeatureSet._label
    return {f"{slot.event} ({label(half_lives, slot)})": numbers[slot.at] * scale[slot.half_life] for slot in slots}


def _session(feature: d.Session, marks: list[int], now_ms: int) -> dict[str, Any]:
    start, last, depth, items = marks
    going_on = bool(last) and now_ms - last <= d.milliseconds(feature.idle)
    return {
        "going on": going_on,
        "events": depth,
        "changes of item": items,
        "dwell in s": (last - start) // 1000,
        "began": ago(start, now_ms),
        "latest event": ago(last, now_ms),
    }


def _named(field: str, key: str) -> str:
    """A price band as what it stands for: prices up to a power of two."""
    if field != "price_band":
        return key
    upper = 2.0 ** int(key)  # see `features.fold.price_band`
    return f"{upper / 2:g} to {upper:g}"


def _source(partition: int, offset: int, time_ms: int, now_ms: int) -> dict[str, Any]:
    return {
        "from": f"{partition}@{offset}",
        "partition": partition,
        "offset": offset,
        "time_ms": time_ms,
        "latest_event": ago(time_ms, now_ms),
    }
