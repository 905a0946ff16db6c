"""Whether declared features make something of a sample of the shop's events. The sample is folded, so what is said is what would happen."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from features import declarations as d
from features.events import Event
from features.feature_set import FeatureSet
from features.fold import Fold, field_value
from features.rows import ItemRow, ShopperRow

LACKING = 0.01  # of the items that affinities look at; below, a field is as good as absent


class Checked(NamedTuple):
    """What a sample says about a feature set."""

    events: dict[str, int]
    """By name."""
    silent: dict[str, str]
    """Features that nothing in the sample feeds → why."""
    partly: dict[str, list[str]]
    """Features that also count event names of which the sample has none."""
    unused: list[str]
    """Event names of the sample that no feature uses."""
    lacking: dict[str, float]
    """Item fields that affinities need → the share of items that have them, where that is below LACKING."""


class Changed(NamedTuple):
    """What differs between two feature sets, by feature name."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    other: list[str]


def check_sample(features: FeatureSet, events: Sequence[Event]) -> Checked:
    """Fold `events` and look what became of them."""
    by_name: Counter[str] = Counter(event.event_name for event in events)
    shoppers, items = _fold(features, events)
    silent: dict[str, str] = {}
    partly: dict[str, list[str]] = {}
    used = {"login"}
    fields = _field_shares(features, events)
    for feature in features.declared.features:
        names = events_of(feature)
        used.update(names)
        absent = [name for name in names if not by_name[name]]
        if names and not _fires(features, feature, shoppers, items):
            field = feature.field if isinstance(feature, d.Affinity) else ""
            silent[feature.name] = (
                f"the sample has no {', '.join(absent)}"
                if len(absent) == len(names)
                else f"no item of its events has {field}"
                if field
                else "its events say nothing that it counts"
            )
        elif absent:
            partly[feature.name] = absent
    return Checked(
        dict(by_name.most_common()),
        silent,
        partly,
        sorted(by_name.keys() - used),
        {field: share for field, share in fields.items() if share < LACKING},
    )


def events_of(feature: d.AnyDeclaration) -> list[str]:
    """Event names that feed the feature; none for what is made of the catalog, of other features or of the shelf."""
    match feature:
        case d.LastN() | d.DecayedCount() | d.Recency() | d.Trend():
            return list(feature.events)
        case d.Rate():
            return [feature.of, feature.to]
        case d.Affinity():
            return list(feature.weights)
    return []


def changes(old: FeatureSet, new: FeatureSet) -> Changed:
    """What makes `new` another version than `old`."""
    before = {feature.name: feature for feature in old.declared.features}
    after = {feature.name: feature for feature in new.declared.features}
    other = []
    if old.events_per_hour_max != new.events_per_hour_max:
        other.append(f"events_per_hour_max: {old.events_per_hour_max} → {new.events_per_hour_max}")
    if [name for name in before if name in after] != [name for name in after if name in before]:
        other.append("the order of the features")
    return Changed(
        [name for name in after if name not in before],
        [name for name in before if name not in after],
        [name for name in after if name in before and _plain(after[name]) != _plain(before[name])],
        other,
    )


def _plain(feature: d.AnyDeclaration) -> dict[str, object]:
    return {name: getattr(feature, name) for name in feature.__struct_fields__ if name != "meaning"} | {"kind": type(feature)}


def _fold(features: FeatureSet, events: Sequence[Event]) -> tuple[list[ShopperRow], list[ItemRow]]:
    fold = Fold(features)
    shoppers: dict[str, ShopperRow] = {}
    items: dict[str, ItemRow] = {}
    for offset, event in enumerate(events):
        row = shoppers.get(event.shopper)
        if row is None:
            row = shoppers[event.shopper] = features.shopper(event.shopper)
        said, weights = fold.shopper(row, event, 0, offset), fold.item_weights(event)
        for touch in said.touches:
            into = items.get(touch.item)
            if into is None:
                into = items[touch.item] = features.item(touch.item, 0)
            fold.item(into, touch, event.event_name, weights, offset)
    return list(shoppers.values()), list(items.values())


def _fires(features: FeatureSet, feature: d.AnyDeclaration, shoppers: list[ShopperRow], items: list[ItemRow]) -> bool:
    match feature:
        case d.LastN():
            return any(row.recent_items for row in shoppers)
        case d.DecayedCount(entity="shopper"):
            return _any_number(features.shopper_slots[feature.name], shoppers)
        case d.DecayedCount() | d.Trend():
            return _any_number(features.item_slots[feature.name], items)
        case d.Rate():
            of, to = features.item_slots[feature.name]
            return _any_number([of], items) and _any_number([to], items)
        case d.Affinity():
            at = next(i for i, affinity in enumerate(features.affinities) if affinity is feature)
            return any(row.affinities[at] for row in shoppers)
        case d.Recency():
            at = features.mark_at[feature.name]
            return any(any(row.marks[at : at + len(feature.events)]) for row in shoppers)
    return True


def _any_number(slots: Sequence[tuple[int, str, int]], rows: Sequence[ShopperRow] | Sequence[ItemRow]) -> bool:
    return any(row.numbers[slot[0]] for row in rows for slot in slots)


def _field_shares(features: FeatureSet, events: Sequence[Event]) -> dict[str, float]:
    """Item field that some affinity needs → share of the items it looks at that have a value."""
    having: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    needed: dict[str, set[str]] = {}
    for affinity in features.affinities:
        for name in affinity.weights:
            needed.setdefault(name, set()).add(affinity.field)
    for event in events:
        for field in needed.get(event.event_name, ()):
            for item in event.items:
                seen[field] += 1
                having[field] += bool(field_value(item, field))
    return {affinity.field: having[affinity.field] / max(seen[affinity.field], 1) for affinity in features.affinities}
