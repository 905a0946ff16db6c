"""The trainer on a real Kafka: bootstrap, steps, refusals, crashes, and its HTTP service."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from liveshelf.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from liveshelf.settings import Settings
from streams.late import Late, corrected
from streams.records import Example, encode
from streams.topics import CATALOG, CLICKSTREAM, TRAINING_EXAMPLES, kafka_config
from tests.conftest import free_port
from tests.planted_shop import FEATURES, PlantedShop
from trainer import checkpoint, directory, releases
from trainer.gate import MEASURED
from trainer.increment import go_on
from trainer.intake import from_examples, is_unseen
from trainer.log import LogReader
from trainer.samples import UNKNOWN, empty
from trainer.step import StepResult, Trainer

ROOT = Path(__file__).parents[2]


def produce(settings: Settings, topic: str, records: Iterable[Any], key: str) -> None:
    """Write records; bytes go as they are, without a key."""
    producer = Producer(kafka_config(settings) | {"partitioner": "murmur2_random"})
    for record in records:
        raw = isinstance(record, bytes)
        producer.produce(topic, record if raw else encode(record), key=None if raw else getattr(record, key).encode())
        producer.poll(0)
    assert producer.flush(20) == 0


def give(settings: Settings, examples: list[Example]) -> None:
    produce(settings, TRAINING_EXAMPLES, examples, "shopper")


def elsewhere(settings: Settings, directory: Path) -> Settings:
    """The same log, a copy of the data directory."""
    shutil.copytree(settings.data_path, directory)
    return msgspec.structs.replace(settings, data_dir=str(directory))


def at_the_end(settings: Settings) -> Settings:
    """The trainer's checkpoint moved past the examples that other tests left in the log."""
    checkpoints = checkpoint.path_of(settings, FEATURES.version)
    loaded = checkpoint.load_latest(checkpoints)
    assert loaded is not None
    reader = LogReader(settings, TRAINING_EXAMPLES, Example)
    for _ in reader:
        pass
    state = msgspec.structs.replace(loaded.checkpoint.state, offsets=loaded.checkpoint.state.offsets | reader.offsets)
    checkpoint.save(checkpoints, msgspec.structs.replace(loaded.checkpoint, state=state))
    return settings


def weights(settings: Settings) -> checkpoint.Arrays:
    loaded = checkpoint.load_latest(checkpoint.path_of(settings, FEATURES.version))
    assert loaded is not None
    return loaded.checkpoint.learner


def equal(one: checkpoint.Arrays, two: checkpoint.Arrays) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def shop() -> PlantedShop:
    return PlantedShop()


@pytest.fixture(scope="module")
def bootstrapped(kafka: Settings, shop: PlantedShop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, StepResult]:
    """A data directory with a first model. The log is shared with other tests, so figures of events are lower bounds."""
    home = tmp_path_factory.mktemp("trainer") / "data"
    settings = msgspec.structs.replace(kafka, data_dir=str(home), model_name="planted", train_interval_s=0)
    produce(settings, CATALOG, shop.catalog(), "item_id")
    produce(settings, CLICKSTREAM, [*shop.events(2_000), b"{not json"], "shopper")
    return settings, Trainer(settings, FEATURES).step()


@pytest.fixture
def settings(bootstrapped: tuple[Settings, StepResult], tmp_path: Path) -> Settings:
    """A copy of it, moved to the end of the log."""
    return at_the_end(elsewhere(bootstrapped[0], tmp_path / "data"))


def test_without_a_checkpoint_a_step_bootstraps_from_the_event_log(bootstrapped: tuple[Settings, StepResult]) -> None:
    settings, result = bootstrapped
    assert (result.kind, result.outcome, result.version, result.parent) == ("bootstrap", "promoted", 1, 0)
    assert result.consumed >= 2_001
    assert result.unusable >= 1
    assert result.trained > 1_000
    assert 0.05 < result.held_out / result.trained < 0.2
    assert result.metrics["replayed_auc"] > 0.65
    assert 1 in directory.versions(settings.model_path)
    release = next(release for release in releases.history(settings) if release.version == 1)
    assert (release.outcome, release.parent, release.examples) == ("promoted", 0, result.trained)
    assert release.offsets == result.offsets
    assert sum(at for name, at in release.offsets.items() if name.startswith(CLICKSTREAM)) >= 2_001


