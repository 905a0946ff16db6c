"""Purchases that come after their shelf's example: what they add, once, and whichever way the records came in."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event
from streams import late
from streams.join import Join
from streams.late import Bought, Clicks, corrected
from streams.records import UNKNOWN, Example, Impression, decode, encode
from tests.unit.streams.test_join import T0, WINDOW_MS, event, impression

SPAN_MS = 100 * WINDOW_MS
LATE_MS = 5 * WINDOW_MS
END_MS = T0 + 1_000 * WINDOW_MS


class Partition:
    """What the joiner does with the records of one partition, its topic a list."""

    def __init__(self) -> None:
        self.join: Join[None] = Join(WINDOW_MS)
        self.bought = Bought(SPAN_MS)
        self.made: list[Example] = []

    def add(self, record: Impression | Event) -> None:
        if isinstance(record, Impression):
            self.join.add_impression(record, record.time_ms, None)
        else:
            self.join.add_event(record, record.time_ms, None)

    def close(self) -> None:
        closed = self.join.close()
        for example in closed.examples:
            self.make(example)
        for purchase in closed.purchases:
            for one in self.bought.buy(purchase):
                self.make(corrected(self.made[one.offset], one))

    def make(self, example: Example) -> None:
        self.made.append(example)
        self.bought.note(example, len(self.made) - 1)

    def start_again(self) -> None:
        """All that is known of closed shelves is what the topic says."""
        self.bought = Bought(SPAN_MS)
        for offset, example in enumerate(self.made):
            self.bought.note(decode(Clicks, encode(example)), offset)


def made(*records: Impression | Event) -> list[Example]:
    partition = Partition()
    for record in records:
        partition.add(record)
    partition.join.caught_up(END_MS)
    partition.close()
    return partition.made


def told(examples: list[Example]) -> list[tuple[str, str]]:
    """(request id, item) of what late purchases added."""
    return [
        (one.request_id, item)
        for one in examples
        if one.late
        for item, bought in zip(one.items, one.purchased, strict=True)
        if bought == 1
    ]


def test_a_late_purchase_adds_that_it_was_one_and_nothing_else() -> None:
    shelf = impression("r", T0, ["a", "b", "c"])
    first, more = made(shelf, event("select_item", "b", T0 + 1), event("purchase", "b", T0 + LATE_MS))
    assert (first.late, first.clicked, first.carted, first.purchased) == ("", [0, 1, 0], [0, 0, 0], [0, 0, 0])
    assert more == msgspec.structs.replace(
        first, late=f"purchaseb{T0 + LATE_MS}", clicked=[UNKNOWN] * 3, carted=[UNKNOWN, 1, UNKNOWN], purchased=[UNKNOWN, 1, UNKNOWN]
    )


def test_what_was_put_into_the_cart_in_time_is_not_told_again() -> None:
    more = made(impression("r", T0, ["a"]), event("add_to_cart", "a", T0 + 1), event("purchase", "a", T0 + LATE_MS))[1]
    assert (more.clicked, more.carted, more.purchased) == ([UNKNOWN], [UNKNOWN], [1])


def test_a_purchase_in_time_adds_nothing() -> None:
    examples = made(impression("r", T0, ["a"]), event("purchase", "a", T0 + 1), event("purchase", "a", T0 + LATE_MS))
    assert [(e.late, e.purchased) for e in examples] == [("", [1])]


def test_one_that_a_newer_shelf_counted_in_time_is_not_given_to_an_older_one() -> None:
    at = T0 + LATE_MS
    examples = made(
        impression("old", T0, ["a"]),
        event("select_item", "a", T0 + 1),
        impression("new", at, ["a"]),
        event("purchase", "a", at + 1),
    )
    assert told(examples) == []
    assert [e.purchased for e in examples] == [[0], [1]]


def test_it_belongs_to_the_shelf_it_names_else_to_the_latest_clicked() -> None:
    shelves = [
        *(impression(f"r{n}", T0 + n * 2 * WINDOW_MS, ["a"]) for n in range(3)),
        *(event("select_item", "a", T0 + n * 2 * WINDOW_MS + 1, f"r{n}") for n in range(2)),
    ]
    assert told(made(*shelves, event("purchase", "a", T0 + 8 * WINDOW_MS))) == [("r1", "a")]
    assert told(made(*shelves, event("purchase", "a", T0 + 8 * WINDOW_MS, "r0"))) == [("r0", "a")]
    assert told(made(*shelves, event("purchase", "a", T0 + 8 * WINDOW_MS, "r2"))) == []  # nobody clicked there
    assert told(made(*shelves, event("purchase", "a", T0 + 8 * WINDOW_MS, shopper="other"))) == []


def test_what_is_older_than_the_span_is_forgotten_and_its_memory_given_back() -> None:
    shelf, click = impression("r", T0, ["a"]), event("select_item", "a", T0 + 1)
    assert told(made(shelf, click, event("purchase", "a", T0 + SPAN_MS))) == [("r", "a")]
    assert told(made(shelf, click, event("purchase", "a", T0 + SPAN_MS + 1))) == []
    partition = Partition()
    for record in (shelf, click, impression("later", T0 + SPAN_MS + 1, ["b"]), event("select_item", "b", T0 + SPAN_MS + 2)):
        partition.add(record)
    partition.join.caught_up(END_MS)
    partition.close()
    assert (len(partition.bought), list(partition.bought._shoppers["s"])) == (1, ["later"])


def test_no_more_shelves_are_remembered_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "SHELVES_MAX", 3)
    shown = [impression(f"r{n}", T0 + n, ["a"], f"s{n}") for n in range(9)]
    bought = Bought(SPAN_MS)
    for offset, example in enumerate(made(*shown, *(event("view_item", "a", T0 + 10, shopper=f"s{n}") for n in range(9)))):
        bought.note(example, offset)
    assert (len(bought), sorted(bought._shoppers)) == (3, ["s6", "s7", "s8"])


@given(st.integers(0, 10_000))
def test_any_interleaving_and_any_restart_tell_the_same_once(seed: int) -> None:
    """Each topic in its own order, interleaved in any way, with closes and restarts in between, the examples that a crash repeats too."""
    rng = random.Random(seed)
    shelves = [impression(f"r{n}", T0 + n * 3_000, rng.sample("abcdef", 3), f"s{rng.randrange(3)}") for n in range(30)]
    names = ["view_item", "add_to_cart", "purchase", "purchase"]
    events = []
    for at in range(T0, T0 + 90 * 1_700, 1_700):
        named = rng.choice(["", "", f"r{rng.randrange(1 + min((at - T0) // 3_000, 29))}"])  # none that is yet to be made
        events.append(event(rng.choice(names), rng.choice("abcdef"), at, named, f"s{rng.randrange(3)}"))
    expected = made(*shelves, *events)
    partition, left, right = Partition(), list(shelves), list(events)
    while left or right:
        if left and (not right or rng.random() < 0.3):
            partition.add(left.pop(0))
        else:
            partition.add(right.pop(0))
        if rng.random() < 0.5:
            partition.close()
        if rng.random() < 0.1:
            if partition.made and not partition.made[-1].late:
                partition.make(partition.made[-1])
            partition.start_again()
    partition.join.caught_up(END_MS)
    partition.close()
    assert {(e.request_id, e.late): e for e in partition.made} == {(e.request_id, e.late): e for e in expected}
    assert sorted(told(partition.made)) == sorted(told(expected))
    assert len(set(told(expected))) == len(told(expected))
