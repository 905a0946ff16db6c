"""EXAMPLE → MODEL, one step at a time: read, learn, judge, checkpoint, publish.

A step, in the order that makes a crash harmless at any point:

1. read `training-examples` from the checkpoint's offsets to where the log ends now (`intake`);
2. hold back examples with clicks that cannot be believed (`screen`), and learn from the others together with a reservoir of earlier ones and
   those of steps refused before (`learner`, `retry`); when that makes a worse model, from the new ones alone;
3. judge it on examples never learnt from, write it beside its place, and try it in a model server (`judged`, `export`, `trial`, `gate`);
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
from streams.records import Lineage, Release
from streams.topics import CLICKSTREAM, TRAINING_EXAMPLES
from trainer import card, checkpoint, directory, export, lineage, releases, screen, trial
from trainer.checkpoint import Checkpoint, State
from trainer.gate import Verdict, judge, unfit, unservable, unsound
from trainer.increment import begin, go_on, stirred
from trainer.intake import Batch, from_clickstream, from_examples
from trainer.judged import Judged
from trainer.learner import Learner, be_deterministic
from trainer.log import Offsets
from trainer.retry import Retry, nothing
from trainer.samples import Array, Samples, concat, empty
from trainer.screen import Suspect
from trainer.tensorboard import Board
from trainer.vocabulary import Limits

log = structlog.get_logger()

UNSEEN_MAX = 2_000  # shelves of earlier steps that models are judged on, the latest: scoring them takes 0.1 s
UNSEEN_NEW_MAX = 1_000  # of these from one step, so that none judges itself alone
REFUSED_IN_A_ROW_MAX = 20
"""Steps refused one after the other before what they set aside becomes a measure, too. Until then none of it does: it may be as wrong as
what was refused, and a tenth of opposite labels outweighs the log loss of all the others. What lasts for twenty steps is no flood, but the
way shoppers behave now, and the refusals have told of it."""
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
    held_back: int = 0
    """With clicks that cannot be believed (see `screen`): neither learnt from nor judged by."""
    duplicates: int
    unusable: int
    """Not decodable, of another feature version, or with features that are not finite numbers."""
    seconds: float
    phases_s: dict[str, float] = {}
    """Seconds by part of the step: reading, screening, learning, judging, trying, checkpointing, publishing."""
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


class HeldBack(msgspec.Struct, frozen=True):
    """What was not believed in a step."""

    suspects: list[Suspect] = []
    counts: dict[str, int] = {}
    """Item → for how many steps in a row it has been suspected."""
    shelves: int = 0

    @property
    def told(self) -> str:
        """For the end of a reason."""
        if not self.suspects:
            return ""
        return f"; {self.shelves} examples held back, their clicks cannot be believed: {', '.join(map(str, self.suspects))}"

    @property
    def figures(self) -> dict[str, float]:
        return {"held_back": float(self.shelves), "suspected_items": float(len(self.suspects))} if self.suspects else {}


class Quality(NamedTuple):
    verdict: Verdict
    figures: dict[str, float]


class Made(NamedTuple):
    """A step's candidate, and what became of it so far."""

    candidate: Learner
    batch: Batch
    judged: Judged
    quality: Quality
    metrics: dict[str, float]
    retry: Retry
    """What is left to be learnt from again."""
    retried: int = 0
    held_back: HeldBack = HeldBack()

    @property
    def verdict(self) -> Verdict:
        return self.quality.verdict


