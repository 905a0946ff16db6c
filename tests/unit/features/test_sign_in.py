"""Signing in: what a browser did becomes its person's, exactly once, in whatever order records come; and nobody else's."""

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import Event, Handover
from features.fold import DUPLICATE, FOLDED, LINKS_MAX, MERGED_MAX
from features.rows import ShopperRow
from tests.folding import DAY_MS, FEATURES, HOUR_MS, LEAST, MINUTE_MS, SINGLE, T0, Rows, bits, counts, event, login, one_shopper

BROWSER, ANN, BEN = "browser", "ann", "ben"
OF = {BROWSER: 0, ANN: 1, BEN: 2}
"""Partition by shopper."""
STEPS = st.lists(st.tuples(st.integers(1, 40 * DAY_MS), st.sampled_from(["view_item", "add_to_cart", "purchase"])), max_size=6)
"""Three of them fit into a sequence of 20: what a browser did longer ago than that is not there to be told apart."""


def steps(name: str, shopper: str, after_ms: int, drawn: list[tuple[int, str]]) -> list[Event]:
    """One event a step, each of an item of its own, the first later than `after_ms`."""
    out, time_ms = [], after_ms
    for n, (gap, what) in enumerate(drawn):
        time_ms += gap
        out.append(event(f"{name}{n}", what, f"{name}{n}", time_ms, shopper, item_category=name, price=5.0))
    return out


class Partitions:
    """Rows, and a log of each partition that deliveries and handovers are appended to."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.logs: dict[int, list[Event]] = {partition: [] for partition in OF.values()}

    def deliver(self, one: Event) -> str:
        log = self.logs[OF[one.shopper]]
        log.append(one)
        return self.rows.take(one, OF[one.shopper], len(log) - 1).outcome

    def deliver_handovers(self) -> None:
        """As an agent does that was killed after it had sent them, and sends them again."""
        waiting, self.rows.handovers = self.rows.handovers, []
        for _ in range(2):
            for one in waiting:
                self.deliver(one)


def assert_same_features(row: ShopperRow, expected: ShopperRow) -> None:
    assert row.numbers == pytest.approx(expected.numbers, rel=SINGLE, abs=LEAST)
    assert (row.recent_items, row.recent_events, row.recent_times_ms) == (
        expected.recent_items,
        expected.recent_events,
        expected.recent_times_ms,
    )
    since = FEATURES.mark_at["since"]
    assert row.marks[since : since + 3] == expected.marks[since : since + 3]
    for mine, its in zip(row.affinities, expected.affinities, strict=True):
        assert mine == pytest.approx(its, rel=SINGLE, abs=LEAST)


def nothing_left(row: ShopperRow) -> bool:
    return not (row.recent_items or any(row.numbers) or any(row.marks) or any(row.affinities))


@given(STEPS, STEPS, st.data())
def test_what_a_browser_did_becomes_the_persons_once_in_any_order(
    before: list[tuple[int, str]], own: list[tuple[int, str]], data: st.DataObject
) -> None:
    """The browser's events, the sign-in, the person's own events and the handovers (each sent twice) come in any order: the person's row is
    as if the person had done it all, and the browser's holds nothing any more."""
    of_browser = steps("b", BROWSER, T0, before)
    signed_in_ms = of_browser[-1].time_ms if of_browser else T0
    of_person = steps("p", ANN, signed_in_ms - 20 * DAY_MS, own)
    order: list[Event] = data.draw(st.permutations([*of_browser, login("login", ANN, signed_in_ms, BROWSER), *of_person]))
    shop = Partitions()
    for one in order:
        shop.deliver(one)
        if data.draw(st.booleans()):
            shop.deliver_handovers()
    shop.deliver_handovers()
    assert not shop.rows.handovers
    assert nothing_left(shop.rows.shoppers[BROWSER])
    if of_browser or of_person:
        everything = sorted([*of_browser, *of_person], key=lambda one: one.time_ms)
        assert_same_features(shop.rows.shoppers[ANN], one_shopper(msgspec.structs.replace(one, shopper=ANN) for one in everything))
        redelivered = shop.rows.bits()
        for partition, log in shop.logs.items():
            for offset, one in enumerate(log):
                shop.rows.take(one, partition, offset)
        assert shop.rows.bits() == redelivered


