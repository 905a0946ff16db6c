"""The calls, once for both clients: they differ only in whether an answer is waited for or awaited."""

from collections.abc import MutableMapping, Sequence
from typing import Any, Generic, TypeVar

from liveshelf.client.channel import Tls
from liveshelf.client.requests import prepare_events, rank_request, recommend_request, similar_items_request
from liveshelf.v1 import recommendation_pb2 as pb2

DEADLINE_MS = 200  # the scorer's own default (`recommend_deadline_ms`): a page should not wait longer for a shelf
EVENTS_DEADLINE_MS = 15_000  # the scorer waits up to 10 s for Kafka, so that a broker can restart meanwhile
UNLOGGED = frozenset({"SimilarItems", "BatchSimilarItems"})
"""Calls that leave no trace: they may be hedged. A second Recommend or Rank would be logged as a shelf that was shown."""

RecommendAnswer = TypeVar("RecommendAnswer")
RankAnswer = TypeVar("RankAnswer")
SimilarItemsAnswer = TypeVar("SimilarItemsAnswer")
BatchRecommendAnswer = TypeVar("BatchRecommendAnswer")
BatchRankAnswer = TypeVar("BatchRankAnswer")
BatchSimilarItemsAnswer = TypeVar("BatchSimilarItemsAnswer")
RecordEventsAnswer = TypeVar("RecordEventsAnswer")


class Calls(
    Generic[
        RecommendAnswer,
        RankAnswer,
        SimilarItemsAnswer,
        BatchRecommendAnswer,
        BatchRankAnswer,
        BatchSimilarItemsAnswer,
        RecordEventsAnswer,
    ]
):
    """What may be asked. Every call raises:

    DeadlineError, OverloadedError, UnavailableError: no answer in time, too much under way, no connection. Show the page without a shelf.
    InvalidEventError: the request does not validate; the message carries the scorer's words.
    NotFoundError: an unknown item.
    LiveshelfError: anything else the scorer answered.
    """

    def __init__(self, address: str, deadline_ms: int, token: str, tls: Tls | None, hedge_after_ms: int | None) -> None:
        self.address, self.deadline_ms = address, deadline_ms
        self._hedge_after_s = None if hedge_after_ms is None else hedge_after_ms / 1_000
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self._credentials = tls.credentials() if tls else None

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
        filters: pb2.Filters | None = None,
        with_timings: bool = False,
        deadline_ms: int | None = None,
    ) -> RecommendAnswer:
        """The shelf for a shopper. Send its `request_id` back in the events that follow from it."""
        request = recommend_request(
            user_id=user_id,
            client_id=client_id,
            session_id=session_id,
            count=count,
            placement=placement,
            context_item_ids=context_item_ids,
            exclude_item_ids=exclude_item_ids,
            filters=filters,
            with_timings=with_timings,
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
        context_item_ids: Sequence[str] = (),
        with_timings: bool = False,
        deadline_ms: int | None = None,
    ) -> RankAnswer:
        """The caller's own candidates, ordered for a shopper."""
        request = rank_request(
            item_ids,
            user_id=user_id,
            client_id=client_id,
            session_id=session_id,
            placement=placement,
            context_item_ids=context_item_ids,
            with_timings=with_timings,
        )
        return self._call("Rank", request, deadline_ms)  # type: ignore[no-any-return]

    def similar_items(
        self,
        item_id: str,
        *,
        count: int = 0,
        filters: pb2.Filters | None = None,
        exclude_item_ids: Sequence[str] = (),
        with_timings: bool = False,
        deadline_ms: int | None = None,
    ) -> SimilarItemsAnswer:
        """Items that shoppers look at together with one item."""
        request = similar_items_request(
            item_id, count=count, filters=filters, exclude_item_ids=exclude_item_ids, with_timings=with_timings
        )
        return self._call("SimilarItems", request, deadline_ms)  # type: ignore[no-any-return]

    def batch_recommend(self, requests: Sequence[pb2.RecommendRequest], *, deadline_ms: int | None = None) -> BatchRecommendAnswer:
        """Up to 32 shelves at once. `liveshelf.client.result` takes each of the answer's `results` apart."""
        return self._call("BatchRecommend", pb2.BatchRecommendRequest(requests=requests), deadline_ms)  # type: ignore[no-any-return]

    def batch_rank(self, requests: Sequence[pb2.RankRequest], *, deadline_ms: int | None = None) -> BatchRankAnswer:
        """Up to 32 lists at once, of 10,000 candidates together."""
        return self._call("BatchRank", pb2.BatchRankRequest(requests=requests), deadline_ms)  # type: ignore[no-any-return]

    def batch_similar_items(
        self, requests: Sequence[pb2.SimilarItemsRequest], *, deadline_ms: int | None = None
    ) -> BatchSimilarItemsAnswer:
        """Up to 32 at once."""
        return self._call("BatchSimilarItems", pb2.BatchSimilarItemsRequest(requests=requests), deadline_ms)  # type: ignore[no-any-return]

    def record_events(
        self, events: Sequence[pb2.Event | MutableMapping[str, Any]], *, deadline_ms: int = EVENTS_DEADLINE_MS
    ) -> RecordEventsAnswer:
        """Hand events over; when this returns, Kafka has all but the answer's `refusals`.

        Events without `event_id` or `timestamp_micros` are given them, in the objects passed in. It is safe to pass the same objects
        again after any error: each counts once. InvalidEventError: none of them is valid.
        """
        return self._call("RecordEvents", prepare_events(events), deadline_ms)  # type: ignore[no-any-return]

    def _call(self, method: str, request: Any, deadline_ms: int | None) -> Any:
        raise NotImplementedError

    def _hedge_s(self, method: str) -> float | None:
        return self._hedge_after_s if method in UNLOGGED else None

    def _timeout_s(self, deadline_ms: int | None) -> float:
        return (self.deadline_ms if deadline_ms is None else deadline_ms) / 1_000
