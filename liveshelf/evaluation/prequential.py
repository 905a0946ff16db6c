"""Each event is told before it is learnt from, by models that are kept up to date at different intervals, in one pass over a log.

As in Table 2 of Monolith (Liu et al., 2022, arXiv 2209.07663). In event time: a model of interval I knows, at time t, all that is older than
the last multiple of I before t. Features, session neighbours and popularity are live in every row; only the weights differ.

What is run is what runs in production: the fold and the encoder (`trainer.bootstrap.Past`), the trainer's own steps (`trainer.increment`),
and the scorer's candidate sources and rules of order. Left out are the gate (every step is taken), the shelves that the trainer sets aside
for it, and the export: weights are asked where they are.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from features.encoder import Inputs
from features.events import ENGAGEMENT, Event
from features.feature_set import FeatureSet
from features.live_sessions import LiveSessions
from features.rows import CatalogItem
from liveshelf.errors import InvalidEventError
from liveshelf.evaluation.neighbours import AT, SESSIONS_MAX, Chances, Neighbours
from serving.candidates import Lists, Retrieval, Visit, default_sources
from serving.live_model import OBJECTIVE_WEIGHTS
from serving.query import Query
from serving.rules import NO_RULES
from serving.shelf import allowed
from trainer.bootstrap import SAMPLES_MAX, Past
from trainer.increment import begin, go_on, stirred
from trainer.learner import Learner, be_deterministic
from trainer.log import Logged
from trainer.nearest import Nearest
from trainer.samples import TASKS, UNKNOWN, Sample, Samples, concat, empty, stack
from trainer.vocabulary import Limits

ASKED_AT_ONCE = 128  # lists scored in one call: some 400 candidates of 25 features each
CHANCE_MIN = 1e-6

Floats = Any


class Told(NamedTuple):
    """What one recommender made of one event."""

    right: float
    """Pairs of (engaged with, not) in the right order; ties count half."""
    loss: float
    """Log loss of clicks, summed over the shelf's places."""
    hit: float
    """1 when an item engaged with is among the first AT of the whole list."""
    learnt: int = 0
    """Samples that the model had learnt from in its steps, the beginning apart."""


