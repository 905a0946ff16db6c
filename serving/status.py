"""Errors of the scoring API as google.rpc.Status: the same over gRPC (details in the trailing metadata), over HTTP (as JSON) and in batches."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

DOMAIN = "liveshelf"  # of ErrorInfo: whose reasons these are
RETRY_S = 0.1  # how soon to come again: several times what a request takes, so most of what was under way is done by then
DETAILS_BYTES_MAX = 4_096  # metadata of a whole answer may be 8 KiB in gRPC's defaults; a longer list of violations is cut
VALUE_CHARS_MAX = 64  # of an offending value, in a violation

HTTP_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""As google/rpc/code.proto maps them."""


class Violation(NamedTuple):
    """One field that is wrong, as google.rpc.BadRequest.FieldViolation says it."""

    field: str
    description: str
    """`got …, expected …`."""
    reason: str


class ApiError(Exception):
    """Why a call is not answered; raised anywhere behind the edge, turned into the transport's own form at it."""

    def __init__(self, code: grpc.StatusCode, message: str, *details: Message) -> None:
        self.code, self.message, self.details = code, message, details
        super().__init__(message)

    @property
    def status(self) -> Status:
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return status

    @property
    def retry_s(self) -> float | None:
        """When to come again, seconds; None when that would not help."""
        for detail in self.details:
            if isinstance(detail, RetryInfo):
                return float(detail.retry_delay.ToTimedelta().total_seconds())
        return None

    @cached_property
    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """gRPC's form of the details, and its own word for when to retry, which client libraries obey by themselves."""
        metadata: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", self.status.SerializeToString())]
        if self.retry_s is not None:
            metadata.append(("grpc-retry-pushback-ms", str(round(self.retry_s * 1000))))
        return tuple(metadata)


def violation(field: str, got: object, expected: str, reason: str = "") -> Violation:
    return Violation(field=field, description=f"got {got}, expected {expected}", reason=reason)


def quoted(value: object) -> str:
    """A value as it may stand in a message: short, printable, and valid UTF-8."""
    text = repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "…"


def invalid(violations: Sequence[Violation]) -> ApiError:
    """INVALID_ARGUMENT. The message is the first violation in words; all of them stand in the details, as far as there is room."""
    first = violations[0]
    details = BadRequest()
    for each in violations:
        entry = BadRequest.FieldViolation(field=each.field, description=each.description, reason=each.reason)
        if details.field_violations and details.ByteSize() + entry.ByteSize() > DETAILS_BYTES_MAX:
            break
        details.field_violations.append(entry)
    return ApiError(grpc.StatusCode.INVALID_ARGUMENT, f"{first.field}: {first.description}", details)


def unreadable(what: str, error: Exception) -> ApiError:
    """INVALID_ARGUMENT for bytes that are no such message at all."""
    said = re.sub(r"[^\x20-\x7e]", "?", str(error))[:200]
    return ApiError(
        grpc.StatusCode.INVALID_ARGUMENT, f"the body is no {what}: {said}", ErrorInfo(reason="UNREADABLE", domain=DOMAIN)
    )


def unknown_item(item: str) -> ApiError:
    return ApiError(
        grpc.StatusCode.NOT_FOUND,
        f"item_id {item!r} is neither in the catalog nor in any event so far. Send it to POST /v1/catalog, or check its spelling.",
        ErrorInfo(reason="UNKNOWN_ITEM", domain=DOMAIN, metadata={"item_id": item}),
    )


def overloaded(message: str) -> ApiError:
    """RESOURCE_EXHAUSTED: nothing was done, come again in a moment."""
    return ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, _retry(RETRY_S), ErrorInfo(reason="OVERLOADED", domain=DOMAIN))


def unavailable(message: str, reason: str, retry_s: float) -> ApiError:
    return ApiError(grpc.StatusCode.UNAVAILABLE, message, _retry(retry_s), ErrorInfo(reason=reason, domain=DOMAIN))


def unauthenticated(reason: str, message: str) -> ApiError:
    return ApiError(grpc.StatusCode.UNAUTHENTICATED, message, ErrorInfo(reason=reason, domain=DOMAIN))


def late() -> ApiError:
    return ApiError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline has passed", ErrorInfo(reason="DEADLINE", domain=DOMAIN)
    )


def internal() -> ApiError:
    """What went wrong stands in the log, not in the answer."""
    return ApiError(
        grpc.StatusCode.INTERNAL, "the scorer failed on this request; its log says how", ErrorInfo(reason="INTERNAL", domain=DOMAIN)
    )


def _retry(after_s: float) -> RetryInfo:
    return RetryInfo(retry_delay=Duration(nanos=round(after_s % 1 * 1e9), seconds=int(after_s)))
