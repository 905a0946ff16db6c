"""Puts the pipeline together: the shelf maker with its sources, rules, static list and probe, from settings."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from features.live_sessions import LiveSessions
from features.store import FeatureRows
from liveshelf.errors import SettingsError
from liveshelf.settings import Settings
from serving.candidates import default_sources
from serving.fallback import Side, StaticShelves
from serving.freshness import CLIENT_ID, FreshnessProbe
from serving.item_memory import ItemMemory
from serving.live_model import ModelFollower
from serving.query import Query, Shelf
from serving.rules import REFUSED, RulesFollower
from serving.shelf import Policy, ShelfMaker
from streams.pseudonym import Pseudonyms
from streams.records import Impression
from streams.tracing import Tracing

log = structlog.get_logger()

PROBE_COUNT = 10
# A thread that computes gives way to the event loop after this long; with Python's 5 ms a request may wait that long for the item memory.
SWITCH_INTERVAL_S = 0.0005


@asynccontextmanager
async def open_pipeline(
    settings: Settings,
    rows: FeatureRows,
    side: Callable[[str], Side | None],
    memory: ItemMemory,
    models: ModelFollower,
    log_impression: Callable[[Impression], None],
    pseudonyms: Pseudonyms,
    sessions: LiveSessions | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[ShelfMaker]:
    """The shelf maker, with what runs beside it until the block ends."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rules = RulesFollower(settings.rules_file)
    try:
        rules.read()
    except SettingsError as error:  # a scorer that does not start helps nobody: without rules, and loudly
        REFUSED.inc()
        log.error("rules refused, there are none in force", error=str(error))
    static = StaticShelves(settings.data_path / "serving" / "static-shelf.json")
    static.read()
    maker = ShelfMaker(
        rows,
        side,
        models,
        default_sources(settings.model_timeout_ms / 1000, sessions),
        log_impression,
        settings.store_timeout_ms / 1000,
        model_timeout_s=settings.model_timeout_ms / 1000,
        policy=Policy(settings.diversity, settings.explore_share, settings.price_weight),
        rules=lambda: rules.rules,
        items_state=memory.state,
        static=static,
        tracing=tracing,
    )
    work = [rules.follow(), static.keep_written(lambda: maker.side()[0], lambda: int(time.time() * 1000))]
    if settings.freshness_probe_s:
        probe_query = Query(pseudonyms.shopper("", CLIENT_ID, ""), "", "freshness-probe", PROBE_COUNT)

        async def shelf() -> Shelf:
            return await maker.shelf(probe_query, settings.recommend_deadline_ms / 1000, logged=False)

        work.append(FreshnessProbe(settings.collector_url, shelf, settings.freshness_probe_s).run())
    async with AsyncExitStack() as stack:
        for task in [asyncio.create_task(coroutine) for coroutine in work]:
            stack.callback(task.cancel)
        yield maker
