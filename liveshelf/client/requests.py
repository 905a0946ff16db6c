"""Plain Python arguments → messages of `liveshelf.v1`."""

import time
import uuid
from collections.abc import MutableMapping, Sequence
from typing import Any

from liveshelf.v1 import recommendation_pb2 as pb2


def recommend_request(
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
) -> pb2.RecommendRequest:
    """A request of Recommend, for a batch."""
    return pb2.RecommendRequest(
        shopper=pb2.Shopper(user_id=user_id, client_id=client_id, session_id=session_id),
        count=count,
        placement=placement,
        context_item_ids=context_item_ids,
        exclude_item_ids=exclude_item_ids,
        filters=filters,
        with_timings=with_timings,
    )


def rank_request(
    item_ids: Sequence[str],
    *,
    user_id: str = "",
    client_id: str = "",
    session_id: str = "",
    placement: str = "",
    context_item_ids: Sequence[str] = (),
    with_timings: bool = False,
) -> pb2.RankRequest:
    """A request of Rank, for a batch."""
    return pb2.RankRequest(
        shopper=pb2.Shopper(user_id=user_id, client_id=client_id, session_id=session_id),
        item_ids=item_ids,
        placement=placement,
        context_item_ids=context_item_ids,
        with_timings=with_timings,
    )


def similar_items_request(
    item_id: str,
    *,
    count: int = 0,
    filters: pb2.Filters | None = None,
    exclude_item_ids: Sequence[str] = (),
    with_timings: bool = False,
) -> pb2.SimilarItemsRequest:
    """A request of SimilarItems, for a batch."""
    return pb2.SimilarItemsRequest(
        item_id=item_id, count=count, filters=filters, exclude_item_ids=exclude_item_ids, with_timings=with_timings
    )


def prepare_events(events: Sequence[pb2.Event | MutableMapping[str, Any]]) -> pb2.RecordEventsRequest:
    """Give every event that has none an id and the time of now, in the caller's own object: sent again, it is the same event."""
    now_us = time.time_ns() // 1_000
    for event in events:
        if isinstance(event, pb2.Event):
            event.event_id = event.event_id or uuid.uuid4().hex
            if not event.HasField("timestamp_micros"):
                event.timestamp_micros = now_us
        else:
            event["event_id"] = event.get("event_id") or uuid.uuid4().hex
            event.setdefault("timestamp_micros", now_us)
    return pb2.RecordEventsRequest(events=[event if isinstance(event, pb2.Event) else pb2.Event(**event) for event in events])
