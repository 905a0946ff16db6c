"""Our subset of TensorFlow Serving's messages, and our tensor conversion, against TensorFlow's own."""

import os

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor

from serving import tfserving_pb2 as ours
from serving.model_client import AVAILABLE
from serving.tensors import decode_tensor, encode_tensor, write_answer

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow")

from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2  # noqa: E402
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
    status_pb2,
)
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2  # noqa: E402

POLICY = file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
PAIRS = [
    (ours.TensorShape, tensor_shape_pb2.TensorShapeProto),
    (ours.TensorShape.Dim, tensor_shape_pb2.TensorShapeProto.Dim),
    (ours.Tensor, tensor_pb2.TensorProto),
    (ours.TensorHead, tensor_pb2.TensorProto),
    (ours.ModelSpec, model_pb2.ModelSpec),
    (ours.PredictRequest, predict_pb2.PredictRequest),
    (ours.RawPredictRequest, predict_pb2.PredictRequest),
    (ours.PredictResponse, predict_pb2.PredictResponse),
    (ours.PredictLog, prediction_log_pb2.PredictLog),
    (ours.PredictionLog, prediction_log_pb2.PredictionLog),
    (ours.TensorInfo, meta_graph_pb2.TensorInfo),
    (ours.SignatureDef, meta_graph_pb2.SignatureDef),
    (ours.SignatureDefMap, get_model_metadata_pb2.SignatureDefMap),
    (ours.MetaGraph, meta_graph_pb2.MetaGraphDef),
    (ours.GetModelMetadataRequest, get_model_metadata_pb2.GetModelMetadataRequest),
    (ours.GetModelMetadataResponse, get_model_metadata_pb2.GetModelMetadataResponse),
    (ours.Status, status_pb2.StatusProto),
    (ours.GetModelStatusRequest, get_model_status_pb2.GetModelStatusRequest),
    (ours.ModelVersionStatus, get_model_status_pb2.ModelVersionStatus),
    (ours.GetModelStatusResponse, get_model_status_pb2.GetModelStatusResponse),
    (ours.ReloadConfigRequest, model_management_pb2.ReloadConfigRequest),
    (ours.ReloadConfigResponse, model_management_pb2.ReloadConfigResponse),
    (ours.VersionPolicy, POLICY),
    (ours.VersionPolicy.Latest, POLICY.Latest),
    (ours.VersionPolicy.Specific, POLICY.Specific),
    (ours.ModelConfig, model_server_config_pb2.ModelConfig),
    (ours.ModelConfigList, model_server_config_pb2.ModelConfigList),
    (ours.ModelServerConfig, model_server_config_pb2.ModelServerConfig),
    (ours.SessionConfig, config_pb2.ConfigProto),
]
Field = FieldDescriptor


def wire(field: FieldDescriptor) -> tuple[object, ...]:
    """Number and wire type: all that is written. An enum is written as the int32 that we declare; a message and packed numbers as bytes."""
    if field.is_packed and field.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
        return field.number, Field.TYPE_BYTES, False
    kind = {Field.TYPE_ENUM: Field.TYPE_INT32, Field.TYPE_MESSAGE: Field.TYPE_BYTES}.get(field.type, field.type)
    return field.number, kind, field.is_repeated


@pytest.mark.parametrize(("mine", "theirs"), PAIRS, ids=lambda message: message.DESCRIPTOR.name)
def test_fields_are_written_alike(mine: type, theirs: type) -> None:
    for name, field in mine.DESCRIPTOR.fields_by_name.items():  # type: ignore[attr-defined]
        assert wire(field) == wire(theirs.DESCRIPTOR.fields_by_name[name]), name  # type: ignore[attr-defined]


def test_every_message_is_compared() -> None:
    """Except those of files that no package of TensorFlow Serving's has: only their text form is read."""
    compared = {mine.DESCRIPTOR.name for mine, _ in PAIRS}
    assert set(ours.DESCRIPTOR.message_types_by_name) - compared == {"BatchingParameters", "SSLConfig"}


