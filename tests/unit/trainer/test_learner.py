"""The learner: finds a planted pattern, grows without forgetting, and gives the same bits again."""

import numpy as np
import pytest

from tests.planted_shop import FEATURES, PlantedShop
from trainer.bootstrap import replay
from trainer.examples import samples_of
from trainer.learner import CAPACITY_AT_FIRST, Learner, be_deterministic
from trainer.log import Logged
from trainer.metrics import evaluate
from trainer.samples import Samples, stack
from trainer.vocabulary import FIRST_ROW, OOV_ROWS, Vocabulary


@pytest.fixture(scope="module")
def shop() -> PlantedShop:
    be_deterministic()
    shop = PlantedShop()
    shop.events(800)
    return shop


@pytest.fixture(scope="module")
def shelves(shop: PlantedShop) -> Samples:
    """Served shelves."""
    samples, of = samples_of(shop.examples(1_200, "r"), shop.encoder)
    assert len(of) == 1_200
    return samples


def learnt(samples: Samples, epochs: int = 3) -> Learner:
    learner = Learner(FEATURES, seed=7)
    learner.admit(samples)
    learner.normalise(samples)
    learner.fit(samples, np.random.default_rng(1), epochs, 3e-3)
    return learner


def test_ranks_held_out_shelves_by_the_planted_taste(shelves: Samples) -> None:
    """Chance is .5; a ranker that knew each shopper's taste exactly gets about .86. Fixed seeds measured .85."""
    train, test = shelves.take(np.arange(900)), shelves.take(np.arange(900, 1_200))
    found = evaluate(test, learnt(train).predict(test))
    untrained = Learner(FEATURES, seed=7)
    untrained.admit(train)
    assert found.auc is not None
    assert found.auc > 0.78
    assert found.log_loss < evaluate(test, untrained.predict(test)).log_loss


def test_retrieves_items_of_the_category_a_shopper_likes() -> None:
    """From views alone, of the ten nearest items; by chance one in six is in the category. Fixed seeds measured .96."""
    shop = PlantedShop(seed=5)
    events = [Logged(0, n, event) for n, event in enumerate(shop.events(3_000))]
    samples, _ = stack([sample for _, sample in replay(events, shop.catalog(), 7, FEATURES)], FEATURES)
    learner = learnt(samples)
    columns = learner._columns(samples.take(np.arange(samples.size - 200, samples.size)))
    vectors = learner.model.item.embeddings.numpy()[FIRST_ROW : learner.vocabulary.rows_used]
    nearest = np.argsort(-learner.model.similarity(learner.model.shopper(columns), vectors).numpy(), axis=1)[:, :10]
    categories = np.array([shop.category(item.decode()) for item in learner.vocabulary.ids])
    majority = [
        np.bincount(categories[columns["recent_rows"][n][columns["recent_rows"][n] > 0] - FIRST_ROW]).argmax() for n in range(200)
    ]
    assert np.mean(categories[nearest] == np.array(majority)[:, None]) > 0.8


def test_growth_keeps_old_rows_and_optimiser_state(shelves: Samples) -> None:
    learner = learnt(shelves.take(np.arange(256)), epochs=1)
    before, old = learner.state(), learner.predict(shelves)
    many = shelves.take(np.arange(1))._replace(
        candidates=np.array([[f"new{n}".encode() for n in range(CAPACITY_AT_FIRST)]]),
        candidate_features=np.zeros((1, CAPACITY_AT_FIRST, shelves.candidate_features.shape[2]), np.float32),
        labels=np.zeros((1, CAPACITY_AT_FIRST, 3), np.float32),
    )
    assert learner.admit(many) == CAPACITY_AT_FIRST
    after = learner.state()
    assert learner.model.capacity == 2 * CAPACITY_AT_FIRST
    grown = 0
    for name, value in before.items():
        if name in ("vocabulary", "frequency"):
            assert (after[name][: len(value)] == value).all()
        elif after[name].shape == value.shape:
            assert np.array_equal(after[name], value), name
        else:
            grown += 1
            assert np.array_equal(after[name][: len(value)], value), name
    assert grown == 3, "the item table and Adam's two moments of it"
    assert np.array_equal(learner.predict(shelves), old)
    moments = [
        value for name, value in after.items() if name.startswith("optimizer/") and len(value.shape) == 2 and len(value) == 2048
    ]
    assert any(np.abs(moment[:CAPACITY_AT_FIRST]).max() > 0 for moment in moments)
    assert learner.fit(many, np.random.default_rng(2), 1, 1e-3) > 0


def test_the_same_seed_gives_the_same_bits(shelves: Samples) -> None:
    one, two = learnt(shelves).state(), learnt(shelves).state()
    assert one.keys() == two.keys()
    for name in one:
        assert np.array_equal(one[name], two[name]), name


def test_restored_state_goes_on_as_the_original(shelves: Samples) -> None:
    original = learnt(shelves.take(np.arange(600)), epochs=1)
    restored = Learner(FEATURES, seed=99)
    restored.restore(original.state())
    for learner in (original, restored):
        learner.admit(shelves)
        learner.fit(shelves, np.random.default_rng(4), 1, 1e-3)
    one, two = original.state(), restored.state()
    assert all(np.array_equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


def test_rows_are_for_good_and_unknown_ids_share_a_few() -> None:
    words = Vocabulary([b"a", b"b"])
    assert words.rows(np.array([b"", b"a", b"b"])).tolist() == [0, FIRST_ROW, FIRST_ROW + 1]
    unknown = words.rows(np.array([[b"x", b"y"], [b"x", b"z"]]))
    assert unknown[0, 0] == unknown[1, 0]
    assert unknown.min() >= 1
    assert unknown.max() <= OOV_ROWS
    assert words.admit([b"b", b"x", b""]) == 1
    assert words.rows(np.array([b"a", b"x"])).tolist() == [FIRST_ROW, FIRST_ROW + 2]