class Tried(NamedTuple):
    """What a model server made of it."""

    verdict: Verdict
    figures: dict[str, float]


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
        self._board = Board(settings.tensorboard_dir) if settings.tensorboard_dir else None
        self._limits = Limits(settings.train_items_max, settings.train_item_sightings_min, settings.train_item_unused_days_max)
        self._learner = Learner(features, settings.seed, self._limits)
        self._state = State(feature_version=features.version, steps=0, live_version=0, last_version=0, offsets={}, consumed=[])
        self._reservoir, self._unseen, self._retry = empty(features), empty(features), nothing(features)
        self._skipped: list[str] = []
        self._unfinished = False  # what the checkpoint decided may not have been published
        if (loaded := checkpoint.load_latest(self._checkpoints)) is not None:
            found = loaded.checkpoint
            self._state, self._reservoir, self._unseen, self._retry = found.state, found.reservoir, found.unseen, found.retry
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
        batch = self._read("bootstrap")
        timer.done("reading")
        if not batch.train.size:
            reason = f"{CLICKSTREAM} holds {batch.consumed} events; none is engagement that follows an earlier item of its shopper"
            return self._result(batch, "nothing_to_learn", reason, self._state.live_version, {}, timer)
        candidate = Learner(self.features, self._settings.seed, self._limits)
        for learner in (self._learner, candidate):  # what the catalog says is not learnt, so a refused model's successor keeps it
            learner.know(batch.catalog)
        loss = begin(candidate, batch.train, batch.time_ms, self._rng())
        timer.done("learning")
        judged = self._judged(batch)
        live = self._learner.predict(judged.samples) if self.bootstrapped else None
        verdict = self._quality(candidate, judged, live)
        timer.done("judging")
        return self._release(Made(candidate, batch, judged, verdict, {"loss": loss}, self._retry), self._learner.state(), timer)

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
        batch = self._read("step")
        timer.done("reading")
        self._learner.know(batch.catalog)  # not learnt, so a refused step keeps it
        before = self._learner.state()
        batch, held_back = self._screened(batch)
        timer.done("screening")
        if not batch.train.size:
            return self._only_set_aside(batch, held_back, before, timer)
        judged = self._judged(batch)
        live = self._learner.predict(judged.samples)
        timer.done("judging")
        try:
            made = self._learnt(batch, self._retry, judged, live, timer)
            if not made.verdict.promoted and self._retry.size:  # the new ones may be as good as any
                log.info("retry_refused", examples=self._retry.size, reason=made.verdict.reason)
                self._learner.restore(before)
                alone = self._learnt(batch, nothing(self.features), judged, live, timer)
                made = alone._replace(retry=self._retry.refused_again())
            return self._release(made._replace(held_back=held_back), before, timer)
        except BaseException:
            if self._state.offsets != batch.offsets:  # not checkpointed: the next call starts from where this one did
                self._learner.restore(before)
            raise

    def _read(self, kind: str) -> Batch:
        if kind == "bootstrap":
            return from_clickstream(self._settings, self._state.offsets, self.features)
        return from_examples(self._settings, self._state.offsets, self._state.consumed, self.features)

    def _screened(self, batch: Batch) -> tuple[Batch, HeldBack]:
        """`batch` without the shelves that hold clicks which cannot be believed."""
        if not batch.train.size:
            return batch, HeldBack(counts=self._state.suspected)
        looked_at = batch.train.take(self._rng(3).permutation(batch.train.size)[: screen.LOOKED_AT_MAX])
        found = screen.suspects(looked_at, self._learner.predict(looked_at))
        not_believed, counts = screen.believed_after(self._state.suspected, found)
        items = [suspect.item for suspect in not_believed]
        train, unseen = screen.without(batch.train, items), screen.without(batch.unseen, items)
        shelves = batch.train.size + batch.unseen.size - train.size - unseen.size
        return msgspec.structs.replace(batch, train=train, unseen=unseen), HeldBack(
            suspects=not_believed, counts=counts, shelves=shelves
        )

    def _learnt(self, batch: Batch, retry: Retry, judged: Judged, live: Array, timer: Timer) -> Made:
        """The live weights after `batch` and the examples of `retry`, as judged by quality."""
        new = concat(batch.train, retry.samples)
        loss, turnover = go_on(self._learner, new, self._reservoir, batch.time_ms, self._rng())
        timer.done("learning")
        verdict = self._quality(self._learner, judged, live)
        timer.done("judging")
        metrics = {"loss": loss, "new_items": float(len(turnover.given)), "expired_items": float(len(turnover.taken))}
        return Made(self._learner, batch, judged, verdict, metrics, nothing(self.features), retried=retry.size)

    def _only_set_aside(self, batch: Batch, held_back: HeldBack, weights: checkpoint.Arrays, timer: Timer) -> StepResult:
        """Nothing to learn from, but offsets move past what was read and examples for judging are kept."""
        reason = f"no new examples in {TRAINING_EXAMPLES}"
        if batch.consumed:
            self._save(batch, held_back, weights, None, self._retry)
            reason = (
                f"{batch.consumed} new examples: {batch.unseen.size} set aside for judging, {batch.duplicates} already consumed, "
                f"{batch.unusable} unusable{held_back.told}"
            )
        return self._result(batch, "nothing_to_learn", reason, self._state.live_version, {}, timer, held_back=held_back.shelves)

    def _quality(self, candidate: Learner, judged: Judged, live: Array | None) -> Quality:
        """Judge the weights of `candidate` by what they say of `judged`, beside what the live ones do."""
        ours = candidate.predict(judged.samples)
        figures = judged.evaluated(ours).named("")
        if why := unsound({name: value for name, value in candidate.state().items() if name.startswith("weight/")}, {}, {}):
            return Quality(Verdict(False, why), figures)
        if live is None:
            return Quality(judge(None), figures)
        contest = judged.contest(ours, live)
        return Quality(judge(contest), figures | judged.evaluated(live).named("live_") | contest.named())

    def _release(self, made: Made, before: checkpoint.Arrays, timer: Timer) -> StepResult:
        """Try what was made in a model server, unless it was refused already; checkpoint what was decided; make it so. `before`: the live
        weights."""
        settings, parent, candidate, batch = self._settings, self._state.live_version, made.candidate, made.batch
        version = max(self._state.last_version, directory.live_version(settings.model_path)) + 1
        place = directory.partial(settings.model_path, version)
        state = candidate.state()
        items = len(candidate.table()[0])
        tried = self._tried(made, place, version, items) if made.verdict.promoted else Tried(made.verdict, {})
        timer.done("trying")
        metrics = made.metrics | made.quality.figures | tried.figures | made.held_back.figures | {"retried": float(made.retried)}
        release = Release(
            model=settings.model_name,
            version=version,
            parent=parent,
            outcome="promoted" if tried.verdict.promoted else "refused",
            reason=tried.verdict.reason + made.held_back.told,
            metrics={name: value for name, value in metrics.items() if np.isfinite(value)},  # JSON has no NaN; the reason names it
            offsets=batch.offsets,
            examples=batch.train.size + made.retried,
            feature_version=self.features.version,
            time_ms=time.time_ns() // 1_000_000,
            lineage=Lineage(
                kind=batch.kind,
                step=self._state.steps,
                reads=self._state.reads,
                retried=made.retried,
                held_back=[suspect.item.decode(errors="replace") for suspect in made.held_back.suspects],
                settings=lineage.settings_of(settings),
                code=lineage.code(),
                weights=lineage.hash_of(state),
                items=items,
            ),
        )
        promoted = tried.verdict.promoted
        if promoted:
            card.write(place, release)
            retry = made.retry
        else:
            retry = self._retry if batch.kind == "bootstrap" else self._retry.refused_again().with_refused(batch.train)
        self._save(batch, made.held_back, state if promoted else before, release, retry)
        timer.done("checkpointing")
        if promoted:
            self._learner = candidate
            directory.publish(place, version)
        else:
            self._learner.restore(before)
            directory.discard(settings.model_path)
        self._tell(release)
        self._unfinished = False
        timer.done("publishing")
        result = self._result(
            batch, release.outcome, release.reason, version, release.metrics, timer, parent, made.held_back.shelves
        )
        log.info(f"model_{release.outcome}", version=version, parent=parent, reason=release.reason, seconds=result.seconds)
        return result

    def _tried(self, made: Made, place: Path, version: int, items: int) -> Tried:
        """Write a model to `place`, and judge what a model server makes of it."""
        settings, live = self._settings, self._settings.model_path / str(self._state.live_version)
        export.write(made.candidate, place, version, settings.model_name)
        if why := unservable(export.operations(place)):  # before it is loaded
            return Tried(Verdict(False, why), {})
        try:
            outputs, served = trial.measure(
                (version, place),
                (self._state.live_version, live) if live.is_dir() else None,
                made.judged.samples,
                items,
                self.features,
            )
        except trial.NotServedError as error:
            return Tried(Verdict(False, str(error)), {})
        why = unsound({}, outputs, export.expected_outputs(items))
        why = why or unfit(served, settings.model_timeout_ms, settings.model_memory_mb_max)
        return Tried(Verdict(False, why) if why else made.verdict, served.named())

    def _tell(self, release: Release) -> None:
        releases.publish(self._settings, release)
        if self._board is not None:
            self._board.tell(release)

    def _save(self, batch: Batch, held_back: HeldBack, weights: checkpoint.Arrays, release: Release | None, retry: Retry) -> None:
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
            reads=[] if release else [*old.reads, batch.offsets],
            suspected=held_back.counts,
            release=release or old.release,
        )
        reservoir = self._reservoir
        if release is not None and promoted:
            retried = release.lineage is not None and release.lineage.retried > 0
            reservoir = self._stirred(batch.kind, concat(batch.train, self._retry.samples) if retried else batch.train)
        unseen = self._unseen_with(batch) if in_a_row == 0 or in_a_row > REFUSED_IN_A_ROW_MAX else self._unseen
        made = Checkpoint(state=state, learner=weights, reservoir=reservoir, unseen=unseen, retry=retry)
        checkpoint.save(self._checkpoints, made)
        self._state, self._reservoir, self._unseen, self._retry = state, reservoir, unseen, retry
        self._unfinished = True

    def _finish(self) -> None:
        """Bring the model directory and the log to what the checkpoint decided, if the step that wrote it was cut short.

        The release record is written last, so a step is finished exactly when its release stands in the log.
        """
        release, path = self._state.release, self._settings.model_path
        if not self._unfinished and (directory.versions(path) or not self.bootstrapped):
            return
        history = releases.history(self._settings)
        if self._skipped:  # the log remembers the numbers that unreadable checkpoints have given: none is given twice
            last = max([self._state.last_version, *(other.version for other in history)])
            self._state = msgspec.structs.replace(self._state, last_version=last)
        told = release is None or any(_same(release, other) for other in history)
        missing = self._state.live_version not in directory.versions(path)
        if self.bootstrapped and missing and (not told or not directory.versions(path)):  # or someone cleared the model directory
            self._write_live()
        directory.discard(path)
        if release is not None and not told:
            self._tell(release)
        self._unfinished = False

    def _write_live(self) -> None:
        """Put the live version into the model directory, which lacks it or is gone."""
        path, version, release = self._settings.model_path, self._state.live_version, self._state.release
        gone = not path.exists()
        place = directory.anew(path, version) if gone else directory.partial(path, version)
        export.write(self._learner, place, version, self._settings.model_name)
        if release is not None and release.version == version:
            card.write(place, release)
        if gone:
            directory.appear(place, path)
        else:
            directory.publish(place, version)

    def _judged(self, batch: Batch) -> Judged:
        """What earlier steps set aside, and what `batch` does; a new bootstrap's replayed ones take the place of the one before's."""
        kept = self._unseen.take(self._unseen.served) if batch.kind == "bootstrap" else self._unseen
        new = _latest(batch.unseen, UNSEEN_MAX)
        return Judged(concat(kept, new), kept.size)

    def _unseen_with(self, batch: Batch) -> Samples:
        """The latest examples for judging, those of `batch` last."""
        kept = self._unseen.take(self._unseen.served) if batch.kind == "bootstrap" else self._unseen
        return _latest(concat(kept, _latest(batch.unseen, UNSEEN_NEW_MAX)), UNSEEN_MAX)

    def _stirred(self, kind: str, learnt: Samples) -> Samples:
        """The reservoir after what was learnt; replayed samples give way to a new bootstrap's."""
        kept = self._reservoir.take(self._reservoir.served) if kind == "bootstrap" else self._reservoir
        return stirred(kept, learnt, self._rng(1))

    def _rng(self, *purpose: int) -> np.random.Generator:
        """Random numbers of the step to come: the same whenever it is repeated from its checkpoint."""
        return np.random.default_rng([self._settings.seed, self._state.steps, *purpose])

    def _result(
        self,
        batch: Batch,
        outcome: str,
        reason: str,
        version: int,
        metrics: dict[str, float],
        timer: Timer,
        parent: int = 0,
        held_back: int = 0,
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
            held_back=held_back,
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
