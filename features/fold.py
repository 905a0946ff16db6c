"""The pure fold: one event into one shopper's row, and what it says about items.

The live agents, the offline replay and the trainer call these functions and no others, so their rows agree. Nothing here reads
a clock: decay is in event time, by v(t) = v(t0) * 2^(-(t - t0) / half_life).
"""

from bisect import bisect_left
from typing import NamedTuple

from features.events import ENGAGEMENT, Event
from features.rows import ItemRow, ShopperRow

HOUR_MS = 3_600_000
SHOPPER_HALF_LIFE_MS = 7 * 24 * HOUR_MS  # a week: taste outlives a visit, not a season
ITEM_HALF_LIFE_MS = 3 * 24 * HOUR_MS  # three days: demand moves faster than taste
RECENT_MAX = 20  # the sequence length that the model reads
AFFINITY_MAX = 20  # categories or brands kept per shopper
EVENT_IDS_MAX = 64  # a browser's retry comes within its next few events; 64 ids bound the row at about 2 kB
NEIGHBOURS_MAX = 40  # per item and partition
COVISIT_SPAN_MS = HOUR_MS  # GA4 ends a visit after 30 idle minutes; an hour bridges one pause
COVISIT_LOOKBACK = 3  # earlier items of the visit that an item is paired with, weighted 1, 1/2, 1/3
BACKWARD_WEIGHT = 0.6  # b after a says this much about a after b (measured on Yoochoose and Diginetica)


class ItemDelta(NamedTuple):
    """What one event adds to one item: a count when `neighbour` is empty, else a co-visit weight towards `neighbour`."""

    item: str
    key: str
    weight: float
    time_ms: int
    neighbour: str = ""


def decay(value: float, elapsed_ms: float, half_life_ms: float) -> float:
    """`value` after `elapsed_ms` (which may be negative: valued earlier)."""
    return float(value * 2.0 ** (-elapsed_ms / half_life_ms))


def fold_shopper(row: ShopperRow, event: Event, partition: int, offset: int) -> list[ItemDelta]:
    """Fold `event`, read at `partition`/`offset`, into `row` in place; return what it says about items.

    At or below the row's offset this is a no-op. Whoever stores rows writes item rows before shopper rows: a crash in between then
    leaves this row as it was, a redelivered event yields the same deltas again, and the item rows drop those they already hold.
    """
    if partition == row.partition and offset <= row.offset:
        return []
    row.partition, row.offset = partition, offset
    if event.event_id in row.event_ids:
        return []
    row.event_ids = [*row.event_ids[-(EVENT_IDS_MAX - 1) :], event.event_id]

    weight_now = _advance(row, event.time_ms)
    row.counts[event.event_name] = row.counts.get(event.event_name, 0.0) + weight_now
    deltas = [ItemDelta(item.item_id, event.event_name, 1.0, event.time_ms) for item in event.items]
    intent = ENGAGEMENT.get(event.event_name)
    if intent is None:
        return deltas
    for item in event.items:
        deltas += _covisits(row, item.item_id, event.time_ms)
        _remember(row, item.item_id, event.event_name, event.time_ms)
        _lean(row.category_affinity, item.item_category, intent * weight_now)
        _lean(row.brand_affinity, item.item_brand, intent * weight_now)
    return deltas


def fold_item(row: ItemRow, deltas: list[ItemDelta], offset: int) -> bool:
    """Fold all of one event's `deltas` for this item into `row` in place; False when `offset` was folded already."""
    if offset <= row.offset:
        return False
    row.offset = offset
    for delta in deltas:
        if delta.time_ms > row.time_ms:
            if row.time_ms:
                factor = decay(1.0, delta.time_ms - row.time_ms, ITEM_HALF_LIFE_MS)
                row.counts = {key: value * factor for key, value in row.counts.items()}
                row.neighbours = {key: value * factor for key, value in row.neighbours.items()}
            row.time_ms = delta.time_ms
        weight = decay(delta.weight, row.time_ms - delta.time_ms, ITEM_HALF_LIFE_MS)
        if delta.neighbour:
            row.neighbours[delta.neighbour] = row.neighbours.get(delta.neighbour, 0.0) + weight
        else:
            row.counts[delta.key] = row.counts.get(delta.key, 0.0) + weight
    _keep_heaviest(row.neighbours, NEIGHBOURS_MAX)
    return True


def _advance(row: ShopperRow, time_ms: int) -> float:
    """Bring the row's decayed values to `time_ms` if that is later; return the weight of an event at `time_ms`."""
    if time_ms <= row.time_ms:
        return decay(1.0, row.time_ms - time_ms, SHOPPER_HALF_LIFE_MS)
    if row.time_ms:
        factor = decay(1.0, time_ms - row.time_ms, SHOPPER_HALF_LIFE_MS)
        row.counts = {key: value * factor for key, value in row.counts.items()}
        row.category_affinity = {key: value * factor for key, value in row.category_affinity.items()}
        row.brand_affinity = {key: value * factor for key, value in row.brand_affinity.items()}
    row.time_ms = time_ms
    return 1.0


def _covisits(row: ShopperRow, item: str, time_ms: int) -> list[ItemDelta]:
    """Directed co-visit weights between `item` and the distinct items the shopper looked at just before it."""
    deltas: list[ItemDelta] = []
    seen = {item}
    for earlier, earlier_ms in zip(row.recent_items, row.recent_times_ms, strict=True):
        if earlier_ms > time_ms or earlier in seen:
            continue
        if time_ms - earlier_ms > COVISIT_SPAN_MS or len(seen) > COVISIT_LOOKBACK:
            break
        weight = 1.0 / len(seen)
        seen.add(earlier)
        deltas.append(ItemDelta(earlier, "", weight, time_ms, neighbour=item))
        deltas.append(ItemDelta(item, "", BACKWARD_WEIGHT * weight, time_ms, neighbour=earlier))
    return deltas


def _remember(row: ShopperRow, item: str, event_name: str, time_ms: int) -> None:
    """Insert into the recent lists at its event time, newest first; among equal times the later arrival is the newer."""
    at = bisect_left(row.recent_times_ms, -time_ms, key=lambda t: -t)
    if at < len(row.recent_items) and row.recent_items[at] == item:  # a click and the view it opens are one step
        row.recent_events[at], row.recent_times_ms[at] = event_name, time_ms
        return
    row.recent_items.insert(at, item)
    row.recent_events.insert(at, event_name)
    row.recent_times_ms.insert(at, time_ms)
    del row.recent_items[RECENT_MAX:], row.recent_events[RECENT_MAX:], row.recent_times_ms[RECENT_MAX:]


def _lean(affinity: dict[str, float], key: str, weight: float) -> None:
    if key:
        affinity[key] = affinity.get(key, 0.0) + weight
        _keep_heaviest(affinity, AFFINITY_MAX)


def _keep_heaviest(weights: dict[str, float], count_max: int) -> None:
    """Drop the lightest entries beyond `count_max`; ties fall to the smaller key, so the result is the same on every run."""
    if len(weights) > count_max:
        for key in sorted(weights, key=lambda k: (weights[k], k))[: len(weights) - count_max]:
            del weights[key]
