"""What a list of declarations compiles to: the layout of rows, what each event adds where, Feast fields, and model inputs."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from features import declarations as d
from features.decay import HalfLives
from features.events import EVENT_INDEX, EVENT_NAMES
from features.rows import ItemRow, ShopperRow
from liveshelf.settings import Settings

ID_BYTES = 6
"""Of an event's hashed id: see `fold.event_key`."""


class Slot(NamedTuple):
    """One decayed count: a place in a row's `numbers`."""

    at: int
    event: str
    half_life: int
    """Position among the row's half-lives."""


class Leaning(NamedTuple):
    """What one event adds to one affinity."""

    at: int
    field: str
    weight: float
    half_life: int
    top: int


class ViewSpec(NamedTuple):
    """A Feast view: `fields` are (name, kind, meaning), see `values.View` for the kinds."""

    name: str
    keys: tuple[tuple[str, type], ...]
    fields: tuple[tuple[str, str, str], ...]
    compressed: bool = False
    """Whether the store's memory counts more than 2 µs a row: there are many more shoppers than items."""


class FeatureSet:
    """One version of the features. Equal declarations give equal versions, layouts and model inputs."""

    def __init__(self, declared: d.DeclarationFile) -> None:
        self.declared = declared
        self.version = d.version_of(declared)
        self.events_per_hour_max = declared.events_per_hour_max
        of_kind = self._of_kind
        (self.sequence,) = of_kind(d.LastN)
        (self.covisit,) = of_kind(d.Covisit)
        self.affinities: list[d.Affinity] = of_kind(d.Affinity)
        self.recencies: list[d.Recency] = of_kind(d.Recency)
        self.sessions: list[d.Session] = of_kind(d.Session)
        self.shopper_half_lives, self.shopper_slots = self._lay_out("shopper", [a.half_life for a in self.affinities])
        self.item_half_lives, self.item_slots = self._lay_out("item", [self.covisit.half_life])
        self.shopper_numbers = sum(map(len, self.shopper_slots.values()))
        self.item_numbers = sum(map(len, self.item_slots.values()))
        self.mark_at: dict[str, int] = {}
        marks = 0
        for feature, size in [*((r, len(r.events)) for r in self.recencies), *((s, 4) for s in self.sessions)]:
            self.mark_at[feature.name] = marks
            marks += size
        self.marks = marks

    def __repr__(self) -> str:
        return f"FeatureSet({self.version}: {', '.join(f.name for f in self.declared.features)})"

    def _of_kind(self, kind: type) -> list[Any]:
        return [feature for feature in self.declared.features if isinstance(feature, kind)]

    def _lay_out(self, entity: str, others: list[str]) -> tuple[HalfLives, dict[str, list[Slot]]]:
        """Half-lives of the entity's rows, and the slots of each of its counting features."""
        ms: list[int] = []

        def half_life(duration: str) -> int:
            value = d.milliseconds(duration)
            if value not in ms:
                ms.append(value)
            return ms.index(value)

        slots: dict[str, list[Slot]] = {}
        at = 0
        for feature in self.declared.features:
            pairs: list[tuple[str, str]] = []
            if isinstance(feature, d.DecayedCount) and feature.entity == entity:
                pairs = [(event, h) for h in feature.half_lives for event in feature.events]
            elif entity == "item" and isinstance(feature, d.Rate):
                pairs = [(feature.of, feature.half_life), (feature.to, feature.half_life)]
            elif entity == "item" and isinstance(feature, d.Trend):
                pairs = [(event, h) for h in (feature.short, feature.long) for event in feature.events]
            if pairs:
                slots[feature.name] = [Slot(at + i, event, half_life(h)) for i, (event, h) in enumerate(pairs)]
                at += len(pairs)
        for duration in others:
            half_life(duration)
        return HalfLives(ms), slots

    def half_life_at(self, half_lives: HalfLives, duration: str) -> int:
        return half_lives.ms.index(d.milliseconds(duration))

    @staticmethod
    def _by_event(slots: dict[str, list[Slot]]) -> dict[str, list[tuple[int, int]]]:
        by_event: dict[str, list[tuple[int, int]]] = {}
        for of_feature in slots.values():
            for slot in of_feature:
                by_event.setdefault(slot.event, []).append((slot.at, slot.half_life))
        return by_event

    @cached_property
    def shopper_counts_by_event(self) -> dict[str, list[tuple[int, int]]]:
        """Event name → (place in `numbers`, half-life) of everything it counts in."""
        return self._by_event(self.shopper_slots)

    @cached_property
    def item_counts_by_event(self) -> dict[str, list[tuple[int, int]]]:
        return self._by_event(self.item_slots)

    @cached_property
    def leanings_by_event(self) -> dict[str, list[Leaning]]:
        by_event: dict[str, list[Leaning]] = {}
        for at, affinity in enumerate(self.affinities):
            half_life = self.half_life_at(self.shopper_half_lives, affinity.half_life)
            for event, weight in affinity.weights.items():
                by_event.setdefault(event, []).append(Leaning(at, affinity.field, weight, half_life, affinity.top))
        return by_event

    @cached_property
    def marks_by_event(self) -> dict[str, list[int]]:
        """Event name → places in `marks` that keep its latest time."""
        by_event: dict[str, list[int]] = {}
        for recency in self.recencies:
            for i, event in enumerate(recency.events):
                by_event.setdefault(event, []).append(self.mark_at[recency.name] + i)
        return by_event

    def shopper(self, shopper: str) -> ShopperRow:
        """The row of a shopper of whom nothing is known."""
        return ShopperRow(
            shopper, numbers=[0.0] * self.shopper_numbers, marks=[0] * self.marks, affinities=[{} for _ in self.affinities]
        )

    def item(self, item: str, partition: int) -> ItemRow:
        return ItemRow(item, partition, numbers=[0.0] * self.item_numbers)

    # How rows stand in the online store

    @cached_property
    def shopper_view(self) -> ViewSpec:
        meaning = {feature.name: feature.meaning for feature in self.declared.features}
        name = self.sequence.name
        fields: list[tuple[str, str, str]] = [
            ("partition", "int64", "clickstream partition"),
            ("offset", "int64", "folded up to here, inclusive"),
            ("time_ms", "int64", "latest event time"),
            (f"{name}_items", "string_list", meaning[name]),
            (f"{name}_events", "int64_list", "their events, as index in EVENT_NAMES"),
            (f"{name}_times_ms", "int64_list", "their event times"),
            *((n, "float_list", meaning[n]) for n in self.shopper_slots),
            *((n, "int64_list", meaning[n]) for n in self.mark_at),
        ]
        for affinity in self.affinities:
            fields.append((f"{affinity.name}_keys", "string_list", affinity.meaning))
            fields.append((f"{affinity.name}_values", "float_list", "their decayed weights"))
        fields.append(("seen", "bytes", "hashed ids of the events of two days, the latest 2,048 at most"))
        fields.append(("hour", "int64_list", "latest hour with events, and their number"))
        fields.append(("links", "string_list", "sign-ins of this browser"))
        fields.append(("merged", "string_list", "handovers folded"))
        return ViewSpec(f"shopper_features_{self.version}", (("shopper", str),), tuple(fields), compressed=True)

    def shopper_values(self, row: ShopperRow) -> list[Any]:
        """`row` as values of `shopper_view.fields`."""
        values: list[Any] = [row.partition, row.offset, row.time_ms, row.recent_items, row.recent_events, row.recent_times_ms]
        values += [row.numbers[slots[0].at : slots[0].at + len(slots)] for slots in self.shopper_slots.values()]
        values += [row.marks[at:end] for at, end in self._mark_ranges]
        for weights in row.affinities:
            values += [list(weights), list(weights.values())]
        values.append(pack_seen(row.seen))
        values.append([row.hour, row.hour_events] if row.hour else [])
        values.append([f"{time_ms} {to}" for time_ms, to in row.links])
        values.append(row.merged)
        return values

    def shopper_row(self, shopper: str, values: Sequence[Any]) -> ShopperRow:
        """The row that `shopper_values` took apart; an empty list or None reads as nothing counted yet."""
        row = self.shopper(shopper)
        row.partition, row.offset, row.time_ms = values[0], values[1], values[2]
        row.recent_items, row.recent_events, row.recent_times_ms = list(values[3]), list(values[4]), list(values[5])
        at = 6
        for slots in self.shopper_slots.values():
            if values[at]:
                row.numbers[slots[0].at : slots[0].at + len(slots)] = values[at]
            at += 1
        for start, end in self._mark_ranges:
            if values[at]:
                row.marks[start:end] = values[at]
            at += 1
        for i in range(len(self.affinities)):
            row.affinities[i] = dict(zip(values[at], values[at + 1], strict=True))
            at += 2
        row.seen = unpack_seen(values[at] or b"")
        row.hour, row.hour_events = values[at + 1] or (0, 0)
        row.links = [(int(time_ms), to) for time_ms, to in (link.split(" ", 1) for link in values[at + 2])]
        row.merged = list(values[at + 3])
        return row

    @cached_property
    def _mark_ranges(self) -> list[tuple[int, int]]:
        starts = [*self.mark_at.values(), self.marks]
        return list(pairwise(starts))

    @cached_property
    def item_view(self) -> ViewSpec:
        meaning = {feature.name: feature.meaning for feature in self.declared.features}
        fields = (
            ("offset", "int64", "folded up to here, inclusive"),
            ("time_ms", "int64", "latest event time"),
            *((n, "double_list", meaning[n]) for n in self.item_slots),
            (f"{self.covisit.name}_keys", "string_list", self.covisit.meaning),
            (f"{self.covisit.name}_values", "double_list", "their decayed weights"),
        )
        return ViewSpec(f"item_features_{self.version}", (("item", str), ("source_partition", int)), fields)

    def item_values(self, row: ItemRow) -> list[Any]:
        values: list[Any] = [row.offset, row.time_ms]
        values += [row.numbers[slots[0].at : slots[0].at + len(slots)] for slots in self.item_slots.values()]
        return [*values, list(row.neighbours), list(row.neighbours.values())]

    def item_row(self, item: str, partition: int, values: Sequence[Any]) -> ItemRow:
        row = self.item(item, partition)
        row.offset, row.time_ms = values[0], values[1]
        for at, slots in enumerate(self.item_slots.values(), 2):
            if values[at]:
                row.numbers[slots[0].at : slots[0].at + len(slots)] = values[at]
        row.neighbours = dict(zip(values[-2], values[-1], strict=True))
        return row

    # What the model reads

    @cached_property
    def shopper_columns(self) -> tuple[str, ...]:
        """Names of the shopper features, in their order."""
        names = [f"log_{name}_{s.event}_{self._label(self.shopper_half_lives, s)}" for name, s in _flat(self.shopper_slots)]
        names += [f"log_hours_{r.name}_{event}" for r in self.recencies for event in r.events]
        return (*names, *(f"log_{s.name}_{what}" for s in self.sessions for what in ("depth", "items", "dwell")))

    @cached_property
    def candidate_columns(self) -> tuple[str, ...]:
        """Names of the candidate features, in their order."""
        names: list[str] = []
        for feature in self.declared.features:
            match feature:
                case d.DecayedCount(entity="item"):
                    slots = self.item_slots[feature.name]
                    names += [f"log_{feature.name}_{s.event}_{self._label(self.item_half_lives, s)}" for s in slots]
                case d.Rate() | d.Match() | d.Trend() | d.Position():
                    names.append(feature.name)
                case d.Covisit() | d.Field(field="price"):
                    names.append(f"log_{feature.name}")
                case d.Field():
                    names.append(f"has_{feature.name}")
                case d.LastN():
                    names += [f"{feature.name}_seen", f"{feature.name}_rank"]
        return tuple(names)

    @staticmethod
    def _label(half_lives: HalfLives, slot: Slot) -> str:
        hours = half_lives.ms[slot.half_life] / 3_600_000
        return f"{hours:g}h"


