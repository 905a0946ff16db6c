"""Samples from examples, and the figures computed on them."""

import math

import msgspec
import numpy as np
import pytest

from features.rows import ItemColumns
from tests.planted_shop import PlantedShop
from trainer.intake import Split, is_unseen
from trainer.metrics import auc, evaluate, log_loss
from trainer.samples import POSITIONS_MAX, UNKNOWN, concat, from_example, stack


@pytest.fixture
def shop() -> PlantedShop:
    shop = PlantedShop()
    shop.events(100)
    return shop


def test_an_example_whose_lists_disagree_or_of_another_version_makes_no_sample(shop: PlantedShop) -> None:
    good = shop.example("r")
    assert from_example(good) is not None
    replace = msgspec.structs.replace
    assert from_example(replace(good, clicked=[1])) is None
    assert from_example(replace(good, items=list(reversed(good.items)))) is None
    assert from_example(replace(good, features=replace(good.features, version="0"))) is None


def test_of_a_long_shelf_the_positions_acted_on_stay(shop: PlantedShop) -> None:
    long = shop.example("r", size=50)
    clicked = [0] * 48 + [1, 1]
    sample = from_example(msgspec.structs.replace(long, clicked=clicked, carted=[0] * 50))
    assert sample is not None
    assert sample.features.candidates.items == long.items[: POSITIONS_MAX - 2] + long.items[48:]
    assert [labels[0] for labels in sample.labels] == [0.0] * (POSITIONS_MAX - 2) + [1.0, 1.0]
    assert len(sample.features.candidates.counts) == POSITIONS_MAX


def test_features_that_are_no_numbers_are_left_out_and_counted(shop: PlantedShop) -> None:
    samples = [sample for e in shop.examples(3, "r") if (sample := from_example(e)) is not None]
    bad: ItemColumns = samples[1].features.candidates
    bad.price[0] = -2.0  # its logarithm is not a number
    samples[2].features.candidates.counts[0] = [1.0]
    with np.errstate(invalid="ignore"):
        stacked, left_out = stack(samples)
    assert (stacked.size, left_out) == (1, 2)


def test_shelves_of_different_length_are_padded_with_unknown(shop: PlantedShop) -> None:
    short, long = (stack([from_example(shop.example("r", size=n))])[0] for n in (4, 9))  # type: ignore[list-item]
    both = concat(short, long)
    assert both.candidates.shape == (2, 9)
    assert (both.candidates[0, 4:] == b"").all()
    assert (both.labels[0, 4:] == UNKNOWN).all()
    assert (both.labels[0, :4] == short.labels[0]).all()


def test_one_request_in_ten_is_set_aside_the_same_every_time(shop: PlantedShop) -> None:
    keys = [f"request-{n}" for n in range(2_000)]
    aside = [key for key in keys if is_unseen(key)]
    assert 150 < len(aside) < 250
    assert aside == [key for key in keys if is_unseen(key)]
    split, sample = Split(), from_example(shop.example("r"))
    assert sample is not None
    for key in keys[:100]:
        split.add(key, sample)
    train, unseen = split.encoded()
    assert unseen.size == sum(is_unseen(key) for key in keys[:100])
    assert train.size + unseen.size == 100


def test_metrics_of_known_values(shop: PlantedShop) -> None:
    labels, chances = np.array([[1, 0, 0, UNKNOWN]]), np.array([[0.8, 0.8, 0.1, 0.99]])
    assert auc(labels, chances) == pytest.approx(0.75)  # one tie, one win
    assert auc(np.array([[1, UNKNOWN]]), np.array([[0.5, 0.1]])) is None
    assert log_loss(labels, chances) == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.9)) / 3)
    samples, _ = stack([from_example(shop.example("r", size=4))])  # type: ignore[list-item]
    samples = samples._replace(labels=np.array([[[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]], np.float32))
    scores = np.zeros((1, 4, 3), np.float32)
    scores[0, :, 0] = [0.9, 0.5, 0.7, 0.1]
    assert evaluate(samples, scores).mrr == pytest.approx(1 / 3)