def test_available_is_their_available() -> None:
    assert get_model_status_pb2.ModelVersionStatus.AVAILABLE == AVAILABLE


ARRAYS = [
    np.array([[1.5, -2.0], [0.0, 3.25]], np.float32),
    np.array([1e300, -1.0]),
    np.arange(6, dtype=np.int32).reshape(1, 2, 3),
    np.array([-(2**62), 5], np.int64),
    np.array([True, False]),
    np.array([1, 255], np.uint8),
    np.array([[b"a", b"\xff\x00", b""]], object),
    np.array(["é", "b"]),
    np.zeros((0, 4), np.float32),
    np.float32(3.0).reshape(()),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_tensorflow_reads_what_we_write(array: np.ndarray) -> None:
    message = ours.Tensor()
    encode_tensor(array, message)
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(message.SerializeToString()))
    expected = np.array([v.encode() for v in array], object) if array.dtype.kind == "U" else array
    assert read.shape == expected.shape
    assert read.tolist() == expected.tolist()


@pytest.mark.parametrize("array", [a for a in ARRAYS if a.dtype.kind != "U"], ids=lambda a: f"{a.dtype}{list(a.shape)}")
@pytest.mark.parametrize("typed_fields", [False, True])
def test_we_read_what_tensorflow_writes(array: np.ndarray, typed_fields: bool) -> None:
    """`typed_fields`: as float_val and its siblings, which is TensorFlow Serving's default for answers."""
    their = tf.make_tensor_proto(array)
    if typed_fields and array.dtype.kind != "O":
        field = {"f": "float_val", "d": "double_val", "i": "int_val", "l": "int64_val", "?": "bool_val", "B": "int_val"}[
            array.dtype.char
        ]
        their = tensor_pb2.TensorProto(dtype=their.dtype, tensor_shape=their.tensor_shape, **{field: array.ravel().tolist()})
    read = decode_tensor(ours.Tensor.FromString(their.SerializeToString()))
    assert read.shape == array.shape
    assert read.dtype == array.dtype
    assert read.tolist() == array.tolist()


@pytest.mark.parametrize("array", [a for a in ARRAYS if a.dtype.kind != "U"], ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_answers_are_written_as_tensorflow_serving_writes_them(array: np.ndarray) -> None:
    """Byte for byte what `Tensor::AsProtoField` makes: numbers in the typed fields, for clients that read nothing else."""
    content = array.ravel().tolist() if array.dtype.kind == "O" else array.tobytes()
    mine = ours.Tensor()
    write_answer(_number(array), array.shape, content, mine)
    theirs = tensor_pb2.TensorProto.FromString(mine.SerializeToString())
    assert theirs.tensor_content == b""
    assert tf.make_ndarray(theirs).tolist() == array.tolist()
    assert decode_tensor(mine).tolist() == array.tolist()


def _number(array: np.ndarray) -> int:
    return int(tf.as_dtype(array.dtype if array.dtype.kind != "O" else tf.string).as_datatype_enum)


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
def test_too_few_values_are_filled_as_tensorflow_fills_them(values: list[float]) -> None:
    message = ours.Tensor(dtype=1, float_val=np.array(values, np.float32).tobytes())
    message.tensor_shape.dim.add(size=3)
    theirs = tf.io.parse_tensor(message.SerializeToString(), tf.float32).numpy()
    assert decode_tensor(message).tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (ours.Tensor(dtype=1, tensor_content=b"123"), "3 bytes of content do not fill"),
        (ours.Tensor(dtype=20), "unsupported"),
        (ours.Tensor(dtype=1, tensor_shape={"dim": [{"size": -1}]}), "not fully known"),
        (ours.Tensor(dtype=1, tensor_shape={"dim": [{"size": 2**20}, {"size": 2**20}]}, float_val=bytes(4)), "bytes"),
    ],
)
def test_broken_tensor_is_refused(message: ours.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode_tensor(message)


def test_array_without_a_tensor_form_is_refused() -> None:
    with pytest.raises(ValueError, match="complex128"):
        encode_tensor(np.zeros(2, np.complex128), ours.Tensor())
