"""Rows and what stands for them in the store are each other's inverse."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.declarations import default_text
from features.feature_set import FeatureSet, load_feature_set, pack_seen, unpack_seen
from features.fold import SEEN_MAX
from features.rows import ItemRow, ShopperRow
from tests.folding import bits, reread_item, reread_shopper

EVERY_KIND = (Path(__file__).parent / "golden" / "features_v2.yml").read_text()
SETS = [load_feature_set(default_text(), "default"), load_feature_set(EVERY_KIND, "every")]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INT64S = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SINGLES = st.floats(allow_nan=False, allow_infinity=False, width=32)
WEIGHTS = st.dictionaries(TEXTS, FLOATS, max_size=8)
LEANINGS = st.dictionaries(TEXTS, SINGLES, max_size=8)
SEEN = st.dictionaries(st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1), max_size=40)


@st.composite
def shopper_rows(draw: st.DrawFn, features: FeatureSet) -> ShopperRow:
    n = draw(st.integers(0, features.sequence.n))
    hour = draw(st.integers(0, 2**32 - 1))
    return ShopperRow(
        draw(TEXTS),
        partition=draw(INT64S),
        offset=draw(INT64S),
        time_ms=draw(INT64S),
        recent_items=draw(st.lists(TEXTS, min_size=n, max_size=n)),
        recent_events=draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)),
        recent_times_ms=draw(st.lists(INT64S, min_size=n, max_size=n)),
        numbers=draw(st.lists(SINGLES, min_size=features.shopper_numbers, max_size=features.shopper_numbers)),
        marks=draw(st.lists(INT64S, min_size=features.marks, max_size=features.marks)),
        affinities=[draw(LEANINGS) for _ in features.affinities],
        seen=draw(SEEN),
        hour=hour,
        hour_events=draw(st.integers(1, 100_000)) if hour else 0,
        links=draw(st.lists(st.tuples(st.integers(0, 2**50), TEXTS), max_size=8)),
        merged=draw(st.lists(TEXTS, max_size=8)),
    )


@st.composite
def item_rows(draw: st.DrawFn, features: FeatureSet) -> ItemRow:
    numbers = draw(st.lists(FLOATS, min_size=features.item_numbers, max_size=features.item_numbers))
    return ItemRow(draw(TEXTS), draw(st.integers(0, 1000)), draw(INT64S), draw(INT64S), numbers, draw(WEIGHTS))


@pytest.mark.parametrize("features", SETS, ids=["default", "every kind"])
@given(data=st.data())
def test_a_shopper_row_comes_back_from_the_store_bit_for_bit(features: FeatureSet, data: st.DataObject) -> None:
    """By its values, and by the bytes that are stored; the order of ids and weights included."""
    row = data.draw(shopper_rows(features))
    values = features.shopper_values(row)
    assert len(values) == len(features.shopper_view.fields)
    assert bits(features.shopper_row(row.shopper, values)) == bits(row)
    assert bits(reread_shopper(features, row)) == bits(row)


@pytest.mark.parametrize("features", SETS, ids=["default", "every kind"])
@given(data=st.data())
def test_an_item_row_comes_back_from_the_store_bit_for_bit(features: FeatureSet, data: st.DataObject) -> None:
    row = data.draw(item_rows(features))
    values = features.item_values(row)
    assert len(values) == len(features.item_view.fields)
    assert bits(features.item_row(row.item, row.partition, values)) == bits(row)
    assert bits(reread_item(features, row)) == bits(row)


@pytest.mark.parametrize("features", SETS, ids=["default", "every kind"])
def test_of_nothing_known_nothing_is_stored_and_comes_back(features: FeatureSet) -> None:
    empty = {"int64": 0, "bytes": b""}  # what a field that is not in the store reads as; lists of nothing
    values = [empty.get(kind, []) for _, kind, _ in features.shopper_view.fields]
    expected = features.shopper("s")
    expected.partition = expected.offset = 0
    assert features.shopper_row("s", values) == expected
    assert reread_shopper(features, features.shopper("s")) == features.shopper("s")
    assert features.item_row("a", 3, [-1, 0, *[None] * (len(features.item_slots)), [], []]) == features.item("a", 3)


@given(SEEN)
def test_ids_come_back_in_their_order(seen: dict[int, int]) -> None:
    assert list(unpack_seen(pack_seen(seen)).items()) == list(seen.items())


def test_ids_of_a_full_hour_take_6_bytes_each() -> None:
    seen = dict.fromkeys(range(2**48 - SEEN_MAX, 2**48), 472_222)
    packed = pack_seen(seen)
    assert len(packed) == 6 + 6 * SEEN_MAX
    assert unpack_seen(packed) == seen
    assert pack_seen({}) == b""


def test_equal_declarations_give_equal_layouts() -> None:
    one, other = SETS[1], load_feature_set(EVERY_KIND, "again")
    assert (one.shopper_view, one.item_view) == (other.shopper_view, other.item_view)
    assert (one.shopper_columns, one.candidate_columns) == (other.shopper_columns, other.candidate_columns)
    assert (one.shopper_slots, one.item_slots, one.mark_at) == (other.shopper_slots, other.item_slots, other.mark_at)
