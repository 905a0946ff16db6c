"""The client for asyncio."""

import asyncio
import time
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self

import grpc

from liveshelf.client.calls import DEADLINE_MS, Calls
from liveshelf.client.channel import OPTIONS, Tls
from liveshelf.client.errors import to_error
from liveshelf.v1 import recommendation_pb2 as pb2
from liveshelf.v1.recommendation_pb2_grpc import EventServiceStub, RecommendationServiceStub


class AsyncClient(
    Calls[
        Awaitable[pb2.RecommendResponse],
        Awaitable[pb2.RankResponse],
        Awaitable[pb2.SimilarItemsResponse],
        Awaitable[pb2.BatchRecommendResponse],
        Awaitable[pb2.BatchRankResponse],
        Awaitable[pb2.BatchSimilarItemsResponse],
        Awaitable[pb2.RecordEventsResponse],
    ]
):
    """asyncio client: make and use it inside one running loop, await each call. Arguments as `Client`. A call whose task is cancelled is
    cancelled at the scorer too."""

    def __init__(
        self,
        address: str,
        deadline_ms: int = DEADLINE_MS,
        *,
        token: str = "",
        tls: Tls | None = None,
        hedge_after_ms: int | None = None,
    ) -> None:
        super().__init__(address, deadline_ms, token, tls, hedge_after_ms)
        self._channel = (
            grpc.aio.secure_channel(address, self._credentials, options=OPTIONS)
            if self._credentials
            else grpc.aio.insecure_channel(address, options=OPTIONS)
        )
        self._calls = vars(RecommendationServiceStub(self._channel)) | vars(EventServiceStub(self._channel))

    async def _call(self, method: str, request: Any, deadline_ms: int | None) -> Any:
        call, timeout_s, hedge_s = self._calls[method], self._timeout_s(deadline_ms), self._hedge_s(method)
        try:
            if hedge_s is None or hedge_s >= timeout_s:
                return await call(request, timeout=timeout_s, metadata=self._metadata)
            return await self._hedged(call, request, timeout_s, hedge_s)
        except grpc.RpcError as error:
            raise to_error(error, method, self.address) from error

    async def _hedged(self, call: Any, request: Any, timeout_s: float, hedge_s: float) -> Any:
        """The first good answer of two calls, the second made only when the first is late; both end at the same deadline."""

        async def ask(timeout_s: float) -> Any:
            return await call(request, timeout=timeout_s, metadata=self._metadata)

        started = time.monotonic()
        tasks = {asyncio.create_task(ask(timeout_s))}
        try:
            done, waiting = await asyncio.wait(tasks, timeout=hedge_s)
            if not done:
                tasks.add(asyncio.create_task(ask(timeout_s - (time.monotonic() - started))))
                done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if waiting and all(task.exception() for task in done):
                    done, _ = await asyncio.wait(waiting)
            return next((task for task in done if not task.exception()), next(iter(done))).result()
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()
