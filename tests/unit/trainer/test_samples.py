"""Samples from examples, and the figures computed on them."""

import math

import msgspec
import numpy as np
import pytest

from tests.planted_shop import FEATURES, PlantedShop
from trainer.intake import Split, is_unseen
from trainer.metrics import auc, evaluate, log_loss
from trainer.samples import POSITIONS_MAX, UNKNOWN, Sample, concat, from_example, stack


@pytest.fixture
def shop() -> PlantedShop:
    shop = PlantedShop()
    shop.events(100)
    return shop


def sample_of(shop: PlantedShop, size: int) -> Sample:
    sample = from_example(shop.example("r", size=size), shop.encoder)
    assert sample is not None
    return sample


def test_an_example_whose_lists_disagree_or_of_another_version_makes_no_sample(shop: PlantedShop) -> None:
    good = shop.example("r")
    assert from_example(good, shop.encoder) is not None
    replace = msgspec.structs.replace
    assert from_example(replace(good, clicked=[1]), shop.encoder) is None
    assert from_example(replace(good, items=list(reversed(good.items))), shop.encoder) is None
    assert from_example(replace(good, features=replace(good.features, version="0")), shop.encoder) is None


@pytest.mark.parametrize("name", ["recent_events", "recent_age", "shopper_features", "candidate_features"])
@pytest.mark.parametrize("cut", [1, 4])
def test_features_of_another_shape_make_no_sample(shop: PlantedShop, name: str, cut: int) -> None:
    """Half a number, or one number too few: an example is refused, and the step goes on."""
    good = next(e for e in shop.examples(50, "r") if e.features.recent_items)
    features = msgspec.structs.replace(good.features, **{name: getattr(good.features, name)[:-cut]})
    assert from_example(msgspec.structs.replace(good, features=features), shop.encoder) is None


def test_of_a_long_shelf_the_positions_acted_on_stay(shop: PlantedShop) -> None:
    long = shop.example("r", size=50)
    clicked = [0] * 48 + [1, 1]
    sample = from_example(msgspec.structs.replace(long, clicked=clicked, carted=[0] * 50), shop.encoder)
    assert sample is not None
    kept = [*range(POSITIONS_MAX - 2), 48, 49]
    assert [item.decode() for item in sample.inputs["candidates"]] == [long.items[at] for at in kept]
    assert [labels[0] for labels in sample.labels] == [0.0] * (POSITIONS_MAX - 2) + [1.0, 1.0]
    features = sample.inputs["candidate_features"]
    assert np.array_equal(features[:, :-1], shop.encoder.decode(long.features)["candidate_features"][kept, :-1])
    assert FEATURES.candidate_columns[-1] == "shown_at"
    assert features[:, -1] == pytest.approx(np.log1p(kept)), "positions are those of the shelf that was shown"


def test_features_that_are_no_numbers_are_left_out_and_counted(shop: PlantedShop) -> None:
    samples = [sample for e in shop.examples(3, "r") if (sample := from_example(e, shop.encoder)) is not None]
    samples[1].inputs["candidate_features"][0, 0] = np.nan
    samples[2] = samples[2]._replace(inputs=samples[2].inputs | {"shopper_features": np.full(18, np.inf, np.float32)})
    stacked, left_out = stack(samples, FEATURES)
    assert (stacked.size, left_out) == (1, 2)


def test_shelves_of_different_length_are_padded_with_unknown(shop: PlantedShop) -> None:
    short, long = (stack([sample_of(shop, n)], FEATURES)[0] for n in (4, 9))
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
    split = Split(FEATURES)
    for key in keys[:100]:
        split.add(key, sample_of(shop, 10))
    train, unseen = split.encoded()
    assert unseen.size == sum(is_unseen(key) for key in keys[:100])
    assert train.size + unseen.size == 100


def test_metrics_of_known_values(shop: PlantedShop) -> None:
    labels, chances = np.array([[1, 0, 0, UNKNOWN]]), np.array([[0.8, 0.8, 0.1, 0.99]])
    assert auc(labels, chances) == pytest.approx(0.75)  # one tie, one win
    assert auc(np.array([[1, UNKNOWN]]), np.array([[0.5, 0.1]])) is None
    assert log_loss(labels, chances) == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.9)) / 3)
    samples, _ = stack([sample_of(shop, 4)], FEATURES)
    samples = samples._replace(labels=np.array([[[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]], np.float32))
    scores = np.zeros((1, 4, 3), np.float32)
    scores[0, :, 0] = [0.9, 0.5, 0.7, 0.1]
    assert evaluate(samples, scores).mrr == pytest.approx(1 / 3)
