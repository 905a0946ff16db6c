"""Thin client of `liveshelf.v1`: plain Python arguments in, the protobuf response out, errors from `liveshelf.errors`.

    with Client("127.0.0.1:18090") as client:
        shelf = client.recommend(client_id="browser-17", count=6, placement="home")
        client.record_events([{"name": "view_item", "client_id": "browser-17", "items": [{"item_id": "sku-1"}]}])

Keep one client for the life of the process: it holds one HTTP/2 channel, which is safe to share between threads (`Client`) or tasks
of one loop (`AsyncClient`) and reconnects by itself.
"""

from liveshelf.client.asynchronous import AsyncClient
from liveshelf.client.blocking import Client
from liveshelf.client.channel import Tls
from liveshelf.client.errors import DeadlineError, OverloadedError, UnauthenticatedError, result
from liveshelf.client.requests import rank_request, recommend_request, similar_items_request
from liveshelf.v1.recommendation_pb2 import Event, EventItem, Filters

__all__ = [
    "AsyncClient",
    "Client",
    "DeadlineError",
    "Event",
    "EventItem",
    "Filters",
    "OverloadedError",
    "Tls",
    "UnauthenticatedError",
    "rank_request",
    "recommend_request",
    "result",
    "similar_items_request",
]
