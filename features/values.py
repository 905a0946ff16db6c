"""Kinds of feature values: how Python values stand in a packed row (see `features.packed`) and in Feast's serialized `Value` messages.

A message with one short field is a tag, a length and the payload: assembled here by hand where that is several times as fast as
building the protobuf object (a list of 30 doubles: 0.4 µs against 2.1), and by protobuf where it is not. The bytes equal protobuf's own.

To Feast a default (0, 0.0, "", False, b"", []) is null: nothing was counted.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from operator import sub
from typing import Any, NamedTuple

import mmh3
import msgspec
from feast.protos.feast.types.Value_pb2 import DoubleList, FloatList, Int64List, StringList, Value, ValueType

# Tags of Feast's `Value`: field number << 3 | wire type (0 varint, 1 eight bytes, 2 length-delimited).
_BYTES, _STRING, _INT64, _DOUBLE, _BOOL = 1 << 3 | 2, 2 << 3 | 2, 4 << 3, 5 << 3 | 1, 7 << 3
_STRING_LIST, _INT64_LIST, _DOUBLE_LIST, _FLOAT_LIST = 12 << 3 | 2, 14 << 3 | 2, 15 << 3 | 2, 16 << 3 | 2
_LIST = b"\x0a"
"""Tag of `val`, the one field of each list message."""
_TRUE = bytes([_BOOL, 1])
_MINUS_ZERO_OR_NOT = struct.Struct("<d")
_TAGGED_DOUBLE = struct.Struct("<Bd")
_SMALL_INT64 = [b"", *(bytes([_INT64, n]) for n in range(1, 128))]
LENGTHS_CACHED_MAX = 4096
"""Lengths of values whose headers are kept: rows are bounded, so few differ."""
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


class _Declared(NamedTuple):
    name: str
    keys: tuple[tuple[str, type], ...]
    fields: tuple[tuple[str, str], ...]
    compressed: bool = False


class View(_Declared):
    """A feature view as the store sees it: entity keys (name, `str` or `int`) and fields (name, kind), in a fixed order.

    A kind is one of `int64`, `double`, `string`, `bool`, `bytes`, `int64_list`, `double_list`, `float_list` (single precision), `string_list`.
    """

    @cached_property
    def encoders(self) -> list[Callable[[Any], bytes]]:
        """By field: to a serialized `Value`, b"" for a default."""
        return [_KINDS[kind].encode for _, kind in self.fields]

    @cached_property
    def place(self) -> dict[str, int]:
        """Field → where it stands in `fields`, and its value in a row's values."""
        return {name: at for at, (name, _) in enumerate(self.fields)}

    @cached_property
    def packers(self) -> list[tuple[int, Callable[[Any], Any]]]:
        """(place, conversion) of each field that does not stand in msgpack as it is, on the way there."""
        return [(at, pack) for at, (_, kind) in enumerate(self.fields) if (pack := _KINDS[kind].pack)]

    @cached_property
    def unpackers(self) -> list[tuple[int, Callable[[Any], Any]]]:
        """The same on the way back."""
        return [(at, unpack) for at, (_, kind) in enumerate(self.fields) if (unpack := _KINDS[kind].unpack)]

    @cached_property
    def decoder(self) -> msgspec.msgpack.Decoder[Any]:
        return msgspec.msgpack.Decoder(tuple.__class_getitem__(tuple(_KINDS[kind].packed for _, kind in self.fields)))

    @cached_property
    def field(self) -> bytes:
        """The hash field of a key that holds this view's row."""
        return struct.pack("<I", mmh3.hash(self.name, signed=False))

    @cached_property
    def key_prefix(self) -> bytes:
        """What Feast's serialization (version 3) of every entity key of this view begins with."""
        names = sorted(name for name, _ in self.keys)
        parts = [struct.pack("<I", len(names))]
        parts += [struct.pack("<II", ValueType.STRING, len(name.encode())) + name.encode() for name in names]
        return b"".join(parts)

    @cached_property
    def key_order(self) -> tuple[int, ...]:
        """Positions in `keys` by name, the order in which Feast serializes them."""
        return tuple(sorted(range(len(self.keys)), key=lambda i: self.keys[i][0]))


def entity_key(view: View, *values: str | int) -> bytes:
    """The entity key of `values`, in the order of `view.keys`, as Feast serializes it (version 3, without the project)."""
    parts = [view.key_prefix]
    for i in view.key_order:
        value = values[i]
        if isinstance(value, int):
            parts.append(struct.pack("<IIq", ValueType.INT64, 8, value))
        else:
            encoded = value.encode()
            parts.append(struct.pack("<II", ValueType.STRING, len(encoded)) + encoded)
    return b"".join(parts)


