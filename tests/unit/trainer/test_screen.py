"""Clicks that cannot be believed are found and held back, and honest ones are not."""

import numpy as np
import pytest

from tests.planted_shop import FEATURES
from trainer.samples import UNKNOWN, Array, Samples, empty
from trainer.screen import (
    BELIEVED_AFTER,
    EXCESS_MIN,
    Suspect,
    believed_after,
    suspects,
    without,
)

ITEMS, SIZE, WANTED = 60, 10, b"i0"


def shop(shelves: int, seed: int = 1, wanted: bytes | None = None, share: float = 0.5) -> tuple[Samples, Array]:
    """Shelves of random items clicked on with known chances, and those chances [N, C, 3]; of a `share` of them the clicks are those of
    bots that want one item, and have it before them."""
    rng = np.random.default_rng(seed)
    names = np.array([f"i{n}".encode() for n in range(ITEMS)])
    likes = rng.beta(1, 8, ITEMS)
    shown = np.array([rng.permutation(ITEMS)[:SIZE] for _ in range(shelves)])
    of_bots = rng.random(shelves) < share if wanted else np.zeros(shelves, bool)
    at = names.tolist().index(wanted) if wanted else 0
    shown[of_bots & ~(shown == at).any(axis=1), 3] = at
    truth = likes[shown]
    clicked = rng.random((shelves, SIZE)) < truth
    clicked[of_bots] = shown[of_bots] == at
    labels = np.zeros((shelves, SIZE, 3), np.float32)
    labels[:, :, 0] = clicked
    samples = empty(FEATURES)._replace(candidates=names[shown], labels=labels, served=np.ones(shelves, bool))
    hollow = np.zeros((shelves, *samples.candidate_features.shape[1:])), np.zeros((shelves, FEATURES.sequence.n))
    samples = samples._replace(candidate_features=np.zeros((shelves, SIZE, hollow[0].shape[-1]), "f4"))
    samples = samples._replace(
        **{n: np.zeros((shelves, *getattr(samples, n).shape[1:]), "f4") for n in ("recent_age", "shopper_features")}
    )
    samples = samples._replace(recent_items=np.full(hollow[1].shape, b""), recent_events=np.zeros(hollow[1].shape, "i4"))
    return samples, np.repeat(truth[:, :, None], 3, axis=2)


def test_honest_shelves_have_no_suspects() -> None:
    """200 steps of 700 shelves by known chances: none, though some items get twenty times the clicks of others."""
    assert not [found for seed in range(200) if (found := suspects(*shop(700, seed)))]


@pytest.mark.parametrize("off", [0.2, 5.0])
def test_a_model_that_is_off_on_the_whole_suspects_nobody(off: float) -> None:
    samples, chances = shop(700)
    assert suspects(samples, chances * off) == []


def test_an_item_that_bots_click_on_is_found_and_no_other() -> None:
    for seed in range(20):
        samples, chances = shop(700, seed, WANTED)
        (found,) = suspects(samples, chances * 3)
        assert found.item == WANTED
        shown = samples.candidates == WANTED
        assert (found.shown, found.clicks) == (shown.sum(), samples.labels[:, :, 0][shown].sum())
        assert found.expected < found.clicks / 3


def test_two_items_cannot_hide_each_other() -> None:
    samples, chances = shop(700, 1, WANTED)
    clicked = samples.labels[:, :, 0]
    clicked[(samples.candidates == b"i7") & (np.arange(700) % 3 == 0)[:, None]] = 1.0
    extra = samples.candidates[:, 5] != WANTED
    samples.candidates[extra, 5], clicked[extra, 5] = b"i8", 1.0
    assert {s.item for s in suspects(samples, chances)} >= {WANTED, b"i8"}


def test_an_item_shown_to_those_who_like_it_is_no_suspect() -> None:
    """Ten times the clicks of before, all of which the model expects of these shoppers."""
    samples, chances = shop(700)
    shown = samples.candidates == WANTED
    samples.labels[:, :, 0][shown] = 1.0
    chances[shown] = 0.9
    assert suspects(samples, chances) == []


def test_few_clicks_prove_nothing() -> None:
    samples, chances = shop(700)
    samples.labels[:, :, 0][samples.candidates == WANTED] = 0.0
    rows, places = np.nonzero(samples.candidates == WANTED)
    samples.labels[rows[:EXCESS_MIN], places[:EXCESS_MIN], 0] = 1.0
    assert suspects(samples, chances) == []


def test_a_shop_of_one_item_has_nothing_to_set_it_beside() -> None:
    samples, chances = shop(200)
    samples = samples._replace(candidates=np.full(samples.candidates.shape, WANTED))
    samples.labels[:, :, 0] = 1.0
    assert suspects(samples, chances) == []
    assert suspects(empty(FEATURES), np.zeros((0, 1, 3))) == []


def test_without_a_suspect_nothing_is_learnt_of_it_and_no_shelf_of_a_bot_is_left() -> None:
    samples, _ = shop(700, 2, WANTED)
    left = without(samples, [WANTED])
    of_wanted = left.candidates == WANTED
    acted = (samples.labels[:, :, 0] > 0) & (samples.candidates == WANTED)
    assert left.size == 700 - acted.any(axis=1).sum()
    assert of_wanted.any()
    assert (left.labels[of_wanted] == UNKNOWN).all()
    assert (left.labels[~of_wanted] != UNKNOWN).all()
    assert without(samples, []) is samples


def test_what_lasts_is_believed_and_what_pauses_is_counted_anew() -> None:
    suspect, counts = Suspect(WANTED, 9, 9, 1.0), {}
    for step in range(1, BELIEVED_AFTER + 3):
        held, counts = believed_after(counts, [suspect])
        assert counts == {"i0": step}
        assert bool(held) == (step <= BELIEVED_AFTER)
    assert believed_after(counts, []) == ([], {})
    assert str(suspect) == "i0 got 9 clicks of 9, 1 were expected"
