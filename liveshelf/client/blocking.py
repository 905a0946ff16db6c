"""The client for threads."""

import time
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import grpc

from liveshelf.client.calls import DEADLINE_MS, Calls
from liveshelf.client.channel import OPTIONS, Tls
from liveshelf.client.errors import to_error
from liveshelf.v1 import recommendation_pb2 as pb2
from liveshelf.v1.recommendation_pb2_grpc import EventServiceStub, RecommendationServiceStub


class Client(
    Calls[
        pb2.RecommendResponse,
        pb2.RankResponse,
        pb2.SimilarItemsResponse,
        pb2.BatchRecommendResponse,
        pb2.BatchRankResponse,
        pb2.BatchSimilarItemsResponse,
        pb2.RecordEventsResponse,
    ]
):
    """Blocking client; threads may share it.

    `deadline_ms` holds for each call unless the call names its own. `token` and `tls` are for a scorer that wants them. With
    `hedge_after_ms`, a call that leaves no trace (SimilarItems) and is not answered by then is sent once more, and the first answer taken;
    set it near the 95th percentile of your answers.
    """

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
            grpc.secure_channel(address, self._credentials, options=OPTIONS)
            if self._credentials
            else grpc.insecure_channel(address, options=OPTIONS)
        )
        # While anybody listens to its state a channel of gRPC's blocking side looks after its connection between calls, too. Without,
        # it was 5 s until a scorer was found again that was back (grpcio 1.71 to 1.76, calls every 20 ms), and 0.4 s with it.
        self._channel.subscribe(lambda _: None)
        self._calls = vars(RecommendationServiceStub(self._channel)) | vars(EventServiceStub(self._channel))

    def _call(self, method: str, request: Any, deadline_ms: int | None) -> Any:
        call, timeout_s, hedge_s = self._calls[method], self._timeout_s(deadline_ms), self._hedge_s(method)
        try:
            if hedge_s is None or hedge_s >= timeout_s:
                return call(request, timeout=timeout_s, metadata=self._metadata)
            return self._hedged(call, request, timeout_s, hedge_s)
        except grpc.RpcError as error:
            raise to_error(error, method, self.address) from error

    def _hedged(self, call: Any, request: Any, timeout_s: float, hedge_s: float) -> Any:
        """The first good answer of two calls, the second made only when the first is late; both end at the same deadline."""
        done: SimpleQueue[Any] = SimpleQueue()
        started = time.monotonic()
        calls = [call.future(request, timeout=timeout_s, metadata=self._metadata)]
        calls[0].add_done_callback(done.put)
        try:
            try:
                return done.get(timeout=hedge_s).result()
            except Empty:
                left_s = timeout_s - (time.monotonic() - started)
                calls.append(call.future(request, timeout=left_s, metadata=self._metadata))
                calls[1].add_done_callback(done.put)
            first = done.get()  # a call ends at its deadline at the latest
            return first.result() if first.code() == grpc.StatusCode.OK else done.get().result()
        finally:
            for each in calls:
                each.cancel()

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
