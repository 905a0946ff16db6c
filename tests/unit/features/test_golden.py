"""Rows of FOLD_FORMAT 2 as they stand in stores and topics that are out there: they read back to the same rows for ever.

A change of these bytes, or of what the golden log folds into, is another row version: raise FOLD_FORMAT, add files, keep these readable.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from features.declarations import FOLD_FORMAT
from features.events import Event
from features.feature_set import ViewSpec, load_feature_set
from features.packed import pack, unpack
from features.rows import ItemRow, ShopperRow
from features.values import entity_key
from tests.folding import HOUR_MS, MINUTE_MS, T0, Rows, bits, stored_view

GOLDEN = Path(__file__).parent / "golden"
FEATURES = load_feature_set((GOLDEN / "features_v2.yml").read_text(), "features_v2.yml")
BROWSER, PERSON = "a108dc1499009df63a9fc6726de1da82", "176ed188327b1f0d32714a84240f1a84"


class Delivered(msgspec.Struct):
    partition: int
    offset: int
    record: Event


def stored(name: str, spec: ViewSpec) -> list[tuple[dict[str, Any], bytes, bytes]]:
    """(which row, entity key, packed row)."""
    entries = json.loads((GOLDEN / name).read_bytes())
    return [(e["row"], bytes.fromhex(e["key"]), bytes.fromhex(e["packed"])) for e in entries]


def shopper_rows() -> dict[str, ShopperRow]:
    view = stored_view(FEATURES.shopper_view)
    return {
        row["shopper"]: FEATURES.shopper_row(row["shopper"], unpack(view, packed).values)
        for row, _, packed in stored("shopper_rows_v2.json", FEATURES.shopper_view)
    }


def item_rows() -> dict[tuple[str, int], ItemRow]:
    view = stored_view(FEATURES.item_view)
    return {
        (row["item"], row["partition"]): FEATURES.item_row(row["item"], row["partition"], unpack(view, packed).values)
        for row, _, packed in stored("item_rows_v2.json", FEATURES.item_view)
    }


def same(one: Any, other: Any) -> bool:
    """Equal, floats to 2e-7: another C library may round 2^x another way in the last bit, and single precision may follow."""
    if isinstance(one, float):
        return bool(one == pytest.approx(other, rel=2e-7, abs=0))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_version_of_the_golden_features_stays() -> None:
    """Stores, topics and models carry it: were it computed in another way, all that is stored would be orphaned."""
    assert (FOLD_FORMAT, FEATURES.version) == (2, "8ec8fb27")
    assert FEATURES.shopper_view.name == "shopper_features_8ec8fb27"
    assert FEATURES.item_view.name == "item_features_8ec8fb27"


def test_a_stored_shopper_row_of_version_2_means_the_same_for_ever() -> None:
    rows = shopper_rows()
    assert rows.keys() == {BROWSER, PERSON}
    browser, person = rows[BROWSER], rows[PERSON]
    assert (browser.partition, browser.offset, browser.time_ms) == (0, 121, 1_701_728_000_000)
    assert (browser.recent_items, browser.recent_events) == (["SKU_1"], [1])
    assert browser.links == [(T0 + 3 * MINUTE_MS, PERSON)]
    assert (len(browser.seen), browser.hour, browser.hour_events) == (7, 472_702, 1)
    assert (person.partition, person.offset, person.time_ms) == (1, 52, T0 + 2 * HOUR_MS)
    assert person.recent_items == ["22", "new", "SKU_2", "SKU_1"]
    assert person.recent_times_ms == [T0 + 2 * HOUR_MS, T0 + HOUR_MS + 1, T0 + 2 * MINUTE_MS, T0 + 2 * MINUTE_MS]
    assert person.numbers[:2] == [11_297_196_032.0, 1_281_827_968.0]
    assert person.marks == [T0 + 2 * HOUR_MS, T0 + 2 * MINUTE_MS, T0 + 2 * HOUR_MS, T0 + 2 * HOUR_MS, 1, 1]
    assert [list(affinity) for affinity in person.affinities] == [["Garden", "Kitchen", "Home"], ["0", "4", "7"]]
    assert person.merged == ["0@115", "0@118"]


def test_a_stored_item_row_of_version_2_means_the_same_for_ever() -> None:
    row = item_rows()["22", 0]
    assert (row.offset, row.time_ms) == (112, T0 + 2 * MINUTE_MS)
    assert row.numbers[:3] == [1_675_535_733.4863894, 1_675_827_003.1540134, 0.0]
    assert row.neighbours == {"SKU_1": 2_681_569_703.543552, "SKU_2": 838_036_750.825572}


def test_stored_rows_of_version_2_are_written_as_they_stand() -> None:
    """Byte for byte, under the keys where they are looked for."""
    view = stored_view(FEATURES.shopper_view)
    shoppers = shopper_rows()
    for row, key, packed in stored("shopper_rows_v2.json", FEATURES.shopper_view):
        assert entity_key(view, row["shopper"]) == key
        one = shoppers[row["shopper"]]
        assert pack(view, one.partition, one.offset, one.time_ms, FEATURES.shopper_values(one)) == packed
    view, items = stored_view(FEATURES.item_view), item_rows()
    for row, key, packed in stored("item_rows_v2.json", FEATURES.item_view):
        assert entity_key(view, row["item"], row["partition"]) == key
        item = items[row["item"], row["partition"]]
        assert pack(view, item.partition, item.offset, item.time_ms, FEATURES.item_values(item)) == packed


def test_item_updates_of_version_2_are_the_rows_of_the_store() -> None:
    lines = (GOLDEN / "item_updates_v2.jsonl").read_bytes().splitlines()
    rows = [msgspec.json.decode(line, type=ItemRow) for line in lines]
    assert {(row.item, row.partition): row for row in rows} == item_rows()
    assert [bits(row) for row in rows] == lines


def test_the_golden_log_folds_into_the_golden_rows() -> None:
    """Sign-in, late event, duplicate and handovers included; the handovers that agents would write are those that stand in the log."""
    lines = (GOLDEN / "log_v2.jsonl").read_bytes().splitlines()
    log = [msgspec.json.decode(line, type=Delivered) for line in lines]
    rows = Rows(FEATURES).take_all((one.record, one.partition, one.offset) for one in log)
    assert rows.outcomes == {"folded": 12, "duplicate": 1}
    for folded, golden in ((rows.shoppers, shopper_rows()), (rows.items, item_rows())):
        assert folded.keys() == golden.keys()
        for key, row in folded.items():
            assert same(msgspec.to_builtins(row), msgspec.to_builtins(golden[key])), key  # type: ignore[index]
    written = [one.record for one in log if one.record.handover is not None]
    assert same(msgspec.to_builtins(rows.handovers), msgspec.to_builtins(written))
