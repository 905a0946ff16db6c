"""Feature settings: what each kind compiles to, what names a version, and errors that name the line."""

import json
from pathlib import Path

import msgspec
import pytest
import yaml

from features import declarations as d
from features.declarations import default_text, parse_declarations, read_declarations, version_of
from features.definitions import build
from features.encoder import Encoder
from features.feature_set import FeatureSet, load_feature_set, to_text
from features.fold import Fold
from features.items import ItemTable
from features.readable import columns_of, declared_features, fields_of, kind_of
from liveshelf.errors import SettingsError
from tests.folding import DAY_MS, FEATURES, HOUR_MS, T0

EVERY_KIND = (Path(__file__).parent / "golden" / "features_v2.yml").read_text()
KINDS = [kind.__struct_config__.tag for kind in d.AnyDeclaration.__args__]


def test_what_liveshelf_ships_is_valid_and_explained() -> None:
    declared = read_declarations(None)
    assert version_of(declared) == FEATURES.version
    assert all(feature.meaning for feature in declared.features)


def test_durations_are_milliseconds() -> None:
    assert [d.milliseconds(t) for t in ("1s", "30m", "6h", "14d")] == [1000, 1_800_000, 6 * HOUR_MS, 14 * DAY_MS]


@pytest.mark.parametrize("text", [EVERY_KIND, default_text()])
def test_a_declaration_reaches_feast_fields_rows_and_model_columns(text: str, tmp_path: Path) -> None:
    """Nothing is lost and nothing is left over: every field and column belongs to one feature, or to the row itself."""
    features = load_feature_set(text, "t")
    objects = build([features], tmp_path)
    for view in (features.shopper_view, features.item_view):
        own = {f"{view.name}.{name}" for name in (*d.ROW_FIELDS,)}
        of_features = [field for feature in features.declared.features for field in fields_of(features, feature)]
        there = {f"{view.name}.{name}" for name, *_ in view.fields}
        assert len(of_features) == len(set(of_features))
        assert there - own == {field for field in of_features if field.startswith(f"{view.name}.")}
        in_feast = {field.name for field in objects[view.name].schema} - {name for name, _ in view.keys}
        assert in_feast == {name for name, *_ in view.fields}
    for feature in features.declared.features:
        kept = [field.split(".")[1] for field in fields_of(features, feature) if not field.startswith("item_catalog.")]
        assert tuple(kept) == d.stored_fields(feature)
    columns = [column for feature in features.declared.features for column in columns_of(features, feature)]
    assert len(columns) == len(set(columns))
    sequence = {"recent_items", "recent_events", "recent_age"}
    assert set(columns) == {*features.shopper_columns, *features.candidate_columns, *sequence}

    row = features.shopper("s")
    assert (len(row.numbers), len(row.marks), len(row.affinities)) == (
        features.shopper_numbers,
        features.marks,
        len(features.affinities),
    )
    for slots, numbers in ((features.shopper_slots, features.shopper_numbers), (features.item_slots, features.item_numbers)):
        assert [slot.at for of_feature in slots.values() for slot in of_feature] == list(range(numbers))
    encoder, table = Encoder(features), ItemTable(features)
    inputs = encoder.shopper(row, T0) | encoder.candidates(row, table.columns(["a"], row, T0), T0)
    assert inputs["shopper_features"].shape == (len(features.shopper_columns),)
    assert inputs["candidate_features"].shape == (1, len(features.candidate_columns))
    Fold(features)


def test_the_sample_of_every_kind_has_them_all() -> None:
    features = load_feature_set(EVERY_KIND, "every")
    assert {kind_of(feature) for feature in features.declared.features} == set(KINDS)
    explained = {feature["name"]: feature for feature in declared_features(features)}
    assert [feature["kind"] for feature in explained.values() if feature["entity"] == "candidate"] == ["match", "position"]
    assert explained["click_rate"]["parameters"] == {
        "of": "view_item",
        "to": "view_item_list",
        "half_life": "3d",
        "prior_of": 2.0,
        "prior_to": 40.0,
    }


def reworded() -> list[str]:
    data = yaml.safe_load(EVERY_KIND)
    sorted_keys = [dict(sorted(feature.items())) for feature in data["features"]]
    meant = [feature | {"meaning": "in other words"} for feature in data["features"]]
    return [
        yaml.safe_dump(data, sort_keys=False),
        json.dumps(data),
        yaml.safe_dump(data | {"features": sorted_keys}),
        yaml.safe_dump(data | {"features": meant}),
        "# a comment\n" + EVERY_KIND.replace("1d]", "24h]").replace("30m", "1800s").replace("3d", "72h"),
        EVERY_KIND.replace("k: 5}", "k: 5, span: 60m, lookback: 3, backward: 0.6}"),  # what they are by default
        EVERY_KIND.replace("prior_of: 2,", "prior_of: 2.0,").replace(
            "{view_item: 1, purchase: 5}", "{purchase: 5.0, view_item: 1.0}"
        ),
        to_text(load_feature_set(EVERY_KIND, "every")),
    ]


