"""Who a browser says it is: anonymous, then the member who signs in, then nobody again for whoever goes on."""

from collections import defaultdict
from itertools import groupby

import msgspec
import numpy as np
import pytest

from liveshelf.simulator.browsers import SHARED_SHARE, SignIn, browse, sign_in
from liveshelf.simulator.history import history
from liveshelf.simulator.shop import Shop
from liveshelf.simulator.visits import Identity, Page, Shelf, SimulatedEvent


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(7, items=240, shoppers=80)


@pytest.fixture(scope="module")
def past(shop: Shop) -> list[SimulatedEvent]:
    return history(shop, days=5, sign_in_share=0.5)


def _roles(events: list[SimulatedEvent]) -> str:
    """a anonymous, L the login, m the member; repetitions left out."""
    roles = ("L" if event.event_name == "login" else "m" if event.user_id else "a" for event in events)
    return "".join(role for role, _ in groupby(roles))


def test_each_session_is_a_possible_story(shop: Shop, past: list[SimulatedEvent]) -> None:
    sessions = defaultdict(list)
    for event in past:
        sessions[event.session_id].append(event)
    stories = {_roles(events) for events in sessions.values()}
    assert {"a", "m", "aLm", "aLma"} <= stories <= {"a", "m", "aL", "La", "L", "Lm", "aLm", "aLa", "Lma", "aLma"}
    owners = {shopper.client_id: shopper.user_id for shopper in shop.shoppers}
    assert all(event.user_id in ("", owners[event.client_id]) for event in past), "a browser names only its owner"
    assert all(len({event.client_id for event in events}) == 1 for events in sessions.values())
    assert all(event.user_id and not event.items for event in past if event.event_name == "login")


def test_one_seed_gives_one_history_with_unique_ids(shop: Shop, past: list[SimulatedEvent]) -> None:
    assert msgspec.json.encode(history(Shop(7, items=240, shoppers=80), 5, 0.5)) == msgspec.json.encode(past)
    assert len({event.event_id for event in past}) == len(past)


def test_without_a_share_nobody_signs_in_and_members_are_signed_in_throughout(shop: Shop) -> None:
    owners = {shopper.client_id: shopper.user_id for shopper in shop.shoppers}
    events = history(shop, 2)
    assert "login" not in {event.event_name for event in events}
    assert all(event.user_id == owners[event.client_id] for event in events)


def test_signing_in_does_not_change_what_the_member_does(shop: Shop) -> None:
    """The same actions, but for the login; only the ids that are sent with them differ."""
    shelf = Shelf([item.item_id for item in shop.catalog[:10]])
    asked: list[tuple[Page, Identity]] = []

    def shelf_for(page: Page, who: Identity) -> Shelf:
        asked.append((page, who))
        return shelf

    for n in range(20):
        asked.clear()
        plain = list(browse(shop, 0, 0.0, np.random.default_rng(n), shelf_for))
        pages = [page for page, _ in asked]
        asked.clear()
        signing = list(browse(shop, 0, 0.0, np.random.default_rng(n), shelf_for, SignIn(1, None)))
        assert [action for action, _ in signing if action.name != "login"] == [action for action, _ in plain]
        assert [page for page, _ in asked] == pages
        assert [bool(who.user_id) for _, who in asked] == [False] + [True] * (len(pages) - 1)


def test_successor_goes_on_anonymously_and_is_somebody_else(shop: Shop) -> None:
    draws = [sign_in(shop, 3, 1.0, np.random.default_rng(n)) for n in range(400)]
    successors = [plan.successor for plan in draws if plan and plan.successor is not None]
    assert 3 not in successors
    assert abs(len(successors) / 400 - SHARED_SHARE) < 0.08
    assert sign_in(shop, 4, 1.0, np.random.default_rng(0)) is None, "who has no account cannot sign in"


def test_lone_shopper_has_no_successor() -> None:
    lone = Shop(1, items=12, shoppers=1)
    plans = [sign_in(lone, 0, 1.0, np.random.default_rng(n)) for n in range(20)]
    assert all(plan is not None and plan.successor is None for plan in plans)