def python_values(view: View, messages: Sequence[Value]) -> list[Any] | None:
    """The values of one row in the order of `view.fields`, a null as its kind's default; None when all are null. Lists are fresh."""
    if not any(message.WhichOneof("val") for message in messages):
        return None
    values = [getattr(message, _KINDS[kind].oneof) for message, (_, kind) in zip(messages, view.fields, strict=True)]
    return [value.val[:] if isinstance(value, _LIST_MESSAGES) else value for value in values]


def delimited(tag: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _header(tag, len(data)) + data


def timestamp(time_ms: int) -> bytes:
    """A serialized protobuf `Timestamp`, Feast's event time of a row."""
    seconds, ms = divmod(time_ms, 1000)
    data = b"\x08" + _varint(seconds) if seconds else b""
    return data + b"\x10" + _varint(ms * 1_000_000) if ms else data


@lru_cache(LENGTHS_CACHED_MAX)
def _varint(n: int) -> bytes:
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


@lru_cache(LENGTHS_CACHED_MAX)
def _header(tag: int, length: int) -> bytes:
    return _varint(tag) + _varint(length)


@lru_cache(LENGTHS_CACHED_MAX)
def _numbers(letter: str, n: int) -> struct.Struct:
    return struct.Struct(f"<{n}{letter}")


def _encode_int64(value: int) -> bytes:
    return _SMALL_INT64[value] if 0 <= value < 128 else Value(int64_val=value).SerializeToString()


def _encode_double(value: float) -> bytes:
    if value == 0.0 and not any(_MINUS_ZERO_OR_NOT.pack(value)):
        return b""
    return _TAGGED_DOUBLE.pack(_DOUBLE, value)


def _encode_bool(value: bool) -> bytes:
    return _TRUE if value else b""


def encode_string(value: str) -> bytes:
    """A serialized string `Value`; b"" for an empty string."""
    data = value.encode()
    return _header(_STRING, len(data)) + data if data else b""


def _encode_bytes(value: bytes) -> bytes:
    return _header(_BYTES, len(value)) + value if value else b""


def _pack_doubles(values: Sequence[float]) -> bytes:
    return _numbers("d", len(values)).pack(*values)


def _unpack_doubles(data: bytes) -> list[float]:
    return list(_numbers("d", len(data) // 8).unpack(data))


def _pack_floats(values: Sequence[float]) -> bytes:
    return _numbers("f", len(values)).pack(*values)


def _unpack_floats(data: bytes) -> list[float]:
    return list(_numbers("f", len(data) // 4).unpack(data))


def _encode_doubles(values: Sequence[float]) -> bytes:
    return _encode_numbers(_DOUBLE_LIST, _pack_doubles(values)) if values else b""


def _encode_floats(values: Sequence[float]) -> bytes:
    return _encode_numbers(_FLOAT_LIST, _pack_floats(values)) if values else b""


def _encode_numbers(tag: int, data: bytes) -> bytes:
    inner = _LIST + _varint(len(data))
    return _header(tag, len(inner) + len(data)) + inner + data


def _encode_int64s(values: Iterable[int]) -> bytes:
    inner = Int64List(val=values).SerializeToString()
    return _header(_INT64_LIST, len(inner)) + inner if inner else b""


def _encode_strings(values: Iterable[str]) -> bytes:
    inner = StringList(val=values).SerializeToString()
    return _header(_STRING_LIST, len(inner)) + inner if inner else b""


def _pack_ints(values: Sequence[int]) -> list[int]:
    return _wrapped([*values[:1], *map(sub, values[1:], values)])


def _unpack_ints(steps: Sequence[int]) -> list[int]:
    return _wrapped(list(accumulate(steps)))


def _wrapped(values: list[int]) -> list[int]:
    """Modulo 2^64 into int64: a difference between extremes does not fit, and what is left of it tells as much."""
    if not values or (min(values) >= _INT64_MIN and max(values) <= _INT64_MAX):
        return values
    return [(value - _INT64_MIN & (1 << 64) - 1) + _INT64_MIN for value in values]


class _Kind(NamedTuple):
    encode: Callable[[Any], bytes]
    oneof: str
    packed: Any
    """Type in msgpack."""
    pack: Callable[[Any], Any] | None = None
    unpack: Callable[[Any], Any] | None = None


_KINDS = {
    "int64": _Kind(_encode_int64, "int64_val", int),
    "double": _Kind(_encode_double, "double_val", float),
    "string": _Kind(encode_string, "string_val", str),
    "bool": _Kind(_encode_bool, "bool_val", bool),
    "bytes": _Kind(_encode_bytes, "bytes_val", bytes),
    "int64_list": _Kind(_encode_int64s, "int64_list_val", list[int], _pack_ints, _unpack_ints),
    "double_list": _Kind(_encode_doubles, "double_list_val", bytes, _pack_doubles, _unpack_doubles),
    "float_list": _Kind(_encode_floats, "float_list_val", bytes, _pack_floats, _unpack_floats),
    "string_list": _Kind(_encode_strings, "string_list_val", list[str]),
}
_LIST_MESSAGES = (DoubleList, FloatList, Int64List, StringList)
