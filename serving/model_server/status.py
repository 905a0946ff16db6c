"""An error with the gRPC code that TensorFlow Serving would answer it with."""

from typing import NoReturn

import grpc

# TensorFlow's error codes are gRPC's, number by number (tensorflow/core/protobuf/error_codes.proto).
CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """What a request or a load is refused with."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code.name}: {message}")

    @property
    def number(self) -> int:
        return int(self.code.value[0])


def invalid_argument(message: str) -> NoReturn:
    raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)
