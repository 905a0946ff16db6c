"""The rebuild's pure core: what it folds equals what the live folder folds, sign-ins of before the version included."""

import random

import msgspec
import pytest

from features.declarations import default_text
from features.events import Event, EventItem, Handover
from features.feature_set import load_feature_set
from features.fold import Fold
from features.rows import ItemRow, ShopperRow
from streams.partition_log import Raw
from streams.rebuild import PartitionFold, fold_partition
from streams.records import encode

FEATURES = load_feature_set(default_text(), "default")
OLD = load_feature_set(default_text().replace("n: 20", "n: 5"), "old")


def click(shopper: str, item: str, n: int, name: str = "view_item") -> Event:
    items = (EventItem(item, item_category=f"c{len(item)}", price=5.0),)
    return Event(event_id=f"{shopper}{n}", event_name=name, shopper=shopper, time_ms=1_790_000_000_000 + n * 1000, items=items)  # type: ignore[arg-type]


def log(events: list[Event | bytes], start: int = 0) -> list[Raw]:
    return [
        Raw(start + at, b"" if isinstance(e, bytes) else e.shopper.encode(), e if isinstance(e, bytes) else encode(e))
        for at, e in enumerate(events)
    ]


def handover(person: str, id_: str, states: dict[str, ShopperRow], n: int) -> Event:
    """As agents write it."""
    login = Event(event_id=f"handover-{id_}", event_name="login", shopper=person, time_ms=1_790_000_000_000 + n * 1000)
    return msgspec.structs.replace(login, handover=Handover(id=id_, states=states))


def test_it_equals_the_fold_event_by_event_and_however_it_is_cut() -> None:
    rng = random.Random(3)
    names = ["view_item", "view_item_list", "purchase", "select_item"]
    events = [click(f"s{rng.randrange(9)}", f"i{rng.randrange(20)}", n, rng.choice(names)) for n in range(400)]
    events[50] = events[49]  # sent twice
    records = log([*events[:100], b"no event", *events[100:]])
    fold = Fold(FEATURES)
    shoppers: dict[str, ShopperRow] = {}
    items: dict[str, ItemRow] = {}
    for raw in records:
        if raw.value == b"no event":
            continue
        event = msgspec.json.decode(raw.value, type=Event)
        said = fold.shopper(shoppers.setdefault(event.shopper, FEATURES.shopper(event.shopper)), event, 2, raw.offset)
        for touch in said.touches:
            into = items.setdefault(touch.item, FEATURES.item(touch.item, 2))
            fold.item(into, touch, event.event_name, fold.item_weights(event), raw.offset)
    whole = fold_partition(FEATURES, 2, records)
    assert (whole.shoppers, whole.items, whole.events) == (shoppers, items, 400)
    cut = PartitionFold(FEATURES, 2)
    for at in range(0, len(records), 37):
        cut.fold(records[at : at + 37])
    assert (cut.shoppers, cut.items) == (whole.shoppers, whole.items)


def test_a_new_version_gets_what_browsers_handed_over_before_it_was_there() -> None:
    """The record carries the old version's state only; given the recomputed one, the person's row is as if the version had been there."""
    login = msgspec.structs.replace(click("browser", "i", 3, "login"), items=(), link_to="person")
    browser = log([click("browser", "a", 1), click("browser", "b", 2), login])
    state = {f.version: fold_partition(f, 0, browser).handed_over["0@2"].state for f in (OLD, FEATURES)}
    assert state[FEATURES.version].recent_items == ["b", "a"]
    as_if = fold_partition(FEATURES, 1, log([click("person", "c", 1), handover("person", "0@2", state, 3)])).shoppers["person"]
    old_record = log([click("person", "c", 1), handover("person", "0@2", {OLD.version: state[OLD.version]}, 3)])
    given = PartitionFold(FEATURES, 1, {"0@2": state[FEATURES.version]}, given_upto=1)
    given.fold(old_record)
    assert given.shoppers["person"] == as_if
    beyond = PartitionFold(FEATURES, 1, {"0@2": state[FEATURES.version]}, given_upto=0)
    beyond.fold(old_record)
    assert beyond.shoppers["person"].recent_items == ["c"]
    # What the record lacks is not taken as received: a later record of the same handover that has it counts.
    beyond.fold(log([handover("person", "0@2", state, 3), handover("person", "0@2", state, 3)], start=2))
    assert beyond.shoppers["person"].numbers == as_if.numbers


def test_a_handover_that_fits_no_row_changes_nothing() -> None:
    poison = handover("person", "0@9", {FEATURES.version: ShopperRow("", numbers=[1.0], time_ms=5)}, 3)
    records = log([poison, click("person", "c", 1), poison, click("person", "d", 2)])
    clean = [raw for raw in records if raw.offset in (1, 3)]
    assert fold_partition(FEATURES, 0, records).shoppers == fold_partition(FEATURES, 0, clean).shoppers
    assert fold_partition(FEATURES, 0, records[:1]).shoppers == {}


def test_watched_rows_are_told_as_they_are_at_their_offset() -> None:
    folded, told = PartitionFold(FEATURES, 0), []
    folded.watch = {1: [("shopper", "s"), ("item", "b"), ("item", "z")]}
    folded.reached = lambda offset, key, row: told.append((offset, key, None if row is None else row.offset))
    folded.fold(log([click("s", "a", 1), click("s", "b", 2), click("s", "c", 3)]))
    assert told == [(1, ("shopper", "s"), 1), (1, ("item", "b"), 1), (1, ("item", "z"), None)]


@pytest.mark.parametrize("line", [b"", b"\n \n"])
def test_an_empty_sample_is_refused(line: bytes, tmp_path: object) -> None:
    from pathlib import Path

    from liveshelf.errors import SettingsError
    from liveshelf.settings import Settings
    from streams.sample import read_sample

    path = Path(str(tmp_path)) / "empty.jsonl"
    path.write_bytes(line)
    with pytest.raises(SettingsError, match="is empty"):
        read_sample(path, Settings())
