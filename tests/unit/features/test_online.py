"""The wire form of feature values: hand-assembled bytes are protobuf's own, and every value comes back as it was."""

import struct
from typing import Any

import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import BoolList, DoubleList, Int64List, StringList, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from features.online import WrongTypeError, store_error
from features.values import View, decode_values, encode_values, entity_key, hash_field, timestamp
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
    "string_list": (st.lists(TEXTS, max_size=40), lambda v: Value(string_list_val=StringList(val=v))),
}


def same(a: Any, b: Any) -> bool:
    """Bit for bit: NaN is itself, and 0.0 is not -0.0."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return struct.pack("<d", a) == struct.pack("<d", b) if isinstance(a, float) else bool(a == b)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_an_encoded_value_is_protobufs_own_serialization_and_comes_back(kind: str, data: st.DataObject) -> None:
    values, message = KINDS[kind]
    value = data.draw(values)
    view = View("v", (("k", str),), (("f", kind),))
    [encoded] = encode_values(view, [value])
    own: bytes = message(value).SerializeToString()
    if encoded:
        assert encoded == own
    else:
        assert not value
        assert same(type(value)(), value)
    for stored in {encoded, own}:  # a default that another program wrote in full reads back too
        [back] = decode_values(view, [stored])
        assert type(back) is type(value)
        assert same(back, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [127, 128, 2000, 40_000])
def test_long_values_come_back_too(kind: str, n: int) -> None:
    value = {"string": "é" * n, "bytes": b"x" * n, "int64_list": [n] * n, "double_list": [0.5] * n, "string_list": ["ab"] * n}.get(
        kind
    )
    if value is not None:
        view = View("v", (("k", str),), (("f", kind),))
        assert encode_values(view, [value]) == [KINDS[kind][1](value).SerializeToString()]
        assert decode_values(view, encode_values(view, [value])) == [value]


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_another_kind_or_none_at_all_is_corrupt(kind: str) -> None:
    view = View("v", (("k", str),), (("f", kind),))
    for stored in (
        Value(bool_list_val=BoolList(val=[True])).SerializeToString(),
        b"\xff\xff\xff",
        b"\x7a\x05\x0a",
        b"\x62\x03\x0a\x01\xff",
    ):
        with pytest.raises(CorruptError, match=r"field f of a row of v"):
            decode_values(view, [stored])


def test_absent_values_read_back_as_defaults() -> None:
    view = View("v", (("k", str),), tuple((kind, kind) for kind in KINDS))
    assert decode_values(view, [None] * len(KINDS)) == [0, 0.0, "", False, b"", [], [], []]


@given(text=st.text(st.characters(exclude_categories=["Cs"])), number=INT64S)
def test_entity_keys_and_fields_are_feasts(text: str, number: int) -> None:
    view = View("v", (("zone", str), ("count", int)), ())
    names, values = ["zone", "count"], [Value(string_val=text), Value(int64_val=number)]
    assert entity_key(view, text, number) == serialize_entity_key(EntityKey(join_keys=names, entity_values=values), 3)
    alone = View("v", (("zone", str),), ())
    assert entity_key(alone, text) == serialize_entity_key(EntityKey(join_keys=["zone"], entity_values=values[:1]), 3)
    assert hash_field("v", text) == _mmh3(f"v:{text}")


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
