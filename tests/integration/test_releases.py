"""Releases on a real Kafka: what a version was made of, made again from that, and set beside another; the card that stands beside it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from liveshelf.errors import NotFoundError
from liveshelf.settings import Settings
from streams.records import Release
from streams.topics import CATALOG, CLICKSTREAM, TRAINING_EXAMPLES, kafka_config
from tests.conftest import broker
from tests.integration.test_trainer import give, produce, weights
from tests.planted_shop import FEATURES, PlantedShop
from trainer import checkpoint, directory, lineage, releases
from trainer.diff import diff
from trainer.intake import is_unseen
from trainer.log import key
from trainer.reproduce import reproduce
from trainer.step import Trainer

replace = msgspec.structs.replace
STEP = 500


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, list[Release]]]:
    """On a broker of its own, whose log holds nothing of other tests."""
    with broker(tmp_path_factory.mktemp("releases")) as kafka:
        settings = replace(kafka, data_dir=f"{kafka.data_dir}/data", model_name="releases", train_interval_s=0)
        yield settings, _history(settings)


def _history(settings: Settings) -> list[Release]:
    """A bootstrap, a clean step, a poisoned one, a read of nothing but what is set aside, a clean step, with what was refused and without, and
    one more: every way in which a trainer's state moves on."""
    shop = PlantedShop(seed=8)
    produce(settings, CATALOG, shop.catalog(), "item_id")
    produce(settings, CLICKSTREAM, shop.events(1_500), "shopper")
    trainer = Trainer(settings, FEATURES)
    first = trainer.step()
    assert first.outcome == "promoted", first.reason
    outcomes = []
    for name, poisoned in (("one", False), ("two", True), ("aside", False), ("three", False)):
        examples = shop.examples(STEP, f"releases-{name}", poisoned=poisoned)
        if name == "aside":
            give(settings, [e for e in examples if is_unseen(e.request_id)])
            outcomes.append(trainer.step().outcome)
            examples = [e for e in examples if not is_unseen(e.request_id)]
        give(settings, examples)
        outcomes.append(trainer.step().outcome)
    assert outcomes == ["promoted", "refused", "nothing_to_learn", "promoted", "promoted"]
    return releases.history(settings)


def test_a_release_says_what_the_version_was_made_of(made: tuple[Settings, list[Release]]) -> None:
    settings, history = made
    assert [r.outcome for r in history] == ["promoted", "promoted", "refused", "promoted", "promoted"]
    of = [r.lineage for r in history if r.lineage is not None]
    assert [(one.kind, one.step) for one in of] == [("bootstrap", 0), ("step", 1), ("step", 2), ("step", 4), ("step", 5)]
    assert [len(one.reads) for one in of] == [0, 0, 0, 1, 0], "one read led to no release"
    assert [r.parent for r in history] == [0, 1, 2, 2, 4]
    assert all(one.settings == lineage.settings_of(settings) for one in of)
    assert all(one.code == lineage.code() for one in of)
    assert "password" not in str(lineage.settings_of(settings))
    last = of[-1]
    state = weights(settings)
    assert last.weights == lineage.hash_of(state)
    assert last.items == 60
    moved = [name for name, at in history[-1].offsets.items() if at > history[0].offsets.get(name, 0)]
    assert moved
    assert all(name.startswith(TRAINING_EXAMPLES) for name in moved)


def test_a_version_is_made_again_from_its_lineage_bit_for_bit(made: tuple[Settings, list[Release]], tmp_path: Path) -> None:
    settings, history = made
    found = reproduce(settings, FEATURES, history, history[-1].version, tmp_path / "again")
    assert found.same, found
    assert (found.steps, found.other_code) == (5, {})
    again, then = weights(replace(settings, data_dir=str(tmp_path / "again"))), weights(settings)
    assert again.keys() == then.keys()
    assert all(np.array_equal(again[name], then[name]) for name in then)


def test_another_lineage_makes_other_weights(made: tuple[Settings, list[Release]], tmp_path: Path) -> None:
    """Another seed; an offset that is one less; and a release that is not known of at all."""
    settings, history = made
    two = history[:2]
    assert two[1].lineage is not None

    def other(settings_: dict[str, int], offsets: dict[str, int]) -> list[Release]:
        of = two[1].lineage
        assert of is not None
        return [two[0], replace(two[1], offsets=two[1].offsets | offsets, lineage=replace(of, settings=of.settings | settings_))]

    name = max(two[1].offsets, key=lambda n: (n.startswith(TRAINING_EXAMPLES), two[1].offsets[n] - two[0].offsets.get(n, 0)))
    for n, changed in enumerate((other({"seed": 8}, {}), other({}, {name: two[1].offsets[name] - 1}))):
        assert not reproduce(settings, FEATURES, changed, two[1].version, tmp_path / str(n)).same
    with pytest.raises(NotFoundError, match="no release with a lineage is known of version 99"):
        reproduce(settings, FEATURES, history, 99, tmp_path / "none")
    with pytest.raises(NotFoundError, match="goes back to version 2 and beyond"):
        reproduce(settings, FEATURES, history[1:], history[-1].version, tmp_path / "none")