def test_a_late_purchase_is_one_more_example_that_says_nothing_else(settings: Settings, shop: PlantedShop) -> None:
    """And stands on the same side as its shelf: what is set aside for judging is never learnt from."""
    trainer = Trainer(settings, FEATURES)
    shelves = [e for e in shop.examples(200, "late") if any(e.clicked)]
    more = [corrected(e, Late(0, f"bought-{n}", [e.items[e.clicked.index(1)]])) for n, e in enumerate(shelves)]
    aside = sum(is_unseen(example.request_id) for example in shelves)
    give(settings, [*shelves, *more, *more[:5]])
    batch = from_examples(settings, trainer.offsets, [], FEATURES)
    n = len(shelves)
    assert (batch.train.size, batch.unseen.size, batch.duplicates, batch.unusable) == (2 * (n - aside), 2 * aside, 5, 0)
    labels = batch.train.labels
    bought = (labels[:, :, 0] == UNKNOWN).all(axis=1)
    assert bought.sum() == n - aside
    assert (labels[bought][:, :, 2].max(axis=1) == 1).all()
    assert ((labels[bought] == 1).sum(axis=(1, 2)) <= 2).all()
    assert not (labels[bought] == 0).any()
    learner, at = trainer._learner, (labels[:, :, 2] == 1) & bought[:, None]
    before = learner.predict(batch.train)[at, 2].mean()
    go_on(learner, batch.train, empty(FEATURES), batch.time_ms, np.random.default_rng(1))
    assert learner.predict(batch.train)[at, 2].mean() > 2 * before


def test_a_step_consumes_exactly_the_new_examples_each_once(settings: Settings, shop: PlantedShop) -> None:
    trainer, name = Trainer(settings, FEATURES), "once"
    parent = directory.live_version(settings.model_path)
    examples = shop.examples(120, name)
    aside = sum(is_unseen(example.request_id) for example in examples)
    give(settings, [*examples, *examples[:30]])  # the join delivers at least once
    produce(settings, TRAINING_EXAMPLES, [b"\xff"], "")
    result = trainer.step()
    assert (result.consumed, result.trained, result.held_out, result.duplicates, result.unusable) == (
        151,
        120 - aside,
        aside,
        30,
        1,
    )
    assert (result.outcome, result.version, result.parent) == ("promoted", parent + 1, parent), result.reason
    assert directory.live_version(settings.model_path) == parent + 1
    give(settings, examples)  # delivered again, after the step and after a restart
    again = Trainer(settings, FEATURES).step()
    assert (again.outcome, again.consumed, again.duplicates, again.trained) == ("nothing_to_learn", 120, 120, 0)
    assert "120 already consumed" in again.reason
    assert directory.live_version(settings.model_path) == parent + 1
    idle = Trainer(settings, FEATURES).step()
    assert (idle.outcome, idle.consumed, idle.reason) == ("nothing_to_learn", 0, "no new examples in training-examples")


def test_a_step_repeated_from_its_checkpoint_gives_the_same_weights(settings: Settings, shop: PlantedShop, tmp_path: Path) -> None:
    twin = elsewhere(settings, tmp_path / "twin")
    before = weights(settings)
    give(settings, shop.examples(80, "twin"))
    one, two = Trainer(settings, FEATURES).step(), Trainer(twin, FEATURES).step()
    assert one.trained == two.trained > 0
    assert not equal(before, weights(settings))
    assert equal(weights(settings), weights(twin))
    assert {**one.metrics, **dict.fromkeys(MEASURED, 0.0)} == {**two.metrics, **dict.fromkeys(MEASURED, 0.0)}


