"""Examples of refused steps come back a bounded number of times, and a bounded number of them."""

import numpy as np

from tests.planted_shop import FEATURES, PlantedShop
from trainer.examples import samples_of
from trainer.retry import REFUSALS_MAX, RETRY_MAX, nothing
from trainer.samples import concat


def test_they_are_given_up_after_so_many_refusals() -> None:
    shop = PlantedShop()
    one, two = (samples_of(shop.examples(n, f"r{n}"), shop.encoder)[0] for n in (3, 4))
    retry = nothing(FEATURES).with_refused(one)
    assert retry.refusals.tolist() == [1] * 3
    retry = retry.refused_again().with_refused(two)
    assert retry.refusals.tolist() == [2] * 3 + [1] * 4
    assert np.array_equal(retry.samples.labels, concat(one, two).labels)
    assert REFUSALS_MAX == 3
    retry = retry.refused_again()
    assert retry.refusals.tolist() == [2] * 4, "the first three were refused three times"
    assert np.array_equal(retry.samples.candidates, two.candidates)
    assert retry.refused_again().size == 0


def test_the_latest_are_kept() -> None:
    shop = PlantedShop()
    few = samples_of(shop.examples(10, "r"), shop.encoder)[0]
    many = few.take(np.arange(RETRY_MAX) % 10)
    retry = nothing(FEATURES).with_refused(few).refused_again().with_refused(many)
    assert retry.size == len(retry.refusals) == RETRY_MAX
    assert (retry.refusals == 1).all()
