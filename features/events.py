"""What the fold knows of an event: GA4's e-commerce event names and what each says about a shopper and an item."""

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from features.rows import ShopperRow

EventName = Literal[
    "view_item_list",
    "select_item",
    "view_item",
    "add_to_cart",
    "remove_from_cart",
    "begin_checkout",
    "purchase",
    "refund",
    "view_search_results",
    "login",
]
EVENT_NAMES: tuple[str, ...] = get_args(EventName)
EVENT_INDEX = {name: index for index, name in enumerate(EVENT_NAMES)}

ENGAGEMENT: dict[str, float] = {"select_item": 1.0, "view_item": 1.0, "add_to_cart": 3.0, "purchase": 5.0}
"""Events that say a shopper wants an item, with their weight in affinities; the others count but do not shape taste.
Weights follow the order of intent that the OTTO challenge scores (clicks .1, carts .3, orders .6), rounded to whole clicks."""


class EventItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of GA4's `items[]`."""

    item_id: str
    item_name: str = ""
    item_category: str = ""
    item_brand: str = ""
    price: float = 0.0
    quantity: int = 1
    index: int = -1


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What an anonymous browser had done when its shopper signed in, on its way to the person's row. Written by the agents only."""

    id: str
    """`partition@offset` of the record that caused it: delivered again, it is folded once."""
    states: dict[str, ShopperRow]
    """The browser's row by feature version, without ids."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One validated event as it stands in `clickstream`. Ids of people are pseudonyms already."""

    v: Literal[1] = 1
    event_id: str
    event_name: EventName
    shopper: str
    session: str = ""
    time_ms: Annotated[int, Meta(ge=0, lt=4_102_444_800_000)]
    """Event time: when it happened in the browser, ms since 1970 UTC; before 2100, since one wrong clock would age everything else to nothing."""
    items: tuple[EventItem, ...] = ()
    request_id: str = ""
    """The shelf that led here, when the frontend passes it back."""
    transaction_id: str = ""
    search_term: str = ""
    currency: str = ""
    value: float = 0.0
    link_to: str = ""
    """For `login`: the pseudonym of the signed-in person; `shopper` is the anonymous browser's."""
    handover: Handover | None = None
    """For a `login` that agents wrote: `shopper` is the person's pseudonym."""
