"""The one place of this harness that knows what feature rows look like: the log folded undisturbed, and the same rows from the store.

What it computes is what `liveshelf features verify` means by equal: the clickstream folded again from offset 0, partition by
partition, purely, against the rows in the store. Shopper rows bit for bit, item rows to ITEM_TOLERANCE.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from features.events import Event
from features.feature_set import FeatureSet
from features.fold import FOLDED, Fold
from features.rows import ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.settings import Settings
from streams.records import decode

ITEM_TOLERANCE = 1e-9  # relative: contributions of partitions are sums of floats
READ_ROWS = 500  # rows a read
READ_TIMEOUT_S = 30.0

Log = list[tuple[int, int, bytes, bytes]]
"""(partition, offset, key, value)."""


class Folded(NamedTuple):
    """The rows that the log folds into by kind, the event ids that the fold itself took twice, and the sign-ins whose handover is missing
    from the log or is not what the browser's row was."""

    rows: dict[tuple[str, ...], Any]
    doubled: list[str]
    handovers: int
    handovers_lost: list[str]


class Difference(NamedTuple):
    """A row that differs, and by how many events it holds too many (above 0) or too few."""

    text: str
    events: int


def undisturbed(log: Log, features: FeatureSet) -> Folded:
    fold = Fold(features)
    shoppers: dict[str, ShopperRow] = {}
    items: dict[tuple[str, int], ItemRow] = {}
    seen: set[str] = set()
    doubled: list[str] = []
    owed: dict[str, ShopperRow] = {}
    handed_over: dict[str, ShopperRow] = {}
    for partition, offset, _, value in sorted(log, key=lambda record: record[:2]):
        try:
            event = decode(Event, value)
        except msgspec.DecodeError:
            continue
        row = shoppers.setdefault(event.shopper, features.shopper(event.shopper))
        said, weights = fold.shopper(row, event, partition, offset), fold.item_weights(event)
        if event.handover is not None:
            handed_over.setdefault(event.handover.id, event.handover.states[features.version])
        elif said.outcome == FOLDED:  # one beyond a bot's bound was not taken: its re-send in another hour is the first
            if event.event_id in seen:
                doubled.append(event.event_id)
            seen.add(event.event_id)
        if said.state is not None:
            owed[f"{partition}@{offset}"] = msgspec.structs.replace(said.state)
        for touch in said.touches:
            item_row = items.setdefault((touch.item, partition), features.item(touch.item, partition))
            fold.item(item_row, touch, event.event_name, weights, offset)
    kinds: dict[tuple[str, ...], Any] = {("shopper", name): row for name, row in shoppers.items()}
    return Folded(
        kinds | {("item", name, str(partition)): row for (name, partition), row in items.items()},
        doubled,
        len(owed),
        [name for name, state in owed.items() if handed_over.get(name) != state] + sorted(handed_over.keys() - owed.keys()),
    )


def stored(settings: Settings, keys: list[tuple[str, ...]], features: FeatureSet) -> dict[tuple[str, ...], Any]:
    """The store's rows under the same keys; absent where it has none."""
    rows = FeatureRows(settings, READ_TIMEOUT_S)
    found: dict[tuple[str, ...], Any] = {}
    for some in _some([key[1] for key in keys if key[0] == "shopper"]):
        found |= {("shopper", name): row for name, row in rows.read_shoppers(some, features).items()}
    for some in _some([(key[1], int(key[2])) for key in keys if key[0] == "item"]):
        found |= {("item", name, str(partition)): row for (name, partition), row in rows.read_items(some, features).items()}
    return found


def differences(
    expected: Mapping[tuple[str, ...], Any], found: Mapping[tuple[str, ...], Any], features: FeatureSet
) -> Iterator[Difference]:
    for key, row in expected.items():
        there = found.get(key)
        name = " ".join(key)
        if there is None:
            yield Difference(f"{name}: not in the store", -round(_weight(row, features)) if key[0] == "shopper" else 0)
            continue
        mine, its = msgspec.to_builtins(row), msgspec.to_builtins(there)
        fields = [field for field in mine.keys() | its.keys() if not _equal(mine.get(field), its.get(field), key[0] == "item")]
        if fields:
            yield Difference(
                f"{name}: {_shown(fields, mine, its)}",
                round(_weight(there, features) - _weight(row, features)) if key[0] == "shopper" else 0,
            )


def _weight(row: ShopperRow, features: FeatureSet) -> float:
    """How many of the counted events the row holds: each weighs nearly 1, since the stream is short against the longest half-life."""
    slots = [slot for of_feature in features.shopper_slots.values() for slot in of_feature]
    longest = max((slot.half_life for slot in slots), key=features.shopper_half_lives.ms.__getitem__)
    scale = features.shopper_half_lives.scale(np.asarray(row.time_ms), row.time_ms)[longest]
    return float(sum(row.numbers[slot.at] for slot in slots if slot.half_life == longest) * scale)


def _equal(left: Any, right: Any, tolerant: bool) -> bool:
    if tolerant and isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=ITEM_TOLERANCE)
    if tolerant and isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_equal(one, two, True) for one, two in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key], tolerant) for key in left)
    return bool(left == right)


def _shown(fields: list[str], mine: dict[str, Any], its: dict[str, Any]) -> str:
    """Up to which offset and how much the row holds, then the names of the other fields that differ."""
    first = [field for field in ("offset", "numbers") if field in fields]
    told = [f"{field} is {_short(its.get(field))}, expected {_short(mine.get(field))}" for field in first]
    others = sorted(set(fields) - set(first))
    return "; ".join([*told, *([f"also {', '.join(others)}"] if others else [])])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {amount:.3f}" for key, amount in sorted(value.items())) + "}"
    return str(value)


def _some(keys: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(keys), READ_ROWS):
        yield keys[start : start + READ_ROWS]
