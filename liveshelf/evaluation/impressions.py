"""Logged impressions (Open Bandit): how well ours tells which are clicked on, and what our ranking would have earned in their place.

All is replayed once by time, as it would have come: impressions and clicks of every policy go through the live fold, and the weights learn from
them by the trainer's own beginning and steps. Judged are the rounds of the second half that a uniformly random policy logged, each before
anything is learnt from it; the model that DR expects rewards by is the same one. A shopper there is a segment: all who share four traits.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from features.events import Event, EventItem, EventName
from features.feature_set import FeatureSet
from liveshelf.errors import InvalidEventError
from liveshelf.evaluation.next_click import Bar
from liveshelf.evaluation.off_policy import Logged, Policy, Value, logged_value, value
from liveshelf.evaluation.open_bandit import Campaign, Round
from trainer.bootstrap import Past
from trainer.increment import begin, go_on, stirred
from trainer.learner import Learner, be_deterministic
from trainer.log import Logged as LoggedEvent
from trainer.metrics import auc, log_loss
from trainer.resample import Estimate, Floats
from trainer.samples import UNKNOWN, Sample, concat, empty, stack
from trainer.vocabulary import Limits

RANDOM, BASELINE = "random", "bts"
"""The policy whose rounds ours is judged on, and the one that it is compared with: Bernoulli Thompson sampling."""
FIRST, STEP = 5_000, 1_000
"""Rounds that the first weights are learnt from, and those of a step."""
SEED = 1


class Told(NamedTuple):
    """n rounds. Ours shows at place k its k-th best item."""

    clicked: Floats  # [n] 0 or 1
    propensity: Floats  # [n]
    told: Floats  # [n] the chance that ours gave to what was shown
    ranked: Policy
    sampled: Policy
    """Ours as a lottery: each item at a chance in proportion to that of its click. It gives up some reward, and uses every round."""


class Asked(NamedTuple):
    """One round to be told, over all `items` of its campaign."""

    round: Round
    items: list[str]
    sample: Sample


def evaluate(campaigns: Sequence[Campaign], features: FeatureSet, bar: Bar) -> dict[str, Any]:
    """Figures of all campaigns together.

    Raises:
        InvalidEventError: there are too few rounds, none of RANDOM in the second half, or an item that its campaign does not name.
    """
    be_deterministic()
    with bar("impressions") as (advance, total):
        total(sum(len(campaign.rounds) for campaign in campaigns))
        replay = _Replay(campaigns, features)
        parts = [_told(asked, chances) for asked, chances in replay.run(advance)]
    if not parts:
        raise InvalidEventError("the log", f"{replay.rounds} rounds", f"rounds of policy {RANDOM} in its second half")
    found = _joined(parts)
    logged = Logged(found.clicked, found.propensity)
    before = np.array([one.clicked for one in replay.before], np.float64)
    result = {
        "campaigns": [campaign.name for campaign in campaigns],
        "rounds": len(found.clicked),
        "clicks": int(found.clicked.sum()),
        "click_auc": _rounded(auc(found.clicked, found.told)),
        "click_log_loss": _rounded(log_loss(found.clicked, found.told)),
        "click_log_loss_of_the_mean": _rounded(log_loss(found.clicked, np.full(len(found.clicked), before.mean()))),
        RANDOM: _interval(logged_value(logged)),
        "ranked": _values(value(found.ranked, logged)),
        "sampled": _values(value(found.sampled, logged)),
    }
    if replay.others:
        earned = np.array([one.clicked for one in replay.others], np.float64)
        result[BASELINE] = _interval(logged_value(Logged(earned, np.ones(len(earned)))))
    return result


class _Replay:
    def __init__(self, campaigns: Sequence[Campaign], features: FeatureSet) -> None:
        self._features = features
        self._items = {campaign.name: [item.item_id for item in campaign.items] for campaign in campaigns}
        self._rounds = list(heapq.merge(*(campaign.rounds for campaign in campaigns), key=lambda one: one.time_ms))
        self.rounds = len(self._rounds)
        half = self.rounds // 2
        self.before = self._rounds[:half]
        self.others = [one for one in self._rounds[half:] if one.policy == BASELINE]
        self._past = Past([item for campaign in campaigns for item in campaign.items], SEED, features)
        self._learner = Learner(features, SEED, Limits(sum(map(len, self._items.values())), 1, 90))
        self._reservoir = empty(features)

    def run(self, advance: Callable[[int], None]) -> Iterator[tuple[list[Asked], Floats]]:
        """What is asked in a step, and [n, A] chances of a click, before anything is learnt from that step."""
        for start in range(0, self.rounds, STEP):
            asked, samples = [], []
            for number, one in enumerate(self._rounds[start : start + STEP], start):
                items = self._items[one.campaign]
                if one.item not in items:
                    raise InvalidEventError(f"campaign {one.campaign}", one.item, "an item of its item_context.csv")
                samples.append(self._sample(one, [one.item], float(one.clicked)))
                if number >= len(self.before) and one.policy == RANDOM:
                    asked.append(Asked(one, items, self._sample(one, items, UNKNOWN)))
                for at, event in enumerate(_events(one, number)):
                    self._past.fold(LoggedEvent(0, 2 * number + at, event), 2 * number + at)
                advance(1)
            if asked:
                if start < FIRST:
                    raise InvalidEventError(
                        "the log", f"{self.rounds} rounds", f"{2 * FIRST} or more: half of them are learnt from"
                    )
                yield (
                    asked,
                    self._learner.predict(stack([one.sample for one in asked], self._features)[0])[:, :, 0].astype(np.float64),
                )
            self._learn(samples, start)

    def _learn(self, new: list[Sample], start: int) -> None:
        samples, _ = stack(new, self._features)
        rng, time_ms = np.random.default_rng([SEED, start]), self._rounds[start].time_ms
        if start + STEP <= FIRST:
            self._reservoir = concat(self._reservoir, samples)
            if start + STEP == FIRST:
                begin(self._learner, self._reservoir, time_ms, rng)
        else:
            go_on(self._learner, samples, self._reservoir, time_ms, rng)
            self._reservoir = stirred(self._reservoir, samples, rng)

    def _sample(self, one: Round, items: list[str], clicked: float) -> Sample:
        row, encoder = self._past.shopper(one.shopper), self._past.encoder
        candidates = encoder.candidates(row, self._past.items.columns(items, row, one.time_ms), one.time_ms)
        return Sample(encoder.shopper(row, one.time_ms) | candidates, [[clicked, UNKNOWN, UNKNOWN]] * len(items))


def _told(asked: list[Asked], chances: Floats) -> Told:
    """`chances` [n, A] are of the items of each round's campaign, padded to the widest."""
    rows, width = np.arange(len(asked)), np.array([len(one.items) for one in asked])
    chances = np.where(np.arange(chances.shape[1]) < width[:, None], chances, 0.0)
    shown = np.array([one.items.index(one.round.item) for one in asked])
    best = np.argsort(-chances, axis=1, kind="stable")[rows, [one.round.position for one in asked]]
    lottery = chances / chances.sum(axis=1, keepdims=True)
    return Told(
        np.array([one.round.clicked for one in asked], np.float64),
        np.array([one.round.propensity for one in asked]),
        chances[rows, shown],
        Policy((best == shown).astype(np.float64), chances[rows, best], chances[rows, shown]),
        Policy(lottery[rows, shown], (lottery * chances).sum(axis=1), chances[rows, shown]),
    )


def _joined(parts: list[Told]) -> Told:
    def policy(of: list[Policy]) -> Policy:
        return Policy(*(np.concatenate(columns) for columns in zip(*of, strict=True)))

    clicked, propensity, told = (np.concatenate([part[at] for part in parts]) for at in range(3))
    return Told(clicked, propensity, told, policy([part.ranked for part in parts]), policy([part.sampled for part in parts]))


def _events(one: Round, number: int) -> list[Event]:
    """What a frontend would have sent."""
    names: list[EventName] = ["view_item_list", "select_item"]
    shown = (EventItem(item_id=one.item),)
    return [
        Event(event_id=f"{number}/{name}", event_name=name, shopper=one.shopper, time_ms=one.time_ms, items=shown)
        for name in names[: 1 + one.clicked]
    ]


def _values(found: Value) -> dict[str, Any]:
    intervals = {name: _interval(getattr(found, name)) for name in ("ips", "snips", "dr", "gain")}
    return intervals | {"rounds_used": round(found.rounds_used)}


def _interval(one: Estimate) -> list[float]:
    return [round(float(part), 5) for part in one]


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 5)
