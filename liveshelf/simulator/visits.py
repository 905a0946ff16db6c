"""The pure visit: what a shopper does with the shelves they are shown.

A visit has a purpose (one category, drawn from the shopper's taste), and a few pages. Each page shows a shelf; the shopper looks down
it with falling attention, clicks what they want, and may find an item on their own. What is viewed may be carted, what is carted bought.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from features.events import EventItem
from liveshelf.simulator.shop import AISLES, Floats, Shop

SHELF_COUNT = 10
PAGES_MEAN = 3.0
PURPOSE = 1.6  # logits that the visit's purpose adds to its category: taste within the visit, which only fresh features can know
CLICK_AT, CART_AT, BUY_AT = 4.2, 6.0, 4.6  # utility at which half would; chosen so that a popular shelf gets a CTR of about 5%
ATTENTION_FALL = 0.7  # P(look at position k) = (1 + k)^-0.7: the tenth item is seen by a fifth, as in published click models
CLICKS_PER_PAGE_MAX = 2
OWN_FIND = 0.45  # chance per page to reach an item by search or menu rather than from the shelf
THINK_S = 25.0  # mean time between pages
LOGIN_S = 8.0  # to type a password
SUGGESTIONS = 4  # how many items a page's own search result is drawn from at random, before the best is taken


class Page(NamedTuple):
    """A page that asks for a shelf."""

    placement: str
    context: tuple[str, ...]


class Shelf(NamedTuple):
    """What was shown: item ids in order, and the request id when a recommender answered."""

    items: Sequence[str]
    request_id: str = ""


class Action(NamedTuple):
    """Something the browser reports, `after_s` seconds after the action before it."""

    name: str
    items: tuple[EventItem, ...]
    request_id: str = ""
    after_s: float = 0.0
    transaction: bool = False


class Identity(NamedTuple):
    """The ids that a browser sends."""

    client_id: str
    user_id: str = ""


class SimulatedEvent(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One event as the browser sends it, in GA4's shape."""

    event_id: str
    event_name: str
    client_id: str
    user_id: str = ""
    session_id: str
    timestamp_micros: int
    items: tuple[EventItem, ...] = ()
    request_id: str = ""
    transaction_id: str = ""
    currency: str = ""
    value: float = 0.0


def visit(
    shop: Shop,
    shopper: int,
    day: float,
    rng: np.random.Generator,
    shelf_for: Callable[[Page], Shelf],
    login_after: int | None = None,
) -> Iterator[Action]:
    """One visit of `shopper` on `day`. `shelf_for` is asked for each page's shelf just before it is shown.

    After `login_after` pages, if there are more, the shopper signs in.
    """
    purpose = int(rng.choice(len(AISLES), p=_softmax(shop.category_taste(shopper, day))))
    wants = shop.utility(shopper, day) + PURPOSE * (shop.category == purpose)
    viewed: list[str] = []
    cart: list[tuple[int, str]] = []
    for number in range(int(rng.geometric(1.0 / PAGES_MEAN))):
        if number == login_after:
            yield Action("login", (), after_s=LOGIN_S)
        page = Page("item", (viewed[-1],)) if viewed and number else Page("home", ())
        shelf = shelf_for(page)
        steps = list(_look(shop, wants, shelf, rng))
        if rng.random() < OWN_FIND:
            steps += _find(shop, wants, purpose, rng)
        for action in steps:
            yield action
            if action.name != "view_item":
                continue
            at = shop.index(action.items[0].item_id)
            assert at is not None
            viewed.append(action.items[0].item_id)
            if rng.random() < _sigmoid(wants[at] - CART_AT):
                cart.append((at, action.request_id))
                yield Action("add_to_cart", action.items, action.request_id, after_s=float(rng.exponential(8.0)))
    for at, request_id in cart:
        if rng.random() < _sigmoid(wants[at] - BUY_AT):
            after_s = float(rng.exponential(40.0))
            yield Action("purchase", (event_item(shop, at),), request_id, after_s=after_s, transaction=True)


def merchandised(shop: Shop, rng: np.random.Generator) -> Callable[[Page], Shelf]:
    """Shelves of a shop without a recommender: what is popular, on an item's page within its category."""
    popularity = np.exp(shop.appeal)

    def shelf_for(page: Page) -> Shelf:
        weights = popularity
        if page.context and (at := shop.index(page.context[-1])) is not None:
            weights = popularity * (shop.category == shop.category[at])
        count = min(SHELF_COUNT, int(np.count_nonzero(weights)))
        chosen = rng.choice(len(weights), size=count, replace=False, p=weights / weights.sum())
        return Shelf([shop.catalog[i].item_id for i in chosen])

    return shelf_for


def event_item(shop: Shop, at: int, index: int = -1) -> EventItem:
    item = shop.catalog[at]
    return EventItem(item.item_id, item_category=item.item_category, item_brand=item.item_brand, price=item.price, index=index)


def to_event(
    shop: Shop, shopper: int, action: Action, *, session_id: str, number: int, time_ms: int, who: Identity | None = None
) -> SimulatedEvent:
    """The `number`th event of a session, sent with the ids of `who`, by default all that `shopper` has.

    Its id follows from the session's, so the same history has the same ids.
    """
    if who is None:
        who = Identity(shop.shoppers[shopper].client_id, shop.shoppers[shopper].user_id)
    value = round(sum(item.price * item.quantity for item in action.items), 2) if action.transaction else 0.0
    event_id = f"{session_id}-{number:03d}"
    return SimulatedEvent(
        event_id=event_id,
        event_name=action.name,
        client_id=who.client_id,
        user_id=who.user_id,
        session_id=session_id,
        timestamp_micros=time_ms * 1_000,
        items=action.items,
        request_id=action.request_id,
        transaction_id=f"order-{event_id}" if action.transaction else "",
        currency="EUR" if action.transaction else "",
        value=value,
    )


def _look(shop: Shop, wants: Floats, shelf: Shelf, rng: np.random.Generator) -> Iterator[Action]:
    """Show the shelf, then click down it."""
    known = [(k, at) for k, item in enumerate(shelf.items) if (at := shop.index(item)) is not None]
    if not known:
        return
    shown = tuple(event_item(shop, at, index=k) for k, at in known)
    yield Action("view_item_list", shown, shelf.request_id, after_s=float(rng.exponential(THINK_S)))
    clicks = 0
    for item, (k, at) in zip(shown, known, strict=True):
        looked, wanted = rng.random() < (1.0 + k) ** -ATTENTION_FALL, rng.random() < _sigmoid(wants[at] - CLICK_AT)
        if looked and wanted and clicks < CLICKS_PER_PAGE_MAX:
            clicks += 1
            yield Action("select_item", (item,), shelf.request_id, after_s=1.0 + float(rng.exponential(5.0)))
            yield Action("view_item", (item,), shelf.request_id, after_s=0.3)


def _find(shop: Shop, wants: Floats, purpose: int, rng: np.random.Generator) -> list[Action]:
    """An item reached by search or menu: the most wanted of a few from the aisle that the visit is about."""
    aisle = np.flatnonzero(shop.category == purpose)
    if not len(aisle):
        return []
    few = rng.choice(aisle, size=min(SUGGESTIONS, len(aisle)), replace=False)
    at = int(few[np.argmax(wants[few])])
    return [Action("view_item", (event_item(shop, at),), after_s=float(rng.exponential(THINK_S)))]


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-x)))
