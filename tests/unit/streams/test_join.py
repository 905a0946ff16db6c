"""The join of impressions with feedback: which shelf an event belongs to, and that interleaving does not matter."""

import random

from hypothesis import given
from hypothesis import strategies as st

from features.events import Event, EventItem
from features.rows import FeaturesAsServed
from streams.join import GRACE_MS, Join
from streams.records import Example, Impression

WINDOW_MS = 10_000
T0 = 1_700_000_000_000


def impression(request_id: str, time_ms: int, items: list[str], shopper: str = "s") -> Impression:
    n = len(items)
    features = FeaturesAsServed(version="v", time_ms=time_ms, shopper_features=b"", candidates=items, candidate_features=b"")
    return Impression(
        request_id=request_id, shopper=shopper, time_ms=time_ms, items=items, scores=[0.0] * n, sources=[""] * n,
        propensities=[1.0] * n, features=features,
    )  # fmt: skip


def event(name: str, item: str, time_ms: int, request_id: str = "", shopper: str = "s") -> Event:
    return Event(
        event_id=f"{name}{item}{time_ms}",
        event_name=name,
        shopper=shopper,
        time_ms=time_ms,
        items=(EventItem(item_id=item),),
        request_id=request_id,
    )


def joined(records: list[Impression | Event], until_ms: int = T0 + 10 * WINDOW_MS) -> dict[str, Example]:
    join: Join[int] = Join(WINDOW_MS)
    for token, record in enumerate(records):
        if isinstance(record, Impression):
            join.add_impression(record, record.time_ms, token)
        else:
            join.add_event(record, record.time_ms, token)
    join.caught_up(until_ms)
    closed = join.close()
    assert len(join) == 0
    return {e.request_id: e for e in closed.examples}


def test_nothing_closes_before_its_window_is_over() -> None:
    join: Join[str] = Join(WINDOW_MS)
    join.add_impression(impression("r", T0, ["a"]), T0, "impression")
    join.caught_up(T0 + WINDOW_MS + GRACE_MS)
    assert join.close().examples == []
    join.caught_up(T0 + WINDOW_MS + GRACE_MS + 1)
    closed = join.close()
    assert [e.request_id for e in closed.examples] == ["r"]
    assert closed.tokens == ["impression"]


def test_one_topic_read_ahead_closes_nothing() -> None:
    """Impressions read far ahead of the clickstream wait for it."""
    join: Join[None] = Join(WINDOW_MS)
    join.add_impression(impression("r", T0, ["a"]), T0, None)
    join.add_impression(impression("r2", T0 + 9 * WINDOW_MS, ["a"]), T0 + 9 * WINDOW_MS, None)
    assert join.close().examples == []


def test_labels_by_event() -> None:
    example = joined(
        [
            impression("r", T0, ["a", "b", "c"]),
            event("view_item", "b", T0 + 1),
            event("add_to_cart", "c", T0 + 2),
            event("purchase", "c", T0 + 3),
        ]
    )["r"]
    assert (example.clicked, example.carted, example.purchased) == ([0, 1, 1], [0, 0, 1], [0, 0, 1])


def test_an_event_belongs_to_the_shelf_it_names() -> None:
    examples = joined(
        [impression("r1", T0, ["a"]), impression("r2", T0 + 10, ["a"]), event("select_item", "a", T0 + 20, request_id="r1")]
    )
    assert (examples["r1"].clicked, examples["r2"].clicked) == ([1], [0])


def test_an_event_that_names_none_belongs_to_the_latest() -> None:
    examples = joined([impression("r1", T0, ["a"]), impression("r2", T0 + 10, ["a"]), event("select_item", "a", T0 + 20)])
    assert (examples["r1"].clicked, examples["r2"].clicked) == ([0], [1])


def test_outside_the_window_or_of_somebody_else_labels_nothing() -> None:
    example = joined(
        [
            impression("r", T0, ["a"]),
            event("view_item", "a", T0 - 1),
            event("view_item", "a", T0 + WINDOW_MS + GRACE_MS + 1),
            event("view_item", "a", T0 + 1, shopper="other"),
            event("view_item_list", "a", T0 + 1),
        ]
    )["r"]
    assert example.clicked == [0]


def test_memory_is_given_back() -> None:
    """After the windows are over every record's token has come back and no shopper is held."""
    join: Join[int] = Join(WINDOW_MS)
    for n in range(100):
        join.add_impression(impression(f"r{n}", T0 + n, ["a"], f"s{n % 7}"), T0 + n, n)
        join.add_event(event("view_item", "a", T0 + n, shopper=f"s{n % 5}"), T0 + n, 100 + n)
    join.caught_up(T0 + 10 * WINDOW_MS)
    assert sorted(join.close().tokens) == list(range(200))
    assert join._shoppers == {}


@given(st.integers(0, 10_000))
def test_any_interleaving_of_the_topics_gives_the_same_examples(seed: int) -> None:
    """Each topic in its own order, interleaved in any way, with closes in between: the same examples."""
    rng = random.Random(seed)
    shelves = [impression(f"r{n}", T0 + n * 700, rng.sample("abcdef", 3), f"s{rng.randrange(3)}") for n in range(30)]
    events = [
        event(
            rng.choice(["view_item", "add_to_cart"]),
            rng.choice("abcdef"),
            T0 + n * 500,
            rng.choice(["", "", f"r{rng.randrange(30)}"]),
            f"s{rng.randrange(3)}",
        )
        for n in range(60)
    ]
    expected = joined([*shelves, *events], T0 + 100 * WINDOW_MS)
    join: Join[None] = Join(WINDOW_MS)
    examples: dict[str, Example] = {}
    left, right = list(shelves), list(events)
    while left or right:
        if left and (not right or rng.random() < 0.4):
            join.add_impression(left[0], left.pop(0).time_ms, None)
        else:
            join.add_event(right[0], right.pop(0).time_ms, None)
        if rng.random() < 0.5:
            examples |= {e.request_id: e for e in join.close().examples}
    join.caught_up(T0 + 100 * WINDOW_MS)
    examples |= {e.request_id: e for e in join.close().examples}
    assert examples == expected
