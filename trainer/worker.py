"""The thread that trains: one step at a time, asked for or due. TensorFlow is imported here, so that health answers before it is loaded."""

import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from features.events import Event
from features.registry import FeatureRegistry
from liveshelf.errors import ConflictError, CorruptError, LiveshelfError, UnavailableError
from liveshelf.settings import Settings
from streams.records import Example
from streams.topics import CLICKSTREAM, TRAINING_EXAMPLES
from trainer import directory
from trainer.canary import Canary
from trainer.log import LogReader

if TYPE_CHECKING:
    from trainer.canary import Standing
    from trainer.step import StepResult, Trainer

log = structlog.get_logger()

TICK_S = 1.0  # how often the idle loop shows that it lives
STEP_S_MAX = 1_800.0  # a bootstrap of 200,000 events takes minutes on a busy machine; half an hour means stuck
CANARY_EVERY_S = 10.0  # a decision takes hours of shoppers
RETRY_S = 5.0  # between attempts to reach Kafka or read the checkpoint
BOOTSTRAP_EVENTS_MIN = 1_000
"""Events in the log before the trainer bootstraps by itself: below it fewer than 50 samples are set aside, too few to judge later models
on. On demand it bootstraps from less."""


class Metrics:
    """What Prometheus sees. One registry a worker, so that two in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.examples = Counter(
            "liveshelf_trainer_examples", "Examples read, by what became of them", ["fate"], registry=self.registry
        )
        self.steps = Counter("liveshelf_trainer_steps", "Steps, by outcome", ["outcome"], registry=self.registry)
        self.step_s = Histogram(
            "liveshelf_trainer_step_seconds", "Duration of steps", buckets=(1, 2, 5, 10, 20, 60, 300, 1800), registry=self.registry
        )
        self.live_version = Gauge(
            "liveshelf_trainer_live_version", "The newest version in the model directory", registry=self.registry
        )
        self.lag = Gauge("liveshelf_trainer_lag_examples", "Examples in the log not yet learnt from", registry=self.registry)

    def note(self, result: "StepResult") -> None:
        self.steps.labels(result.outcome).inc()
        self.step_s.observe(result.seconds)
        fates = {
            "trained": result.trained,
            "held_out": result.held_out,
            "duplicate": result.duplicates,
            "unusable": result.unusable,
            "held_back": result.held_back,
        }
        for fate, count in fates.items():
            self.examples.labels(fate).inc(count)


class _Task(NamedTuple):
    bootstrap: bool
    future: "Future[StepResult]"


class Worker:
    """Owns the Trainer and its thread. `submit`, `stuck` and `not_ready` may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.metrics = Metrics()
        self._settings = settings
        self._rows = FeatureRegistry(settings)
        self._canary = Canary(settings)
        self._canary_due_at = 0.0
        self._tasks: queue.Queue[_Task] = queue.Queue(maxsize=1)
        self._busy = threading.Lock()  # held from when a step is asked for or due until it is done
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)
        self._trainer: Trainer | None = None
        self._missing = "TensorFlow is being loaded"
        self._corrupt: CorruptError | None = None
        self._alive_at = time.monotonic()
        self._due_at = 0.0
        self._lag = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take no more steps. The one that runs is left to end; see `join`."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; whether it did."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, bootstrap: bool) -> "Future[StepResult]":
        """Ask for a step; one asked for while TensorFlow is being loaded waits for it.

        Raises:
            ConflictError: one is running or waiting.
            CorruptError: no checkpoint can be read.
            UnavailableError: the trainer is stopping.
        """
        if self._corrupt is not None:
            raise self._corrupt
        if self._stopping.is_set():
            raise UnavailableError("the trainer is stopping")
        if not self._busy.acquire(blocking=False):
            raise ConflictError("a step is running already; ask again when it is done")
        task = _Task(bootstrap, Future())
        task.future.set_running_or_notify_cancel()  # from here on a client that hangs up cancels nothing
        self._tasks.put(task)
        return task.future

    def stuck(self) -> str:
        """Why the worker makes no progress; empty while it does."""
        silent = time.monotonic() - self._alive_at
        if not self._thread.is_alive():
            return "the training thread has ended"
        return f"no progress for {silent:.0f} s" if silent > STEP_S_MAX else ""

    @property
    def canary(self) -> "Standing | None":
        """How the canary stood at the last look; None without one."""
        return self._canary.standing

    def not_ready(self) -> str:
        """What is missing before a step can be taken; empty when nothing is."""
        return self._missing

    def _run(self) -> None:
        while not self._stopping.is_set() and not self._prepared():
            self._alive_at = time.monotonic()
            self._refuse_waiting(self._corrupt or UnavailableError(f"the trainer is not ready: {self._missing}"))
            self._stopping.wait(RETRY_S)
        self._due_at = time.monotonic() + self._settings.train_interval_s
        while not self._stopping.is_set():
            self._alive_at = time.monotonic()
            try:
                task = self._tasks.get(timeout=TICK_S)
            except queue.Empty:
                self._step_if_due()
                self._canary_if_due()
            else:
                self._do(task)
        self._refuse_waiting(UnavailableError("the trainer is stopping"))

    def _refuse_waiting(self, reason: LiveshelfError) -> None:
        while not self._tasks.empty():
            task = self._tasks.get()
            self._busy.release()
            task.future.set_exception(reason)

    def _prepared(self) -> bool:
        """Load TensorFlow and the checkpoint, and hear from Kafka."""
        try:
            self._take_features()
            self._look()
        except CorruptError as error:
            self._corrupt, self._missing = error, str(error)
        except LiveshelfError as error:
            self._missing = str(error)
        except Exception as error:  # a thread that dies of one fault would leave a service that only looks alive
            self._missing = f"{type(error).__name__}: {error}"
            log.exception("trainer_not_prepared")
        else:
            self._missing, self._corrupt = "", None
            assert self._trainer is not None
            log.info("trainer_ready", bootstrapped=self._trainer.bootstrapped)
            return True
        log.warning("trainer_not_ready", reason=self._missing)
        return False

    def _take_features(self) -> None:
        """Train on the newest feature version: a new one starts from its own checkpoint, or bootstraps."""
        from trainer.step import Trainer

        features = self._rows.newest()
        if self._trainer is None or self._trainer.features.version != features.version:
            log.info("training on features", feature_version=features.version)
            self._trainer = Trainer(self._settings, features)

    def _look(self) -> None:
        """Measure what stands in the log."""
        assert self._trainer is not None
        self._lag = LogReader(self._settings, TRAINING_EXAMPLES, Example, self._trainer.offsets).lag()
        self.metrics.lag.set(self._lag)
        self.metrics.live_version.set(directory.live_version(self._settings.model_path))

    def _step_if_due(self) -> None:
        interval_s = self._settings.train_interval_s
        if not interval_s or time.monotonic() < self._due_at or not self._busy.acquire(blocking=False):
            return
        self._due_at = time.monotonic() + interval_s
        assert self._trainer is not None
        try:
            self._look()
            waits = not self._trainer.bootstrapped and LogReader(self._settings, CLICKSTREAM, Event).lag() < BOOTSTRAP_EVENTS_MIN
        except LiveshelfError as error:
            log.warning("log_unreachable", reason=str(error))
            waits = True
        if waits:
            self._busy.release()
        else:
            self._do(_Task(bootstrap=False, future=Future()))

    def _canary_if_due(self) -> None:
        """See what shoppers say of the canary; decide when that is wanted and can be."""
        if time.monotonic() < self._canary_due_at:
            return
        self._canary_due_at = time.monotonic() + CANARY_EVERY_S
        try:
            if self._canary.look() is not None and self._settings.canary_automatic:
                self._canary.act()
        except LiveshelfError as error:
            log.warning("canary_not_decided", reason=str(error))

    def _do(self, task: _Task) -> None:
        """Take one step; its result or its fault goes to the future, and to the log."""
        assert self._trainer is not None
        fault: Exception | None = None
        try:
            self._take_features()
            result = self._trainer.bootstrap() if task.bootstrap else self._trainer.step()
            self.metrics.note(result)
            self._look()
        except Exception as error:
            fault = error
            self.metrics.steps.labels("failed").inc()
            log.error("step_failed", reason=str(error), exc_info=not isinstance(error, LiveshelfError))
        backlog = fault is None and self._lag >= self._settings.train_examples_max  # a whole step waits already
        self._due_at = time.monotonic() + (0 if backlog else self._settings.train_interval_s)
        self._busy.release()  # before the answer: whoever has it may ask for the next step
        if fault is not None:
            task.future.set_exception(
                fault if isinstance(fault, LiveshelfError) else LiveshelfError(f"{type(fault).__name__}: {fault}")
            )
        else:
            task.future.set_result(result)
