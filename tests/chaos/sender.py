"""A client that repeats a request until it has a definite answer, and may not go further than it is allowed to."""

import asyncio
import time
from collections import Counter

import httpx

from tests.chaos.traffic import Request

SENDERS = 4  # requests under way at once: a kill always finds some
RETRY_S = 0.1
REQUEST_DEADLINE_S = 120.0  # a broker's restart takes 3 to 6 s, and a request under way first waits 10 s for its acknowledgement
TRY_AGAIN = (429, 503)


class Sender:
    """Sends `requests` in order, SENDERS at a time, up to `allow`ed many events."""

    def __init__(self, url: str, requests: list[Request]) -> None:
        self._url = url + "/v1/events"
        self._left = requests[::-1]
        self._allowed = 0
        self._taken = 0
        self._moved = asyncio.Condition()
        self.answered = 0
        """Events that have their definite answer."""
        self.accepted: set[str] = set()
        self.rejected: Counter[str] = Counter()
        """Refused events by reason, as answered."""
        self.wrong: list[str] = []
        """Answers other than the traffic's author meant."""
        self.retries = 0

    async def allow(self, events: int) -> None:
        async with self._moved:
            self._allowed = max(self._allowed, events)
            self._moved.notify_all()

    async def reached(self, events: int) -> None:
        """Wait until that many events are answered."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.answered >= events)

    async def run(self) -> None:
        """Until every request has its answer.

        Raises:
            TimeoutError: a request had none in REQUEST_DEADLINE_S.
        """
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client, asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._send_all(client))

    async def _send_all(self, client: httpx.AsyncClient) -> None:
        while self._left:
            async with self._moved:
                await self._moved.wait_for(lambda: self._taken < self._allowed or not self._left)
                if not self._left:
                    return
                request = self._left.pop()
                self._taken += len(request.events)
            self._note(request, await self._answer(client, request.body))
            async with self._moved:
                self.answered += len(request.events)
                self._moved.notify_all()

    async def _answer(self, client: httpx.AsyncClient, body: bytes) -> httpx.Response:
        deadline = time.monotonic() + REQUEST_DEADLINE_S
        while time.monotonic() < deadline:
            try:
                answer = await client.post(self._url, content=body, headers={"content-type": "application/json"})
                if answer.status_code not in TRY_AGAIN:
                    return answer
            except httpx.TransportError:
                pass
            self.retries += 1
            await asyncio.sleep(RETRY_S)
        raise TimeoutError(f"no definite answer to a request in {REQUEST_DEADLINE_S:.0f} s")

    def _note(self, request: Request, answer: httpx.Response) -> None:
        meant = {n: event.reason for n, event in enumerate(request.events) if event.reason}
        if answer.status_code not in (202, 400):
            self.wrong.append(f"{answer.status_code} {answer.text[:200]}")
            return
        refusals = answer.json()["rejected"]
        refused = {0 if r["index"] is None else r["index"]: r["reason"] for r in refusals}
        self.rejected.update(refused.values())
        self.accepted.update(event.event_id for n, event in enumerate(request.events) if n not in refused)
        for n in refused.keys() | meant.keys():
            if refused.get(n, "") != meant.get(n, ""):
                event = request.events[n]
                self.wrong.append(
                    f"event {event.event_id}: meant {meant.get(n) or 'to be accepted'}, answered {refused.get(n) or 'accepted'}"
                )
