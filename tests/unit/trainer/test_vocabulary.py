"""Rows of the item table: given after some sightings, taken back when unused, never shared, and the same again after a restart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.vocabulary import DAY_MS, EXPIRED_SHARE_MAX, FIRST_ROW, OOV_ROWS, Limits, Vocabulary


def see(words: Vocabulary, *items: str, used: tuple[str, ...] = (), day: float = 0) -> tuple[list[int], list[int]]:
    return words.see([item.encode() for item in items], [item.encode() for item in used], int(day * DAY_MS))


def test_unknown_ids_share_a_few_rows_and_padding_has_its_own() -> None:
    words = Vocabulary([b"a", b"b"])
    assert words.rows(np.array([b"", b"a", b"b"])).tolist() == [0, FIRST_ROW, FIRST_ROW + 1]
    unknown = words.rows(np.array([[b"x", b"y"], [b"x", b"z"]]))
    assert unknown[0, 0] == unknown[1, 0]
    assert unknown.min() >= 1
    assert unknown.max() <= OOV_ROWS
    assert words.rows(np.array([b"a", b"x", b""]), {b"x": 99, b"a": 98}).tolist() == [FIRST_ROW, 99, 0]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_an_item_gets_its_row_at_the_kth_sighting(k: int) -> None:
    words = Vocabulary(limits=Limits(sightings_min=k))
    for sighting in range(1, k + 1):
        assert see(words, "a", used=("b",)) == (([FIRST_ROW], []) if sighting == k else ([], []))
    assert words.items == {b"a": FIRST_ROW}, "to be used is no sighting"
    assert see(words, *["c"] * k, "", "a") == ([FIRST_ROW + 1], [])


def test_an_item_unused_too_long_loses_its_row_to_the_next() -> None:
    words = Vocabulary(limits=Limits(sightings_min=1, unused_days_max=30))
    see(words, *(f"i{n}" for n in range(20)))
    kept = [f"i{n}" for n in range(1, 20)]
    see(words, *kept[:10], used=tuple(kept[10:]), day=20)
    assert see(words, day=29.9) == ([], [])
    assert see(words, "new", day=31) == ([FIRST_ROW], [FIRST_ROW])
    assert words.ids[0] == b"new"
    assert see(words, "i0", day=31) == ([FIRST_ROW + 20], []), "it comes back as any new item"


def test_a_full_table_gives_up_the_item_unseen_longest_and_no_other() -> None:
    words = Vocabulary(limits=Limits(items_max=3, sightings_min=1))
    for day, item in enumerate("abc"):
        see(words, item, day=day)
    see(words, "a", day=3)
    assert see(words, "d", day=4) == ([FIRST_ROW + 1], [FIRST_ROW + 1])
    assert set(words.items) == {b"a", b"c", b"d"}
    given, taken = see(words, *"uvwxyz", "a", day=5)
    assert len(given) == len(taken) == 2
    assert b"a" in words.items, "just seen"
    assert len(words) == 3


def test_a_clock_that_jumps_does_not_empty_the_table() -> None:
    words = Vocabulary(limits=Limits(sightings_min=1))
    see(words, *(f"i{n}" for n in range(100)))
    assert len(see(words, "i0", day=50 * 365)[1]) <= 100 * EXPIRED_SHARE_MAX
    assert b"i0" in words.items
    see(words, "i1", day=1)
    assert words.time_ms == 50 * 365 * DAY_MS, "time does not run backwards"


def test_sightings_that_lead_nowhere_take_no_more_memory_than_the_table() -> None:
    words = Vocabulary(limits=Limits(items_max=50, sightings_min=4))
    see(words, *["often"] * 3)
    for n in range(1_000):
        see(words, f"once{n}")
    assert len(words._waiting) <= 50
    see(words, *["often"] * 4)
    assert set(words.items) == {b"often"}


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcdefghij"), max_size=6), st.integers(0, 40)), max_size=30), st.integers(1, 3))
def test_no_two_items_share_a_row_and_a_restart_goes_on_alike(rounds: list[tuple[list[str], int]], k: int) -> None:
    """Whatever is seen: rows are distinct, within bounds, and the looked-up ones; and a restored table does the same from there."""
    limits = Limits(items_max=5, sightings_min=k, unused_days_max=7)
    words = Vocabulary(limits=limits)
    for items, day in rounds:
        twin = Vocabulary(limits=limits)
        twin.restore(words.state())
        assert see(words, *items, day=day) == see(twin, *items, day=day)
        assert words.ids == twin.ids
        rows = list(words.items.values())
        assert len(rows) == len(set(rows)) == len(words) <= 5
        assert all(FIRST_ROW <= row < words.rows_used <= FIRST_ROW + 5 for row in rows)
        if words.items:
            assert words.rows(np.array(list(words.items))).tolist() == rows
