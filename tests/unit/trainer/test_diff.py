"""Two releases side by side: what is equal is left out, what is not stands there twice, and what is not known is said."""

import msgspec

from streams.records import Lineage, Release
from trainer.diff import NAMED_MAX, Exported, compared_items, difference

LINEAGE = Lineage(kind="step", step=4, settings={"seed": 7, "partitions": 4}, code={"keras": "3"}, weights="ab", items=3)
ONE = Release(
    model="shelf",
    version=7,
    parent=6,
    outcome="promoted",
    reason="not worse",
    metrics={"loss": 1.0, "auc": 0.7},
    offsets={"t/0": 5},
    examples=10,
    feature_version="f",
    time_ms=1,
    lineage=LINEAGE,
)
OTHER = msgspec.structs.replace(
    ONE,
    version=8,
    parent=7,
    metrics={"loss": 0.9, "auc": 0.7, "mrr": 0.5},
    offsets={"t/0": 9, "t/1": 2},
    lineage=msgspec.structs.replace(LINEAGE, step=5, settings={"seed": 8, "partitions": 4}, weights="cd"),
)
EXPORTED = Exported([b"a", b"b"], {"items": [11, 32], "out": [3]}, {"MatMul", "Relu"})


def test_what_differs_stands_there_twice_and_nothing_else() -> None:
    other = Exported([b"b", b"c", b"d"], {"items": [12, 32], "out": [3]}, {"MatMul", "Tanh"})
    found = difference(ONE, OTHER, (EXPORTED, other), [], [])
    assert (found.first, found.second, found.missing) == (7, 8, [])
    assert found.lineage == {"parent": (6, 7), "step": (4, 5), "weights": ("ab", "cd")}
    assert found.settings == {"seed": (7, 8)}
    assert found.code == {}
    assert found.offsets == {"t/0": (5, 9), "t/1": (None, 2)}
    assert found.metrics == {"loss": (1.0, 0.9), "mrr": (None, 0.5)}
    assert found.shapes == {"items": ([11, 32], [12, 32])}
    assert found.operations == (["Relu"], ["Tanh"])
    assert found.items is not None
    assert (found.items.counts, found.items.removed_first, found.items.added_first) == ((2, 3), ["a"], ["c", "d"])


def test_a_version_beside_itself_differs_in_nothing() -> None:
    found = difference(ONE, ONE, (EXPORTED, EXPORTED), [], [])
    parts = (found.lineage, found.settings, found.code, found.offsets, found.metrics, found.shapes)
    assert parts == ({},) * 6
    assert found.operations == ([], [])


def test_what_is_not_known_is_said() -> None:
    found = difference(msgspec.structs.replace(ONE, lineage=None), OTHER, None, [], ["quality: gone"])
    assert found.missing == ["quality: gone", "lineage: version 7 was made before it was told"]
    assert found.items is None
    assert found.settings == {"seed": (None, 8), "partitions": (None, 4)}


def test_many_items_are_counted_and_some_named() -> None:
    found = compared_items([], [f"i{n:03}".encode() for n in range(100)])
    assert (found.added, found.removed, len(found.added_first)) == (100, 0, NAMED_MAX)
    assert found.added_first[0] == "i000"
