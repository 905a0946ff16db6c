"""Examples of the log become samples many at once, exactly as the one encoder reads each of them."""

import msgspec
import numpy as np
import pytest

from streams.records import Example, decode, encode
from tests.planted_shop import FEATURES, PlantedShop
from trainer.examples import POSITIONS_MAX, LearntExample, samples_of
from trainer.samples import UNKNOWN

replace = msgspec.structs.replace


@pytest.fixture
def shop() -> PlantedShop:
    shop = PlantedShop()
    shop.events(200)
    return shop


def logged(example: Example) -> LearntExample:
    return decode(LearntExample, encode(example))


def test_each_row_is_what_the_encoder_reads(shop: PlantedShop) -> None:
    """Shelves of every length, shoppers with and without a past, ids beyond ASCII."""
    examples = [shop.example(f"r{n}", size=1 + n % 12) for n in range(60)]
    named = [f"ключ-{n}" for n in range(len(examples[7].items))]
    examples[7] = replace(examples[7], items=named, features=replace(examples[7].features, candidates=named))
    samples, of = samples_of([logged(example) for example in examples], shop.encoder)
    assert of.tolist() == list(range(60))
    assert samples.served.all()
    for n, example in enumerate(examples):
        inputs, size = shop.encoder.shown(shop.encoder.decode(example.features)), len(example.items)
        for name in ("recent_items", "recent_events", "recent_age", "shopper_features"):
            assert getattr(samples, name)[n].tolist() == inputs[name].tolist(), name
        assert samples.candidates[n].tolist() == inputs["candidates"].tolist() + [b""] * (12 - size)
        assert samples.candidate_features[n, :size].tobytes() == inputs["candidate_features"].tobytes()
        assert not samples.candidate_features[n, size:].any()
        assert samples.labels[n, :size].tolist() == [
            list(map(float, row)) for row in zip(example.clicked, example.carted, example.purchased, strict=True)
        ]
        assert (samples.labels[n, size:] == UNKNOWN).all()


def test_what_is_not_learnt_from_is_not_needed_in_the_record() -> None:
    """The fields read are fields of the record, under the same names."""
    read = {field.encode_name for field in msgspec.structs.fields(LearntExample)}
    assert read < {field.encode_name for field in msgspec.structs.fields(Example)}
    with pytest.raises(msgspec.ValidationError, match="v"):
        decode(LearntExample, b'{"v": 2}')


@pytest.mark.parametrize(
    "change",
    [
        {"clicked": [1]},
        {"purchased": []},
        {"items": ["i1"]},
        {"items": [], "clicked": [], "carted": [], "purchased": []},
    ],
)
def test_an_example_whose_lists_disagree_makes_no_sample(shop: PlantedShop, change: dict[str, list[object]]) -> None:
    good = shop.examples(3, "r")
    _, of = samples_of([good[0], replace(good[1], **change), good[2]], shop.encoder)
    assert of.tolist() == [0, 2]
    assert samples_of([], shop.encoder)[0].size == 0


@pytest.mark.parametrize("name", ["recent_events", "recent_age", "shopper_features", "candidate_features", "version"])
@pytest.mark.parametrize("cut", [1, 4])
def test_features_of_another_shape_or_version_make_no_sample(shop: PlantedShop, name: str, cut: int) -> None:
    """Half a number, or one number too few: an example is refused, and the step goes on."""
    good = next(e for e in shop.examples(50, "r") if e.features.recent_items)
    features = replace(good.features, **{name: getattr(good.features, name)[:-cut]})
    samples, of = samples_of([replace(good, features=features), good], shop.encoder)
    assert (samples.size, of.tolist()) == (1, [1])


@pytest.mark.parametrize("name", ["recent_age", "shopper_features", "candidate_features"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e5])
def test_features_that_no_encoder_makes_make_no_sample(shop: PlantedShop, name: str, value: float) -> None:
    good = next(e for e in shop.examples(50, "r") if e.features.recent_items)
    raw = np.frombuffer(getattr(good.features, name), "<f4").copy()
    raw[0] = value
    bad = replace(good, features=replace(good.features, **{name: raw.tobytes()}))
    assert samples_of([good, bad], shop.encoder)[1].tolist() == [0]


def test_of_a_long_shelf_the_positions_acted_on_stay(shop: PlantedShop) -> None:
    long, short = shop.example("r", size=50), shop.example("s", size=4)
    long = replace(long, clicked=[0] * 48 + [1, 1], carted=[0] * 50)
    samples, _ = samples_of([short, long], shop.encoder)
    kept = [*range(POSITIONS_MAX - 2), 48, 49]
    assert [item.decode() for item in samples.candidates[1]] == [long.items[at] for at in kept]
    assert [item.decode() for item in samples.candidates[0] if item] == short.items
    assert samples.labels[1, :, 0].tolist() == [0.0] * (POSITIONS_MAX - 2) + [1.0, 1.0]
    features = samples.candidate_features[1]
    assert np.array_equal(features[:, :-1], shop.encoder.decode(long.features)["candidate_features"][kept, :-1])
    assert FEATURES.candidate_columns[-1] == "shown_at"
    assert features[:, -1] == pytest.approx(np.log1p(kept)), "positions are those of the shelf that was shown"
