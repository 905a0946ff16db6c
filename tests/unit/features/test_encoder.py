"""The one encoder: shapes, padding, every kind's columns checked by hand, and that what was served decodes to what the model read."""

from math import log, log1p
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encoder import NEVER_HOURS, VIEW_ITEM, Encoder, look_at
from features.events import EVENT_INDEX, EVENT_NAMES
from features.feature_set import load_feature_set
from features.items import ItemTable
from features.rows import CatalogItem, FeaturesAsServed, ItemRow, ShopperRow
from tests.folding import DAY_MS, HOUR_MS, MINUTE_MS, T0

EVERY_KIND = (Path(__file__).parent / "golden" / "features_v2.yml").read_text()
FEATURES = load_feature_set(EVERY_KIND, "every")
ENCODER = Encoder(FEATURES)
COUNTED = [3.0, 1.0, 0.0]  # views, purchases and logins of the shopper at T0


def shopper_row() -> ShopperRow:
    weights = FEATURES.shopper_half_lives.weights(T0)
    row = FEATURES.shopper("s")
    row.partition, row.offset, row.time_ms = 1, 5, T0
    row.recent_items, row.recent_times_ms = ["b", "a"], [T0, T0 - HOUR_MS]
    row.recent_events = [EVENT_INDEX["view_item"], EVENT_INDEX["purchase"]]
    for slot, count in zip(FEATURES.shopper_slots["activity"], COUNTED * 2, strict=True):
        row.numbers[slot.at] = count * weights[slot.half_life]
    row.marks = [T0, 0, T0 - 10 * MINUTE_MS, T0, 4, 2]
    row.affinities = [{"hats": 3.0, "shoes": 1.0}, {}]
    return row


def item_row(item: str, counts: dict[str, list[float]], neighbours: dict[str, float]) -> ItemRow:
    """A row that is worth these at T0, by feature in the order of its slots."""
    weights = FEATURES.item_half_lives.weights(T0)
    row = FEATURES.item(item, 0)
    row.offset, row.time_ms = 7, T0
    for name, of_feature in counts.items():
        for slot, count in zip(FEATURES.item_slots[name], of_feature, strict=True):
            row.numbers[slot.at] = count * weights[slot.half_life]
    scale = weights[FEATURES.half_life_at(FEATURES.item_half_lives, FEATURES.covisit.half_life)]
    row.neighbours = {neighbour: weight * scale for neighbour, weight in neighbours.items()}
    return row


def table() -> ItemTable:
    items = ItemTable(FEATURES)
    items.apply(item_row("a", {"demand": [10, 4, 1], "click_rate": [4, 10], "trend": [2, 1, 4, 1]}, {"b": 3.0}))
    items.apply(item_row("b", {}, {"a": 2.0}))
    items.apply_catalog(CatalogItem("a", item_name="Hat", item_category="hats", price=9.5, time_ms=T0 - 1))
    items.apply_catalog(CatalogItem("b", item_category="shoes", item_brand="Lux", price=0.0, time_ms=T0 - 2))
    return items


def encoded(names: list[str], row: ShopperRow | None = None, time_ms: int = T0) -> tuple[dict[str, Any], Any]:
    row = shopper_row() if row is None else row
    columns = table().columns(names, row, time_ms)
    return ENCODER.shopper(row, time_ms) | ENCODER.candidates(row, columns, time_ms), columns


def by_name(names: tuple[str, ...], values: Any) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def test_the_sequence_is_padded_to_its_length() -> None:
    inputs = ENCODER.shopper(shopper_row(), T0 + HOUR_MS)
    assert inputs["recent_items"].tolist() == [b"b", b"a", b"", b""]
    assert inputs["recent_events"].tolist() == [1 + EVENT_NAMES.index("view_item"), 1 + EVENT_NAMES.index("purchase"), 0, 0]
    assert inputs["recent_age"] == pytest.approx([log(2), log(3), 0, 0])
    assert [inputs[name].dtype for name in ("recent_events", "recent_age", "shopper_features")] == [
        np.int32,
        np.float32,
        np.float32,
    ]


