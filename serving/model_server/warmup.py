"""Reads the warm-up requests that an exporter leaves beside a SavedModel.

The file is a TFRecord file of PredictionLog messages; limits and words are those of
tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import grpc
from aiokafka.record.util import calc_crc32c  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError

from serving import tfserving_pb2 as pb
from serving.model_server.status import ServingError, invalid_argument

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
RECORDS_MAX = 1000  # WarmupConsts::kMaxNumRecords
FILE_BYTES_MAX = 256 * 2**20  # ours: as much as four of the largest requests; it is read at once
_HEAD, _TAIL = struct.Struct("<QI"), struct.Struct("<I")  # length and its checksum; checksum of the data


def warmup_requests(version_path: Path) -> Iterator[Any]:
    """The PredictRequests (as RawPredictRequest) to run before the version in `version_path` is available; none without the file. The
    other kinds of PredictionLog belong to calls that this server does not answer.

    Raises:
        ServingError: DATA_LOSS when it is not a TFRecord file; INVALID_ARGUMENT when a record is no PredictionLog, or there is too much.
    """
    file = version_path / WARMUP_FILE
    if not file.is_file():
        return
    if (size := file.stat().st_size) > FILE_BYTES_MAX:
        invalid_argument(f"Warmup file {file} has {size} bytes; the maximum is {FILE_BYTES_MAX}")
    for count, record in enumerate(_records(file.read_bytes()), start=1):
        try:
            log = pb.PredictionLog.FromString(record)
        except DecodeError:
            invalid_argument(f"Failed to parse warmup record: {count} from {file}")
        if count > RECORDS_MAX:
            invalid_argument(f"Number of warmup records exceeds the maximum ({RECORDS_MAX}) at {file}")
        if log.HasField("predict_log"):
            yield log.predict_log.request


def _records(data: bytes) -> Iterator[bytes]:
    """Words of tensorflow/core/lib/io/record_reader.cc."""
    at = 0
    while at < len(data):
        if len(data) - at < _HEAD.size:
            _lost(f"truncated record at {at}")
        length, check = _HEAD.unpack_from(data, at)
        start, end = at + _HEAD.size, at + _HEAD.size + length
        if check != _masked_crc(data[at : at + 8]):
            _lost(f"corrupted record at {at}")
        if end + _TAIL.size > len(data):
            _lost(f"truncated record at {at}")
        if _TAIL.unpack_from(data, end)[0] != _masked_crc(data[start:end]):
            _lost(f"corrupted record at {at}")
        yield data[start:end]
        at = end + _TAIL.size


def _lost(message: str) -> NoReturn:
    raise ServingError(grpc.StatusCode.DATA_LOSS, f"{message}. Please verify your warmup data is in TFRecord format.")


def _masked_crc(data: bytes) -> int:
    """tensorflow/core/lib/hash/crc32c.h, Mask"""
    crc = int(calc_crc32c(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
