"""The one encoder: rows → model inputs. The scorer calls it when serving, the trainer when it replays the log.

C candidates, R = the sequence's n, S = len(features.shopper_columns), F = len(features.candidate_columns).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features import declarations as d
from features.events import EVENT_INDEX
from features.feature_set import FeatureSet
from features.fold import HOUR_MS
from features.rows import CandidateColumns, FeaturesAsServed, ShopperRow

Floats = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Inputs = dict[str, npt.NDArray[Any]]

VIEW_ITEM = EVENT_INDEX["view_item"]
NEVER_HOURS = 24.0 * 365  # stands for "has not happened": a year, beyond which nobody's last click says anything


class Encoder:
    """Encodes for one feature set."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self._half_life_of = np.array([s.half_life for slots in features.shopper_slots.values() for s in slots], dtype=np.int64)
        self._positions = {f.name for f in features.declared.features if isinstance(f, d.Position)}
        self._idle_ms = [d.milliseconds(session.idle) for session in features.sessions]
        self._values = [values for f in features.declared.features if (values := self._values_of(f)) is not None]

    def shopper(self, row: ShopperRow, time_ms: int) -> Inputs:
        """The shopper's side, without a batch axis.

        Returns:
            recent_items: bytes [R], newest first, padded with b"".
            recent_events: int32 [R], 1 + index in EVENT_NAMES, 0 where padded.
            recent_age: float32 [R], log(1 + age in hours).
            shopper_features: float32 [S], see `FeatureSet.shopper_columns`.
        """
        n = len(row.recent_items)
        age = np.log1p(np.maximum(time_ms - np.asarray(row.recent_times_ms, dtype=np.float64), 0.0) / HOUR_MS)
        return self._sequence(row.recent_items, np.asarray(row.recent_events, dtype=np.int32) + 1, age.astype(np.float32)[:n]) | {
            "shopper_features": self._shopper_features(row, time_ms)
        }

    def candidates(self, row: ShopperRow, columns: CandidateColumns, time_ms: int) -> Inputs:
        """The candidates' side: `candidates` bytes [C] and `candidate_features` float32 [C, F], see `FeatureSet.candidate_columns`."""
        out = np.zeros((len(self.features.candidate_columns), len(columns.ids)), dtype=np.float32)
        at = 0
        for values in self._values:
            for value in values(row, columns):
                out[at] = value
                at += 1
        return {"candidates": columns.ids, "candidate_features": np.ascontiguousarray(out.T)}

    def decode(self, served: FeaturesAsServed) -> Inputs:
        """The model's inputs, bit for bit as they were when served.

        Raises:
            ValueError: they are not of this feature version's shapes.
        """
        features = self.features
        if served.version != features.version:
            raise ValueError(f"features as served are of version {served.version!r}, this encoder's is {features.version!r}")
        shape = (len(served.candidates), len(features.candidate_columns))
        shopper = np.frombuffer(served.shopper_features, dtype="<f4")
        if shopper.shape != (len(features.shopper_columns),):
            raise ValueError(f"{len(shopper)} shopper features, expected {len(features.shopper_columns)}")
        events, age = np.frombuffer(served.recent_events, dtype="<i4"), np.frombuffer(served.recent_age, dtype="<f4")
        return self._sequence(served.recent_items, events, age) | {
            "shopper_features": shopper,
            "candidates": np.array([item.encode() for item in served.candidates] + [b""], dtype=object)[: shape[0]],
            "candidate_features": np.frombuffer(served.candidate_features, dtype="<f4").reshape(shape),
        }

    def shown(self, inputs: Inputs) -> Inputs:
        """`inputs` of a shelf in the order it was shown in, with the positions that were not known when it was scored."""
        columns = [i for i, name in enumerate(self.features.candidate_columns) if name in self._positions]
        if not columns:
            return inputs
        features = inputs["candidate_features"].copy()
        features[:, columns] = np.log1p(np.arange(len(features), dtype=np.float64))[:, None]
        return inputs | {"candidate_features": features}

    def served(
        self,
        row: ShopperRow,
        inputs: Inputs,
        columns: CandidateColumns,
        time_ms: int,
        rows: Sequence[int],
    ) -> FeaturesAsServed:
        """What `decode` reads back: `inputs` of the candidates at `rows`, in that order."""
        at = np.array(rows, dtype=np.intp)
        items = [item.decode() for item in columns.ids.take(at).tolist()]
        n = len(row.recent_items)
        return FeaturesAsServed(
            version=self.features.version,
            time_ms=time_ms,
            partition=row.partition,
            offset=row.offset,
            recent_items=list(row.recent_items),
            recent_events=inputs["recent_events"][:n].astype("<i4").tobytes(),
            recent_age=inputs["recent_age"][:n].astype("<f4").tobytes(),
            shopper_features=inputs["shopper_features"].astype("<f4").tobytes(),
            candidates=items,
            candidate_features=inputs["candidate_features"].take(at, 0).astype("<f4").tobytes(),
            item_offsets=columns.offsets(rows),
            catalog_ms=columns.catalog.time_ms.take(at).tolist(),
        )

    def _sequence(self, items: list[str], events: npt.NDArray[np.int32], age: Floats) -> Inputs:
        r = self.features.sequence.n
        n = len(items)
        if n > r or len(events) != n or len(age) != n:
            raise ValueError(f"a sequence of {n} items, {len(events)} events and {len(age)} ages; expected equal ones, at most {r}")
        padded_items = np.full(r, b"", dtype=object)
        padded_events, padded_age = np.zeros(r, dtype=np.int32), np.zeros(r, dtype=np.float32)
        padded_items[:n] = [item.encode() for item in items]
        padded_events[:n], padded_age[:n] = events, age
        return {"recent_items": padded_items, "recent_events": padded_events, "recent_age": padded_age}

    def _shopper_features(self, row: ShopperRow, time_ms: int) -> Floats:
        features = self.features
        values: list[float] = []
        for recency in features.recencies:
            at = features.mark_at[recency.name]
            for latest in row.marks[at : at + len(recency.events)]:
                values.append(min(max(time_ms - latest, 0) / HOUR_MS, NEVER_HOURS) if latest > 0 else NEVER_HOURS)
        for session, idle_ms in zip(features.sessions, self._idle_ms, strict=True):
            at = features.mark_at[session.name]
            start, last, depth, items = row.marks[at : at + 4]
            going_on = bool(last) and time_ms - last <= idle_ms
            values += (depth, items, max(last - start, 0) / 1000) if going_on else (0.0, 0.0, 0.0)
        counts = np.asarray(row.numbers, dtype=np.float64)
        if features.shopper_numbers:
            counts = counts * features.shopper_half_lives.scale_of(row.time_ms, time_ms).take(self._half_life_of)
        found: Floats = np.log1p(np.concatenate([counts, values])).astype(np.float32)
        return found

    def _values_of(self, feature: d.AnyDeclaration) -> Callable[[ShopperRow, CandidateColumns], Sequence[Any]] | None:
        """How the columns of one feature are made, each [C] or a number; None for a feature without."""
        slots = self.features.item_slots.get(feature.name, [])
        numbers = slice(slots[0].at, slots[0].at + len(slots)) if slots else slice(0)
        match feature:
            case d.DecayedCount(entity="item"):
                return lambda _, columns: np.log1p(columns.numbers[numbers])  # type: ignore[return-value]
            case d.Rate(prior_of=prior_of, prior_to=prior_to):

                def rate(_: ShopperRow, columns: CandidateColumns) -> Sequence[Any]:
                    of, to = columns.numbers[numbers]
                    return [(of + prior_of) / (to + prior_to)]

                return rate
            case d.Trend():
                per_short, per_long = d.milliseconds(feature.short), d.milliseconds(feature.long)
                middle = slots[0].at + len(feature.events)
                # An unchanging rate r counts r * half-life / ln 2: divided by the half-lives both are equal, and the logarithm 0. One event
                # in the long half-life is taken as known, so that a first click is no explosion.
                prior = 1.0 / per_long

                def trend(_: ShopperRow, columns: CandidateColumns) -> Sequence[Any]:
                    short = columns.numbers[numbers.start : middle].sum(axis=0) / per_short
                    long = columns.numbers[middle : numbers.stop].sum(axis=0) / per_long
                    return [np.log((short + prior) / (long + prior))]

                return trend
            case d.Covisit():
                return lambda _, columns: [np.log1p(columns.covisit)]
            case d.Field(field="price"):
                return lambda _, columns: [np.log1p(columns.catalog.price)]
            case d.Field(field="item_name"):
                return lambda _, columns: [columns.catalog.named]
            case d.Field(field=field):
                return lambda _, columns: [
                    (columns.catalog.code[field] >= 0) & (columns.catalog.code[field] != columns.catalog.codes[field].get("", -1))
                ]
            case d.Match():
                at = next(i for i, affinity in enumerate(self.features.affinities) if affinity.name == feature.affinity)
                leaned_to = self.features.affinities[at].field
                return lambda row, columns: [
                    shares(row.affinities[at], columns.catalog.codes[leaned_to], columns.catalog.code[leaned_to])
                ]
            case d.Position():
                return lambda *_: [0.0]  # as for a first place; `shown` puts in what is known afterwards
            case d.LastN(n=n):
                # By place in the sequence; the last is that of a candidate that does not stand there, whose place is -1.
                ranks = np.array([*(1.0 / (1 + place) for place in range(n)), 0.0])
                return lambda _, columns: [columns.recent >= 0, ranks.take(columns.recent)]
        return None


def shares(weights: dict[str, float], codes: dict[str, int], code: npt.NDArray[np.int32]) -> Floats64:
    """[len(code)] share of `weights` (by value) that each code's value holds; of none where the code is -1, without record."""
    share = np.zeros(len(codes) + 1)  # the last place is that of -1
    total = sum(weights.values())
    for value, weight in weights.items() if total else ():
        if (at := codes.get(value)) is not None:
            share[at] = weight / total
    result: Floats64 = share.take(code)
    return result


def look_at(row: ShopperRow, items: Sequence[str], time_ms: int, n: int) -> None:
    """Put the page's `items` in front of the row's sequence, as just looked at."""
    if items:
        row.recent_items = [*items, *row.recent_items][:n]
        row.recent_events = [*[VIEW_ITEM] * len(items), *row.recent_events][:n]
        row.recent_times_ms = [*[time_ms] * len(items), *row.recent_times_ms][:n]
