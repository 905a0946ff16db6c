"""Thin client of `liveshelf.v1`: plain Python arguments in, the protobuf response out, errors from `liveshelf.errors`.

    with Client("127.0.0.1:18090") as client:
        shelf = client.recommend(client_id="browser-17", count=6, placement="home")

Keep one client for the life of the process: it holds one HTTP/2 channel, which is safe to share between threads (`Client`) or tasks
of one loop (`AsyncClient`) and reconnects by itself.
"""

import json
import re
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from liveshelf.errors import InvalidEventError, LiveshelfError, NotFoundError, UnavailableError
from liveshelf.v1 import recommendation_pb2 as pb2
from liveshelf.v1.recommendation_pb2_grpc import RecommendationServiceStub

DEADLINE_MS = 200  # the scorer's own default (`recommend_deadline_ms`): a page should not wait longer for a shelf

# SimilarItems is not logged, so sending it again is free. Recommend and Rank each log an impression as they answer, and a caller
# cannot tell an answer lost on the way from one never made: a retry could log a shelf that nobody saw, which would teach the model
# that its items were shown and ignored. They get gRPC's transparent retry only, which repeats what never reached a server.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "liveshelf.v1.RecommendationService", "method": "SimilarItems"}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.01s",  # three attempts fit well inside the 200 ms deadline
                    "maxBackoff": "0.05s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
CHANNEL_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    # gRPC's defaults back off from 1 s to 2 minutes, and every call in between fails at once: after a restart of the scorer a shop
    # would go on without shelves long after it is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

# How the scorer words a refusal: the message of an InvalidEventError.
_REFUSAL = re.compile(r"(?P<field>[\w.\[\]]+): got (?P<value>.+?), expected (?P<expected>.+)", re.DOTALL)

RecommendAnswer = TypeVar("RecommendAnswer")
RankAnswer = TypeVar("RankAnswer")
SimilarItemsAnswer = TypeVar("SimilarItemsAnswer")


class _Calls(Generic[RecommendAnswer, RankAnswer, SimilarItemsAnswer]):
    """The calls, once for both clients: they differ only in whether an answer is waited for or awaited.

    Every call raises:
        UnavailableError: no answer in time, no connection, or the scorer is overloaded. Show the page without a shelf.
        InvalidEventError: the request does not validate; the message carries the scorer's words.
        NotFoundError: an unknown item.
        LiveshelfError: anything else the scorer answered.
    """

    def __init__(self, address: str, deadline_ms: int = DEADLINE_MS) -> None:
        self.address, self.deadline_ms = address, deadline_ms

    def recommend(
        self,
        *,
        user_id: str = "",
        client_id: str = "",
        session_id: str = "",
        count: int = 0,
        placement: str = "",
        context_item_ids: Sequence[str] = (),
        exclude_item_ids: Sequence[str] = (),
        deadline_ms: int | None = None,
    ) -> RecommendAnswer:
        """The shelf for a shopper. Send its `request_id` back in the events that follow from it."""
        request = pb2.RecommendRequest(
            shopper=pb2.Shopper(user_id=user_id, client_id=client_id, session_id=session_id),
            count=count,
            placement=placement,
            context_item_ids=context_item_ids,
            exclude_item_ids=exclude_item_ids,
        )
        return self._call("Recommend", request, deadline_ms)  # type: ignore[no-any-return]

    def rank(
        self,
        item_ids: Sequence[str],
        *,
        user_id: str = "",
        client_id: str = "",
        session_id: str = "",
        placement: str = "",
        deadline_ms: int | None = None,
    ) -> RankAnswer:
        """The caller's own candidates, ordered for a shopper."""
        request = pb2.RankRequest(
            shopper=pb2.Shopper(user_id=user_id, client_id=client_id, session_id=session_id),
            item_ids=item_ids,
            placement=placement,
        )
        return self._call("Rank", request, deadline_ms)  # type: ignore[no-any-return]

    def similar_items(self, item_id: str, *, count: int = 0, deadline_ms: int | None = None) -> SimilarItemsAnswer:
        """Items that shoppers look at together with one item."""
        return self._call("SimilarItems", pb2.SimilarItemsRequest(item_id=item_id, count=count), deadline_ms)  # type: ignore[no-any-return]

    def _call(self, method: str, request: Any, deadline_ms: int | None) -> Any:
        raise NotImplementedError

    def _timeout_s(self, deadline_ms: int | None) -> float:
        return (self.deadline_ms if deadline_ms is None else deadline_ms) / 1_000


class Client(_Calls[pb2.RecommendResponse, pb2.RankResponse, pb2.SimilarItemsResponse]):
    """Blocking client; threads may share it. `deadline_ms` holds for each call unless the call names its own."""

    def __init__(self, address: str, deadline_ms: int = DEADLINE_MS) -> None:
        super().__init__(address, deadline_ms)
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = RecommendationServiceStub(self._channel)

    def _call(self, method: str, request: Any, deadline_ms: int | None) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=self._timeout_s(deadline_ms))
        except grpc.RpcError as error:
            raise to_error(error, method, self.address) from error

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncClient(
    _Calls[Awaitable[pb2.RecommendResponse], Awaitable[pb2.RankResponse], Awaitable[pb2.SimilarItemsResponse]],
):
    """asyncio client: make and use it inside one running loop, await each call."""

    def __init__(self, address: str, deadline_ms: int = DEADLINE_MS) -> None:
        super().__init__(address, deadline_ms)
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = RecommendationServiceStub(self._channel)

    async def _call(self, method: str, request: Any, deadline_ms: int | None) -> Any:
        try:
            return await getattr(self._stub, method)(request, timeout=self._timeout_s(deadline_ms))
        except grpc.RpcError as error:
            raise to_error(error, method, self.address) from error

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


def to_error(error: Any, method: str, address: str) -> LiveshelfError:
    """The error of Liveshelf's tree that a gRPC status of `method` at `address` stands for."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnavailableError(f"{method} at {address} did not answer within its deadline. Is `liveshelf status` healthy?")
    if code == grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(f"{method} at {address}: no answer ({details}). Is the scoring service up? Try `liveshelf status`.")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return UnavailableError(f"{method} at {address}: the scoring service is overloaded ({details}). Try again later.")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        if said := _REFUSAL.fullmatch(details):
            return InvalidEventError(said["field"], said["value"], said["expected"])
        return InvalidEventError(method, details, "a request as liveshelf/v1/recommendation.proto describes it")
    if code == grpc.StatusCode.NOT_FOUND:
        return NotFoundError(f"{method}: {details}")
    return LiveshelfError(f"{method} at {address} failed with {code.name}: {details}. See `liveshelf logs scoring`.")
