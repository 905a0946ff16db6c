"""Examples of the log → samples, a batch of them at a time: column by column, since encoding one after the other takes ten times as long."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import msgspec
import numpy as np

from features.encoder import Encoder
from streams.records import Example
from trainer.samples import TASKS, UNKNOWN, Array, Samples, empty

POSITIONS_MAX = (
    32  # shown positions learnt from: shelves rarely show more, and a few long lists would pad every batch to their length
)
VALUE_MAX = 10_000.0
"""Of any feature: they are logarithms, shares, rates and flags. What is larger was not made by the encoder."""


class ServedFeatures(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is learnt from of `FeaturesAsServed`."""

    version: str
    recent_items: list[str] = []
    recent_events: bytes = b""
    recent_age: bytes = b""
    shopper_features: bytes
    candidates: list[str]
    candidate_features: bytes


class LearntExample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is learnt from of `streams.records.Example`: the rest of the record is skipped and not parsed (11 µs in place of 74)."""

    v: Literal[1] = 1
    request_id: str
    late: str = ""
    time_ms: int
    items: list[str]
    clicked: list[int]
    carted: list[int]
    purchased: list[int]
    features: ServedFeatures


def samples_of(examples: Sequence[LearntExample | Example], encoder: Encoder) -> tuple[Samples, Array]:
    """The samples that joined impressions make, and int [N] which example each is of; bit for bit what `Encoder.decode` reads one by one.

    Left out are examples whose lists disagree, whose features are of another version or shape, or hold a number that is none, or no feature.
    Of a shelf longer than POSITIONS_MAX the positions acted on stay, then the first ones.
    """
    features = encoder.features
    s, f, r = len(features.shopper_columns), len(features.candidate_columns), features.sequence.n
    fitting = [n for n, example in enumerate(examples) if _fits(example, features.version, s, f, r)]
    if not fitting:
        return empty(features), np.zeros(0, np.int64)
    chosen = [examples[n] for n in fitting]
    served = [example.features for example in chosen]
    recent = np.array([len(one.recent_items) for one in served])
    shown = np.array([len(example.items) for example in chosen])

    in_sequence = np.arange(r) < recent[:, None]
    on_shelf = np.arange(shown.max()) < shown[:, None]
    candidate_features = _ragged(_numbers([one.candidate_features for one in served], "<f4").reshape(-1, f), on_shelf, 0.0)
    # The encoder knows which columns hold positions, and what stands there: whatever it puts over numbers that are none.
    positions = encoder.shown({"candidate_features": np.full((shown.max(), f), np.nan, np.float32)})["candidate_features"]
    placed = ~np.isnan(positions)
    candidate_features[:, placed] = positions[placed]
    candidate_features[~on_shelf] = 0.0
    labels = np.stack(
        [_ragged(np.array(list(chain.from_iterable(acted)), np.float32), on_shelf, UNKNOWN) for acted in _acted(chosen)], axis=-1
    )
    samples = Samples(
        recent_items=_ragged(_ids(one.recent_items for one in served), in_sequence, b""),
        recent_events=_ragged(_numbers([one.recent_events for one in served], "<i4"), in_sequence, 0),
        recent_age=_ragged(_numbers([one.recent_age for one in served], "<f4"), in_sequence, 0.0),
        shopper_features=_numbers([one.shopper_features for one in served], "<f4").reshape(-1, s),
        candidates=_ragged(_ids(example.items for example in chosen), on_shelf, b""),
        candidate_features=candidate_features,
        labels=labels,
        served=np.ones(len(chosen), bool),
    )
    plausible = np.ones(len(chosen), bool)
    for column in (samples.recent_age, samples.shopper_features, samples.candidate_features):
        plausible &= (np.abs(column) <= VALUE_MAX).all(axis=tuple(range(1, column.ndim)))  # no number that is none is
    return _shortened(samples.take(plausible)), np.array(fitting)[plausible]


def _fits(example: LearntExample | Example, version: str, s: int, f: int, r: int) -> bool:
    served, n, m = example.features, len(example.items), len(example.features.recent_items)
    return (
        served.version == version
        and n == len(example.clicked) == len(example.carted) == len(example.purchased)
        and n > 0
        and served.candidates == example.items
        and len(served.candidate_features) == 4 * n * f
        and len(served.shopper_features) == 4 * s
        and m <= r
        and len(served.recent_events) == len(served.recent_age) == 4 * m
    )


def _acted(examples: Sequence[LearntExample | Example]) -> tuple[list[list[int]], ...]:
    """By task, in the order of TASKS."""
    acted = tuple([getattr(example, name) for example in examples] for name in ("clicked", "carted", "purchased"))
    assert len(acted) == len(TASKS)
    return acted


def _numbers(raw: list[bytes], dtype: str) -> Array:
    return np.frombuffer(b"".join(raw), dtype=dtype)


def _ids(lists: Iterable[list[str]]) -> Array:
    return np.array([item.encode() for item in chain.from_iterable(lists)] or [b""], dtype="S")


def _ragged(flat: Array, where: Array, fill: float | bytes) -> Array:
    """[N, width, …] with `flat` where `where` [N, width] is true, row by row, and `fill` elsewhere."""
    out = np.full((*where.shape, *flat.shape[1:]), fill, dtype=flat.dtype)
    out[where] = flat[: int(where.sum())]
    return out


def _shortened(samples: Samples) -> Samples:
    """No shelf longer than POSITIONS_MAX."""
    width = samples.candidates.shape[1]
    if width <= POSITIONS_MAX:
        return samples
    acted = (samples.labels > 0).any(axis=-1)
    # Those acted on first, in their order, then the others; what is kept goes back to the shelf's order. Padding stands last by itself.
    kept = np.sort(np.argsort(np.where(acted, 0, width) + np.arange(width), axis=1)[:, :POSITIONS_MAX], axis=1)
    rows = np.arange(samples.size)[:, None]
    return samples._replace(
        candidates=samples.candidates[rows, kept],
        candidate_features=samples.candidate_features[rows, kept],
        labels=samples.labels[rows, kept],
    )
