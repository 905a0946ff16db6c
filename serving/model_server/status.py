"""An error with the gRPC code that TensorFlow Serving would answer it with."""

from typing import NoReturn

import grpc

# TensorFlow's error codes are gRPC's, number by number (tensorflow/core/protobuf/error_codes.proto).
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """What a request or a load is refused with."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code.name}: {message}")

    @property
    def number(self) -> int:
        return int(self.code.value[0])


def from_tensorflow(error: Exception) -> ServingError:
    """A TensorFlow error keeps its code; anything else (a file that does not parse is an OSError) is UNKNOWN."""
    code = _CODES.get(getattr(error, "error_code", None) or 2, grpc.StatusCode.UNKNOWN)
    return ServingError(code, str(getattr(error, "message", None) or error))


def invalid_argument(message: str) -> NoReturn:
    raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
