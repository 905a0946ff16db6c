"""The replay: nothing is told with the knowledge of what came later, of itself, or of what is younger than the last boundary."""

from bisect import bisect_left

import msgspec
import numpy as np
import pytest

from features.events import Event, EventItem
from liveshelf.errors import InvalidEventError
from liveshelf.evaluation.neighbours import Chances, logistic
from liveshelf.evaluation.prequential import Replay, click_loss, prequential, right_pairs
from tests.planted_shop import FEATURES, T0, PlantedShop
from trainer.bootstrap import Past
from trainer.log import Logged
from trainer.samples import UNKNOWN
from trainer.vocabulary import Limits

MINUTE = 60_000
INTERVALS = {"70m": 70 * MINUTE, "20m": 20 * MINUTE, "7m": 7 * MINUTE}
BEGINNING = 700  # events, one in 20 s: of fewer a replay teaches that what leads to an item has not led there yet


def replay(events: list[Event], intervals: dict[str, int] = INTERVALS, evaluated: int = 400, retrain: bool = False) -> Replay:
    from_ms = events[BEGINNING].time_ms
    return prequential(events, intervals, from_ms, FEATURES, Limits(), seed=7, evaluated_max=evaluated, retrain=retrain)


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return PlantedShop().events(1_400)


@pytest.fixture(scope="module")
def found(events: list[Event]) -> Replay:
    return replay(events, retrain=True)


def sample_times(events: list[Event]) -> list[int]:
    """When each event that makes a sample happened, by the replay that bootstraps a shop."""
    past, times = Past([], 7, FEATURES), []
    for n, event in enumerate(events):
        if past.sample(event) is not None:
            times.append(event.time_ms)
        past.fold(Logged(0, n, event), n)
    return times


def test_a_model_has_learnt_from_exactly_what_is_older_than_its_last_boundary(events: list[Event], found: Replay) -> None:
    """Counted beside the replay: neither the event itself, nor any later one, nor one of the interval that it lies in."""
    times = sample_times(events)
    begun = bisect_left(times, found.from_ms)
    for name, interval_ms in INTERVALS.items():
        told = found.outcomes.told[name]
        for time_ms, one in zip(found.outcomes.time_ms, told, strict=True):
            assert one is not None
            boundary = max(time_ms // interval_ms * interval_ms, found.from_ms)
            assert one.learnt == bisect_left(times, boundary) - begun, (name, time_ms)
    assert {one.learnt for one in found.outcomes.told["batch"] if one} == {0}
    assert found.outcomes.told["7m"][-1].learnt > 400  # type: ignore[union-attr]


def test_the_future_changes_nothing(events: list[Event], found: Replay) -> None:
    """A log that goes on differently from some event on: until then all tell the same, bit for bit."""
    at = 1_000
    others = [f"i{n}" for n in range(60)]
    rng = np.random.default_rng(1)
    changed = [
        *events[:at],
        *(msgspec.structs.replace(event, items=(EventItem(others[int(rng.integers(60))]),)) for event in events[at:]),
    ]
    other = replay(changed, retrain=True)
    until = bisect_left(found.outcomes.time_ms, events[at].time_ms)
    assert until > 100
    for name in ("batch", *INTERVALS, "neighbours", "popular"):
        assert found.outcomes.told[name][:until] == other.outcomes.told[name][:until], name
    assert found.outcomes.told["7m"][until:] != other.outcomes.told["7m"][until:]


def test_all_tell_the_same_events(found: Replay) -> None:
    outcomes = found.outcomes
    assert found.evaluated == len(outcomes.shopper) == len(outcomes.time_ms) > 300
    for name in ("batch", *INTERVALS, "neighbours", "popular"):
        assert len(outcomes.told[name]) == found.evaluated
        assert None not in outcomes.told[name]
    assert outcomes.time_ms == sorted(outcomes.time_ms)
    assert outcomes.time_ms[0] >= found.from_ms


def test_what_is_learnt_anew_joins_at_the_last_boundary_that_a_whole_interval_follows(events: list[Event], found: Replay) -> None:
    longest = max(INTERVALS.values())
    assert found.retrained_ms % longest == 0
    assert longest <= events[-1].time_ms - found.retrained_ms < 2 * longest
    for time_ms, one in zip(found.outcomes.time_ms, found.outcomes.told["retrained"], strict=True):
        assert (one is not None) == (time_ms >= found.retrained_ms)


def test_the_planted_taste_is_found_beyond_chance_by_all_but_popularity(found: Replay) -> None:
    """Measured .84 by neighbours, .85 at 70m, .47 by popularity: what is near is mostly liked, and popular items are among the others."""
    auc = {
        name: sum(one.right for one in told if one) / sum(found.outcomes.pairs)
        for name, told in found.outcomes.told.items()
        if None not in told
    }
    assert auc["popular"] < 0.6
    assert min(auc["neighbours"], auc["7m"]) > 0.75, auc


def test_fewer_are_evaluated_when_asked_and_by_the_same_draw(events: list[Event], found: Replay) -> None:
    few = replay(events[:900], {"20m": 20 * MINUTE}, evaluated=50)
    again = replay(events[:900], {"20m": 20 * MINUTE}, evaluated=50)
    assert 30 < few.evaluated <= 50
    assert few.eligible > 150
    assert few.outcomes == again.outcomes
    assert found.eligible > 500


def test_steps_and_costs_are_counted(found: Replay) -> None:
    costs = found.costs
    assert costs["7m"].steps > costs["20m"].steps > costs["70m"].steps >= 2
    assert costs["batch"].steps == 1
    assert all(costs[name].cpu_s > 0 for name in ("batch", "retrained", *INTERVALS))


def test_a_log_without_anything_to_learn_says_so() -> None:
    alone = [
        Event(event_id=f"e{n}", event_name="view_item", shopper=f"s{n}", time_ms=T0 + n * MINUTE, items=(EventItem("a"),))
        for n in range(20)
    ]
    with pytest.raises(InvalidEventError, match="nothing to learn from in its beginning"):
        prequential(alone, {"5m": 5 * MINUTE}, T0 + 10 * MINUTE, FEATURES, Limits(), seed=7, evaluated_max=10, retrain=False)


def test_pairs_and_losses_by_hand() -> None:
    labels = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [UNKNOWN, UNKNOWN, UNKNOWN]])[:3]
    assert right_pairs(labels, np.array([0.5, 0.4, 0.5])) == 1.5
    assert np.isclose(click_loss(labels, np.array([0.5, 0.25, 0.2])), -np.log(0.5) - np.log(0.75) - np.log(0.8))
    carted = np.array([[UNKNOWN, 1.0, 0], [UNKNOWN, 0, 0]])
    assert click_loss(carted, np.array([0.5, 0.5])) == 0.0
    assert right_pairs(carted, np.array([0.1, 0.9])) == 0.0


def test_scores_are_read_as_the_chances_they_turn_out_to_be() -> None:
    rng = np.random.default_rng(5)
    scores = rng.exponential(1.0, 200_000)
    clicks = (rng.random(200_000) < 1 / (1 + np.exp(3.0 - 0.8 * np.log(scores + 1e-3)))).astype(float)
    intercept, slope = logistic(scores, clicks)
    assert abs(intercept + 3.0) < 0.05
    assert abs(slope - 0.8) < 0.05
    chances = Chances()
    for at in range(0, 2_000, 10):
        chances.note(np.stack([clicks[at : at + 10]] * 3, axis=1), scores[at : at + 10])
    assert abs(float(chances.of(scores).mean()) - clicks.mean()) < 0.02