@dataclass
class Outcomes:
    """By evaluated event, in order; `told` by recommender."""

    shopper: list[int] = field(default_factory=list)
    """Number of the shopper, by first appearance."""
    time_ms: list[int] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Of the shelf, whose click labels are known."""
    told: dict[str, list[Told | None]] = field(default_factory=dict)
    """None before the recommender joined."""


class Shelf(NamedTuple):
    """One event to be told: a shelf with the item engaged with among others, and the question for a list."""

    number: int
    sample: Sample
    wanted: frozenset[str]


class Asked(NamedTuple):
    """One shelf with the candidates of one model, in the order of their sources."""

    shelf: Shelf
    candidates: Inputs


class Arm:
    """One model and how it is kept up to date. `interval_ms` 0: never."""

    def __init__(self, name: str, interval_ms: int, learner: Learner, reservoir: Samples, seed: int) -> None:
        self.name, self.interval_ms, self.learner, self.reservoir = name, interval_ms, learner, reservoir
        self.steps, self.learnt, self.cpu_s = 0, 0, 0.0
        self.nearest = Nearest(learner)
        self.due_ms = 0
        """Events from here on are of an interval whose model is yet to be made."""
        self._seed = seed
        self._waiting: list[Samples] = []
        self._asked: list[Asked] = []

    def take(self, samples: Samples) -> None:
        """New samples, to be learnt from at the next boundary."""
        if self.interval_ms:
            self._waiting.append(samples)

    def step(self, time_ms: int) -> None:
        """Learn from what waits, all of it older than `time_ms`."""
        if not self._waiting:
            return
        began, new = time.process_time(), concat(*self._waiting)
        self._waiting.clear()
        rng = np.random.default_rng([self._seed, self.steps])
        go_on(self.learner, new, self.reservoir, time_ms, rng)
        self.reservoir = stirred(self.reservoir, new, rng)
        self.nearest = Nearest(self.learner)
        self.steps, self.learnt, self.cpu_s = self.steps + 1, self.learnt + new.size, self.cpu_s + time.process_time() - began

    def ask(self, asked: Asked, features: FeatureSet) -> list[tuple[int, Told]]:
        """Put one more to be told; the answers of all that wait, when they are enough."""
        self._asked.append(asked)
        return self.tell(features) if len(self._asked) >= ASKED_AT_ONCE else []

    def tell(self, features: FeatureSet) -> list[tuple[int, Told]]:
        """(number, what was told) of all that waits: before the model moves on."""
        if not self._asked:
            return []
        shelves, _ = stack([one.shelf.sample for one in self._asked], features)
        lists, _ = stack(
            [Sample(one.candidates, [[UNKNOWN] * len(TASKS)] * len(one.candidates["candidates"])) for one in self._asked], features
        )
        chances, scores = self.learner.predict(shelves), self.learner.predict(lists) @ OBJECTIVE_WEIGHTS
        told = []
        for k, one in enumerate(self._asked):
            labels = np.asarray(one.shelf.sample.labels)
            n = len(labels)
            items = [item.decode() for item in one.candidates["candidates"].tolist()]
            best = np.argsort(-scores[k, : len(items)], kind="stable")[:AT]
            hit = any(items[at] in one.shelf.wanted for at in best)
            told.append(
                (
                    one.shelf.number,
                    Told(
                        right_pairs(labels, chances[k, :n] @ OBJECTIVE_WEIGHTS),
                        click_loss(labels, chances[k, :n, 0]),
                        hit,
                        self.learnt,
                    ),
                )
            )
        self._asked.clear()
        return told


def right_pairs(labels: Floats, scores: Floats) -> float:
    """Pairs of a shelf in the right order, of any objective; ties count half."""
    acted = (labels > 0).any(axis=-1)
    difference = scores[acted][:, None] - scores[~acted][None, :]
    return float((np.sign(difference) / 2 + 0.5).sum())


def click_loss(labels: Floats, chances: Floats) -> float:
    """Log loss of a shelf's known clicks, summed."""
    known = labels[:, 0] != UNKNOWN
    p, y = np.clip(chances[known].astype(np.float64), CHANCE_MIN, 1 - CHANCE_MIN), labels[known, 0]
    return float(-(y * np.log(p) + (1 - y) * np.log1p(-p)).sum())


@dataclass
class Costs:
    """CPU seconds of one recommender's learning, over all processors."""

    steps: int
    learnt: int
    cpu_s: float


class Replay(NamedTuple):
    """All that a pass over a log found."""

    outcomes: Outcomes
    costs: dict[str, Costs]
    from_ms: int
    """Where evaluation began."""
    retrained_ms: int
    """From where on `retrained` is among the recommenders; 0 when it is not."""
    evaluated: int
    eligible: int
    """Events that could have been evaluated: what is more than asked for was left out by chance."""


def prequential(
    events: Sequence[Event],
    intervals: dict[str, int],
    from_ms: int,
    features: FeatureSet,
    limits: Limits,
    *,
    seed: int,
    evaluated_max: int,
    retrain: bool,
    on_event: Callable[[int], None] = lambda n: None,
) -> Replay:
    """Replay `events` (by time). Models begin with all that is older than `from_ms`, the same weights for all; then each of `intervals`
    (name → ms) is kept up to date, `batch` never. With `retrain` a model learnt anew from all that is older than the last boundary of the
    longest interval that a whole one follows joins there as `retrained`: what increments are measured against.

    Raises:
        InvalidEventError: there is nothing to learn from before `from_ms`, or nothing to evaluate after it.
    """
    be_deterministic()
    return _Pass(events, intervals, from_ms, features, limits, seed, evaluated_max, retrain).run(on_event)


