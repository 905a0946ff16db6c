"""numpy arrays ↔ the tensor messages of `tfserving.proto`, without TensorFlow.

Numbers are sent as `tensor_content` (one copy each way: 34 kB of candidate features take 10 µs), strings as `string_val`. TensorFlow
Serving itself answers numbers as `float_val` and its siblings unless told otherwise, and so does our model server; both forms are read.
"""

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STRING = 7
_TYPES: dict[int, tuple[str, type, str]] = {  # DataType → name as TensorFlow prints it, numpy type, typed field
    1: ("float", np.float32, "float_val"),
    2: ("double", np.float64, "double_val"),
    3: ("int32", np.int32, "int_val"),
    4: ("uint8", np.uint8, "int_val"),
    5: ("int16", np.int16, "int_val"),
    6: ("int8", np.int8, "int_val"),
    STRING: ("string", np.object_, "string_val"),
    9: ("int64", np.int64, "int64_val"),
    10: ("bool", np.bool_, "bool_val"),
}
_BY_DTYPE = {np.dtype(kind): number for number, (_, kind, _) in _TYPES.items()}
BYTES_MAX = 64 * 2**20
"""Of one decoded tensor, as of one message: a small message can claim a huge shape and have one value repeated over it."""


def type_name(number: int) -> str:
    """TensorFlow's name of a DataType, as in its error messages."""
    return _TYPES[number][0] if number in _TYPES else f"DataType {number}"


def itemsize(number: int) -> int:
    """Bytes of one value of a DataType; of a type that only TensorFlow knows, the most that one takes."""
    return np.dtype(_TYPES[number][1]).itemsize if number in _TYPES else 16


def shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(dim.size for dim in tensor.tensor_shape.dim)


def decode_tensor(tensor: Any) -> Array:
    """The array in a tensor message; strings become an object array of bytes. Numeric arrays may be read-only views.

    Raises:
        ValueError: the type is not supported, or shape and content do not fit.
    """
    if tensor.dtype not in _TYPES:
        raise ValueError(f"unsupported {type_name(tensor.dtype)}")
    _, kind, field = _TYPES[tensor.dtype]
    shape = shape_of(tensor)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(f"shape {shape} is not fully known")
    n = prod(shape)
    if n * np.dtype(kind).itemsize > BYTES_MAX:
        raise ValueError(f"shape {shape} is over {BYTES_MAX} bytes")
    if tensor.tensor_content:
        if tensor.dtype == STRING:
            raise ValueError("strings in tensor_content; send string_val")
        if len(tensor.tensor_content) != n * np.dtype(kind).itemsize:
            raise ValueError(
                f"{len(tensor.tensor_content)} bytes of content do not fill shape {shape} of {type_name(tensor.dtype)}"
            )
        return np.frombuffer(tensor.tensor_content, kind).reshape(shape)
    values: Any = getattr(tensor, field)
    if isinstance(values, bytes):  # packed
        values = np.frombuffer(values, kind)
        return values.reshape(shape) if len(values) == n else _fill(values, n, kind).reshape(shape)
    out: Array = np.fromiter(values, kind, n) if len(values) == n else _fill(list(values), n, kind)
    return out.reshape(shape)


def _fill(values: Any, n: int, kind: type) -> Array:
    """As TensorFlow reads typed fields (tensorflow/core/framework/tensor.cc, FromProtoField): no value means zeros, the last of too few
    is repeated, and what is over is dropped."""
    out: Array = np.full(n, (values[-1] if len(values) else (b"" if kind is np.object_ else 0)), kind)
    out[: len(values)] = values[:n]
    return out


def encode_tensor(array: Array, tensor: Any) -> None:
    """Write `array` into the empty message `tensor`. Strings may be bytes or str, as an object, S or U array.

    Raises:
        ValueError: an array of a type that has no message form.
    """
    if array.dtype.kind in "OSU":
        tensor.dtype = STRING
        values = array.ravel().tolist()
        try:
            tensor.string_val.extend(values)
        except TypeError:  # str among them; looking at each first would take 500 ids 40 µs longer
            del tensor.string_val[:]
            tensor.string_val.extend([v.encode() if isinstance(v, str) else v for v in values])
    else:
        number = _BY_DTYPE.get(array.dtype)
        if number is None:
            raise ValueError(
                f"cannot send an array of {array.dtype}; supported: {', '.join(name for name, _, _ in _TYPES.values())}"
            )
        tensor.dtype = number
        tensor.tensor_content = array.tobytes()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)


def write_answer(number: int, shape: tuple[int, ...], content: bytes | list[bytes], tensor: Any) -> None:
    """Write a tensor into the empty message `tensor` as TensorFlow Serving writes answers: in the typed fields (`AsProtoField` in
    tensorflow_serving/servables/tensorflow/predict_util.cc), for clients that read nothing else. `content` is the numbers, little-endian.
    A type that has no field here travels as `tensor_content`."""
    tensor.dtype = number
    if isinstance(content, list):
        tensor.string_val.extend(content)
    elif number in _TYPES:
        _, kind, field = _TYPES[number]
        if field in ("float_val", "double_val"):
            setattr(tensor, field, content)
        else:
            getattr(tensor, field).extend(np.frombuffer(content, kind).tolist())
    else:
        tensor.tensor_content = content
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
