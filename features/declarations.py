"""Features as a shop declares them: one entry of a settings file each, read and checked here.

Every kind says what it means and which parameters it takes; `features.feature_set` compiles a list of them into rows, fold, Feast
fields and model inputs. Decayed values halve every `half_life` of event time.
"""

import hashlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from features.events import EVENT_NAMES, EventName
from features.located import line_of, parse_yaml
from liveshelf.errors import SettingsError

FOLD_FORMAT = 2
"""Raised when the arithmetic of a kind changes, so that rows folded by other arithmetic are another feature version."""

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Duration = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,5}(s|m|h|d)$")]
Count = Annotated[int, Meta(ge=1, le=1_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Events = Annotated[list[EventName], Meta(min_length=1)]
ItemField = Literal["item_category", "item_brand", "price_band"]

_DURATIONS = {"half_life", "half_lives", "idle", "span", "short", "long"}
"""Parameters that are durations."""
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(duration: str) -> int:
    """`30m`, `6h`, `3d` in ms."""
    return int(duration[:-1]) * _UNIT_MS[duration[-1]]


class Declaration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    name: Name
    meaning: str = ""
    """For `liveshelf features list` and the Feast field; it does not change the feature version."""


class LastN(Declaration, frozen=True, kw_only=True, tag="last_n"):
    """A shopper's latest items with event name and event time, newest first: the sequence that the model reads."""

    n: Annotated[int, Meta(ge=2, le=100)]
    events: Events


class DecayedCount(Declaration, frozen=True, kw_only=True, tag="decayed_count"):
    """Number of events by name, once for every half-life."""

    entity: Literal["shopper", "item"]
    events: Events
    half_lives: Annotated[list[Duration], Meta(min_length=1, max_length=4)]


class Rate(Declaration, frozen=True, kw_only=True, tag="rate"):
    """Smoothed ratio of an item's events: (count of `of` + prior_of) / (count of `to` + prior_to)."""

    of: EventName
    to: EventName
    half_life: Duration
    prior_of: Positive = 1.0
    prior_to: Positive = 20.0


class Affinity(Declaration, frozen=True, kw_only=True, tag="affinity"):
    """A shopper's decayed weight by value of an item field; the heaviest `top` are kept. Weights by event name."""

    field: ItemField
    half_life: Duration
    weights: Annotated[dict[EventName, Positive], Meta(min_length=1)]
    top: Annotated[int, Meta(ge=1, le=100)] = 20


class Recency(Declaration, frozen=True, kw_only=True, tag="recency"):
    """When the shopper last did each of these."""

    events: Events


class Session(Declaration, frozen=True, kw_only=True, tag="session"):
    """The visit going on: events (depth), changes of item, and time since its start (dwell); it ends after `idle` without events."""

    idle: Duration = "30m"


class Field(Declaration, frozen=True, kw_only=True, tag="field"):
    """A field of the candidate's catalog record: the logarithm of a price, or whether a text is there."""

    field: Literal["price", "item_name", "item_category", "item_brand"]


class Covisit(Declaration, frozen=True, kw_only=True, tag="covisit"):
    """Directed neighbours of an item: what shoppers looked at within `span` after it, of the `lookback` items before each."""

    half_life: Duration
    k: Annotated[int, Meta(ge=1, le=200)] = 40
    span: Duration = "1h"
    lookback: Annotated[int, Meta(ge=1, le=10)] = 3
    backward: Share = 0.6


class Trend(Declaration, frozen=True, kw_only=True, tag="trend"):
    """An item's rate of events over a short half-life against a long one, as a logarithm: 0 is steady."""

    events: Events
    short: Duration
    long: Duration


class Position(Declaration, frozen=True, kw_only=True, tag="position"):
    """Where on the shelf the candidate stood, from 0: known when learning, 0 for all when serving, so that the model can debias."""


class Match(Declaration, frozen=True, kw_only=True, tag="match"):
    """Share of the named affinity that the candidate's field value holds."""

    affinity: Name


AnyDeclaration = LastN | DecayedCount | Rate | Affinity | Recency | Session | Field | Covisit | Trend | Position | Match


ROW_FIELDS = ("partition", "offset", "time_ms", "seen", "hour", "links", "merged")
"""Fields that rows have beside their features, in either view."""


def stored_fields(feature: AnyDeclaration) -> tuple[str, ...]:
    """Names of the fields that a feature has in rows; features that need none are computed from others' when read."""
    match feature:
        case LastN():
            return (f"{feature.name}_items", f"{feature.name}_events", f"{feature.name}_times_ms")
        case Affinity() | Covisit():
            return (f"{feature.name}_keys", f"{feature.name}_values")
        case Field() | Position() | Match():
            return ()
    return (feature.name,)


class DeclarationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A feature settings file."""

    features: Annotated[list[AnyDeclaration], Meta(min_length=1, max_length=100)]
    events_per_hour_max: Annotated[int, Meta(ge=10, le=100_000)] = 1_000
    """More events of one shopper within an hour of event time are counted and otherwise ignored: no person does so much, a bot does.
    1,000 is one every 3.6 s for an hour."""


def version_of(declared: DeclarationFile) -> str:
    """Eight hex digits that name this set of features: equal sets, however worded and in whatever file, have equal versions."""
    plain = msgspec.to_builtins(declared)
    for feature in plain["features"]:
        feature.pop("meaning", None)
        for parameter in _DURATIONS & feature.keys():  # 1d is 24h
            given = feature[parameter]
            feature[parameter] = [milliseconds(one) for one in given] if isinstance(given, list) else milliseconds(given)
    canonical = msgspec.json.encode([FOLD_FORMAT, plain], order="sorted")
    return hashlib.blake2b(canonical, digest_size=4).hexdigest()


def default_text() -> str:
    """The settings file that Liveshelf ships."""
    return resources.files("features").joinpath("default.yml").read_text()


def read_declarations(path: Path | None) -> DeclarationFile:
    """The declarations in `path`; those that Liveshelf ships when it is None.

    Raises:
        SettingsError: the file cannot be read or is not valid; the message names file, line, value and what was expected.
    """
    if path is None:
        return parse_declarations(default_text(), "default.yml")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the feature settings file {path} cannot be read: {error}") from None
    return parse_declarations(text, str(path))


def parse_declarations(text: str, source: str) -> DeclarationFile:
    """`text` as declarations; `source` names it in errors.

    Raises:
        SettingsError: as `read_declarations`.
    """
    declared, node = parse_yaml(text, source, DeclarationFile, _explained)
    for path, problem in _inconsistencies(declared):
        raise SettingsError(f"{source}, line {line_of(node, path)}: {problem}")
    return declared


def _inconsistencies(declared: DeclarationFile) -> Iterable[tuple[str, str]]:
    """(path, what is wrong) for everything that types do not say."""
    features = declared.features
    first_at: dict[str, int] = {}
    stored: dict[str, str] = dict.fromkeys(ROW_FIELDS, "every row")
    affinities = {f.name for f in features if isinstance(f, Affinity)}
    sequences = [f.name for f in features if isinstance(f, LastN)]
    for i, feature in enumerate(features):
        if feature.name in first_at:
            yield f".features[{i}].name", f"name `{feature.name}` is taken by entry {first_at[feature.name] + 1}; names must differ"
        else:
            for field in stored_fields(feature):
                if field in stored:
                    yield (
                        f".features[{i}].name",
                        f"`{feature.name}` is kept as `{field}`, as {stored[field]} has it; choose another name",
                    )
                stored[field] = f"`{feature.name}`"
        first_at[feature.name] = i
        if isinstance(feature, Match) and feature.affinity not in affinities:
            known = ", ".join(sorted(affinities)) or "none is declared"
            yield f".features[{i}].affinity", f"`{feature.affinity}` is not the name of an affinity; there are: {known}"
        if isinstance(feature, Trend) and milliseconds(feature.short) >= milliseconds(feature.long):
            yield f".features[{i}].short", f"short ({feature.short}) must be shorter than long ({feature.long})"
        if isinstance(feature, Rate) and feature.of == feature.to:
            yield f".features[{i}].to", f"the rate of {feature.of} to itself is 1: name another event"
        for parameter, same in (("events", str), ("half_lives", milliseconds)):
            given = getattr(feature, parameter, [])
            if len({same(one) for one in given}) < len(given):
                yield f".features[{i}].{parameter}", f"`{feature.name}` names something twice: {', '.join(given)}"
    if len(sequences) != 1:
        found = ", ".join(sequences) or "none"
        yield ".features", f"exactly one feature of kind last_n is needed, the model's sequence; found: {found}"
    if sum(isinstance(f, Covisit) for f in features) != 1:
        yield ".features", "exactly one feature of kind covisit is needed: candidates are found by it"
    if not any(isinstance(f, DecayedCount) and f.entity == "item" for f in features):
        yield ".features", "a decayed_count with `entity: item` is needed: what is popular is counted by it"


def _explained(what: str, path: str) -> str:
    """msgspec's words, with the values that there are."""
    if what.startswith("Invalid value") and path.endswith(".kind"):
        kinds = ", ".join(kind.__struct_config__.tag for kind in AnyDeclaration.__args__)
        what = f"unknown kind; there are: {kinds}"
    if "Invalid enum value" in what and ("events" in path or path.endswith((".of", ".to", ".weights"))):
        what += f"; events are: {', '.join(EVENT_NAMES)}"
    return what
