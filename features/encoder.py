"""The one encoder: feature values → model inputs. The scorer calls it when serving, the trainer when learning.

B shoppers (here one), C candidates, R = RECENT_MAX, E = len(EVENT_NAMES), F = len(CANDIDATE_FEATURES).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from features.events import EVENT_INDEX, EVENT_NAMES
from features.fold import HOUR_MS, RECENT_MAX, SHOPPER_HALF_LIFE_MS, decay
from features.rows import FeaturesAsServed, ItemColumns, ShopperRow

Floats = npt.NDArray[np.float32]
Inputs = dict[str, npt.NDArray[Any]]

CANDIDATE_FEATURES = (
    *(f"log_{name}" for name in EVENT_NAMES),  # log(1 + decayed count)
    "click_rate",  # smoothed select_item / view_item_list
    "log_price",
    "has_catalog",
    "category_match",  # share of the shopper's affinity that the candidate's category holds
    "brand_match",
    "log_covisit",
    "seen",  # among the shopper's recent items
    "seen_recency",  # 1 / (1 + rank among them), 0 when not seen
)

RATE_PRIOR_SHOWN, RATE_PRIOR_CLICKED = 20.0, 1.0  # one click in twenty showings until the item has shown otherwise
_VIEW_LIST, _SELECT = EVENT_INDEX["view_item_list"], EVENT_INDEX["select_item"]


def encode_shopper(row: ShopperRow, time_ms: int) -> Inputs:
    """The shopper's side, without a batch axis.

    Returns:
        recent_items: bytes [R], newest first, padded with b"".
        recent_events: int32 [R], 1 + index in EVENT_NAMES, 0 where padded.
        recent_age: float32 [R], log(1 + age in hours).
        shopper_counts: float32 [E], log(1 + decayed count at `time_ms`).
    """
    items = np.full(RECENT_MAX, b"", dtype=object)
    events = np.zeros(RECENT_MAX, dtype=np.int32)
    age = np.zeros(RECENT_MAX, dtype=np.float32)
    n = len(row.recent_items)
    items[:n] = [item.encode() for item in row.recent_items]
    events[:n] = [1 + EVENT_INDEX[name] for name in row.recent_events]
    age[:n] = np.log1p(np.maximum(time_ms - np.asarray(row.recent_times_ms, dtype=np.float64), 0.0) / HOUR_MS)
    factor = decay(1.0, max(time_ms - row.time_ms, 0), SHOPPER_HALF_LIFE_MS)
    counts = np.log1p(np.asarray([row.counts.get(name, 0.0) * factor for name in EVENT_NAMES], dtype=np.float64))
    return {
        "recent_items": items,
        "recent_events": events,
        "recent_age": age,
        "shopper_counts": counts.astype(np.float32),
    }


def encode_candidates(row: ShopperRow, candidates: ItemColumns) -> Inputs:
    """The candidates' side: `candidates` bytes [C] and `candidate_features` float32 [C, F]."""
    c = len(candidates.items)
    out = np.zeros((c, len(CANDIDATE_FEATURES)), dtype=np.float32)
    ids = np.array([item.encode() for item in candidates.items] + [b""], dtype=object)[:c]
    if not c:
        return {"candidates": ids, "candidate_features": out}
    counts = np.asarray(candidates.counts, dtype=np.float32)
    assert counts.shape == (c, len(EVENT_NAMES)), counts.shape
    e = len(EVENT_NAMES)
    out[:, :e] = np.log1p(counts)
    out[:, e] = (counts[:, _SELECT] + RATE_PRIOR_CLICKED) / (counts[:, _VIEW_LIST] + RATE_PRIOR_SHOWN)
    out[:, e + 1] = np.log1p(np.asarray(candidates.price, dtype=np.float32))
    out[:, e + 2] = [bool(category or brand) for category, brand in zip(candidates.category, candidates.brand, strict=True)]
    out[:, e + 3] = _shares(row.category_affinity, candidates.category)
    out[:, e + 4] = _shares(row.brand_affinity, candidates.brand)
    out[:, e + 5] = np.log1p(np.asarray(candidates.covisit, dtype=np.float32))
    rank = {item: i for i, item in reversed(list(enumerate(row.recent_items)))}
    seen = [rank.get(item, -1) for item in candidates.items]
    out[:, e + 6] = [at >= 0 for at in seen]
    out[:, e + 7] = [1.0 / (1 + at) if at >= 0 else 0.0 for at in seen]
    return {"candidates": ids, "candidate_features": out}


def encode(served: FeaturesAsServed) -> Inputs:
    """All model inputs for one shopper and its candidates, without a batch axis."""
    return {**encode_shopper(served.shopper, served.time_ms), **encode_candidates(served.shopper, served.candidates)}


def _shares(affinity: dict[str, float], keys: list[str]) -> list[float]:
    total = sum(affinity.values())
    return [affinity.get(key, 0.0) / total if total else 0.0 for key in keys]
