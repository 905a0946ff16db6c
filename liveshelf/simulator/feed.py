"""The public HTTP interface as a shop's browsers use it: events and catalog records out, receipts back."""

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import httpx
import msgspec

from features.rows import CatalogItem
from liveshelf.batching import batches
from liveshelf.errors import LiveshelfError, UnavailableError
from liveshelf.simulator.visits import SimulatedEvent

BATCH_RECORDS_MAX = 500  # the collector's own default limit (`events_per_request_max`)
BATCH_BYTES_MAX = 1_000_000  # and this one too (`event_body_bytes_max`)
TIMEOUT_S = 30.0  # a batch waits for Kafka's acknowledgement of every record
PATIENCE_S = 30.0  # how long an overloaded collector (429, 503) is asked again before giving up


class Receipt(NamedTuple):
    """What the collector said of a request: how many records it took, and why it refused the others."""

    accepted: int
    rejected: tuple[str, ...]


class Feed:
    """Sends to one collector, over kept connections; threads may share it.

    Every call raises:
        UnavailableError: nobody listens at `url`, or the collector stayed overloaded for `PATIENCE_S`.
        LiveshelfError: an answer that the collector should not give.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)  # loopback: no proxy of the environment

    def event(self, event: SimulatedEvent) -> Receipt:
        """One event, as a browser sends it."""
        return self._post("/v1/events", msgspec.json.encode(event), 1)

    def events(self, events: Sequence[SimulatedEvent]) -> Iterator[Receipt]:
        """Any number of events in their order, a receipt for each batch."""
        for batch in batches(map(msgspec.json.encode, events), BATCH_RECORDS_MAX, BATCH_BYTES_MAX):
            yield self._post("/v1/events", b'{"events":[' + b",".join(batch) + b"]}", len(batch))

    def catalog(self, items: Sequence[CatalogItem]) -> Iterator[Receipt]:
        """Catalog records, a receipt for each batch."""
        for batch in batches(map(msgspec.json.encode, items), BATCH_RECORDS_MAX, BATCH_BYTES_MAX):
            yield self._post("/v1/catalog", b'{"items":[' + b",".join(batch) + b"]}", len(batch))

    def _post(self, path: str, body: bytes, records: int) -> Receipt:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._http.post(path, content=body, headers={"content-type": "application/json"})
            except httpx.TransportError as error:
                raise UnavailableError(
                    f"the collector at {self.url} does not answer: {error or type(error).__name__}. Start it with `liveshelf up`."
                ) from error
            if answer.status_code not in (429, 503):
                return _receipt(answer, records)
            wait_s = float(answer.headers.get("retry-after", 1))
            if time.monotonic() + wait_s > deadline:
                raise UnavailableError(
                    f"the collector at {self.url} answered {answer.status_code} for {PATIENCE_S:.0f} s: {answer.text[:300]}. "
                    "See `liveshelf status`."
                )
            time.sleep(wait_s)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Refusal(msgspec.Struct):
    """`streams.wire.Refusal`, as far as a sender counts it."""

    field: str
    expected: str
    reason: str


class _Answer(msgspec.Struct):
    """`streams.wire.Answer`, or what any other answer leaves of it."""

    accepted: int = 0
    rejected: list[_Refusal] = []


def _receipt(answer: httpx.Response, records: int) -> Receipt:
    try:
        said = msgspec.json.decode(answer.content, type=_Answer)
    except msgspec.DecodeError as error:
        raise LiveshelfError(
            f"{answer.request.url} answered {answer.status_code} with {answer.text[:300]!r} instead of a receipt. Is that a Liveshelf collector?"
        ) from error
    if answer.status_code not in (202, 400):
        raise LiveshelfError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
    if said.accepted + len(said.rejected) != records:
        raise LiveshelfError(f"{answer.request.url} took {records} records and accounts for another number: {answer.text[:300]}")
    return Receipt(said.accepted, tuple(f"{one.reason}: {one.field}: expected {one.expected}" for one in said.rejected))
