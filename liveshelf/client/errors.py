"""gRPC statuses of the scorer → errors of Liveshelf's tree.

UnavailableError
├── DeadlineError         no answer in time
└── OverloadedError       refused before any work; `retry_after_s` says when to come again
LiveshelfError
└── UnauthenticatedError  the scorer wants a token, or another one
"""

import re
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from liveshelf.errors import InvalidEventError, LiveshelfError, NotFoundError, UnavailableError


class DeadlineError(UnavailableError):
    """No answer within the call's deadline. Show the page without a shelf."""


class OverloadedError(UnavailableError):
    """Too much is under way; nothing was done. `retry_after_s`: when to come again, seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class UnauthenticatedError(LiveshelfError):
    """The scorer wants a token, or another one."""


# How the scorer words a refusal: the description of a field violation.
_REFUSAL = re.compile(r"got (?P<value>.+?), expected (?P<expected>.+)", re.DOTALL)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def to_error(error: Any, method: str, address: str) -> LiveshelfError:
    """The error that a failed call (`grpc.RpcError`) of `method` at `address` stands for."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    return from_status(error.code(), error.details() or "", status, method, address)


def result(answer: Any) -> Any:
    """What one request of a batch was answered (a `…Response.Result`): its response, or its error raised."""
    if answer.HasField("error"):
        raise from_status(_CODES[answer.error.code], answer.error.message, answer.error, "a request of the batch", "the scorer")
    return answer.response


def from_status(code: grpc.StatusCode, message: str, status: status_pb2.Status, method: str, address: str) -> LiveshelfError:
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{method} at {address} did not answer within its deadline. Is `liveshelf status` healthy?")
    if code == grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(f"{method} at {address}: no answer ({message}). Is the scoring service up? Try `liveshelf status`.")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        retry = _detail(status, error_details_pb2.RetryInfo)
        after_s = retry.retry_delay.ToTimedelta().total_seconds() if retry else 0.0
        said = f"{method} at {address}: the scoring service is overloaded ({message}). Try again later."
        return OverloadedError(said, after_s)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return _invalid(status, message, method)
    if code == grpc.StatusCode.NOT_FOUND:
        return NotFoundError(f"{method}: {message}")
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return UnauthenticatedError(f"{method} at {address}: {message}")
    return LiveshelfError(f"{method} at {address} failed with {code.name}: {message}. See `liveshelf logs scoring`.")


def _invalid(status: status_pb2.Status, message: str, method: str) -> InvalidEventError:
    """The first violation: the message of the error, taken apart."""
    details = _detail(status, error_details_pb2.BadRequest)
    for violation in details.field_violations if details else ():
        if said := _REFUSAL.fullmatch(violation.description):
            return InvalidEventError(violation.field, said["value"], said["expected"])
    return InvalidEventError(method, message, "a request as liveshelf/v1/recommendation.proto describes it")


def _detail(status: status_pb2.Status, kind: Any) -> Any:
    """The detail of this kind; None when there is none."""
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None
