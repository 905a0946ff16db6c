"""Shoppers who go on while something breaks: events sent until they are accepted, and shelves asked for, both counted."""

import threading
import time
import uuid
from types import TracebackType
from typing import Self

import httpx

from liveshelf.client import Client
from liveshelf.errors import LiveshelfError
from liveshelf.settings import Settings

EVENT_EVERY_S = 0.05
SHELF_EVERY_S = 0.1
DEADLINE_MS = 3_000  # the services are asked to answer in 2 s
SHOPPERS = 8


class Traffic:
    """Runs from entry to exit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._over = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._ask)]
        self.accepted: list[str] = []
        """Event ids that were answered with 202."""
        self.refused = 0
        """Answers or silences that made the sender send again, under the same id."""
        self.shelves = 0
        self.failed: list[str] = []
        self.degraded = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _send(self) -> None:
        run = uuid.uuid4().hex
        n = 0
        with httpx.Client(base_url=self._settings.collector_url, timeout=15, trust_env=False) as client:
            while not self._over.wait(EVENT_EVERY_S):
                n += 1
                event_id = f"{run}-{n}"
                item = {"item_id": f"sku-{n % 500:05d}"}
                body = {"client_id": f"fault-{run}-{n % SHOPPERS}", "name": "view_item", "event_id": event_id, "items": [item]}
                while not self._over.is_set():
                    try:
                        if client.post("/v1/events", json=body).status_code == 202:
                            self.accepted.append(event_id)
                            break
                    except httpx.HTTPError:
                        pass
                    self.refused += 1
                    time.sleep(0.2)

    def _ask(self) -> None:
        n = 0
        with Client(self._settings.scoring_address, deadline_ms=DEADLINE_MS) as client:
            while not self._over.wait(SHELF_EVERY_S):
                n += 1
                self.shelves += 1
                try:
                    shelf = client.recommend(client_id=f"reader-{n % SHOPPERS}", count=5)
                    self.degraded += shelf.degraded
                    if len(shelf.items) != 5:
                        self.failed.append(f"{len(shelf.items)} items")
                except LiveshelfError as error:
                    self.failed.append(str(error)[:200])
