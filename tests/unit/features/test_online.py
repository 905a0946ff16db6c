"""Feature values as they are stored and as Feast serves them: packed rows come back bit for bit, hand-assembled messages are protobuf's own."""

import struct
from typing import Any

import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import DoubleList, FloatList, Int64List, StringList, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from features.online import WrongTypeError, store_error
from features.packed import pack, unpack
from features.values import View, entity_key, python_values, timestamp
from liveshelf.errors import CorruptError, UnavailableError

INT64S = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
KINDS: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "int64": (INT64S, lambda v: Value(int64_val=v)),
    "double": (st.floats(), lambda v: Value(double_val=v)),
    "string": (TEXTS, lambda v: Value(string_val=v)),
    "bool": (st.booleans(), lambda v: Value(bool_val=v)),
    "bytes": (st.binary(max_size=300), lambda v: Value(bytes_val=v)),
    "int64_list": (st.lists(INT64S, max_size=40), lambda v: Value(int64_list_val=Int64List(val=v))),
    "double_list": (st.lists(st.floats(), max_size=200), lambda v: Value(double_list_val=DoubleList(val=v))),
    "float_list": (st.lists(st.floats(width=32), max_size=200), lambda v: Value(float_list_val=FloatList(val=v))),
    "string_list": (st.lists(TEXTS, max_size=40), lambda v: Value(string_list_val=StringList(val=v))),
}


def same(a: Any, b: Any) -> bool:
    """Bit for bit: NaN is itself, and 0.0 is not -0.0."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return struct.pack("<d", a) == struct.pack("<d", b) if isinstance(a, float) else bool(a == b)


@pytest.mark.parametrize("compressed", [False, True])
@given(data=st.data(), partition=st.integers(0, 2**32 - 1), offset=st.integers(-1, 2**53), time_ms=INT64S)
def test_a_packed_row_comes_back_bit_for_bit(
    compressed: bool, data: st.DataObject, partition: int, offset: int, time_ms: int
) -> None:
    view = View("v", (("k", str),), tuple((kind, kind) for kind in KINDS), compressed)
    values = [data.draw(strategy) for strategy, _ in KINDS.values()]
    back = unpack(view, pack(view, partition, offset, time_ms, values))
    assert back[:3] == (partition, offset, time_ms)
    assert all(type(one) is type(other) for one, other in zip(back.values, values, strict=True))
    assert same(back.values, values)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_message_is_protobufs_own_serialization_and_reads_back(kind: str, data: st.DataObject) -> None:
    strategy, message = KINDS[kind]
    value = data.draw(strategy)
    view = View("v", (("k", str),), (("f", kind),))
    encoded = view.encoders[0](value)
    if encoded:
        assert encoded == message(value).SerializeToString()
        values = python_values(view, [Value.FromString(encoded)])
        assert values is not None
        assert same(values, [value])
    else:
        assert not value
        assert same(type(value)(), value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [127, 128, 2000, 40_000])
def test_long_values_too(kind: str, n: int) -> None:
    value = {
        "string": "é" * n,
        "bytes": b"x" * n,
        "int64_list": [n] * n,
        "double_list": [0.5] * n,
        "float_list": [0.5] * n,
        "string_list": ["ab"] * n,
    }.get(kind)
    if value is not None:
        view = View("v", (("k", str),), (("f", kind),))
        assert view.encoders[0](value) == KINDS[kind][1](value).SerializeToString()
        assert unpack(view, pack(view, 0, 0, 0, [value])).values == [value]


def test_bytes_that_are_no_row_of_the_view_are_corrupt() -> None:
    view = View("v", (("k", str),), (("price", "double"), ("weights", "float_list")), compressed=True)
    good = pack(view, 1, 2, 3, [0.5, [1.0]])
    assert unpack(view, good) == (1, 2, 3, [0.5, [1.0]])
    another = View("v", (), (("price", "string"), ("weights", "float_list")))
    wider = View("v", (), (*view.fields, ("more", "int64")))
    for packed in (
        b"",
        good[:20],
        good[:-1],
        b"\x01" + good[1:],
        pack(another, 1, 2, 3, ["cheap", [1.0]]),
        pack(wider, 1, 2, 3, [0.5, [1.0], 7]),
        pack(View("v", (), (("price", "double"), ("weights", "bytes"))), 1, 2, 3, [0.5, b"\0\0\0"]),
    ):
        with pytest.raises(CorruptError, match="a row of v cannot be read"):
            unpack(view, packed)
    with pytest.raises(CorruptError, match=r"format 9 is unknown.*later version"):
        unpack(view, b"\x09" + good[1:])


def test_null_values_are_defaults_and_a_row_of_nulls_is_none() -> None:
    view = View("v", (("k", str),), tuple((kind, kind) for kind in KINDS))
    assert python_values(view, [Value()] * len(KINDS)) is None
    some = python_values(view, [Value(int64_val=3), *[Value()] * (len(KINDS) - 1)])
    assert some == [3, 0.0, "", False, b"", [], [], [], []]


@given(text=st.text(st.characters(exclude_categories=["Cs"])), number=INT64S)
def test_entity_keys_are_feasts(text: str, number: int) -> None:
    view = View("v", (("zone", str), ("count", int)), ())
    names, values = ["zone", "count"], [Value(string_val=text), Value(int64_val=number)]
    assert entity_key(view, text, number) == serialize_entity_key(EntityKey(join_keys=names, entity_values=values), 3)
    alone = View("v", (("zone", str),), ())
    assert entity_key(alone, text) == serialize_entity_key(EntityKey(join_keys=["zone"], entity_values=values[:1]), 3)


@given(st.integers(-(10**13), 10**13))
def test_timestamps_are_protobufs_own(time_ms: int) -> None:
    expected = Timestamp()
    expected.FromMilliseconds(time_ms)
    assert timestamp(time_ms) == expected.SerializeToString()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "ERR Error running script (call to f_1): @user_script:9: -OOM command not allowed when used memory > 'maxmemory'.",
            "is full",
        ),
        (
            "ERR Error running script (call to f_1): @user_script:9: -READONLY You can't write against a read only replica.",
            "read-only",
        ),
        ("MISCONF Errors writing to the AOF file: No space left on device", "disk full"),
        ("NOREPLICAS Not enough good replicas to write.", "replicas"),
        ("MASTERDOWN Link with MASTER is down", "failover"),
        ("NOPERM this user has no permissions", "refuses: NOPERM"),
    ],
)
def test_refusals_are_unavailable_with_advice_also_as_redis_6_words_them(said: str, advice: str) -> None:
    error = store_error(ResponseError(said), "shop:6379")
    assert type(error) is UnavailableError
    assert "shop:6379" in str(error)
    assert advice in str(error)


def test_a_wrong_type_names_the_key_and_no_answer_asks_for_the_address() -> None:
    error = store_error(ResponseError("WRONGTYPE Operation against a key"), "shop:6379", b"\x01key")
    assert isinstance(error, WrongTypeError)
    assert r"\x01key" in str(error)
    assert "LIVESHELF_STORE" in str(store_error(RedisConnectionError("refused"), "shop:6379"))
