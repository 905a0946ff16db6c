"""The freshness probe: a synthetic shopper that measures, again and again, how long an event takes to change the shelf.

Each round posts one view of an item that is never shown (its catalog record says that it cannot be had) to the collector, and asks for the
synthetic shopper's shelf until it was made from features that hold the event. Its shelves are not logged: nothing learns from them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import httpx
import structlog
from prometheus_client import Counter, Gauge, Histogram

from liveshelf.errors import UnavailableError
from serving.query import Shelf

log = structlog.get_logger()

CLIENT_ID = "liveshelf-freshness-probe"
ITEM_ID = "liveshelf-freshness-probe"
LOOK_EVERY_S = 0.005
CHANGED_WITHIN_S = 30.0  # a rebalance of the agents takes 12 s; later than this is an outage

FRESHNESS = Histogram(
    "liveshelf_freshness_seconds",
    "From an event's 202 to a shelf made of it, for the synthetic shopper",
    buckets=(0.01, 0.02, 0.03, 0.045, 0.06, 0.1, 0.15, 0.25, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6),
)
LATEST = Gauge("liveshelf_freshness_latest_seconds", "The latest measurement; NaN before the first and while none succeeds")
FAILED = Counter("liveshelf_freshness_failed_total", "Rounds without a measurement", ["reason"])


class FreshnessProbe:
    """`shelf` answers the synthetic shopper's shelf, unlogged."""

    def __init__(self, collector_url: str, shelf: Callable[[], Awaitable[Shelf]], every_s: float) -> None:
        self._url, self._shelf, self._every_s = collector_url, shelf, every_s
        self._introduced = False
        LATEST.set(float("nan"))

    async def run(self) -> None:
        """Until cancelled; a round that fails is counted and said."""
        async with httpx.AsyncClient(base_url=self._url, timeout=5.0, trust_env=False) as collector:
            while True:
                try:
                    took_s = await self.measure(collector)
                    FRESHNESS.observe(took_s)
                    LATEST.set(took_s)
                except (UnavailableError, httpx.HTTPError) as error:
                    reason = "collector" if isinstance(error, httpx.HTTPError) else "shelf"
                    FAILED.labels(reason).inc()
                    LATEST.set(float("nan"))
                    log.warning("no freshness measured", reason=reason, error=str(error))
                await asyncio.sleep(self._every_s)

    async def measure(self, collector: httpx.AsyncClient) -> float:
        """Seconds from the event's 202 to a shelf that was made of it.

        Raises:
            UnavailableError: no such shelf within CHANGED_WITHIN_S.
            httpx.HTTPError: the collector did not accept it.
        """
        if not self._introduced:
            record = {"item_id": ITEM_ID, "item_name": "Freshness probe", "available": False}
            (await collector.post("/v1/catalog", json=record)).raise_for_status()
            self._introduced = True
        before = (await self._shelf()).features_offset
        event = {"name": "view_item", "client_id": CLIENT_ID, "event_id": uuid4().hex, "items": [{"item_id": ITEM_ID}]}
        (await collector.post("/v1/events", json=event)).raise_for_status()
        began = time.perf_counter()
        while (took_s := time.perf_counter() - began) < CHANGED_WITHIN_S:
            if (await self._shelf()).features_offset > before:
                return time.perf_counter() - began
            await asyncio.sleep(LOOK_EVERY_S)
        raise UnavailableError(f"no shelf changed within {took_s:.0f} s of its event: are the agents and the store up?")
