"""EXAMPLE → MODEL, one step at a time: read, learn, judge, checkpoint, publish.

A step, in the order that makes a crash harmless at any point:

1. read `training-examples` from the checkpoint's offsets to where the log ends now (`intake`);
2. learn from the new examples together with a reservoir of earlier ones (`learner`);
3. write the model beside its place, load it as a server would, and judge it on examples never learnt from (`export`, `gate`);
4. checkpoint: the new weights when promoted, the live ones when refused; the new offsets either way (`checkpoint`);
5. give the model its number in the model directory, and tell `model-releases` (`directory`, `releases`).

Killed before 4, the step runs again from the same offsets, weights and random numbers. Killed after 4, `Trainer` finishes 5 first.
"""

import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import structlog

from features.feature_set import FeatureSet
from liveshelf.settings import Settings
from streams.records import Release
from streams.topics import CLICKSTREAM, TRAINING_EXAMPLES
from trainer import checkpoint, directory, export, releases
from trainer.checkpoint import Checkpoint, State
from trainer.compare import compare
from trainer.gate import Contest, Unseen, Verdict, judge, unservable, unsound
from trainer.increment import begin, go_on, stirred
from trainer.intake import Batch, from_clickstream, from_examples
from trainer.learner import Learner, be_deterministic
from trainer.log import Offsets
from trainer.metrics import evaluate
from trainer.samples import Array, Samples, concat, empty
from trainer.vocabulary import Limits

log = structlog.get_logger()

