"""What ours is worth beside popularity and beside itself without learning, with and without drift, over several seeds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from liveshelf.settings import Settings
from liveshelf.simulator.closed_loop import FROZEN, OURS, POPULAR, RECOMMENDERS, Loop, Plan, Tally
from trainer.resample import Estimate, Ratio, estimate, quotient

MEASURES = {"click_rate": "CTR", "revenue": "revenue a shelf"}
TARGETS = {POPULAR: 1.3, FROZEN: 1.1}
"""How many times as much ours should bring; over its frozen copy under drift."""


def worth(
    plan: Plan, seeds: Sequence[int], settings: Settings, features: FeatureSet, on_visit: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """Figures without drift and with that of `plan`, each [figure, low, high]: 95% by a bootstrap over shoppers of all seeds."""
    worlds = []
    for drift in (0.0, plan.drift):
        tallies = [Loop(replace(plan, seed=seed, drift=drift), settings, features).run(on_visit) for seed in seeds]
        worlds.append({"drift": drift} | _summary(tallies))
    return {
        "seeds": list(seeds),
        "shoppers": plan.shoppers,
        "items": plan.items,
        "history_days": plan.history_days,
        "warm_days": plan.warm_days,
        "days": plan.days,
        "step_s": plan.step_ms // 1000,
        "worlds": worlds,
    }


def visits_of(plan: Plan, seeds: Sequence[int], settings: Settings, features: FeatureSet) -> int:
    """How many visits `worth` will play: each is measured with every recommender, those of the warm-up once."""
    total = 0
    for seed in seeds:
        visits = Loop(replace(plan, seed=seed), settings, features).visits
        warm = sum(one.day < plan.warm_days for one in visits)
        total += warm + len(RECOMMENDERS) * (len(visits) - warm)
    return 2 * total


def _summary(tallies: Sequence[dict[str, Tally]]) -> dict[str, Any]:
    """Of one kind of world; `tallies` by seed."""
    ratios = {name: _ratios([of_seed[name] for of_seed in tallies]) for name in RECOMMENDERS}
    figures = {
        name: {
            "shelves": int(sum(of_seed[name].shelves.sum() for of_seed in tallies)),
            "clicks": int(sum(of_seed[name].clicks.sum() for of_seed in tallies)),
            "degraded": sum(of_seed[name].degraded for of_seed in tallies),
        }
        | {measure: _listed(estimate(ratio)) for measure, ratio in ratios[name].items()}
        for name in RECOMMENDERS
    }
    times = {
        name: {measure: _listed(quotient(ratios[OURS][measure], ratios[name][measure])) for measure in MEASURES}
        | {"click_rate_by_seed": [_times(of_seed, name) for of_seed in tallies]}
        for name in RECOMMENDERS
        if name != OURS
    }
    return {"recommenders": figures, "ours_over": times}


def _ratios(tallies: Sequence[Tally]) -> dict[str, Ratio]:
    def joined(column: str) -> Any:
        return np.concatenate([getattr(tally, column) for tally in tallies])

    return {"click_rate": Ratio(joined("clicks"), joined("shown")), "revenue": Ratio(joined("revenue"), joined("shelves"))}


def _times(tallies: dict[str, Tally], name: str) -> float | None:
    ours, theirs = _ratios([tallies[OURS]])["click_rate"].point, _ratios([tallies[name]])["click_rate"].point
    return round(ours / theirs, 3) if theirs else None


def _listed(found: Estimate) -> list[float]:
    return [round(value, 4) for value in found]
