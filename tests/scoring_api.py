"""The scoring API on real sockets, over gRPC and HTTP, with a pipeline that answers what a test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx

from features.declarations import read_declarations
from features.feature_set import FeatureSet
from features.items import ItemTable
from features.rows import CatalogItem
from liveshelf.settings import Settings
from serving.admission import Admission
from serving.edge import Method, Recommendations, methods
from serving.events import EventRecorder
from serving.http import serve_http
from serving.query import Query, Scored, Shelf
from serving.rpc import Health, make_server
from streams.producer import MemoryProducer
from streams.pseudonym import Pseudonyms
from streams.tracing import Tracing
from tests.conftest import local_settings

FEATURES = FeatureSet(read_declarations(None))
T0 = 1_700_000_000_000


def item_table(neighbours: dict[str, float] | None = None) -> ItemTable:
    """Items i0..i9: hats and shoes in turn, brands b0..b2, priced 0, 10, 20, …; i3 cannot be had. i0 has `neighbours`."""
    table = ItemTable(FEATURES)
    for n in range(10):
        table.apply_catalog(
            CatalogItem(
                item_id=f"i{n}",
                item_name=f"Item {n}",
                item_category=["hats", "shoes"][n % 2],
                item_brand=f"b{n % 3}",
                price=10.0 * n,
                available=n != 3,
                time_ms=T0,
            )
        )
    row = FEATURES.item("i0", 0)
    row.offset, row.time_ms, row.neighbours = (
        0,
        T0,
        neighbours if neighbours is not None else {f"i{n}": 10.0 - n for n in range(1, 10)},
    )
    table.apply(row)
    return table


@dataclass
class TellableShelves:
    """A pipeline that remembers what it was asked, and answers the candidates, or the first items of the table; `work` runs before."""

    work: Callable[[Query, float], Awaitable[None]] | None = None
    asked: list[Query] = field(default_factory=list)
    deadlines_s: list[float] = field(default_factory=list)
    started: int = 0
    finished: int = 0

    async def shelf(self, query: Query, deadline_s: float) -> Shelf:
        self.started += 1
        self.asked.append(query)
        self.deadlines_s.append(deadline_s)
        if self.work:
            await self.work(query, deadline_s)
        self.finished += 1
        items = query.candidates or tuple(f"i{n}" for n in range(query.count))
        return Shelf(
            request_id=f"r{self.started}",
            items=[Scored(item, "covisit", 1.0 - n / 100, 0.3, 0.2, 0.1) for n, item in enumerate(items)],
            model_version=7,
            features_offset=41,
            feature_version=FEATURES.version,
            propensities=[0.5] * len(items),
            timings_ms={"hydrate": 0.5, "score": 1.5},
        )


@dataclass
class Api:
    """A running API, and what stands behind it."""

    settings: Settings
    shelves: TellableShelves
    table: ItemTable
    producer: MemoryProducer
    admission: Admission
    recorder: EventRecorder
    health: Health
    methods: list[Method]
    http: httpx.AsyncClient
    loaded: bool = True


@asynccontextmanager
async def scoring_api(
    home: Path, shelves: TellableShelves | None = None, tracing: Tracing | None = None, **changes: object
) -> AsyncIterator[Api]:
    settings = local_settings(home, **changes)
    shelves, table, producer = shelves or TellableShelves(), item_table(), MemoryProducer(1_000)
    pseudonyms, admission = Pseudonyms.open(settings), Admission(settings.scoring_concurrency_max, "requests")
    recorder = EventRecorder(producer, settings, pseudonyms, tracing)
    deadline_s = settings.recommend_deadline_ms / 1000
    recommendations = Recommendations(shelves, lambda: table, lambda: api.loaded, pseudonyms, admission, deadline_s)
    calls = methods(recommendations, recorder.record_events, admission, Admission(8, "events"), settings.scoring_token, tracing)
    server, health = await make_server(settings, calls)
    web = await serve_http(settings, calls)
    await server.start()
    heard = asyncio.Event()

    async def on_change(ready: bool) -> None:
        await health.set("liveshelf.v1.EventService", ready)
        heard.set()

    following = asyncio.create_task(recorder.follow(on_change))
    await heard.wait()
    base = f"http://{settings.host}:{settings.scoring_http_port}"
    try:
        async with httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as client:
            api = Api(settings, shelves, table, producer, admission, recorder, health, calls, client)
            yield api
    finally:
        following.cancel()
        await server.stop(0)
        await web.cleanup()


def raw_call(channel: grpc.aio.Channel, method: Method) -> Callable[..., Any]:
    """The method, with bytes for messages."""
    return channel.unary_unary(f"/{method.service}/{method.name}")


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)
