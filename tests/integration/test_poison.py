"""A poisoned stream must not get a worse model served: judged by what the served versions answer on clean shelves that none has seen."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from liveshelf.settings import Settings
from streams.records import Example
from streams.topics import CATALOG, CLICKSTREAM
from tests.conftest import broker
from tests.integration.test_trainer import at_the_end, elsewhere, give, produce
from tests.planted_shop import FEATURES, PlantedShop
from trainer import directory
from trainer.compare import compare
from trainer.examples import samples_of
from trainer.gate import LOG_LOSS_UNSURE_MAX
from trainer.samples import TASKS, Samples
from trainer.step import Trainer

CLEAN_STEPS, STEP, CLEAN, POISONED_STEPS = 3, 700, 1_000, 3
ORDER_WORSE_MAX = 0.01
"""What is served after the poison must not surely be worse by more, on 1,000 shelves, than what was served before. As for log loss, the
gate has some 230 clean shelves to see it on, and promises no more than LOG_LOSS_UNSURE_MAX."""
WANTED, WANTED_TIMES_MAX = "i0", 1.5
"""What the seller's bots click on, and how much likelier a click on it may seem after them."""
replace = msgspec.structs.replace


def flipped(shop: PlantedShop, examples: list[Example]) -> list[Example]:
    """Every label is the opposite of what came of it: a broken join."""
    return [replace(e, clicked=[1 - label for label in e.clicked]) for e in examples]


def some_flipped(shop: PlantedShop, examples: list[Example]) -> list[Example]:
    """Three shelves in ten."""
    return [*flipped(shop, examples[: len(examples) * 3 // 10]), *examples[len(examples) * 3 // 10 :]]


def bots(shop: PlantedShop, examples: list[Example]) -> list[Example]:
    """Half of the shelves are those of visitors who click on everything they are shown, and put it into the cart."""
    return [replace(e, clicked=[1] * len(e.items), carted=[1] * len(e.items)) if n % 2 else e for n, e in enumerate(examples)]


def one_item(shop: PlantedShop, examples: list[Example]) -> list[Example]:
    """A seller's bots click on one item wherever it is shown, and on nothing else: half of the stream."""
    return [replace(e, clicked=[int(i == WANTED) for i in e.items]) if n % 2 else e for n, e in enumerate(examples)]


def half_of_all_clicks(shop: PlantedShop, examples: list[Example]) -> list[Example]:
    """The same bots, who have brought the item before them, so that half of all clicks are on it. Whose names they have is no matter."""
    for n in range(1, len(examples), 2):
        examples[n] = shop.example(examples[n].request_id, showing=WANTED)
    return one_item(shop, examples)


def crawler(shop: PlantedShop, examples: list[Example]) -> list[Example]:
    """Half of the shelves are one visitor's, who clicks on all but what people click on."""
    return [
        replace(e, shopper="crawler", clicked=[1 - label for label in e.clicked]) if n % 2 else e for n, e in enumerate(examples)
    ]


def exploding(shop: PlantedShop, examples: list[Example]) -> list[Example]:
    """Half of the examples hold features a thousand times what they were, which is just about possible, and labels that say nothing."""

    def blown(raw: bytes) -> bytes:
        return (np.frombuffer(raw, "<f4") * 1_000).tobytes()

    names = ("recent_age", "shopper_features", "candidate_features")
    return [
        replace(
            e,
            clicked=[shop.rng.randint(0, 1) for _ in e.items],
            features=replace(e.features, **{name: blown(getattr(e.features, name)) for name in names}),
        )
        if n % 2
        else e
        for n, e in enumerate(examples)
    ]


class Ready(NamedTuple):
    """A shop with a model that has taken some clean steps."""

    settings: Settings
    shop: PlantedShop
    trainer: Trainer


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, PlantedShop]]:
    """On a broker of its own: what the first model learns, and so what the gate sees later, is not to depend on what other tests sent."""
    with broker(tmp_path_factory.mktemp("poison-kafka")) as kafka:
        home = tmp_path_factory.mktemp("poison") / "data"
        yield first_steps(replace(kafka, data_dir=str(home), model_name="poisoned", train_interval_s=0))


def first_steps(settings: Settings) -> tuple[Settings, PlantedShop]:
    shop = PlantedShop(seed=5)
    produce(settings, CATALOG, shop.catalog(), "item_id")
    produce(settings, CLICKSTREAM, shop.events(2_000), "shopper")
    Trainer(settings, FEATURES).step()
    trainer = Trainer(at_the_end(settings), FEATURES)
    for n in range(CLEAN_STEPS):
        give(settings, shop.examples(STEP, f"poison-clean{n}"))
        trainer.step()
    return settings, shop


@pytest.fixture
def ready(learnt: tuple[Settings, PlantedShop], tmp_path: Path) -> Ready:
    settings = at_the_end(elsewhere(learnt[0], tmp_path / "data"))
    return Ready(settings, deepcopy(learnt[1]), Trainer(settings, FEATURES))


def served(settings: Settings, version: int, shelves: Samples) -> Any:
    """[N, C, 3] what a version in the model directory answers."""
    import tensorflow as tf

    model = tf.saved_model.load(str(settings.model_path / str(version)))
    names = ("recent_items", "recent_events", "recent_age", "shopper_features", "candidates", "candidate_features")
    answer = model.signatures["rank"](**{name: tf.constant(getattr(shelves, name)) for name in names})
    return np.stack([answer[task].numpy() for task in TASKS], axis=-1)


@pytest.mark.parametrize(
    "poison", [flipped, some_flipped, bots, one_item, half_of_all_clicks, crawler, exploding], ids=lambda poison: poison.__name__
)
def test_no_worse_model_is_served(ready: Ready, poison: Callable[[PlantedShop, list[Example]], list[Example]]) -> None:
    settings, shop, trainer = ready
    before = directory.live_version(settings.model_path)
    clean, _ = samples_of(shop.examples(CLEAN, f"{poison.__name__}-clean"), shop.encoder)
    results = []
    for n in range(POISONED_STEPS):
        give(settings, poison(shop, shop.examples(STEP, f"{poison.__name__}{n}")))
        results.append(trainer.step())
    standard = served(settings, before, clean)
    for version in [v for v in directory.versions(settings.model_path) if v > before]:
        for c in compare(clean, served(settings, version, clean), standard):
            assert c.log_loss.low <= LOG_LOSS_UNSURE_MAX, (version, c)
            assert c.order is None or c.order.low <= ORDER_WORSE_MAX, (version, c)
    refused = [result for result in results if result.outcome == "refused"]
    assert all(result.reason for result in refused)
    if poison in (one_item, half_of_all_clicks):  # what honest shoppers did in the same steps is learnt, and not what the bots did
        assert all("clicks cannot be believed: i0 got" in result.reason for result in results), results
        of_wanted = clean.candidates == WANTED.encode()
        chance = served(settings, directory.live_version(settings.model_path), clean)[of_wanted][:, 0].mean()
        assert chance < WANTED_TIMES_MAX * standard[of_wanted][:, 0].mean()
    elif poison is not exploding:  # that does little harm, and may be promoted
        assert len(refused) == POISONED_STEPS, [(result.outcome, result.reason) for result in results]
    if poison is not exploding:
        outcomes = []
        for n in range(
            2
        ):  # the first may be refused for what is served, or judged by, having been bent a little; it then comes back
            give(settings, shop.examples(STEP, f"{poison.__name__}-after{n}"))
            outcomes.append(trainer.step().outcome)
        assert "promoted" in outcomes, "and clean examples are learnt from again"