@given(STEPS, STEPS, STEPS, st.data())
def test_the_next_user_of_a_browser_gets_nothing_of_the_one_before(
    first: list[tuple[int, str]], second: list[tuple[int, str]], third: list[tuple[int, str]], data: st.DataObject
) -> None:
    """Ann signs in and out, then Ben; clicks come late and out of order around both: each person's row holds exactly their own items,
    and what came after Ben stays the browser's."""
    of_ann = steps("a", BROWSER, T0, first)
    ann_ms = (of_ann[-1].time_ms if of_ann else T0) + 1
    of_ben = steps("b", BROWSER, ann_ms, second)
    ben_ms = (of_ben[-1].time_ms if of_ben else ann_ms) + 1
    of_browser = steps("c", BROWSER, ben_ms, third)
    order: list[Event] = data.draw(
        st.permutations([*of_ann, *of_ben, *of_browser, login("1", ANN, ann_ms, BROWSER), login("2", BEN, ben_ms, BROWSER)])
    )
    at, other = (next(i for i, one in enumerate(order) if one.event_id == f"e{n}") for n in "12")
    if at > other:  # a browser's sign-ins are seconds apart at least and come in their order; for the other see below
        order[at], order[other] = order[other], order[at]
    shop = Partitions()
    for one in order:
        shop.deliver(one)
    shop.deliver_handovers()
    for shopper, theirs in ((ANN, of_ann), (BEN, of_ben), (BROWSER, of_browser)):
        row = shop.rows.shoppers.get(shopper, FEATURES.shopper(shopper))
        assert row.recent_items == [one.items[0].item_id for one in reversed(theirs)]
        kept = one_shopper(theirs).numbers if theirs else FEATURES.shopper("").numbers
        assert row.numbers == pytest.approx(kept, rel=SINGLE, abs=LEAST)
        allowed = {"a": ANN, "b": BEN, "c": BROWSER}
        assert all(allowed[category] == shopper for category in row.affinities[0])


def test_a_sign_in_that_comes_after_a_newer_one_finds_nothing() -> None:
    """The newer took it along; what comes still later is told apart by both."""
    shop = Partitions()
    for one in (
        event(1, item="x", time_ms=T0, shopper=BROWSER),
        login(2, BEN, T0 + HOUR_MS, BROWSER),
        login(3, ANN, T0 + MINUTE_MS, BROWSER),
    ):
        shop.deliver(one)
    assert [one.shopper for one in shop.rows.handovers] == [BEN]
    shop.deliver(event(4, item="late", time_ms=T0 + 1, shopper=BROWSER))
    shop.deliver(event(5, item="later", time_ms=T0 + 2 * MINUTE_MS, shopper=BROWSER))
    assert [one.shopper for one in shop.rows.handovers] == [BEN, ANN, BEN]


def test_a_sign_in_sent_again_hands_nothing_over_twice() -> None:
    shop = Partitions()
    shop.deliver(event(1, shopper=BROWSER))
    assert shop.deliver(login("in", ANN, T0 + 1, BROWSER)) == FOLDED
    assert shop.deliver(login("in", ANN, T0 + 1, BROWSER)) == DUPLICATE
    assert shop.deliver(login("in again", ANN, T0 + 2, BROWSER)) == FOLDED
    assert len(shop.rows.handovers) == 1
    assert shop.rows.shoppers[BROWSER].links == [(T0 + 2, ANN)]


def test_the_same_sign_in_folded_again_after_a_crash_says_the_same() -> None:
    """The handover was sent and the browser's row not stored: what is sent again has the same id and the same state."""
    rows = Rows()
    rows.take(event(1, shopper=BROWSER))
    stored = copy.deepcopy(rows.shoppers)
    rows.take(login(2, ANN, T0 + 1, BROWSER), 0, 1)
    rows.shoppers = stored
    rows.take(login(2, ANN, T0 + 1, BROWSER), 0, 1)
    first, second = rows.handovers
    assert bits(first) == bits(second)


