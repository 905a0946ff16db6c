"""Samples from examples, and the figures computed on them."""

import math

import numpy as np
import pytest

from tests.planted_shop import FEATURES, PlantedShop
from trainer.examples import samples_of
from trainer.intake import Split, is_unseen
from trainer.metrics import auc, evaluate, log_loss
from trainer.samples import UNKNOWN, Sample, concat, stack


@pytest.fixture
def shop() -> PlantedShop:
    shop = PlantedShop()
    shop.events(100)
    return shop


def replayed(shop: PlantedShop, count: int = 1) -> list[Sample]:
    """Samples as a replay makes them: the encoder's inputs and labels, one by one."""
    examples = [shop.example("r") for _ in range(count)]
    return [Sample(shop.encoder.decode(e.features), [[float(label), 0.0, 0.0] for label in e.clicked]) for e in examples]


def test_features_that_are_no_numbers_are_left_out_and_counted(shop: PlantedShop) -> None:
    samples = replayed(shop, 3)
    samples[1].inputs["candidate_features"] = np.full_like(samples[1].inputs["candidate_features"], np.nan)
    samples[2] = samples[2]._replace(inputs=samples[2].inputs | {"shopper_features": np.full(18, np.inf, np.float32)})
    stacked, left_out = stack(samples, FEATURES)
    assert (stacked.size, left_out) == (1, 2)


def test_shelves_of_different_length_are_padded_with_unknown(shop: PlantedShop) -> None:
    short, long = (samples_of([shop.example("r", size=n)], shop.encoder)[0] for n in (4, 9))
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
    split, (sample,) = Split(FEATURES), replayed(shop)
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
    samples, _ = samples_of([shop.example("r", size=4)], shop.encoder)
    samples = samples._replace(labels=np.array([[[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]], np.float32))
    scores = np.zeros((1, 4, 3), np.float32)
    scores[0, :, 0] = [0.9, 0.5, 0.7, 0.1]
    assert evaluate(samples, scores).mrr == pytest.approx(1 / 3)