def test_a_full_sequence_fits_and_a_longer_one_is_refused() -> None:
    row = shopper_row()
    look_at(row, ["x", "y", "z"], T0, FEATURES.sequence.n)
    assert ENCODER.shopper(row, T0)["recent_items"].tolist() == [b"x", b"y", b"z", b"b"]
    row.recent_items, row.recent_events, row.recent_times_ms = ["x"] * 5, [1] * 5, [T0] * 5
    with pytest.raises(ValueError, match="a sequence of 5 items"):
        ENCODER.shopper(row, T0)


def test_items_of_the_page_stand_in_front_as_just_looked_at() -> None:
    row = shopper_row()
    look_at(row, ["x"], T0 + 5, FEATURES.sequence.n)
    assert (row.recent_items, row.recent_events[0], row.recent_times_ms[0]) == (["x", "b", "a"], VIEW_ITEM, T0 + 5)
    before = msgspec.json.encode(row)
    look_at(row, [], T0 + 9, FEATURES.sequence.n)
    assert msgspec.json.encode(row) == before


def test_every_shopper_column_by_hand() -> None:
    """Counts halve with their half-life; hours since; the visit is over after 30 minutes."""
    later = by_name(FEATURES.shopper_columns, ENCODER.shopper(shopper_row(), T0 + HOUR_MS)["shopper_features"])
    day = 0.5 ** (1 / 24)
    assert later == pytest.approx(
        {
            "log_activity_view_item_1h": log1p(1.5),
            "log_activity_purchase_1h": log1p(0.5),
            "log_activity_login_1h": 0.0,
            "log_activity_view_item_24h": log1p(3 * day),
            "log_activity_purchase_24h": log1p(day),
            "log_activity_login_24h": 0.0,
            "log_hours_since_view_item": log1p(1.0),
            "log_hours_since_purchase": log1p(NEVER_HOURS),
            "log_visit_depth": 0.0,
            "log_visit_items": 0.0,
            "log_visit_dwell": 0.0,
        },
        rel=1e-6,
    )
    soon = by_name(FEATURES.shopper_columns, ENCODER.shopper(shopper_row(), T0 + 30 * MINUTE_MS)["shopper_features"])
    assert [soon[f"log_visit_{what}"] for what in ("depth", "items", "dwell")] == pytest.approx([log1p(4), log1p(2), log1p(600)])


def test_every_candidate_column_by_hand() -> None:
    inputs, _ = encoded(["a", "b", "nobody-knows-it"])
    a, b, unknown = (by_name(FEATURES.candidate_columns, row) for row in inputs["candidate_features"])
    assert inputs["candidates"].tolist() == [b"a", b"b", b"nobody-knows-it"]
    assert a == pytest.approx(
        {
            "recent_seen": 1.0,
            "recent_rank": 1 / 2,
            "log_demand_view_item_list_72h": log1p(10),
            "log_demand_view_item_72h": log1p(4),
            "log_demand_purchase_72h": log1p(1),
            "click_rate": (4 + 2) / (10 + 40),
            "trend": log((3 / 6 + 1 / 72) / (5 / 72 + 1 / 72)),
            "log_covisit": log1p(2.0),  # from b, the latest
            "log_price": log1p(9.5),
            "has_titled": 1.0,
            "has_branded": 0.0,
            "taste_match": 3 / 4,
            "shown_at": 0.0,
        },
        rel=1e-6,
    )
    assert (b["recent_rank"], b["log_covisit"], b["taste_match"]) == pytest.approx((1.0, log1p(3.0 / 2), 1 / 4))
    assert (b["has_titled"], b["has_branded"], b["log_price"]) == (0.0, 1.0, 0.0)
    expected = dict.fromkeys(FEATURES.candidate_columns, 0.0) | {"click_rate": 2 / 40}
    assert unknown == pytest.approx(expected, abs=1e-7)