def test_folding_a_handover_leaves_the_record_as_it_is() -> None:
    """Its state belongs to the record, which other versions and a later redelivery read too."""
    shop = Partitions()
    shop.deliver(event(1, shopper=BROWSER, item_category="c"))
    shop.deliver(login(2, ANN, T0 + 1, BROWSER))
    (handover,) = shop.rows.handovers
    before = bits(handover)
    shop.deliver(event(3, item="later", time_ms=T0 + 300 * DAY_MS, shopper=ANN, item_category="c"))
    shop.deliver_handovers()
    shop.deliver(event(4, item="later still", time_ms=T0 + 301 * DAY_MS, shopper=ANN, item_category="c"))
    assert bits(handover) == before


def test_of_a_visit_seen_from_two_sides_one_is_made() -> None:
    shop = Partitions()
    visit = FEATURES.mark_at["visit"]
    shop.deliver(event(1, item="a", time_ms=T0, shopper=BROWSER))
    shop.deliver(event(2, item="b", time_ms=T0 + MINUTE_MS, shopper=BROWSER))
    shop.deliver(login(3, ANN, T0 + 2 * MINUTE_MS, BROWSER))
    shop.deliver(event(4, item="c", time_ms=T0 + 3 * MINUTE_MS, shopper=ANN))
    shop.deliver_handovers()
    assert shop.rows.shoppers[ANN].marks[visit : visit + 4] == [T0, T0 + 3 * MINUTE_MS, 3, 3]


def test_handovers_remembered_are_bounded_and_all_count_once() -> None:
    """More than are remembered, of two partitions, and the agents of both start again from any point: each still counts once."""
    rows = Rows()
    state = one_shopper([event(1, item="a", shopper="")])

    def handover(source: int, n: int) -> Event:
        carried = Handover(id=f"{source}@{7 * n}", states={FEATURES.version: state})
        return Event(event_id=f"h{source}-{n}", event_name="login", shopper=ANN, time_ms=T0, handover=carried)

    total = 3 * MERGED_MAX
    for n in range(total):
        for source in (0, 11):
            assert rows.take(handover(source, n)).outcome == FOLDED
    for restart in (0, MERGED_MAX, total - 3):
        for n in range(restart, total):
            for source in (0, 11):
                assert rows.take(handover(source, n)).outcome == DUPLICATE
    row = rows.shoppers[ANN]
    assert len(row.merged) == 2 * MERGED_MAX
    assert counts(FEATURES, row) == {"view_item": pytest.approx(2 * total)}


def test_a_handover_of_another_version_only_says_nothing() -> None:
    rows = Rows()
    carried = Handover(id="0@3", states={"another": ShopperRow("", numbers=[1.0])})
    said = rows.take(Event(event_id="h", event_name="login", shopper=ANN, time_ms=T0, handover=carried))
    assert (said.outcome, rows.shoppers[ANN].merged) == (FOLDED, []), "when its own state comes it still counts"


def test_links_are_bounded_and_of_one_persons_in_a_row_the_latest_stays() -> None:
    rows = Rows()
    for n in range(3 * LINKS_MAX):
        rows.take(login(n, f"p{n // 2}", T0 + n, BROWSER))
    links = rows.shoppers[BROWSER].links
    assert links == [(T0 + 2 * n + 1, f"p{n}") for n in range(3 * LINKS_MAX // 2 - LINKS_MAX, 3 * LINKS_MAX // 2)]


@pytest.mark.parametrize("change", [{"link_to": ""}, {"link_to": BROWSER}])
def test_a_sign_in_that_links_nobody_is_an_event_like_others(change: dict[str, Any]) -> None:
    rows = Rows()
    rows.take(event(1, shopper=BROWSER))
    rows.take(msgspec.structs.replace(login(2, ANN, T0, BROWSER), **change))
    assert (rows.handovers, rows.shoppers[BROWSER].links, rows.shoppers[BROWSER].recent_items) == ([], [], ["a"])
