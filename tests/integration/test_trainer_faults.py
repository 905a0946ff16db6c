"""The trainer with too little to learn from, with one-sided logs, and with a disk that is full: it says so, and serves nothing by halves."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from features.events import Event, EventItem
from liveshelf.errors import ConflictError
from liveshelf.settings import Settings
from streams.records import Example
from streams.topics import CLICKSTREAM
from tests.conftest import broker
from tests.integration.test_trainer import elsewhere, equal, give, produce, weights
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
    give(settings, shop.examples(700, "learnt"))
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
    settings, shop = elsewhere(learnt[0], tmp_path / "data"), learnt[1]
    give(settings, kind(shop.examples(80, str(tmp_path))))
    result = Trainer(settings, FEATURES).step()
    assert result.outcome in ("promoted", "refused")
    assert result.trained > 0
    assert all(np.isfinite(value).all() for value in weights(settings).values() if value.dtype.kind == "f")


@pytest.mark.parametrize(("size", "of"), [(NOTHING_FITS, "model"), (EXPORT_FITS, "checkpoint")])
def test_a_full_disk_leaves_nothing_half_written(learnt: tuple[Settings, PlantedShop], tmp_path: Path, size: int, of: str) -> None:
    """The step fails and says what to do; once there is room it is taken as if nothing had been."""
    settings, shop = elsewhere(learnt[0], tmp_path / "data"), learnt[1]
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