def test_a_crash_before_the_checkpoint_neither_skips_nor_repeats(
    settings: Settings, shop: PlantedShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = elsewhere(settings, tmp_path / "twin")
    give(settings, shop.examples(80, "before"))
    undisturbed = Trainer(twin, FEATURES).step()

    def full(*_: object) -> int:
        raise ConflictError("disk full")

    trainer = Trainer(settings, FEATURES)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(ConflictError):
            trainer.step()
    assert directory.live_version(settings.model_path) == undisturbed.parent
    again = trainer.step()  # the same process goes on, from the weights it had
    assert (again.trained, again.version) == (undisturbed.trained, undisturbed.version)
    assert equal(weights(settings), weights(twin))


def test_a_crash_after_the_checkpoint_is_finished_at_the_next_start(
    settings: Settings, shop: PlantedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = directory.live_version(settings.model_path)
    give(settings, shop.examples(80, "after"))
    told = len(releases.history(settings))

    def killed(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(directory, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            Trainer(settings, FEATURES).step()
    assert directory.live_version(settings.model_path) == parent
    decided = weights(settings)
    result = Trainer(settings, FEATURES).step()
    assert (result.outcome, result.consumed) == ("nothing_to_learn", 0)
    assert directory.live_version(settings.model_path) == parent + 1
    assert equal(weights(settings), decided)
    history = releases.history(settings)
    assert len(history) == told + 1
    assert (history[-1].version, history[-1].outcome) == (parent + 1, "promoted")


def test_poisoned_labels_are_refused_and_leave_the_live_weights(settings: Settings, shop: PlantedShop) -> None:
    trainer = Trainer(settings, FEATURES)
    give(settings, shop.examples(700, "clean"))
    clean = trainer.step()
    assert clean.outcome == "promoted", clean.reason
    live = weights(settings)
    give(settings, shop.examples(500, "poison", poisoned=True))
    result = trainer.step()
    assert (result.outcome, result.version, result.parent) == ("refused", clean.version + 1, clean.version)
    assert "worse than the live model on" in result.reason
    assert directory.live_version(settings.model_path) == clean.version
    assert not list(settings.model_path.glob(".*"))
    assert equal(weights(settings), live)
    release = releases.history(settings)[-1]
    assert (release.version, release.outcome, release.reason) == (result.version, "refused", result.reason)
    assert Trainer(settings, FEATURES).step().consumed == 0, "the poison is behind the offsets"
    give(settings, shop.examples(100, "good"))
    assert trainer.step().version == result.version + 1


def test_weights_that_are_not_numbers_are_refused(settings: Settings, shop: PlantedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate this large drives the weights out of range within the step."""
    live, version = weights(settings), directory.live_version(settings.model_path)
    give(settings, shop.examples(60, "wild"))
    monkeypatch.setattr("trainer.increment.STEP_RATE", float("inf"))
    result = Trainer(settings, FEATURES).step()
    assert result.outcome == "refused"
    assert "not finite" in result.reason
    assert equal(weights(settings), live)
    assert directory.live_version(settings.model_path) == version


def test_a_corrupt_checkpoint_falls_back_and_the_result_says_so(settings: Settings, shop: PlantedShop) -> None:
    give(settings, shop.examples(30, "corrupt"))
    first = Trainer(settings, FEATURES).step()
    checkpoints = checkpoint.path_of(settings, FEATURES.version)
    newest = max(checkpoints.iterdir())
    (newest / "learner.npz").write_bytes(b"garbage")
    result = Trainer(settings, FEATURES).step()
    assert len(result.checkpoints_skipped) == 1
    assert newest.name in result.checkpoints_skipped[0]
    assert (result.consumed, result.trained) == (first.consumed, first.trained), "learnt again, on the older weights"
    assert result.version > first.version, "a number is never given twice"
    for directory_ in checkpoints.iterdir():
        (directory_ / "state.json").unlink()
    with pytest.raises(CorruptError, match="move the directory away"):
        Trainer(settings, FEATURES)


def test_kafka_away_is_said_and_changes_nothing(settings: Settings) -> None:
    away = msgspec.structs.replace(settings, kafka=f"127.0.0.1:{free_port()}")
    before = weights(away)
    with pytest.raises(UnavailableError, match=away.kafka):
        Trainer(away, FEATURES).step()
    assert equal(weights(away), before)


def test_the_reader_stops_at_the_end_and_goes_on_from_offsets(settings: Settings, shop: PlantedShop) -> None:
    reader = LogReader(settings, TRAINING_EXAMPLES, Example)
    everything = [logged for batch in reader for logged in batch]
    assert LogReader(settings, TRAINING_EXAMPLES, Example, reader.offsets).lag() == 0
    name = "reader"
    give(settings, shop.examples(25, name))
    rest = LogReader(settings, TRAINING_EXAMPLES, Example, reader.offsets)
    assert rest.lag() == 25
    assert sorted(logged.record.request_id for batch in rest for logged in batch) == sorted(f"{name}-{n}" for n in range(25))
    assert sum(rest.offsets.values()) == sum(reader.offsets.values()) + 25
    newest = [logged for batch in LogReader(settings, TRAINING_EXAMPLES, Example, latest=3) for logged in batch]
    assert 0 < len(newest) <= 3 * settings.partitions
    assert len(everything) > len(newest)


@pytest.fixture
def service(kafka: Settings, tmp_path: Path) -> Iterator[tuple[Settings, subprocess.Popen[bytes]]]:
    settings = msgspec.structs.replace(
        kafka, data_dir=str(tmp_path), trainer_port=free_port(), model_name=f"m{time.time_ns()}", train_interval_s=0
    )
    environ = {f"LIVESHELF_{name.upper()}": str(getattr(settings, name)) for name in Settings.__struct_fields__}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.service"], cwd=ROOT, env={"PYTHONPATH": str(ROOT), **environ}, stdout=log, stderr=log
        )
    yield settings, process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_the_service_steps_on_demand_and_stops_on_sigterm(
    service: tuple[Settings, subprocess.Popen[bytes]], shop: PlantedShop, tmp_path: Path
) -> None:
    settings, process = service
    produce(settings, CLICKSTREAM, shop.events(300), "shopper")

    def answers(path: str, timeout_s: float) -> float:
        start = time.monotonic()
        while time.monotonic() - start < timeout_s:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                if httpx.get(settings.trainer_url + path, timeout=10).status_code == 200:
                    return time.monotonic() - start
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        pytest.fail(f"{path} not 200 in {timeout_s} s: {(tmp_path / 'log').read_text()[-2000:]}")

    answers("/healthz", 60)
    answers("/readyz", 180)
    assert httpx.get(settings.trainer_url + "/v1/models").json() == {"model": settings.model_name, "live": 0, "releases": []}
    assert httpx.post(settings.trainer_url + "/v1/step", content=b'{"boot": 1}').status_code == 400
    with httpx.Client(base_url=settings.trainer_url, timeout=300) as client:
        result = msgspec.json.decode(client.post("/v1/step").content, type=StepResult)
        assert (result.outcome, result.kind, result.version) == ("promoted", "bootstrap", 1)
        models = client.get("/v1/models").json()
        assert models["live"] == 1
        assert [release["version"] for release in models["releases"]] == [1]
        assert "liveshelf_trainer_live_version 1.0" in client.get("/metrics").text
    command = [sys.executable, "-m", "liveshelf.cli.main", "models", "--json"]
    environ = {"PYTHONPATH": str(ROOT), "LIVESHELF_TRAINER_PORT": str(settings.trainer_port)}
    shown = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert msgspec.json.decode(shown.stdout) == models
    same = subprocess.run([*command[:4], "diff", "1", "1", "--json"], env=environ, cwd=tmp_path, capture_output=True, timeout=120)
    assert same.returncode == 0, same.stderr
    found = msgspec.json.decode(same.stdout)
    assert (found["lineage"], found["metrics"], found["missing"]) == ({}, {}, [])
    assert {tuple(row["log_loss"]) for row in found["quality"]} == {(0.0, 0.0, 0.0)}
    told = subprocess.run([*command[:4], "diff", "1", "1"], env=environ, cwd=tmp_path, capture_output=True, timeout=120)
    assert b"items known" in told.stdout
    unknown = subprocess.run([*command[:4], "diff", "1", "9"], env=environ, cwd=tmp_path, capture_output=True, timeout=60)
    assert unknown.returncode == NotFoundError.exit_code
    assert b"knows no version 9" in unknown.stderr
    assert httpx.get(settings.trainer_url + "/v1/models/diff?first=one").status_code == 400
    assert httpx.get(settings.trainer_url + "/v1/canary").json() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, (tmp_path / "log").read_text()
    refused = subprocess.run([*command[:3], "train"], env=environ, cwd=tmp_path, capture_output=True, timeout=60)
    assert refused.returncode == UnavailableError.exit_code
    assert b"liveshelf up" in refused.stderr
