"""Reads of the item table, as a request makes them: `python -m tests.bench.item_table [--items N]`. The best of LAPS; needs nothing running.

columns_ms    features of 500 candidates, co-visits of three latest items included
popular_ms    the 100 most popular items
apply_us      one row of `item-updates`
"""

import argparse
import json
import random
import time
from collections.abc import Callable

from features.declarations import read_declarations
from features.feature_set import FeatureSet
from features.items import ItemTable
from features.rows import ItemRow

FEATURES = FeatureSet(read_declarations(None))
T0 = 1_700_000_000_000
PARTITIONS, CANDIDATES, NEIGHBOURS, LAPS, APPLIED = 6, 500, 40, 30, 1_000


def filled(items: int, rng: random.Random) -> ItemTable:
    table, weights = ItemTable(FEATURES), FEATURES.item_half_lives.weights(T0)
    for n in range(items):
        numbers = [rng.random() * 100 * weights[0] for _ in range(FEATURES.item_numbers)]
        table.apply(ItemRow(f"i{n}", n % PARTITIONS, offset=n, time_ms=T0, numbers=numbers, neighbours=near(items, rng)))
    return table


def near(items: int, rng: random.Random) -> dict[str, float]:
    return {f"i{rng.randrange(items)}": rng.random() for _ in range(NEIGHBOURS)}


def best_ms(read: Callable[[], object]) -> float:
    laps = []
    for _ in range(LAPS):
        start = time.perf_counter()
        read()
        laps.append(1000 * (time.perf_counter() - start))
    return min(laps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=100_000)
    items = parser.parse_args().items
    rng = random.Random(7)
    table = filled(items, rng)
    shopper = FEATURES.shopper("s")
    shopper.recent_items = ["i0", "i1", "i2"]
    wanted = [f"i{rng.randrange(items)}" for _ in range(CANDIDATES)]
    numbers = [1.0] * FEATURES.item_numbers
    updates = [
        ItemRow(f"i{rng.randrange(items)}", 0, items + n, T0, numbers=numbers, neighbours=near(items, rng)) for n in range(APPLIED)
    ]
    table.popular(T0, 100)
    figures = {
        "items": items,
        "columns_ms": best_ms(lambda: table.columns(wanted, shopper, T0)),
        "popular_ms": best_ms(lambda: table.popular(T0, 100)),
    }
    start = time.perf_counter()
    for row in updates:
        table.apply(row)
    figures["apply_us"] = 1e6 * (time.perf_counter() - start) / APPLIED
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
