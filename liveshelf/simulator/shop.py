"""The pure shop: a catalog, shoppers with hidden tastes that drift, and what a shopper thinks of each item.

Everything follows from `seed`; nothing here reads a clock or the network. Times are days relative to the moment the shop is opened to
visitors ("now" = 0; history is negative), so that a history made tomorrow is today's, shifted.

I items, S shoppers, K categories, B brands.
"""

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from features.rows import CatalogItem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Aisle(NamedTuple):
    """One category: its name, its median price and the nouns of its titles."""

    category: str
    price: float
    nouns: tuple[str, ...]


AISLES = (
    Aisle("Running", 95, ("Road Runner", "Trail Shoe", "Racing Flat", "Running Vest", "Split Shorts")),
    Aisle("Jackets", 140, ("Rain Shell", "Down Jacket", "Windbreaker", "Parka", "Softshell")),
    Aisle("Bags", 75, ("Daypack", "Messenger Bag", "Tote", "Duffel", "Roll-Top Pack")),
    Aisle("Headphones", 120, ("Earbuds", "Studio Headphones", "Travel Headphones", "Sport Earbuds", "Headset")),
    Aisle("Coffee", 32, ("Pour-Over Set", "Espresso Beans", "Hand Grinder", "Moka Pot", "Filter Blend")),
    Aisle("Cookware", 58, ("Cast-Iron Pan", "Saucepan", "Chef Knife", "Roasting Tin", "Wok")),
    Aisle("Lighting", 66, ("Desk Lamp", "Floor Lamp", "Pendant", "Reading Light", "Lantern")),
    Aisle("Board Games", 38, ("Strategy Game", "Card Game", "Puzzle", "Party Game", "Dice Game")),
    Aisle("Skincare", 26, ("Day Cream", "Face Serum", "Sun Lotion", "Cleansing Oil", "Hand Balm")),
    Aisle("Cycling", 88, ("Bike Helmet", "Saddle", "Pannier", "Front Light", "Track Pump")),
    Aisle("Garden", 42, ("Pruning Shears", "Planter", "Watering Can", "Hand Trowel", "Seed Set")),
    Aisle("Camping", 110, ("Two-Person Tent", "Sleeping Bag", "Camp Stove", "Insulated Mat", "Headlamp")),
)
BRANDS = (
    *("Norvik", "Aldera", "Tamsin", "Kestrel", "Hollin", "Maro", "Fjordal", "Bexley", "Ostara", "Quill"),
    *("Verano", "Lumen & Oak", "Sable", "Drift", "Pinecrest", "Corvo", "Halden", "Mirabel", "Rook", "Solace"),
    *("Tern", "Umber", "Wexford", "Yarrow", "Zephyr", "Calder", "Emmer", "Gannet", "Juno", "Iverna"),
)
ADJECTIVES = (
    *("Alpine", "Classic", "Compact", "Coastal", "Everyday", "Featherweight", "Heritage", "Midnight", "Nordic", "Original"),
    *("Pocket", "Quiet", "Signature", "Slate", "Studio", "Summit", "Urban", "Vintage", "Wild", "Winter"),
)
BRANDS_PER_AISLE = 8  # a brand is found in two or three aisles, so brand taste says more than category taste repeated

# Standard deviations of what makes an item attractive, in logits. Category taste dominates, so that a shelf can be seen to be personal.
CATEGORY_TASTE, BRAND_TASTE, APPEAL = 1.3, 0.8, 0.7
PRICE_TASTE = 0.35  # logits lost per squared standard deviation between an item's price and the shopper's purse
PRICE_SPREAD = 0.5  # of log price within a category: the dearest tenth costs about twice the median
DRIFT_PERIOD_DAYS = (80.0, 240.0)  # tastes turn by a quarter in 20 to 60 days: slow within a week, another shopper next season


class Shopper(msgspec.Struct, frozen=True):
    """Who a shopper is to the shop. Every third is signed in."""

    index: int
    client_id: str
    user_id: str = ""