def test_two_versions_side_by_side(made: tuple[Settings, list[Release]], tmp_path: Path) -> None:
    settings, history = made
    first, second, last = history[0].version, history[-1].version, history[-1].lineage
    found = diff(settings, history, first, second)
    assert found.missing == []
    assert (found.settings, found.code, found.operations) == ({}, {}, ([], []))
    assert found.lineage["parent"] == (0, 4)
    assert found.lineage["kind"] == ("bootstrap", "step")
    assert found.lineage["weights"][0] != found.lineage["weights"][1]
    assert found.items is not None
    assert (found.items.counts, found.items.added, found.items.removed) == ((60, 60), 0, 0)
    (click,) = [row for row in found.quality if row.objective == "click"]
    assert click.log_loss.high < 0, (
        "a thousand served shelves later the model is surely better than one that saw replayed ones only"
    )
    assert click.log_loss.low <= click.log_loss.point <= click.log_loss.high
    back = next(row for row in diff(settings, history, second, first).quality if row.objective == "click")
    assert back.log_loss.low > 0
    assert back.calibration == click.calibration[::-1]
    assert last is not None
    changed = replace(history[-1], lineage=replace(last, settings={"seed": 8}))
    assert diff(settings, [*history[:-1], changed], first, second).settings["seed"] == (settings.seed, 8)
    gone = diff(replace(settings, data_dir=str(tmp_path)), history, first, second)
    assert gone.quality == []
    assert gone.items is None
    assert "no longer in the model directory" in gone.missing[0]
    with pytest.raises(NotFoundError, match="no version 99"):
        diff(settings, history, first, 99)


def test_the_card_stands_beside_the_version(made: tuple[Settings, list[Release]]) -> None:
    settings, history = made
    for release in history:
        extra = settings.model_path / str(release.version) / "assets.extra"
        assert extra.is_dir() == (release.outcome == "promoted")
    card = (extra / "model_card.md").read_text()
    assert f"version {history[-1].version}" in card
    assert history[-1].reason in card
    assert f"| {history[-1].metrics['served_log_loss']:.4g} |" in card
    assert f"{history[-1].metrics['worse_recent_click_log_loss_low']:.4g}" in card
    assert f"seed {settings.seed}" in card
    assert msgspec.json.decode((extra / "release.json").read_bytes(), type=Release) == history[-1]


def test_a_model_directory_that_is_deleted_comes_back_with_its_card(made: tuple[Settings, list[Release]], tmp_path: Path) -> None:
    """While serving: the trainer writes the live version anew at its next step, and goes on."""
    settings, history = made
    shutil.copytree(settings.data_path, tmp_path / "data")
    twin = replace(settings, data_dir=str(tmp_path / "data"))
    live = directory.live_version(twin.model_path)
    trainer = Trainer(twin, FEATURES)
    trainer.step()
    shutil.rmtree(twin.model_path)
    assert trainer.step().outcome == "nothing_to_learn"
    assert directory.versions(twin.model_path) == [live]
    assert (twin.model_path / str(live) / "assets.extra" / "model_card.md").is_file()
    assert lineage.hash_of(weights(twin)) == history[-1].lineage.weights  # type: ignore[union-attr]
    assert checkpoint.load_latest(checkpoint.path_of(twin, FEATURES.version)) is not None


def test_what_is_no_longer_in_the_log_is_said(made: tuple[Settings, list[Release]], tmp_path: Path) -> None:
    """Retention has passed the first served step; the last test here, since nothing can be made again afterwards."""
    settings, history = made
    partition = next(p for p in range(settings.partitions) if history[1].offsets[key(TRAINING_EXAMPLES, p)])
    at = history[1].offsets[key(TRAINING_EXAMPLES, partition)] + 1
    admin = AdminClient(kafka_config(settings))
    for future in admin.delete_records([TopicPartition(TRAINING_EXAMPLES, partition, at)]).values():
        future.result()
    with pytest.raises(NotFoundError, match=f"begins at offset {at}, and was read up to {at - 1}: that is no longer in the log"):
        reproduce(settings, FEATURES, history, history[-1].version, tmp_path / "again")
