"""Rows of the catalog: looked up, told apart, and found among others."""

import numpy as np

from features.catalog import ROWS_AT_FIRST, UNKNOWN, Catalog, Rows


def rows(*numbers: int) -> Rows:
    return np.array(numbers, dtype=np.int32)


def full() -> Catalog:
    """As many items as there is room for, so that the last place is somebody's."""
    catalog = Catalog()
    for n in range(ROWS_AT_FIRST):
        catalog.row(f"item-{n}")
    assert len(catalog.available) == ROWS_AT_FIRST
    return catalog


def test_rows_of_ids_and_back() -> None:
    catalog = full()
    assert catalog.rows(["item-3", "nobody", "item-0"]).tolist() == [3, UNKNOWN, 0]
    assert catalog.rows([]).tolist() == []
    assert catalog.items(rows(3, 0)) == ["item-3", "item-0"]


def test_rows_stand_first_where_they_stand_first() -> None:
    catalog = full()
    assert catalog.distinct(rows(5, 3, 5, 1023, 3)).tolist() == [0, 1, 3]
    assert catalog.distinct(rows(3)).tolist() == [0], "nothing is left of the call before"


def test_rows_are_found_among_others_and_an_unknown_one_is_nobody() -> None:
    catalog = full()
    last = ROWS_AT_FIRST - 1
    assert catalog.among(rows(1, 2, last), rows(2, 9, UNKNOWN)).tolist() == [False, True, False]
    assert catalog.among(rows(1, 2, last), rows(last)).tolist() == [False, False, True], "nothing is left of the call before"
    catalog.row("one more")  # room is made
    assert catalog.among(rows(last, last + 1), rows(last + 1)).tolist() == [False, True]
