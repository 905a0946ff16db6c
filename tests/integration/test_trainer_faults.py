"""The trainer with too little to learn from, with one-sided logs, and with a disk that is full: it says so, and serves nothing by halves."""

import asyncio
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from features.events import Event, EventItem
from liveshelf.errors import ConflictError
from liveshelf.settings import Settings
from serving.live_model import describe
from serving.model_client import ModelClient, ModelUnavailableError
from streams.records import Example
from streams.topics import CLICKSTREAM
from tests.conftest import broker, free_port
from tests.integration.test_trainer import at_the_end, elsewhere, equal, give, produce, weights
from tests.live_shop import role, until
from tests.planted_shop import FEATURES, T0, PlantedShop
from trainer import directory, export
from trainer.step import Trainer

replace = msgspec.structs.replace
EXPORT_FITS, NOTHING_FITS = 400_000, 20_000
"""Bytes that a file may have: a model of 60 items fits into the first, its checkpoint does not."""


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does, and more gently: writing beyond `size` fails in this process, in Python and in TensorFlow alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def event(n: int, item: str, shopper: str = "s") -> Event:
    return Event(
        event_id=f"tiny{n}", event_name="view_item", shopper=shopper, time_ms=T0 + 1_000 * n, items=(EventItem(item_id=item),)
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker whose log holds nothing of other tests."""
    with broker(tmp_path_factory.mktemp("faults")) as settings:
        yield replace(settings, train_interval_s=0)


def test_a_shop_begins_with_nothing(own: Settings, tmp_path: Path) -> None:
    """An empty log, one event, one item over and over, one shopper with two items: nothing to learn is said, and the first model is whole."""
    settings = replace(own, data_dir=str(tmp_path), model_name="begins")
    trainer = Trainer(settings, FEATURES)
    for records in ([], [event(0, "a")], [event(n, "a") for n in range(1, 30)]):
        produce(settings, CLICKSTREAM, records, "shopper")
        result = trainer.step()
        assert (result.outcome, result.version) == ("nothing_to_learn", 0), result
        assert "engagement that follows an earlier item" in result.reason
    assert directory.versions(settings.model_path) == []
    produce(settings, CLICKSTREAM, [event(30 + n, "ab"[n % 2]) for n in range(12)], "shopper")
    result = trainer.step()
    assert (result.outcome, result.version) == ("promoted", 1), result.reason
    found = export.probe(settings.model_path / "1", FEATURES)
    assert all(finite for _, finite in found.outputs.values())


@pytest.fixture(scope="module")
def learnt(own: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, PlantedShop]:
    settings = replace(own, data_dir=str(tmp_path_factory.mktemp("learnt") / "data"), model_name="faults")
    shop = PlantedShop(seed=6)
    produce(settings, CLICKSTREAM, shop.events(1_500), "shopper")
    trainer = Trainer(settings, FEATURES)
    trainer.step()
    for n in range(3):  # enough set aside to tell an honest small step from a worse one
        give(settings, shop.examples(700, f"learnt{n}"))
        assert trainer.step().outcome == "promoted"
    return settings, shop


def one_item(examples: list[Example]) -> list[Example]:
    """Shelves of a single place."""
    served = [e.features for e in examples]
    width = 4 * len(FEATURES.candidate_columns)
    return [
        replace(
            e,
            items=e.items[:1],
            propensities=[1.0],
            clicked=e.clicked[:1],
            carted=e.carted[:1],
            purchased=e.purchased[:1],
            features=replace(f, candidates=e.items[:1], candidate_features=f.candidate_features[:width]),
        )
        for e, f in zip(examples, served, strict=True)
    ]


def of_all(label: int) -> Callable[[list[Example]], list[Example]]:
    return lambda examples: [replace(e, clicked=[label] * len(e.items), carted=[label] * len(e.items)) for e in examples]


@pytest.mark.parametrize("kind", [one_item, of_all(1), of_all(0)], ids=["one item", "all clicks", "no clicks"])
def test_one_sided_examples_break_nothing(
    learnt: tuple[Settings, PlantedShop], kind: Callable[[list[Example]], list[Example]], tmp_path: Path
) -> None:
    settings, shop = at_the_end(elsewhere(learnt[0], tmp_path / "data")), learnt[1]
    give(settings, kind(shop.examples(80, str(tmp_path))))
    result = Trainer(settings, FEATURES).step()
    assert result.outcome in ("promoted", "refused")
    assert result.trained > 0
    assert all(np.isfinite(value).all() for value in weights(settings).values() if value.dtype.kind == "f")


@pytest.mark.parametrize(("size", "of"), [(NOTHING_FITS, "model"), (EXPORT_FITS, "checkpoint")])
def test_a_full_disk_leaves_nothing_half_written(learnt: tuple[Settings, PlantedShop], tmp_path: Path, size: int, of: str) -> None:
    """The step fails and says what to do; once there is room it is taken as if nothing had been."""
    settings, shop = at_the_end(elsewhere(learnt[0], tmp_path / "data")), learnt[1]
    before, versions = weights(settings), directory.versions(settings.model_path)
    give(settings, shop.examples(100, f"full-{of}"))
    trainer = Trainer(settings, FEATURES)
    with files_of_at_most(size), pytest.raises(ConflictError, match=f"cannot write .*{of}.*Free space"):
        trainer.step()
    assert directory.versions(settings.model_path) == versions
    assert equal(weights(settings), before)
    twin = elsewhere(settings, tmp_path / "twin")
    undisturbed = Trainer(twin, FEATURES).step()
    result = trainer.step()
    assert (result.outcome, result.consumed, result.version) == (undisturbed.outcome, undisturbed.consumed, undisturbed.version)
    assert equal(weights(settings), weights(twin))
    assert not list(settings.model_path.glob(".*")), "what the failed export left is gone"


YEARS_MS = 10 * 365 * 24 * 3_600_000


@pytest.mark.parametrize("shift_ms", [YEARS_MS, -YEARS_MS], ids=["ahead", "behind"])
def test_a_clock_that_jumps_costs_no_item_its_row(learnt: tuple[Settings, PlantedShop], tmp_path: Path, shift_ms: int) -> None:
    """A step whose shelves all say that they were shown ten years away, then one of the right time: both are learnt from, and of the items at
    most a tenth lose their row (see `vocabulary`)."""
    settings, shop = at_the_end(elsewhere(learnt[0], tmp_path / "data")), learnt[1]
    trainer, before = Trainer(settings, FEATURES), len(weights(settings)["vocabulary"])
    wrong = [replace(e, time_ms=e.time_ms + shift_ms) for e in shop.examples(150, f"jump{shift_ms}")]
    for examples in (wrong, shop.examples(150, f"right{shift_ms}")):
        give(settings, examples)
        result = trainer.step()
        assert result.trained + result.held_out == 150
        assert result.outcome == "promoted", result.reason
    assert sum(item != b"" for item in weights(settings)["vocabulary"].tolist()) >= 0.9 * before


def test_examples_out_of_order_are_each_learnt_from_once(learnt: tuple[Settings, PlantedShop], tmp_path: Path) -> None:
    """The last first, and a week's worth older ones among them: order of arrival decides nothing but the batches."""
    settings, shop = at_the_end(elsewhere(learnt[0], tmp_path / "data")), learnt[1]
    examples = shop.examples(200, "order")
    late = [replace(e, time_ms=e.time_ms - n * 3_600_000) if n % 3 == 0 else e for n, e in enumerate(examples)]
    give(settings, [*reversed(late), *late[:50]])
    result = Trainer(settings, FEATURES).step()
    assert (result.trained + result.held_out, result.duplicates, result.unusable) == (200, 50, 0)
    assert result.outcome == "promoted", result.reason


def test_features_of_an_unknown_version_are_passed_over_and_counted(learnt: tuple[Settings, PlantedShop], tmp_path: Path) -> None:
    """Two versions of the shop's features stand in the log while one replaces the other."""
    settings, shop = at_the_end(elsewhere(learnt[0], tmp_path / "data")), learnt[1]
    before = weights(settings)
    others = [replace(e, features=replace(e.features, version="of-tomorrow")) for e in shop.examples(40, "tomorrow")]
    give(settings, others)
    trainer = Trainer(settings, FEATURES)
    result = trainer.step()
    assert (result.outcome, result.consumed, result.unusable, result.trained) == ("nothing_to_learn", 40, 40, 0)
    assert "40 unusable" in result.reason
    assert equal(weights(settings), before)
    give(settings, [*others, *shop.examples(60, "today")])
    result = trainer.step()
    assert (result.outcome, result.duplicates, result.trained + result.held_out) == ("promoted", 40, 60), result.reason


def test_one_shopper_alone_is_learnt_from(learnt: tuple[Settings, PlantedShop], tmp_path: Path) -> None:
    settings = at_the_end(elsewhere(learnt[0], tmp_path / "data"))
    alone = PlantedShop(seed=12, shoppers=1)
    alone.events(30)
    give(settings, alone.examples(80, "alone"))
    result = Trainer(settings, FEATURES).step()
    assert result.outcome in ("promoted", "refused")
    assert result.trained + result.held_out == 80
    assert all(np.isfinite(value).all() for value in weights(settings).values() if value.dtype.kind == "f")


def test_a_model_too_large_or_too_slow_for_its_server_is_refused_with_figures(
    learnt: tuple[Settings, PlantedShop], tmp_path: Path
) -> None:
    """Measured in a model server; its examples are learnt from again when there is room."""
    settings, shop = at_the_end(elsewhere(learnt[0], tmp_path / "data")), PlantedShop(seed=13)
    shop.events(1_500)
    before, live = weights(settings), directory.live_version(settings.model_path)
    give(settings, shop.examples(120, "large"))
    result = Trainer(replace(settings, model_memory_mb_max=20), FEATURES).step()
    assert result.outcome == "refused"
    assert f"a model server with it takes {result.metrics['memory_mb']:.0f} MB, and may take 20 MB" in result.reason
    assert result.metrics["memory_mb"] > 20
    assert equal(weights(settings), before)
    give(settings, shop.examples(60, "slow"))
    result = Trainer(replace(settings, model_timeout_ms=0), FEATURES).step()
    assert (result.outcome, directory.live_version(settings.model_path)) == ("refused", live)
    assert "and scorers wait 0 ms for it" in result.reason
    give(settings, shop.examples(60, "room"))
    trainer = Trainer(settings, FEATURES)
    assert trainer._retry.size > 140, "what was refused for no fault of its own is tried again"
    result = trainer.step()
    assert result.outcome == "promoted", result.reason
    assert {"rank_ms", "live_rank_ms", "memory_mb", "coverage", "shown_items", "live_shown_items"} <= result.metrics.keys()
    assert 0.5 < result.metrics["coverage"] <= 1.0


def test_a_model_directory_deleted_while_serving_interrupts_nobody(learnt: tuple[Settings, PlantedShop], tmp_path: Path) -> None:
    """The model server goes on with what it has loaded; the trainer writes the live version anew; a server that starts then has it."""
    settings = at_the_end(elsewhere(learnt[0], tmp_path / "data"))
    settings = replace(settings, model_server_port=free_port(), model_server_metrics_port=free_port())
    live = directory.live_version(settings.model_path)
    trainer = Trainer(settings, FEATURES)
    trainer.step()
    for start in (1, 2):
        with role(settings, "serving.model_server", tmp_path / f"server{start}.log"):
            until(lambda: _served(settings) == [live], 60, f"version {live} answers; see {tmp_path}/server{start}.log")
            if start == 1:
                shutil.rmtree(settings.model_path)
                _looked_again(settings)
                assert _served(settings) == [live]
                assert trainer.step().outcome == "nothing_to_learn"
                assert directory.versions(settings.model_path) == [live]
                assert _served(settings) == [live]


def _looked_again(settings: Settings) -> None:
    """Wait until the model server has looked at its model directory since now: of two more looks one began after it."""
    before = _polls(settings)
    until(lambda: _polls(settings) >= before + 2, 60, "the model server has looked twice")


def _polls(settings: Settings) -> float:
    """How often the model server has looked at its model directory."""
    text = httpx.get(f"http://{settings.host}:{settings.model_server_metrics_port}/metrics", trust_env=False).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next(sample.value for sample in samples if sample.name == "liveshelf_model_server_polls_total")


def _served(settings: Settings) -> list[int]:
    """Versions that answer when they are asked what they were trained on."""

    async def ask() -> list[int]:
        async with ModelClient(settings) as client:
            try:
                found = await client.versions()
                return [v for v in found if await describe(client, v, 5.0) == FEATURES.version]
            except ModelUnavailableError:
                return []

    return asyncio.run(ask())