class Shop:
    """A catalog and its shoppers. Same arguments, same shop. Tastes turn `drift` times as fast as DRIFT_PERIOD_DAYS says; 0: never.

    Attributes:
        catalog: I records, `time_ms` 0 (stamped when sent).
        category, brand: int [I], indices into AISLES and BRANDS.
        appeal: float [I], what all shoppers see in an item alike on day 0.
        activity: float [S], share of the visits that each shopper makes.
    """

    def __init__(self, seed: int, items: int = 600, shoppers: int = 400, drift: float = 1.0) -> None:
        assert items > 0, items
        assert drift >= 0, drift
        assert shoppers > 0, shoppers
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        self._stock(rng, items)
        self.shoppers = [
            Shopper(s, f"browser-{seed}-{s:05d}", f"member-{seed}-{s:05d}" if s % 3 == 0 else "") for s in range(shoppers)
        ]
        self._index = {item.item_id: i for i, item in enumerate(self.catalog)}
        rng = np.random.default_rng([seed, 1])  # apart from the catalog's, so that more shoppers leave the catalog as it is
        activity = rng.lognormal(0.0, 0.6, shoppers)
        self.activity: Floats = activity / activity.sum()
        # A taste turns from the first vector towards the second and on; both have the same spread, so no season is blander.
        self._category_taste = rng.normal(0.0, CATEGORY_TASTE, (2, shoppers, len(AISLES)))
        self._brand_taste = rng.normal(0.0, BRAND_TASTE, (2, shoppers, len(BRANDS)))
        self._purse = rng.normal(0.0, 0.8, shoppers)
        self._turn_per_day = drift * 2.0 * np.pi / rng.uniform(*DRIFT_PERIOD_DAYS, shoppers)
        # Fashion: what all see in an item turns as tastes do, towards another appeal of the same spread.
        rng = np.random.default_rng([seed, 12])
        self._fashion: Floats = np.stack([self.appeal, rng.normal(0.0, APPEAL, items)])
        self._fashion_per_day = drift * 2.0 * np.pi / rng.uniform(*DRIFT_PERIOD_DAYS, items)

    def _stock(self, rng: np.random.Generator, items: int) -> None:
        self.category: Ints = np.arange(items) % len(AISLES)
        offset = rng.integers(0, BRANDS_PER_AISLE, items)
        self.brand: Ints = (self.category * 5 + offset) % len(BRANDS)  # 5 apart: neighbouring aisles share three brands
        self._price_z: Floats = rng.normal(0.0, 1.0, items)
        self.appeal: Floats = rng.normal(0.0, APPEAL, items)
        nouns, adjectives = rng.integers(0, 5, items), rng.integers(0, len(ADJECTIVES), items)
        self.catalog: list[CatalogItem] = []
        taken: dict[str, int] = {}
        for i in range(items):
            aisle, brand = AISLES[self.category[i]], BRANDS[self.brand[i]]
            title = f"{brand} {ADJECTIVES[adjectives[i]]} {aisle.nouns[nouns[i]]}"
            taken[title] = taken.get(title, 0) + 1
            if taken[title] > 1:
                title = f"{title} {taken[title]}"
            price = round(float(aisle.price * np.exp(PRICE_SPREAD * self._price_z[i])), 2)
            self.catalog.append(CatalogItem(f"sku-{i:05d}", title, aisle.category, brand, price))

    def index(self, item_id: str) -> int | None:
        """Position of an item in the catalog; None when this shop does not sell it."""
        return self._index.get(item_id)

    def category_taste(self, shopper: int, day: float) -> Floats:
        """float [K]: the shopper's leaning towards each category on `day`, in logits."""
        return self._turned(self._category_taste, shopper, day)

    def brand_taste(self, shopper: int, day: float) -> Floats:
        """float [B]: the shopper's leaning towards each brand on `day`, in logits."""
        return self._turned(self._brand_taste, shopper, day)

    def utility(self, shopper: int, day: float) -> Floats:
        """float [I]: how much the shopper wants each item on `day`, in logits around 0."""
        purse = (self._price_z - self._purse[shopper]) ** 2
        return (  # type: ignore[no-any-return]
            self.category_taste(shopper, day)[self.category]
            + self.brand_taste(shopper, day)[self.brand]
            + self._appeal_on(day)
            - PRICE_TASTE * purse
        )

    def _appeal_on(self, day: float) -> Floats:
        angle = self._fashion_per_day * day
        return np.asarray(np.cos(angle) * self._fashion[0] + np.sin(angle) * self._fashion[1])

    def _turned(self, taste: Floats, shopper: int, day: float) -> Floats:
        angle = self._turn_per_day[shopper] * day
        return np.asarray(np.cos(angle) * taste[0, shopper] + np.sin(angle) * taste[1, shopper])
