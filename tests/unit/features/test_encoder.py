"""The one encoder: shapes, padding, and that what was logged encodes to what was served."""

import numpy as np
import pytest

from features.encoder import CANDIDATE_FEATURES, encode, encode_candidates, encode_shopper
from features.events import EVENT_NAMES
from features.fold import HOUR_MS, RECENT_MAX
from features.rows import FeaturesAsServed, ItemColumns, ShopperRow
from streams.records import Impression, decode
from streams.records import encode as to_json

T0 = 1_700_000_000_000
ROW = ShopperRow(
    shopper="s", partition=1, offset=5, time_ms=T0,
    recent_items=["b", "a"], recent_events=["view_item", "purchase"], recent_times_ms=[T0, T0 - HOUR_MS],
    counts={"view_item": 3.0}, category_affinity={"hats": 3.0, "shoes": 1.0}, brand_affinity={},
)  # fmt: skip


def columns(n: int = 3) -> ItemColumns:
    rng = np.random.default_rng(n)
    items = ["a", "b", "zzz"][:n]
    return ItemColumns(
        items,
        rng.random((n, len(EVENT_NAMES))).tolist(),
        rng.random(n).tolist(),
        ["hats", "shoes", ""][:n],
        [""] * n,
        rng.random(n).tolist(),
    )


def feature(encoded: dict[str, np.ndarray], name: str) -> list[float]:
    return encoded["candidate_features"][:, CANDIDATE_FEATURES.index(name)].tolist()


def test_shopper_side_is_padded_to_its_length() -> None:
    encoded = encode_shopper(ROW, T0 + HOUR_MS)
    assert encoded["recent_items"].tolist() == [b"b", b"a", *[b""] * (RECENT_MAX - 2)]
    assert encoded["recent_events"].tolist()[:3] == [1 + EVENT_NAMES.index("view_item"), 1 + EVENT_NAMES.index("purchase"), 0]
    assert encoded["recent_age"][:3] == pytest.approx([np.log(2), np.log(3), 0.0])
    assert encoded["shopper_counts"].shape == (len(EVENT_NAMES),)


def test_matches_and_seen_are_the_shoppers_own() -> None:
    encoded = encode_candidates(ROW, columns())
    assert feature(encoded, "category_match") == [0.75, 0.25, 0.0]
    assert feature(encoded, "seen") == [1.0, 1.0, 0.0]
    assert feature(encoded, "seen_recency") == [0.5, 1.0, 0.0]
    assert feature(encoded, "has_catalog") == [1.0, 1.0, 0.0]


def test_an_unknown_shopper_and_no_candidates_encode() -> None:
    empty = encode(FeaturesAsServed(T0, ShopperRow(shopper="new"), columns(0)))
    assert empty["candidate_features"].shape == (0, len(CANDIDATE_FEATURES))
    assert not empty["shopper_counts"].any()


def test_features_as_logged_encode_bit_for_bit_to_features_as_served() -> None:
    """Impression → JSON → impression: the trainer's inputs are the scorer's."""
    served = FeaturesAsServed(T0 + 77, ROW, columns())
    impression = Impression(
        request_id="r", shopper="s", time_ms=T0, items=served.candidates.items, scores=[1, 2, 3], sources=["recent"] * 3,
        propensities=[1.0] * 3, features=served,
    )  # fmt: skip
    logged = decode(Impression, to_json(impression)).features
    for name, array in encode(served).items():
        assert array.tolist() == encode(logged)[name].tolist(), name
