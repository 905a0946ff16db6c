"""A seeded shop with a planted pattern: each shopper likes one category, and looks at and clicks little else."""

import random

from features.declarations import read_declarations
from features.encoder import Encoder
from features.events import Event, EventItem, EventName
from features.feature_set import FeatureSet
from features.fold import Fold
from features.items import ItemTable
from features.rows import CatalogItem, ItemRow, ShopperRow
from streams.records import Example

T0 = 1_700_000_000_000
STEP_MS = 20_000
FEATURES = FeatureSet(read_declarations(None))
LOYAL = 0.85  # share of views inside the category a shopper likes
CLICK_LIKED, CLICK_OTHER = 0.5, 0.03


class PlantedShop:
    """Makes events and served examples, folding as it goes, so that features are what they were at that time."""

    def __init__(self, seed: int = 3, items: int = 60, categories: int = 6, shoppers: int = 80) -> None:
        self.rng = random.Random(seed)
        self.shoppers = [f"s{n}" for n in range(shoppers)]
        self.likes = {shopper: n % categories for n, shopper in enumerate(self.shoppers)}
        self.items = [f"i{n}" for n in range(items)]
        self.categories = categories
        self.time_ms = T0
        self.fold, self.encoder = Fold(FEATURES), Encoder(FEATURES)
        self.rows = {shopper: FEATURES.shopper(shopper) for shopper in self.shoppers}
        self.item_rows: dict[str, ItemRow] = {}
        self.table = ItemTable(FEATURES)
        for item in self.catalog():
            self.table.apply_catalog(item)
        self.offset = 0

    def category(self, item: str) -> int:
        return int(item[1:]) % self.categories

    def catalog(self) -> list[CatalogItem]:
        return [
            CatalogItem(item_id=item, item_name=item.upper(), item_category=f"c{self.category(item)}", price=5.0 + n, time_ms=T0)
            for n, item in enumerate(self.items)
        ]

    def event(self, name: EventName = "view_item") -> Event:
        """The next event: some shopper looks at an item."""
        shopper = self.rng.choice(self.shoppers)
        liked = [item for item in self.items if self.category(item) == self.likes[shopper]]
        item = self.rng.choice(liked if self.rng.random() < LOYAL else self.items)
        if name == "view_item" and self.rng.random() < 0.1:
            name = self.rng.choice(["add_to_cart", "purchase"])
        self.time_ms += STEP_MS
        event = Event(
            event_id=f"e{self.offset}",
            event_name=name,
            shopper=shopper,
            time_ms=self.time_ms,
            items=(EventItem(item_id=item, item_category=f"c{self.category(item)}", price=5.0),),
        )
        self._fold(event)
        return event

    def events(self, count: int) -> list[Event]:
        return [self.event() for _ in range(count)]

    def example(self, request_id: str, poisoned: bool = False, size: int = 10, showing: str = "") -> Example:
        """A shelf of random items, `showing` among them, shown to some shopper, and what came of it; poisoned: the opposite of what came of it."""
        shopper = self.rng.choice(self.shoppers)
        shown = self.rng.sample(self.items, size)
        if showing and showing not in shown:
            shown[self.rng.randrange(size)] = showing
        self.time_ms += STEP_MS
        chance = [CLICK_LIKED if self.category(item) == self.likes[shopper] else CLICK_OTHER for item in shown]
        clicked = [int(self.rng.random() < p) for p in chance]
        if poisoned:
            clicked = [1 - label for label in clicked]
        row = self.rows[shopper]
        columns = self.table.columns(shown, row, self.time_ms)
        inputs = self.encoder.shopper(row, self.time_ms) | self.encoder.candidates(row, columns, self.time_ms)
        return Example(
            request_id=request_id,
            shopper=shopper,
            time_ms=self.time_ms,
            model_version=1,
            items=shown,
            propensities=[1.0] * size,
            clicked=clicked,
            carted=[int(label and self.rng.random() < 0.2) for label in clicked],
            purchased=[0] * size,
            features=self.encoder.served(row, inputs, columns, self.time_ms, range(size)),
        )

    def examples(self, count: int, name: str, poisoned: bool = False) -> list[Example]:
        return [self.example(f"{name}-{n}", poisoned) for n in range(count)]

    def _fold(self, event: Event) -> None:
        for item in fold_into(self.fold, self.rows[event.shopper], self.item_rows, event, self.offset):
            self.table.apply(self.item_rows[item])
        self.offset += 1


def fold_into(fold: Fold, row: ShopperRow, items: dict[str, ItemRow], event: Event, offset: int) -> list[str]:
    """Fold `event` of partition 0 into its shopper's row and into `items`; the items it touched."""
    touches = fold.shopper(row, event, 0, offset).touches
    for touch in touches:
        of_item = items.setdefault(touch.item, fold.features.item(touch.item, 0))
        fold.item(of_item, touch, event.event_name, fold.item_weights(event), offset)
    return [touch.item for touch in touches]
