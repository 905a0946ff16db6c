"""Watches the base paths, brings versions up and down, and hands them out to requests.

One thread polls and decides, one step at a time; requests only read a snapshot that it swaps. `reload` (from a gRPC thread) changes the
wanted models and wakes it. A thread that gives way to requests does the loading and freeing.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

import grpc
import structlog

from serving.model_server.config import ModelConfig
from serving.model_server.metrics import AVAILABLE_VERSIONS, LATEST_VERSION, LOAD_SECONDS, LOADS, POLLS
from serving.model_server.runtime import Threads
from serving.model_server.servable import Servable
from serving.model_server.status import ServingError
from serving.model_server.versions import State, aspired_versions, next_action, versions_on_disk

POLL_S = 0.5  # TensorFlow Serving's default is 1; a directory listing costs 20 µs
# Loading takes 0.4 s of processor, and nobody waits for it: with 10 it gets about a tenth of a core that requests want. Lower would leave
# whatever lock it holds held for longer when both cores are taken.
LOADER_NICE = 10
ENDED_MAX = 50  # versions that are gone and still listed by GetModelStatus: a trainer that steps every minute makes 1,440 a day
UNKNOWN_LABEL = "Unrecognized servable version label"

log = structlog.get_logger("model_server")


@dataclass
class _Version:
    state: State
    error: ServingError | None = None
    servable: Servable | None = None


@dataclass
class _Model:
    config: ModelConfig
    wanted: bool = True
    versions: dict[int, _Version] = field(default_factory=dict)


class Manager:
    def __init__(
        self, models: list[ModelConfig], threads: Threads, on_change: Callable[[str, bool], None] = lambda model, available: None
    ) -> None:
        """`on_change(model, available)` is called when a model begins or ceases to have a version that answers."""
        self._threads, self._on_change = threads, on_change
        self._changed = Condition()
        self._models = {config.name: _Model(config) for config in models}
        self._serving: dict[str, dict[int, Servable]] = {}
        self._stopping, self._poll_wanted = False, False
        self._thread = Thread(target=self._run, name="manager", daemon=True)
        self._loader = ThreadPoolExecutor(1, "loader", initializer=_give_way)
        self._closer = ThreadPoolExecutor(1, "closer")

    # for requests

    @contextmanager
    def servable(self, spec: Any) -> Iterator[Servable]:
        """The version that a ModelSpec asks for, held until the block ends.

        Raises:
            ServingError: codes and messages of tensorflow_serving/model_servers/server_core.cc (ServableRequestFromModelSpec,
                GetModelVersionForLabel) and tensorflow_serving/core/basic_manager.cc (GetUntypedServableHandle).
        """
        if not spec.name:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        versions = self._serving.get(spec.name, {})
        if choice == "version":
            version = spec.version.value
        elif choice == "version_label":
            version = self._labelled(spec.name, spec.version_label)
        else:
            version = max(versions, default=-1)
        found = versions.get(version)
        if found is None or not found.acquire():
            asked = f"Specific({spec.name}, {version})" if choice else f"Latest({spec.name})"
            raise ServingError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        try:
            yield found
        finally:
            found.release()

    def _labelled(self, name: str, label: str) -> int:
        model = self._models.get(name)
        if model is None or label not in model.config.labels:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"{UNKNOWN_LABEL}: {label}")
        return model.config.labels[label]

    def states(self, name: str) -> dict[int, tuple[State, ServingError | None]]:
        """Every version known of a model, newest first; empty when the model or its versions are unknown."""
        with self._changed:
            model = self._models.get(name)
            known = sorted(model.versions.items(), reverse=True) if model else []
            return {version: (record.state, record.error) for version, record in known}

    @property
    def models(self) -> list[str]:
        return [name for name, model in self._models.items() if model.wanted]

    def available(self, name: str) -> list[int]:
        """Versions that can be asked now, newest first."""
        return sorted(self._serving.get(name, {}), reverse=True)

    def reload(self, configs: list[ModelConfig], timeout_s: float) -> None:
        """Serve these models instead, and wait until those that are new can answer.

        Raises:
            ServingError: FAILED_PRECONDITION for a label of a version that is not available, and nothing has changed
                (server_core.cc, UpdateModelVersionLabelMap); UNKNOWN when a new model did not come up (WaitUntilModelsAvailable).
        """
        with self._changed:
            for config in configs:
                for version in config.labels.values():
                    if version not in self._serving.get(config.name, {}):
                        raise ServingError(
                            grpc.StatusCode.FAILED_PRECONDITION,
                            f"Request to assign label to version {version} of model {config.name}, which is not currently available for inference",
                        )
            new = [config.name for config in configs if config.name not in self._models or not self._models[config.name].wanted]
            for model in self._models.values():
                model.wanted = False
            for config in configs:
                model = self._models.setdefault(config.name, _Model(config))
                model.config, model.wanted = config, True
            self._poll_wanted = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._stopping or all(self._serving.get(name) for name in new), timeout_s):
                missing = ", ".join(name for name in new if not self._serving.get(name))
                raise ServingError(grpc.StatusCode.UNKNOWN, f"Some models did not become available: {{{missing}}}")
        log.info("config_reloaded", models=[config.name for config in configs])

    # the watching thread

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. Loaded versions stay until the process ends: requests may still be in flight."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=10)
        self._closer.shutdown()
        self._loader.shutdown()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.poll()
                POLLS.inc()
            except Exception:  # the watcher must outlive whatever one poll meets, or no new model ever arrives
                log.exception("poll_failed")
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._poll_wanted, POLL_S)
                self._poll_wanted = False

    def poll(self) -> None:
        """Look at the base paths once, and take every step that follows."""
        for name, model in list(self._models.items()):
            found = versions_on_disk(model.config.base_path)
            if found is None:
                if model.wanted:
                    continue  # as PollFileSystemForServable: a base path that is not there (yet, or for now) changes nothing
                found = {}
            aspired = aspired_versions(model.config, found) if model.wanted else set()
            self._forget(model, aspired)
            while not self._stopping:
                with self._changed:
                    # What is on its way out, or came down in good order, may be loaded anew; what failed stays failed while it is there.
                    states = {v: r.state for v, r in model.versions.items() if r.state is State.AVAILABLE or r.error}
                action = next_action(aspired, states)
                if action is None:
                    break
                kind, version = action
                if kind == "load":
                    self._load(name, model, version, found)
                else:
                    self._unload(name, model, version)

    def _forget(self, model: _Model, aspired: set[int]) -> None:
        """Drop failures that are no longer wanted (a repaired version of that number gets its chance) and the oldest of those gone."""
        with self._changed:
            for version in [v for v, record in model.versions.items() if record.error and v not in aspired]:
                del model.versions[version]
            ended = sorted(v for v, record in model.versions.items() if record.state is State.END and not record.error)
            for version in ended[: max(len(ended) - ENDED_MAX, 0)]:
                del model.versions[version]

    def _load(self, name: str, model: _Model, version: int, found: dict[int, Any]) -> None:
        record = _Version(State.LOADING)
        with self._changed:
            model.versions[version] = record
        began = time.perf_counter()
        try:
            servable = Servable(name, version, found[version], self._threads, self._loader)
        except Exception as failure:  # whatever a broken version does to us, the others serve on
            error = failure if isinstance(failure, ServingError) else ServingError(grpc.StatusCode.UNKNOWN, repr(failure))
            with self._changed:
                record.state, record.error = State.END, error
                self._changed.notify_all()
            LOADS.labels(name, "failed").inc()
            log.error(
                "load_failed", model=name, version=version, path=str(found[version]), code=error.code.name, error=error.message
            )
            return
        seconds = time.perf_counter() - began
        LOADS.labels(name, "ok").inc()
        LOAD_SECONDS.labels(name).observe(seconds)
        with self._changed:
            record.servable = servable
            self._publish(name, {**self._serving.get(name, {}), version: servable})
            record.state = State.AVAILABLE
            self._changed.notify_all()
        log.info("available", model=name, version=version, load_s=round(seconds, 3))

    def _unload(self, name: str, model: _Model, version: int) -> None:
        record = model.versions[version]
        servable = record.servable
        assert servable is not None, (name, version, record.state)
        with self._changed:
            record.state, record.servable = State.UNLOADING, None
            self._publish(name, {v: s for v, s in self._serving[name].items() if v != version})

        def close() -> None:
            servable.close()
            record.state = State.END
            log.info("unloaded", model=name, version=version)

        def close_soon() -> None:  # called by whichever request is the last
            self._closer.submit(close)

        servable.retire(close_soon)

    def _publish(self, name: str, versions: dict[int, Servable]) -> None:
        had = bool(self._serving.get(name))
        self._serving = {**self._serving, name: versions}
        AVAILABLE_VERSIONS.labels(name).set(len(versions))
        LATEST_VERSION.labels(name).set(max(versions, default=0))
        if had != bool(versions):
            self._on_change(name, bool(versions))


def _give_way() -> None:
    # On Linux priority belongs to the thread. TensorFlow lets go of the interpreter while it loads, so no request waits for this thread.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICE)
