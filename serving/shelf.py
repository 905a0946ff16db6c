"""FEATURE → SCORE → IMPRESSION: the whole request, in one place.

hydrate → find candidates → filter → score → select → log. When a part is down or late the stage goes on without it and the shelf says
so (`degraded`); the last resort, what is popular, needs nothing but this process's memory.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog
from prometheus_client import Counter, Histogram

from features.encoder import CANDIDATE_FEATURES, encode_candidates
from features.fold import RECENT_MAX
from features.items import ItemTable
from features.rows import FeaturesAsServed, ItemColumns, ShopperRow
from features.store import FeatureRows
from liveshelf.errors import LiveshelfError, UnavailableError
from serving.candidates import CandidateSource, Visit
from serving.live_model import ModelFollower
from serving.model_client import ModelNotFoundError, ModelUnavailableError
from serving.query import Query, Scored, Shelf
from streams.records import Impression

log = structlog.get_logger()

STAGE_SECONDS = Histogram(
    "liveshelf_scoring_stage_seconds",
    "Time of a request by stage",
    ["stage"],
    buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256),
)
SHELVES = Counter("liveshelf_scoring_shelves_total", "Shelves answered, by why they were degraded (empty: not)", ["degraded"])
SHOWN = Counter("liveshelf_scoring_shown_total", "Items shown by candidate source", ["source"])

STORE_THREADS = 8  # Feast's read is synchronous; more readers than this only wait for each other
DEADLINE_MARGIN_S = 0.01  # kept back of the deadline for the last resort and the answer's way home

# Order of a shelf without a model: neighbours first, then what fits the shopper's taste, then what is popular.
_HEURISTIC = {"log_covisit": 1.0, "category_match": 0.5, "brand_match": 0.25, "log_view_item": 0.1, "log_purchase": 0.2}
_HEURISTIC_WEIGHTS = np.array([_HEURISTIC.get(name, 0.0) for name in CANDIDATE_FEATURES], dtype=np.float32)


class ShelfMaker:
    """Answers queries. `log_impression` must not block: it is called after the answer is made."""

    def __init__(
        self,
        rows: FeatureRows,
        items: ItemTable,
        models: ModelFollower,
        sources: Sequence[CandidateSource],
        log_impression: Callable[[Impression], None],
        store_timeout_s: float,
        clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._rows, self._items, self._models, self._sources = rows, items, models, sources
        self._log_impression, self._store_timeout_s, self._clock_ms = log_impression, store_timeout_s, clock_ms
        self._threads = ThreadPoolExecutor(STORE_THREADS, "store")

    async def shelf(self, query: Query, deadline_s: float) -> Shelf:
        """The shelf for `query`, within `deadline_s`, whatever is down."""
        time_ms = self._clock_ms()
        try:
            async with asyncio.timeout(max(deadline_s - DEADLINE_MARGIN_S, 0.0)):
                shelf, served = await self._full(query, time_ms)
        except TimeoutError:
            shelf, served = self._last_resort(query, time_ms, "deadline")
        except Exception:
            log.exception("shelf failed, answering what is popular", placement=query.placement)
            shelf, served = self._last_resort(query, time_ms, "internal_error")
        SHELVES.labels(shelf.degraded).inc()
        for scored in shelf.items:
            SHOWN.labels(scored.source).inc()
        asyncio.get_running_loop().call_soon(self._log, query, time_ms, shelf, served)
        return shelf

    async def _full(self, query: Query, time_ms: int) -> tuple[Shelf, FeaturesAsServed]:
        with STAGE_SECONDS.labels("hydrate").time():
            shopper, degraded = await self._hydrate(query, time_ms)
        visit = Visit(shopper, time_ms, self._items, self._models.live)
        with STAGE_SECONDS.labels("candidates").time():
            found, missing = await self._find(query, visit)
        with STAGE_SECONDS.labels("filter").time():
            kept = self._filter(query, shopper, found)
            served = FeaturesAsServed(time_ms, shopper, self._items.columns(list(kept), shopper, time_ms))
        with STAGE_SECONDS.labels("score").time():
            scored, version, unscored = await self._score(served, list(kept.values()), visit)
        # Sorting is stable: equal scores keep the order in which their sources were asked.
        selected = sorted(scored, key=lambda s: -s.score)[: query.count]
        if not selected:
            degraded = degraded or "empty_catalog"
        shelf = Shelf(
            request_id=uuid.uuid4().hex,
            items=selected,
            model_version=version,
            degraded=degraded or unscored or missing,
            features_offset=shopper.offset,
            propensities=[1.0] * len(selected),  # the policy is deterministic
        )
        return shelf, _only(served, [s.item for s in selected])

    async def _hydrate(self, query: Query, time_ms: int) -> tuple[ShopperRow, str]:
        """The shopper's row with the page's items as just looked at; an empty row and the reason when the store does not answer."""
        row, degraded = ShopperRow(shopper=query.shopper), ""
        read = asyncio.get_running_loop().run_in_executor(self._threads, self._rows.read_shoppers, [query.shopper])
        try:
            row = (await asyncio.wait_for(read, self._store_timeout_s)).get(query.shopper, row)
        except TimeoutError:
            degraded = "store_late"
        except UnavailableError:
            degraded = "store_unavailable"
        if query.context:
            n = len(query.context)
            row.recent_items = [*query.context, *row.recent_items][:RECENT_MAX]
            row.recent_events = [*["view_item"] * n, *row.recent_events][:RECENT_MAX]
            row.recent_times_ms = [*[time_ms] * n, *row.recent_times_ms][:RECENT_MAX]
        return row, degraded

    async def _find(self, query: Query, visit: Visit) -> tuple[dict[str, str], str]:
        """item → source, in order of precedence; and why a source is missing, if one is."""
        if query.candidates:
            return dict.fromkeys(query.candidates, "request"), ""
        found: dict[str, str] = {}
        missing = ""
        answers = await asyncio.gather(*(source.candidates(visit) for source in self._sources), return_exceptions=True)
        for source, answer in zip(self._sources, answers, strict=True):
            if isinstance(answer, LiveshelfError):
                missing = f"{source.name}_unavailable"
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for item in answer:
                    found.setdefault(item, source.name)
        return found, missing

    def _filter(self, query: Query, shopper: ShopperRow, found: dict[str, str]) -> dict[str, str]:
        """Drop what must not be shown. The caller's own candidates are ranked as they are."""
        if query.candidates:
            return found
        bought = {i for i, event in zip(shopper.recent_items, shopper.recent_events, strict=True) if event == "purchase"}
        unwanted = bought | query.exclude | set(query.context)
        return {item: source for item, source in found.items() if item not in unwanted and self._items.available(item)}

    async def _score(self, served: FeaturesAsServed, sources: list[str], visit: Visit) -> tuple[list[Scored], int, str]:
        """Scores by the model, or by heuristics with version 0 and the reason."""
        if not sources:
            return [], 0, ""
        model, reason = visit.model, self._models.reason
        if model is not None:
            try:
                return await model.rank(served, sources), model.version, ""
            except ModelNotFoundError as error:
                reason = error.reason
                await self._models.refresh()
            except ModelUnavailableError as error:
                reason = error.reason
                log.warning("model did not score", version=model.version, error=str(error))
        return _by_heuristics(served, sources), 0, reason

    def _last_resort(self, query: Query, time_ms: int, reason: str) -> tuple[Shelf, FeaturesAsServed]:
        """What is popular, from this process's memory alone; the caller's own candidates in their order."""
        shopper = ShopperRow(shopper=query.shopper)
        wanted = query.candidates or [
            item
            for item, _ in self._items.popular(time_ms, query.count + len(query.exclude) + len(query.context))
            if item not in query.exclude and item not in query.context
        ]
        items = [Scored(item, "fallback", 0.0) for item in wanted[: query.count]]
        shelf = Shelf(uuid.uuid4().hex, items, degraded=reason, propensities=[1.0] * len(items))
        columns = self._items.columns([s.item for s in items], shopper, time_ms)
        return shelf, FeaturesAsServed(time_ms, shopper, columns)

    def _log(self, query: Query, time_ms: int, shelf: Shelf, served: FeaturesAsServed) -> None:
        if not shelf.items:
            return
        self._log_impression(
            Impression(
                request_id=shelf.request_id,
                shopper=query.shopper,
                session=query.session,
                time_ms=time_ms,
                placement=query.placement,
                context_items=list(query.context),
                model_version=shelf.model_version,
                degraded=shelf.degraded,
                items=[s.item for s in shelf.items],
                scores=[s.score for s in shelf.items],
                sources=[s.source for s in shelf.items],
                propensities=shelf.propensities,
                features=served,
            )
        )


def _by_heuristics(served: FeaturesAsServed, sources: list[str]) -> list[Scored]:
    features = encode_candidates(served.shopper, served.candidates)["candidate_features"]
    scores = (features @ _HEURISTIC_WEIGHTS).tolist()
    return [Scored(item, source, score) for item, source, score in zip(served.candidates.items, sources, scores, strict=True)]


def _only(served: FeaturesAsServed, items: list[str]) -> FeaturesAsServed:
    """The features of `items` alone, in that order."""
    at = {item: i for i, item in enumerate(served.candidates.items)}
    rows = [at[item] for item in items]
    all_of = served.candidates
    columns = ItemColumns(
        items=items,
        counts=[all_of.counts[i] for i in rows],
        price=[all_of.price[i] for i in rows],
        category=[all_of.category[i] for i in rows],
        brand=[all_of.brand[i] for i in rows],
        covisit=[all_of.covisit[i] for i in rows],
    )
    return FeaturesAsServed(served.time_ms, served.shopper, columns)
