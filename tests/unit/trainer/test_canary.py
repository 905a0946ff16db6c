"""What counts of the feedback on a canary, and what does not."""

import msgspec
import pytest

from streams.records import UNKNOWN, encode
from streams.route import Route
from tests.planted_shop import PlantedShop
from trainer.canary import PROMOTED, ROLLED_BACK, Counts, Shelf, arm, decide

ROUTE = Route(stable=7, canary=8, share=0.3, since_ms=1_000)


def shelf(shopper: str, version: int, clicked: int = 0, time_ms: int = 2_000) -> Shelf:
    return Shelf(shopper=shopper, time_ms=time_ms, model_version=version, clicked=[0, clicked, 0])


def numbers(counts: Counts) -> tuple[float, ...]:
    metrics = counts.standing().metrics
    return tuple(metrics[f"{name}_{what}"] for name in ("canary", "stable") for what in ("shoppers", "clicked"))


def test_the_first_shelf_of_each_shopper_counts_for_the_version_that_was_to_answer() -> None:
    counts = Counts(ROUTE)
    names = [f"s{n}" for n in range(400)]
    ours = [name for name in names if ROUTE.picks_canary(name)]
    for name in names:
        right, wrong = (8, 7) if name in ours else (7, 8)
        counts.add(shelf(name, right, 1, time_ms=999))  # before it began
        counts.add(shelf(name, wrong, 1))  # a scorer that had not followed yet
        counts.add(shelf(name, 0, 1))  # a fallback shelf
        counts.add(msgspec.structs.replace(shelf(name, right, UNKNOWN), late="bought"))  # says of no click
        counts.add(shelf(name, right, int(name.endswith("0"))))
        counts.add(shelf(name, right, 1))  # once more
    clicked = sum(name.endswith("0") for name in ours)
    assert 80 < len(ours) < 160
    assert numbers(counts) == (len(ours), clicked, 400 - len(ours), 40 - clicked)
    assert (counts.standing().canary, counts.standing().stable) == (8, 7)


def test_what_is_told_is_what_was_decided() -> None:
    """A canary that nobody clicks on is rolled back, one that all click on promoted; with the figures that it was decided by."""
    for label, decision in ((0, ROLLED_BACK), (1, PROMOTED)):
        counts = Counts(ROUTE)
        assert counts.standing().decision == ""
        for n in range(600):
            canary = ROUTE.picks_canary(f"s{n}")
            counts.add(shelf(f"s{n}", 8 if canary else 7, label if canary else n % 2))
        found = counts.standing()
        assert found.decision == decision
        ours, theirs = (arm(int(found.metrics[f"{a}_clicked"]), int(found.metrics[f"{a}_shoppers"])) for a in ("canary", "stable"))
        assert decide(ours, theirs) == (decision, found.reason)
        assert found.metrics["canary_low"] == ours.low
        assert found.metrics["stable_rate"] == theirs.rate


def test_an_example_of_the_log_is_read_as_what_counts_of_it() -> None:
    example = PlantedShop().example("r")
    found = msgspec.json.decode(encode(example), type=Shelf)
    assert (found.shopper, found.time_ms, found.model_version, found.clicked) == (
        example.shopper,
        example.time_ms,
        example.model_version,
        example.clicked,
    )


def test_so_many_shoppers_of_the_stable_version_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.canary.STABLE_SHOPPERS_MAX", 50)
    counts = Counts(ROUTE)
    for n in range(400):
        counts.add(shelf(f"s{n}", 8 if ROUTE.picks_canary(f"s{n}") else 7))
    assert numbers(counts)[0] > 80
    assert numbers(counts)[2] == 50