def _flat(slots: dict[str, list[Slot]]) -> list[tuple[str, Slot]]:
    return [(name, slot) for name, of_feature in slots.items() for slot in of_feature]


def declared_set(settings: Settings) -> FeatureSet:
    """The features that the settings declare.

    Raises:
        SettingsError: the file cannot be read or is not valid; the message names the line.
    """
    return FeatureSet(d.read_declarations(Path(settings.features_file).expanduser() if settings.features_file else None))


def load_feature_set(text: str, source: str) -> FeatureSet:
    """The feature set of a settings file's text.

    Raises:
        SettingsError: it is not valid.
    """
    return FeatureSet(d.parse_declarations(text, source))


def to_text(features: FeatureSet) -> str:
    """The declarations as text that `load_feature_set` reads back to an equal set."""
    return msgspec.json.encode(features.declared).decode()  # JSON is YAML


def pack_seen(seen: dict[int, int]) -> bytes:
    """Ids by hour, in their order: runs of (hour as uint32, count as uint16, count ids of ID_BYTES)."""
    out = bytearray()
    ids = list(seen.items())
    at = 0
    while at < len(ids):
        end, hour = at + 1, ids[at][1]
        while end < len(ids) and ids[end][1] == hour:
            end += 1
        out += hour.to_bytes(4, "little") + (end - at).to_bytes(2, "little")
        for key, _ in ids[at:end]:
            out += key.to_bytes(ID_BYTES, "little")
        at = end
    return bytes(out)


def unpack_seen(packed: bytes) -> dict[int, int]:
    seen: dict[int, int] = {}
    at = 0
    while at < len(packed):
        hour = int.from_bytes(packed[at : at + 4], "little")
        count = int.from_bytes(packed[at + 4 : at + 6], "little")
        at += 6
        end = at + ID_BYTES * count
        for start in range(at, end, ID_BYTES):
            seen[int.from_bytes(packed[start : start + ID_BYTES], "little")] = hour
        at = end
    return seen


def event_names(indices: Sequence[int]) -> list[str]:
    return [EVENT_NAMES[i] for i in indices]


PURCHASE = EVENT_INDEX["purchase"]
