"""Who a browser says it is: members who come anonymously and sign in on the way, and browsers that someone else goes on with.

Pure: whether, when and who follow from the random generator that is passed in.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from liveshelf.simulator.shop import Shop
from liveshelf.simulator.visits import Action, Identity, Page, Shelf, visit

SIGN_IN_SHARE = (
    0.5  # of members' visits, where visits with sign-ins are asked for: one visit in six, as every third shopper is a member
)
SHARED_SHARE = 0.3  # of these: the member signs out and someone of the household goes on
PAGES_BEFORE_MAX = 2  # seen before signing in; a visit that ends earlier stays anonymous


class SignIn(NamedTuple):
    """A visit that begins anonymously: pages seen before the member signs in, and the shopper who goes on after the sign-out, if any."""

    pages_before: int
    successor: int | None


def sign_in(shop: Shop, shopper: int, share: float, rng: np.random.Generator) -> SignIn | None:
    """Whether this visit of `shopper` is one; a `share` of members' visits are."""
    if not shop.shoppers[shopper].user_id or rng.random() >= share:
        return None
    pages_before = int(rng.integers(1, PAGES_BEFORE_MAX + 1))
    others = len(shop.shoppers) - 1
    if not others or rng.random() >= SHARED_SHARE:
        return SignIn(pages_before, None)
    return SignIn(pages_before, (shopper + 1 + int(rng.integers(others))) % len(shop.shoppers))


def browse(
    shop: Shop,
    shopper: int,
    day: float,
    rng: np.random.Generator,
    shelf_for: Callable[[Page, Identity], Shelf],
    plan: SignIn | None = None,
) -> Iterator[tuple[Action, Identity]]:
    """A visit of `shopper`, and of whoever goes on with the browser, each action with the ids that are sent with it.

    After the sign-out the browser is anonymous again, under the same client id: what the successor does is not the member's.
    """
    owner = shop.shoppers[shopper]
    who = Identity(owner.client_id, "" if plan else owner.user_id)

    def shelf(page: Page) -> Shelf:
        return shelf_for(page, who)

    for action in visit(shop, shopper, day, rng, shelf, plan.pages_before if plan else None):
        if action.name == "login":
            who = Identity(owner.client_id, owner.user_id)
        yield action, who
    if plan and plan.successor is not None and who.user_id:
        who = Identity(owner.client_id)
        for action in visit(shop, plan.successor, day, rng, shelf):
            yield action, who