def test_an_unknown_shopper_and_no_candidates_encode() -> None:
    inputs, _ = encoded([], FEATURES.shopper("new"))
    assert inputs["candidates"].shape == (0,)
    assert inputs["candidate_features"].shape == (0, len(FEATURES.candidate_columns))
    never = by_name(FEATURES.shopper_columns, inputs["shopper_features"])
    assert {name for name, value in never.items() if value} == {"log_hours_since_view_item", "log_hours_since_purchase"}


@given(st.integers(-DAY_MS, 400 * DAY_MS))
def test_inputs_are_finite_whatever_the_clock_says(after_ms: int) -> None:
    inputs, _ = encoded(["a", "b", "x"], time_ms=T0 + after_ms)
    for name in ("recent_age", "shopper_features", "candidate_features"):
        assert np.isfinite(inputs[name]).all()
        assert inputs[name].dtype == np.float32


@given(
    st.lists(st.sampled_from(["a", "b", "c", "zzz", "é"]), unique=True, min_size=1, max_size=5),
    st.integers(0, 30 * DAY_MS),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_what_was_served_decodes_bit_for_bit_to_what_the_model_read(
    names: list[str], after_ms: int, random: Any, new: bool
) -> None:
    """Through the log's JSON, for a shelf that shows some of the candidates in another order."""
    row = FEATURES.shopper("new") if new else shopper_row()
    inputs, columns = encoded(names, row, T0 + after_ms)
    shelf = random.sample(range(len(names)), random.randint(1, len(names)))
    served = ENCODER.served(row, inputs, columns, T0 + after_ms, shelf)
    logged = msgspec.json.decode(msgspec.json.encode(served), type=FeaturesAsServed)
    decoded = ENCODER.decode(logged)
    expected = inputs | {name: inputs[name][shelf] for name in ("candidates", "candidate_features")}
    assert decoded.keys() == expected.keys()
    for name, array in expected.items():
        assert decoded[name].dtype == array.dtype
        assert decoded[name].shape == array.shape
        assert decoded[name].tolist() == array.tolist()
        if array.dtype != object:
            assert decoded[name].tobytes() == array.tobytes()
    assert (logged.version, logged.partition, logged.offset) == (FEATURES.version, row.partition, row.offset)
    assert logged.item_offsets == {i: [7] if i in ("a", "b") else [-1] for i in (*row.recent_items, *logged.candidates)}
    assert logged.catalog_ms == [{"a": T0 - 1, "b": T0 - 2}.get(item, -1) for item in logged.candidates]


def test_features_of_another_version_or_shape_are_refused() -> None:
    row = shopper_row()
    inputs, columns = encoded(["a"], row)
    served = ENCODER.served(row, inputs, columns, T0, [0])
    for change, words in (
        ({"version": "00000000"}, "of version '00000000'"),
        ({"shopper_features": served.shopper_features[:-4]}, "shopper features, expected"),
        ({"candidate_features": served.candidate_features[:-4]}, "reshape"),
        ({"recent_events": b""}, "a sequence of 2 items, 0 events"),
        ({"recent_age": served.recent_age[:4]}, "a sequence of 2 items, 2 events and 1 ages"),
    ):
        with pytest.raises(ValueError, match=words):
            ENCODER.decode(msgspec.structs.replace(served, **change))


def test_positions_are_known_once_the_shelf_was_shown() -> None:
    inputs, _ = encoded(["a", "b", "c"])
    before = inputs["candidate_features"].copy()
    shown = ENCODER.shown(inputs)["candidate_features"]
    at = FEATURES.candidate_columns.index("shown_at")
    assert shown[:, at] == pytest.approx([log1p(0), log1p(1), log1p(2)])
    assert np.delete(shown, at, axis=1).tolist() == np.delete(before, at, axis=1).tolist()
    assert inputs["candidate_features"].tolist() == before.tolist(), "what was served is left as it is"
    without = Encoder(load_feature_set(EVERY_KIND.replace("  - {name: shown_at, kind: position}\n", ""), "without"))
    assert without.shown(inputs) is inputs
