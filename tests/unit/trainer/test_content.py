"""Catalog embeddings at the width of an item's vector."""

import numpy as np
import pytest

from features.rows import CatalogItem
from trainer.content import NORM, Content

rng = np.random.default_rng(1)


def item(name: str, *embedding: float) -> CatalogItem:
    return CatalogItem(item_id=name, embedding=tuple(embedding))


def test_like_items_stay_alike_and_unlike_ones_unlike() -> None:
    content = Content(32, 10)
    one = rng.normal(size=384)
    assert content.take([item("a", *one), item("b", *(one + 0.1 * rng.normal(size=384))), item("c", *rng.normal(size=384))])
    a, b, c = content.vectors[:3] / np.linalg.norm(content.vectors[:3], axis=1, keepdims=True)
    assert a @ b > 0.95
    assert abs(a @ c) < 0.6
    assert np.linalg.norm(content.vectors[:3], axis=1) == pytest.approx([NORM] * 3, rel=0.5)


def test_the_latest_record_counts_and_a_place_is_for_good() -> None:
    content = Content(8, 10)
    content.take([item("a", 1, 0), item("b", 0, 1)])
    before = content.vectors[:2].copy()
    assert content.take([item("a", 0, 1), item("x")])
    assert content.place == {b"a": 0, b"b": 1}
    assert np.array_equal(content.vectors[0], before[1])
    assert not content.take([item("y"), item("z")]), "no embedding, nothing changed"


def test_of_another_length_all_earlier_ones_are_dropped() -> None:
    content = Content(8, 10)
    content.take([item("a", 1, 0), item("b", 0, 1)])
    content.take([item("b", 1, 0, 0)])
    assert content.place == {b"b": 0}


def test_is_bounded_and_takes_no_number_that_is_none() -> None:
    content = Content(8, 2)
    content.take([item("a", float("nan"), 1), item("b", float("inf"), 0), *(item(f"i{n}", 1, n) for n in range(5))])
    assert list(content.place) == [b"i0", b"i1"]
    content.take([item("null", 0, 0)])
    assert np.isfinite(content.vectors).all()