@pytest.mark.parametrize("text", reworded())
def test_a_version_is_the_same_however_it_is_worded(text: str) -> None:
    assert text != EVERY_KIND
    assert load_feature_set(text, "reworded").version == load_feature_set(EVERY_KIND, "every").version


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n: 4", "n: 5"),
        ("half_lives: [1h, 1d]", "half_lives: [1h, 2d]"),
        ("half_lives: [1h, 1d]", "half_lives: [1d, 1h]"),
        ("name: since, kind", "name: latest, kind"),
        ("idle: 30m", "idle: 31m"),
        ("purchase: 5}", "purchase: 6}"),
        ("top: 3", "top: 4"),
        ("prior_to: 40", "prior_to: 41"),
        ("short: 6h", "short: 7h"),
        ("k: 5", "k: 6"),
        ("k: 5", "k: 5, backward: 0.5"),
        ("field: price}", "field: item_category}"),
        ("  - {name: shown_at, kind: position}\n", ""),
        ("max: 500", "max: 501"),
    ],
)
def test_any_parameter_makes_another_version(old: str, new: str) -> None:
    changed = EVERY_KIND.replace(old, new, 1)
    assert changed != EVERY_KIND
    other = load_feature_set(changed, "changed")
    before = load_feature_set(EVERY_KIND, "every")
    assert other.version != before.version
    assert other.shopper_view.name != before.shopper_view.name
    assert other.item_view.name != before.item_view.name


def test_the_order_of_features_makes_another_version() -> None:
    """Rows and inputs are laid out in it."""
    declared = load_feature_set(EVERY_KIND, "every").declared
    turned = msgspec.structs.replace(declared, features=declared.features[::-1])
    assert FeatureSet(turned).version != version_of(declared)


WRONG = [
    ("kind: session", "kind: sesion", "unknown kind; there are: last_n, decayed_count"),
    ("n: 20", "n: 1", "Expected `int` >= 2"),
    ("n: 20", "n: twenty", "Expected `int`, got `str`"),
    ("n: 20", "n: [20", "not YAML"),
    ("idle: 30m", "idle: 30 minutes", "matching regex"),
    ("entity: shopper", "entity: person", "'person'"),
    ("field: item_brand", "field: colour", "'colour'"),
    ("weights: {select_item: 1", "weights: {selects: 1", "'selects'; events are: view_item_list, select_item"),
    ("weights: {select_item: 1", "weights: {select_item: -1", "> 0"),
    ("events: [view_item, add_to_cart, purchase]", "events: [view_itm]", "'view_itm'; events are: view_item_list, select_item"),
    ("events: [view_item, add_to_cart, purchase]", "events: []", "length >= 1"),
    ("events: [view_item, add_to_cart, purchase]", "events: [view_item, view_item]", "`since` names something twice"),
    ("half_lives: [1d, 14d]", "half_lives: [1d, 24h]", "`activity` names something twice"),
    ("affinity: brand_affinity", "affinity: brands", "not the name of an affinity; there are: brand_affinity, category_affinity"),
    ("short: 6h", "short: 3d", "short (3d) must be shorter than long (3d)"),
    ("to: view_item_list", "to: select_item", "the rate of select_item to itself is 1"),
    ("name: visit", "name: since", "name `since` is taken by entry 3"),
    ("name: visit", "name: Visit", "matching regex"),
    ("name: visit", "name: seen", "`seen` is kept as `seen`, as every row has it"),
    ("name: visit", "name: recent_items", "as `recent` has it"),
    ("events_per_hour_max: 1000", "events_per_hour_max: 1", "Expected `int` >= 10"),
]


@pytest.mark.parametrize(("old", "new", "words"), WRONG, ids=[new for _, new, _ in WRONG])
def test_an_error_names_file_line_and_what_was_expected(old: str, new: str, words: str) -> None:
    text = default_text().replace(old, new, 1)
    line = next(n for n, (a, b) in enumerate(zip(default_text().splitlines(), text.splitlines(), strict=True), 1) if a != b)
    if "not YAML" in words:
        line += 1  # the parser only stumbles over what follows
    with pytest.raises(SettingsError) as raised:
        parse_declarations(text, "shop.yml")
    assert f"shop.yml, line {line}: " in str(raised.value)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "got `null`"),
        ("features: []", 1, "length >= 1"),
        ("\nfeatures:\n  - kind: last_n\n", 3, "missing required field `name`"),
        (default_text().replace("idle: 30m", "idel: 30m"), 25, "unknown field `idel`"),
        (default_text().replace("events_per_hour_max", "events_per_hour"), 1, "unknown field `events_per_hour`"),
        (EVERY_KIND.replace("kind: last_n, n: 4, events", "kind: recency, events"), 4, "exactly one feature of kind last_n"),
        (EVERY_KIND.replace("kind: covisit, half_life: 3d, k: 5", "kind: position"), 4, "exactly one feature of kind covisit"),
        (EVERY_KIND.replace("entity: item", "entity: shopper"), 4, "a decayed_count with `entity: item` is needed"),
    ],
)
def test_what_is_missing_or_too_much_is_named_where_it_would_stand(text: str, line: int, words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_declarations(text, "shop.yml")
    assert f"shop.yml, line {line}: " in str(raised.value)
    assert words in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yml cannot be read"):
        read_declarations(tmp_path / "nowhere.yml")
    (tmp_path / "image.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"image\.yml cannot be read"):
        read_declarations(tmp_path / "image.yml")
    (tmp_path / "good.yml").write_text(EVERY_KIND)
    assert version_of(read_declarations(tmp_path / "good.yml")) == load_feature_set(EVERY_KIND, "every").version