class _Pass:
    def __init__(
        self,
        events: Sequence[Event],
        intervals: dict[str, int],
        from_ms: int,
        features: FeatureSet,
        limits: Limits,
        seed: int,
        evaluated_max: int,
        retrain: bool,
    ) -> None:
        self._events, self._intervals, self._from_ms = events, intervals, from_ms
        self._features, self._limits, self._seed = features, limits, seed
        self._past, self._neighbours = Past([], seed, features), Neighbours()
        self._lists = Lists(self._past.items)
        self._sessions = LiveSessions(self._past.items.records, SESSIONS_MAX)
        self._sources = default_sources(sessions=self._sessions)
        self._calibrated = {"neighbours": Chances(), "popular": Chances()}
        self._outcomes, self._shoppers = Outcomes(), dict[str, int]()
        self._arms: list[Arm] = []
        self._neighbours_s = 0.0
        self._costs: dict[str, Costs] = {}
        self._new: list[Sample] = []
        self._kept: list[Samples] = []
        """All samples so far, as many as a model is learnt from anew."""
        longest = max(intervals.values())
        whole_ms = (events[-1].time_ms - longest) // longest * longest  # so that a whole interval follows
        self._retrain_ms = whole_ms if retrain and whole_ms > from_ms else 0
        engaged = [n for n, event in enumerate(events) if event.time_ms >= from_ms and event.event_name in ENGAGEMENT]
        self._eligible = len(engaged)
        rng = np.random.default_rng([seed, 2])
        chosen = rng.permutation(len(engaged))[:evaluated_max]
        self._chosen = {engaged[at] for at in chosen.tolist()}

    def run(self, on_event: Callable[[int], None]) -> Replay:
        due_ms = self._from_ms
        for n, event in enumerate(self._events):
            if event.time_ms >= due_ms:
                self._boundary(event.time_ms)
                due_ms = min(arm.due_ms for arm in self._arms if arm.interval_ms)
            sample = self._past.sample(event)
            if sample is not None:
                if n in self._chosen:
                    self._evaluate(event, sample)
                elif not self._arms:
                    self._note(event, sample)
                self._new.append(sample)
            self._move_on(n, event)
            on_event(1)
        if not self._arms or not self._outcomes.shopper:
            raise InvalidEventError(
                "the log",
                f"{len(self._events)} events, {len(self._outcomes.shopper)} to evaluate",
                "engagement that follows an earlier item of its shopper, both before the first evaluated event and after; give a longer log",
            )
        self._tell()
        costs = self._costs | {arm.name: Costs(arm.steps, arm.learnt, arm.cpu_s) for arm in self._arms if arm.interval_ms}
        costs["neighbours"] = Costs(0, 0, self._neighbours_s)
        return Replay(self._outcomes, costs, self._from_ms, self._retrain_ms, len(self._outcomes.shopper), self._eligible)

    def _move_on(self, n: int, event: Event) -> None:
        self._past.fold(Logged(0, n, event), n)
        self._sessions.see(event)
        began = time.process_time()
        self._neighbours.see(event)
        if self._arms:
            self._neighbours_s += time.process_time() - began
        for item in event.items:  # what events say of items stands for the catalog, from then on
            if (item.item_category or item.item_brand or item.price) and self._past.items.catalog(item.item_id) is None:
                known = CatalogItem(
                    item.item_id, item.item_name, item.item_category, item.item_brand, item.price, time_ms=event.time_ms
                )
                self._past.items.apply_catalog(known)

    def _boundary(self, time_ms: int) -> None:
        """Bring every model to what it may know at `time_ms`: samples that wait are all of older events."""
        samples, _ = stack(self._new, self._features)
        self._new.clear()
        self._kept.append(samples)
        while sum(part.size for part in self._kept[1:]) >= SAMPLES_MAX:
            del self._kept[0]
        if not self._arms:
            self._begin(time_ms)
            return
        for arm in self._arms:
            arm.take(samples)
            if arm.interval_ms and time_ms >= arm.due_ms:
                self._record(arm, arm.tell(self._features))
                arm.step(time_ms)
                arm.due_ms = (time_ms // arm.interval_ms + 1) * arm.interval_ms
        if self._retrain_ms and time_ms >= self._retrain_ms and "retrained" not in self._costs:
            self._join(self._learnt_anew("retrained", time_ms))

    def _begin(self, time_ms: int) -> None:
        if time_ms >= self._retrain_ms:  # nothing happened between the beginning and that boundary: both would learn from the same
            self._retrain_ms = 0
        batch = self._learnt_anew("batch", time_ms)
        self._join(batch)
        state = batch.learner.state()
        for name, interval_ms in self._intervals.items():
            learner = Learner(self._features, self._seed, self._limits)
            learner.restore(state)
            arm = Arm(name, interval_ms, learner, batch.reservoir, self._seed)
            arm.due_ms = (time_ms // interval_ms + 1) * interval_ms
            self._join(arm)

    def _learnt_anew(self, name: str, time_ms: int) -> Arm:
        samples = concat(empty(self._features), *self._kept)
        samples = samples.take(np.arange(max(samples.size - SAMPLES_MAX, 0), samples.size))
        if not samples.size:
            raise InvalidEventError(
                "the log", "nothing to learn from in its beginning", "engagement that follows an earlier item of its shopper"
            )
        began, learner = time.process_time(), Learner(self._features, self._seed, self._limits)
        rng = np.random.default_rng([self._seed, 0])
        begin(learner, samples, time_ms, rng)
        self._costs[name] = Costs(1, samples.size, time.process_time() - began)
        return Arm(name, 0, learner, stirred(empty(self._features), samples, rng), self._seed)

    def _join(self, arm: Arm) -> None:
        self._arms.append(arm)
        self._outcomes.told[arm.name] = [None] * len(self._outcomes.shopper)

    def _evaluate(self, event: Event, sample: Sample) -> None:
        labels = np.asarray(sample.labels)
        acted = np.asarray((labels > 0).any(axis=-1))
        out, number = self._outcomes, len(self._outcomes.shopper)
        out.shopper.append(self._shoppers.setdefault(event.shopper, len(self._shoppers)))
        out.time_ms.append(event.time_ms)
        out.pairs.append(int(acted.sum() * (~acted).sum()))
        out.places.append(int((labels[:, 0] != UNKNOWN).sum()))
        items = [item.decode() for item in sample.inputs["candidates"].tolist()]
        wanted = frozenset(item for item, one in zip(items, acted, strict=True) if one)
        for name, (scores, top) in self._simple(event, items).items():
            told = Told(right_pairs(labels, scores), click_loss(labels, self._calibrated[name].of(scores)), bool(wanted & set(top)))
            out.told.setdefault(name, []).append(told)
        shelf = Shelf(number, sample, wanted)
        for arm, candidates in zip(self._arms, self._candidates(event, sample), strict=True):
            out.told[arm.name].append(None)
            self._record(arm, arm.ask(Asked(shelf, candidates), self._features))

    def _note(self, event: Event, sample: Sample) -> None:
        """A shelf of the beginning: what simple scores mean."""
        items = [item.decode() for item in sample.inputs["candidates"].tolist()]
        for name, (scores, _) in self._simple(event, items).items():
            self._calibrated[name].note(np.asarray(sample.labels), scores)

    def _simple(self, event: Event, items: list[str]) -> dict[str, tuple[Floats, list[str]]]:
        """[C] scores of `items`, and the first AT of all: by neighbours, and by popularity."""
        known = self._past.items
        popular = known.engagement(known.records.rows(items), event.time_ms)
        return {
            "neighbours": self._neighbours.scores(event, items),
            "popular": (popular, known.records.items(known.popular_rows(AT))),
        }

    def _candidates(self, event: Event, sample: Sample) -> Iterable[Inputs]:
        """For each model what the scorer would rank: its sources' items, less what may not be shown, with the features of now."""
        row, items, time_ms = self._past.shopper(event.shopper), self._past.items, event.time_ms
        encoded = {name: sample.inputs[name] for name in ("recent_items", "recent_events", "recent_age", "shopper_features")}
        visit = Visit(row, encoded, time_ms, items, self._lists, None)
        fixed = [
            answer[: s.quota] for s in self._sources if not s.timeout_s and isinstance(answer := s.candidates(visit), np.ndarray)
        ]
        retrieved = next(source.quota for source in self._sources if isinstance(source, Retrieval))
        near = [items.records.rows(arm.nearest.items(encoded, retrieved)) for arm in self._arms]
        of_arm = [np.concatenate([*fixed, rows[rows >= 0]]) for rows in near]
        union = np.unique(np.concatenate(of_arm))
        union = union[allowed(Query(event.shopper, "", "", AT), row, union, items.records, NO_RULES)]
        columns = self._past.encoder.candidates(row, items.columns_at(union, row, time_ms), time_ms)
        for rows in of_arm:
            own = np.isin(union, rows)
            yield encoded | {name: column[own] for name, column in columns.items()}

    def _record(self, arm: Arm, told: Iterable[tuple[int, Told]]) -> None:
        for number, one in told:
            self._outcomes.told[arm.name][number] = one

    def _tell(self) -> None:
        for arm in self._arms:
            self._record(arm, arm.tell(self._features))