UNSEEN_MAX = 2_000  # shelves of earlier steps that models are judged on, the latest: scoring them takes 0.1 s
UNSEEN_NEW_MAX = 1_000  # of these from one step, so that none judges itself alone
REFUSED_IN_A_ROW_MAX = 20
"""Steps refused one after the other before what they set aside becomes a measure, too. Until then none of it does: it may be as wrong as
what was refused, and a tenth of opposite labels outweighs the log loss of all the others. What lasts for twenty steps is no flood, but the
way shoppers behave now, and the refusals have told of it."""
RECENT_MAX = 500  # the latest shelves, of the step and before: on these a model must not be worse by more than noise
CONSUMED_MAX = 50_000  # request ids remembered: the join delivers twice only around an agent's restart, minutes apart


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one step did."""

    outcome: str
    """`promoted`, `refused` or `nothing_to_learn`."""
    reason: str
    kind: str
    """`bootstrap` or `step`."""
    version: int
    """The version made, or the live one when none was made; 0 when there is none."""
    parent: int
    consumed: int
    """Records read: examples, or events when bootstrapping."""
    trained: int
    held_out: int
    duplicates: int
    unusable: int
    """Not decodable, of another feature version, or with features that are not finite numbers."""
    seconds: float
    phases_s: dict[str, float] = {}
    """Seconds by part of the step: reading, learning, exporting, judging, checkpointing, publishing."""
    metrics: dict[str, float]
    offsets: dict[str, int]
    checkpoints_skipped: list[str]
    """Newer checkpoints that could not be read when this trainer started, and why."""


class Timer:
    """How long a step takes, part by part."""

    def __init__(self) -> None:
        self._start = self._at = time.monotonic()
        self.phases_s: dict[str, float] = {}

    def done(self, phase: str) -> None:
        """What was done since the last call was `phase`."""
        now = time.monotonic()
        self.phases_s[phase] = round(self.phases_s.get(phase, 0.0) + now - self._at, 3)
        self._at = now

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)


class Judged(NamedTuple):
    """Shelves that no model has learnt from: `earlier` of them were set aside before this step."""

    samples: Samples
    earlier: int

    def _parts(self) -> tuple[Array, Array, Array]:
        """Rows of the recent ones, the earlier ones, and the replayed ones."""
        served = np.flatnonzero(self.samples.served)
        return served[-RECENT_MAX:], served[served < self.earlier], np.flatnonzero(~self.samples.served)

    def evaluated(self, chances: Array) -> Unseen:
        return Unseen(*(evaluate(self.samples.take(rows), chances[rows]) for rows in self._parts()))

    def contest(self, candidate: Array, live: Array) -> Contest:
        return Contest(*(compare(self.samples.take(rows), candidate[rows], live[rows]) for rows in self._parts()))


class Trainer:
    """Holds the live weights and everything else that a checkpoint holds. One on a data directory; not thread-safe.

    Raises (when made):
        CorruptError: there are checkpoints and none can be read.
    """

    def __init__(self, settings: Settings, features: FeatureSet) -> None:
        be_deterministic()
        self.features = features
        self._settings = settings
        self._checkpoints = checkpoint.path_of(settings, features.version)
        self._limits = Limits(settings.train_items_max, settings.train_item_sightings_min, settings.train_item_unused_days_max)
        self._learner = Learner(features, settings.seed, self._limits)
        self._state = State(feature_version=features.version, steps=0, live_version=0, last_version=0, offsets={}, consumed=[])
        self._reservoir, self._unseen = empty(features), empty(features)
        self._skipped: list[str] = []
        self._unfinished = False  # what the checkpoint decided may not have been published
        if (loaded := checkpoint.load_latest(self._checkpoints)) is not None:
            found = loaded.checkpoint
            self._state, self._reservoir, self._unseen = found.state, found.reservoir, found.unseen
            self._learner.restore(found.learner)
            self._skipped, self._unfinished = loaded.skipped, True

    @property
    def bootstrapped(self) -> bool:
        """Whether there are weights to step from."""
        return self._state.live_version > 0

    @property
    def offsets(self) -> Offsets:
        """`topic/partition` → the next offset to read."""
        return dict(self._state.offsets)

    def bootstrap(self) -> StepResult:
        """Learn from the event log with fresh weights; judged against the live model when there is one.

        Raises:
            UnavailableError: Kafka does not answer. What was not checkpointed is done again by the next call.
            ConflictError: the data directory cannot be written.
        """
        timer = Timer()
        self._finish()
        batch = from_clickstream(self._settings, self._state.offsets, self.features)
        timer.done("reading")
        if not batch.train.size:
            reason = f"{CLICKSTREAM} holds {batch.consumed} events; none is engagement that follows an earlier item of its shopper"
            return self._result(batch, "nothing_to_learn", reason, self._state.live_version, {}, timer)
        candidate = Learner(self.features, self._settings.seed, self._limits)
        for learner in (self._learner, candidate):  # what the catalog says is not learnt, so a refused model's successor keeps it
            learner.know(batch.catalog)
        loss = begin(candidate, batch.train, batch.time_ms, self._rng())
        timer.done("learning")
        live = self._learner.predict(self._judged(batch).samples) if self.bootstrapped else None
        return self._release(batch, candidate, live, self._learner.state(), {"loss": loss}, timer)

    def step(self) -> StepResult:
        """Learn from the examples that came since the last step; bootstraps when there are no weights yet.

        Raises:
            UnavailableError: Kafka does not answer. What was not checkpointed is done again by the next call.
            ConflictError: the data directory cannot be written.
        """
        if not self.bootstrapped:
            return self.bootstrap()
        timer = Timer()
        self._finish()
        batch = from_examples(self._settings, self._state.offsets, self._state.consumed, self.features)
        timer.done("reading")
        self._learner.know(batch.catalog)  # not learnt, so a refused step keeps it
        before = self._learner.state()
        if not batch.train.size:
            return self._only_set_aside(batch, before, timer)
        live = self._learner.predict(self._judged(batch).samples)
        timer.done("judging")
        try:
            loss, turnover = go_on(self._learner, batch.train, self._reservoir, batch.time_ms, self._rng())
            timer.done("learning")
            return self._release(
                batch,
                self._learner,
                live,
                before,
                {"loss": loss, "new_items": float(len(turnover.given)), "expired_items": float(len(turnover.taken))},
                timer,
            )
        except BaseException:
            if self._state.offsets != batch.offsets:  # not checkpointed: the next call starts from where this one did
                self._learner.restore(before)
            raise

    def _only_set_aside(self, batch: Batch, weights: checkpoint.Arrays, timer: Timer) -> StepResult:
        """Nothing to learn from, but offsets move past what was read and examples for judging are kept."""
        reason = f"no new examples in {TRAINING_EXAMPLES}"
        if batch.consumed:
            self._save(batch, weights, None)
            reason = (
                f"{batch.consumed} new examples: {batch.unseen.size} set aside for judging, {batch.duplicates} already consumed, "
                f"{batch.unusable} unusable"
            )
        return self._result(batch, "nothing_to_learn", reason, self._state.live_version, {}, timer)

    def _release(
        self,
        batch: Batch,
        candidate: Learner,
        live: Array | None,
        before: checkpoint.Arrays,
        metrics: dict[str, float],
        timer: Timer,
    ) -> StepResult:
        """Judge `candidate`; checkpoint what was decided; make it so. `before` are the live weights, `live` their chances on what
        models are judged on."""
        settings, parent = self._settings, self._state.live_version
        version = max(self._state.last_version, directory.live_version(settings.model_path)) + 1
        place = directory.partial(settings.model_path, version)
        judged = self._judged(batch)
        ours = candidate.predict(judged.samples)
        contest = None if live is None else judged.contest(ours, live)
        timer.done("judging")
        verdict, rank_ms = self._judge(candidate, contest, place, version)
        timer.done("exporting")
        metrics = metrics | judged.evaluated(ours).named("") | {"rank_ms": rank_ms}
        if contest is not None and live is not None:
            metrics |= judged.evaluated(live).named("live_") | contest.named()
        metrics = {name: value for name, value in metrics.items() if np.isfinite(value)}  # JSON has no NaN; the reason names it
        release = Release(
            model=settings.model_name,
            version=version,
            parent=parent,
            outcome="promoted" if verdict.promoted else "refused",
            reason=verdict.reason,
            metrics=metrics,
            offsets=batch.offsets,
            examples=batch.train.size,
            feature_version=self.features.version,
            time_ms=time.time_ns() // 1_000_000,
        )
        self._save(batch, candidate.state() if verdict.promoted else before, release)
        timer.done("checkpointing")
        if verdict.promoted:
            self._learner = candidate
            directory.publish(place, version)
        else:
            self._learner.restore(before)
            directory.discard(settings.model_path)
        releases.publish(settings, release)
        self._unfinished = False
        timer.done("publishing")
        result = self._result(batch, release.outcome, verdict.reason, version, metrics, timer, parent)
        log.info(f"model_{release.outcome}", version=version, parent=parent, reason=verdict.reason, seconds=result.seconds)
        return result

    def _judge(self, candidate: Learner, contest: Contest | None, place: Path, version: int) -> tuple[Verdict, float]:
        """Write `candidate` to `place` and judge it; one whose weights are broken is not even written. The verdict, and the milliseconds
        that a shelf takes (not a number when it was not asked)."""
        weights = {name: value for name, value in candidate.state().items() if name.startswith("weight/")}
        if why := unsound(weights, {}, {}):
            return Verdict(False, why), np.nan
        export.write(candidate, place, version, self._settings.model_name)
        if why := unservable(export.operations(place), 0.0, np.inf):  # before it is loaded here
            return Verdict(False, why), np.nan
        found = export.probe(place, self.features)
        why = unsound({}, found.outputs, export.expected_outputs(len(candidate.table()[0])))
        why = why or unservable({}, found.rank_ms, self._settings.model_timeout_ms)
        return (Verdict(False, why) if why else judge(contest)), found.rank_ms

    def _save(self, batch: Batch, weights: checkpoint.Arrays, release: Release | None) -> None:
        """Checkpoint the state after `batch`, and only then take it over. A refused batch leaves the reservoir as it was."""
        promoted = release is not None and release.outcome == "promoted"
        old = self._state
        refused = release is not None and not promoted
        in_a_row = old.refused_in_a_row + 1 if refused else 0 if promoted else old.refused_in_a_row
        state = State(
            feature_version=self.features.version,
            steps=old.steps + 1,
            live_version=release.version if release and promoted else old.live_version,
            last_version=release.version if release else old.last_version,
            refused_in_a_row=in_a_row,
            offsets=batch.offsets,
            consumed=[*old.consumed, *batch.request_ids][-CONSUMED_MAX:],
            release=release or old.release,
        )
        reservoir = self._stirred(batch) if promoted else self._reservoir
        unseen = self._unseen_with(batch) if in_a_row == 0 or in_a_row > REFUSED_IN_A_ROW_MAX else self._unseen
        checkpoint.save(self._checkpoints, Checkpoint(state=state, learner=weights, reservoir=reservoir, unseen=unseen))
        self._state, self._reservoir, self._unseen = state, reservoir, unseen
        self._unfinished = True

    def _finish(self) -> None:
        """Bring the model directory and the log to what the checkpoint decided, if the step that wrote it was cut short.

        The release record is written last, so a step is finished exactly when its release stands in the log.
        """
        if not self._unfinished:
            return
        release, path = self._state.release, self._settings.model_path
        history = releases.history(self._settings)
        if self._skipped:  # the log remembers the numbers that unreadable checkpoints have given: none is given twice
            last = max([self._state.last_version, *(other.version for other in history)])
            self._state = msgspec.structs.replace(self._state, last_version=last)
        told = release is None or any(_same(release, other) for other in history)
        missing = self._state.live_version not in directory.versions(path)
        if self.bootstrapped and missing and (not told or not directory.versions(path)):  # or someone cleared the model directory
            place = directory.partial(path, self._state.live_version)
            export.write(self._learner, place, self._state.live_version, self._settings.model_name)
            directory.publish(place, self._state.live_version)
        directory.discard(path)
        if release is not None and not told:
            releases.publish(self._settings, release)
        self._unfinished = False

    def _judged(self, batch: Batch) -> Judged:
        """What earlier steps set aside, and what `batch` does; a new bootstrap's replayed ones take the place of the one before's."""
        kept = self._unseen.take(self._unseen.served) if batch.kind == "bootstrap" else self._unseen
        new = _latest(batch.unseen, UNSEEN_MAX)
        return Judged(concat(kept, new), kept.size)

    def _unseen_with(self, batch: Batch) -> Samples:
        """The latest examples for judging, those of `batch` last."""
        kept = self._unseen.take(self._unseen.served) if batch.kind == "bootstrap" else self._unseen
        return _latest(concat(kept, _latest(batch.unseen, UNSEEN_NEW_MAX)), UNSEEN_MAX)

    def _stirred(self, batch: Batch) -> Samples:
        """The reservoir after `batch`; replayed samples give way to a new bootstrap's."""
        rng = np.random.default_rng([self._settings.seed, self._state.steps, 1])
        kept = self._reservoir.take(self._reservoir.served) if batch.kind == "bootstrap" else self._reservoir
        return stirred(kept, batch.train, rng)

    def _rng(self) -> np.random.Generator:
        """Random numbers of the step to come: the same whenever it is repeated from its checkpoint."""
        return np.random.default_rng([self._settings.seed, self._state.steps])

    def _result(
        self, batch: Batch, outcome: str, reason: str, version: int, metrics: dict[str, float], timer: Timer, parent: int = 0
    ) -> StepResult:
        skipped, self._skipped = self._skipped, []  # told once
        return StepResult(
            outcome=outcome,
            reason=reason,
            kind=batch.kind,
            version=version,
            parent=parent,
            consumed=batch.consumed,
            trained=batch.train.size,
            held_out=batch.unseen.size,
            duplicates=batch.duplicates,
            unusable=batch.unusable,
            seconds=timer.seconds,
            phases_s=timer.phases_s,
            metrics=metrics,
            offsets=batch.offsets,
            checkpoints_skipped=skipped,
        )


def _latest(samples: Samples, most: int) -> Samples:
    return samples.take(np.arange(max(samples.size - most, 0), samples.size))


def _same(one: Release, other: Release) -> bool:
    return (one.version, one.time_ms) == (other.version, other.time_ms)
