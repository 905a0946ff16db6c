"""Sessions as they go on: what counts as one, and what resembling ones went on to."""

from features.catalog import Catalog
from features.events import Event, EventItem
from features.live_sessions import IDLE_MS, LiveSessions

T0 = 1_795_000_000_000


def catalog() -> Catalog:
    found = Catalog()
    for name in "abcdefgh":
        found.row(name)
    return found


def event(shopper: str, items: str, time_ms: int, session: str = "", name: str = "view_item") -> Event:
    return Event(
        event_id=f"{shopper}{items}{time_ms}",
        event_name=name,  # type: ignore[arg-type]
        shopper=shopper,
        session=session,
        time_ms=time_ms,
        items=tuple(EventItem(item_id=item) for item in items),
    )


def led_to(sessions: LiveSessions, items: str, time_ms: int = T0) -> dict[str, float]:
    """Items by their weight, those without any left out."""
    rows, weights = sessions.led_to(list(items), time_ms)
    return {"abcdefgh"[row]: weight for row, weight in zip(rows.tolist(), weights.tolist(), strict=True) if weight > 0}


def seen(*events: Event, capacity: int = 100) -> LiveSessions:
    sessions = LiveSessions(catalog(), capacity)
    for one in events:
        sessions.see(one)
    return sessions


def test_what_a_resembling_session_went_on_to_is_found_and_what_was_looked_at_is_not() -> None:
    sessions = seen(event("s1", "a", T0), event("s1", "b", T0 + 1), event("s2", "c", T0 + 2), event("s1", "d", T0 + 3))
    found = led_to(sessions, "a", T0 + 10)
    assert set(found) == {"b", "d"}
    assert found["b"] > found["d"] > 0  # what came next, before what came later
    assert led_to(sessions, "c", T0 + 10) == {}
    assert set(led_to(sessions, "ba", T0 + 10)) == {"d"}


def test_each_click_counts_at_once() -> None:
    sessions = seen(event("s1", "a", T0))
    assert led_to(sessions, "a") == {}
    sessions.see(event("s1", "b", T0 + 1))
    assert set(led_to(sessions, "a")) == {"b"}


def test_half_an_hour_of_quiet_or_another_name_ends_a_session() -> None:
    quiet = seen(event("s1", "a", T0), event("s1", "b", T0 + IDLE_MS + 1))
    assert (len(quiet), led_to(quiet, "a")) == (2, {})
    going_on = seen(event("s1", "a", T0), event("s1", "b", T0 + IDLE_MS))
    assert (len(going_on), set(led_to(going_on, "a"))) == (1, {"b"})
    named = seen(event("s1", "a", T0, "x"), event("s1", "b", T0 + 1, "y"))
    assert (len(named), led_to(named, "a")) == (2, {})


def test_an_item_looked_at_and_put_into_the_cart_counts_once_and_a_search_not_at_all() -> None:
    once = seen(event("s1", "a", T0), event("s1", "b", T0 + 1))
    twice = seen(
        event("s1", "a", T0),
        event("s1", "a", T0, name="add_to_cart"),
        event("s1", "h", T0, name="view_search_results"),
        event("s1", "b", T0 + 1),
    )
    assert led_to(once, "a", T0 + 1) == led_to(twice, "a", T0 + 1)


def test_items_that_the_catalog_does_not_know_are_passed_over() -> None:
    sessions = seen(event("s1", "a", T0), event("s1", "z", T0 + 1), event("s1", "b", T0 + 2))
    assert set(led_to(sessions, "a")) == {"b"}
    assert led_to(sessions, "z") == {}
    assert len(sessions._catalog) == 8


def test_the_sessions_that_began_first_give_way_and_so_do_shoppers() -> None:
    sessions = seen(*(event(f"s{n}", "ab" if n == 0 else "cd", T0 + n) for n in range(4)), capacity=3)
    assert (len(sessions), len(sessions._running)) == (3, 3)
    assert led_to(sessions, "a") == {}
    assert set(led_to(sessions, "c")) == {"d"}
