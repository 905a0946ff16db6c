"""FEATURE → SCORE → IMPRESSION: the whole request, in one place.

hydrate → find candidates → filter → score → select → log. When a part is down or late the stage goes on without it and the shelf says
so (`degraded`). The chain: full → model without retrieval → heuristics with the last good scores → popular by category → the list on disk.

C candidates; items are row numbers of the side's catalog from the edge inwards.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import structlog
from prometheus_client import Counter, Histogram

from features.catalog import Catalog, Rows
from features.encoder import Inputs, look_at
from features.events import EVENT_INDEX
from features.rows import CandidateColumns, ShopperRow
from features.store import FeatureRows
from liveshelf.errors import LiveshelfError, NotFoundError
from serving.breakers import Breaker, PartUnavailableError
from serving.candidates import NOTHING, CandidateSource, Visit
from serving.diversify import Kinds, diversify
from serving.explore import explore
from serving.fallback import LAST_GOOD_ITEMS, LastGood, Side, StaticShelves
from serving.live_model import OBJECTIVE_WEIGHTS, LiveModel, ModelFollower
from serving.model_client import ModelNotFoundError
from serving.query import ANYTHING, Filters, Query, Scored, Shelf
from serving.rules import NO_RULES, Rules
from streams.records import Impression
from streams.tracing import Tracing

__all__ = ["Policy", "ShelfMaker", "Side"]

log = structlog.get_logger()

STAGE_SECONDS = Histogram(
    "liveshelf_scoring_stage_seconds",
    "Time of a request by stage",
    ["stage"],
    buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256),
)
SOURCE_SECONDS = Histogram(
    "liveshelf_scoring_source_seconds",
    "Time of a candidate source",
    ["source"],
    buckets=(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
)
CANDIDATES = Counter(
    "liveshelf_scoring_candidates_total", "Candidates found by source, before those found earlier are taken off", ["source"]
)
SOURCE_FAILED = Counter(
    "liveshelf_scoring_source_failed_total", "Times that a source was missing from a request", ["source", "reason"]
)
SHELVES = Counter("liveshelf_scoring_shelves_total", "Shelves answered, by why they were degraded (empty: not)", ["degraded"])
SHOWN = Counter("liveshelf_scoring_shown_total", "Items shown by candidate source", ["source"])
EXPLORED = Counter("liveshelf_scoring_explored_total", "Items shown in place of the greedy one")

# A child is found by its label under a lock; there are few, and a request needs thirty.
_stage_seconds, _source_seconds = cache(STAGE_SECONDS.labels), cache(SOURCE_SECONDS.labels)
_candidates, _shelves, _shown = cache(CANDIDATES.labels), cache(SHELVES.labels), cache(SHOWN.labels)

DEADLINE_MARGIN_S = 0.01  # kept back of the deadline for the last resort and the answer's way home
STORE_SHARE, RETRIEVAL_SHARE = (
    0.3,
    0.5,
)  # of what is left of the deadline when the stage begins: the rest is for the stages after it

TURNS_TO_SEND = 3  # of the event loop: the asking task begins, its question's call begins, gRPC's own begins and writes

PURCHASE = EVENT_INDEX["purchase"]


@dataclass(frozen=True)
class Policy:
    """How scored candidates become a shelf; see `liveshelf.settings` for each."""

    diversity: float = 0.0
    explore_share: float = 0.0
    price_weight: float = 0.0


class Found(NamedTuple):
    """Candidates in order of precedence."""

    rows: Rows
    """[C] UNKNOWN for a caller's candidate that nobody heard of."""
    source: npt.NDArray[np.int8]
    """[C] place in `names`."""
    names: list[str]

    def kept(self, keep: npt.NDArray[np.bool_]) -> "Found":
        return Found(self.rows[keep], self.source[keep], self.names)


class Scores(NamedTuple):
    """[C] what the shelf is ordered by, and [C, 3] the model's probabilities; version 0 when no model scored."""

    scores: npt.NDArray[np.float32]
    chances: npt.NDArray[np.float32]
    version: int
    unscored: str


class Made(NamedTuple):
    """A shelf, and what its impression is made of."""

    shelf: Shelf
    side: Side
    shopper: ShopperRow
    inputs: Inputs
    columns: CandidateColumns
    places: list[int]
    """Of the shelf's items among the candidates."""


@dataclass
class Clock:
    """What is left of a request's time, and where it went."""

    until_s: float
    timings_ms: dict[str, float] = field(default_factory=dict)
    tracing: Tracing | None = None

    def left_s(self) -> float:
        return self.until_s - time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            if self.tracing is None:
                yield
            else:
                with self.tracing.stage(name):
                    yield
        finally:
            took = time.perf_counter() - began
            self.timings_ms[name] = 1000 * took
            _stage_seconds(name).observe(took)


class ShelfMaker:
    """Answers queries. `log_impression` must not block: it is called after the answer is made.

    `side` gives what a feature version needs ("" for the newest), None when it is not known. `rules` gives the business rules in force,
    `items_state` what is wrong with the item memory (a degraded reason; empty: nothing), `static` is the last resort of all.
    """

    def __init__(
        self,
        rows: FeatureRows,
        side: Callable[[str], Side | None],
        models: ModelFollower,
        sources: Sequence[CandidateSource],
        log_impression: Callable[[Impression], None],
        store_timeout_s: float,
        clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        *,
        model_timeout_s: float = 0.1,
        policy: Policy = Policy(),
        rules: Callable[[], Rules] = lambda: NO_RULES,
        items_state: Callable[[], str] = lambda: "",
        static: StaticShelves | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._rows, self._side, self._models, self._sources = rows, side, models, sources
        self._log_impression, self._clock_ms = log_impression, clock_ms
        self._policy, self._rules, self._items_state, self._static = policy, rules, items_state, static
        self._tracing = tracing
        self._last_good = LastGood()
        self._store = Breaker("store", "store_late", store_timeout_s)
        # A canary has breakers of its own: what is wrong with it must not keep the others from the stable version.
        self._rank = {who: Breaker(f"rank{who}", "model_server_timeout", model_timeout_s) for who in ("", "_canary")}
        self._asked = {
            s.name + who: Breaker(s.name + who, f"{s.name}_late", s.timeout_s) for s in sources if s.timeout_s for who in self._rank
        }

    def side(self, shopper: str | None = None) -> tuple[Side, LiveModel | None]:
        """What a request is answered with from beginning to end: one model version and its features; the stable one without a shopper."""
        model = self._models.live if shopper is None else self._models.of(shopper)
        side = self._side(model.feature_version if model else "")
        if side is None:
            model, side = None, self._side("")
        assert side is not None, "the newest feature version is always known"
        return side, model

    async def shelf(self, query: Query, deadline_s: float, logged: bool = True) -> Shelf:
        """The shelf for `query`, within `deadline_s`, whatever is down. Cancelled, it stops what it asked of others.

        `logged` False: nothing is counted or logged of it, no impression either.
        """
        began = time.perf_counter()
        budget_s = max(deadline_s - DEADLINE_MARGIN_S, 0.0)
        clock = Clock(began + budget_s, tracing=self._tracing)
        time_ms = self._clock_ms()
        side, model = self.side(query.shopper)
        try:
            async with asyncio.timeout(budget_s):
                made = await self._full(query, time_ms, side, model, clock)
                if not made.shelf.model_version and model is not None and (now := self.side())[1] not in (model, None):
                    # The version was unloaded meanwhile, or is a canary that fails: from the beginning, with the one that answers.
                    side, model = now
                    made = await self._full(query, time_ms, side, model, clock)
        except TimeoutError:
            made = self._last_resort(query, time_ms, side, "deadline")
        except Exception:
            log.exception("shelf failed, answering what is popular", placement=query.placement)
            made = self._last_resort(query, time_ms, side, "internal_error")
        shelf = made.shelf
        clock.timings_ms["total"] = 1000 * (time.perf_counter() - began)
        shelf.timings_ms = clock.timings_ms
        if self._tracing is not None:
            self._tracing.note(
                request_id=shelf.request_id,
                model_version=shelf.model_version,
                features_partition=made.shopper.partition,
                features_offset=shelf.features_offset,
                degraded=shelf.degraded,
                items=len(shelf.items),
            )
        if logged:
            asyncio.get_running_loop().call_soon(self._after, query, time_ms, made)
        return shelf

    async def _full(self, query: Query, time_ms: int, side: Side, model: LiveModel | None, clock: Clock) -> Made:
        with clock.stage("hydrate"):
            shopper, late = await self._hydrate(query, time_ms, side, clock)
        visit = Visit(shopper, side.encoder.shopper(shopper, time_ms), time_ms, side.items, side.lists, model)
        with clock.stage("candidates"):
            found, missing = await self._find(query, visit, clock)
        with clock.stage("filter"):
            rules = self._rules()
            if not query.candidates:
                found = found.kept(allowed(query, shopper, found.rows, side.items.records, rules))
            if not len(found.rows) and not query.candidates:
                return self._last_resort(query, time_ms, side, self._items_state() or late or "no_candidates")
        with clock.stage("encode"):
            columns = side.items.columns_at(found.rows, shopper, time_ms, query.candidates)
            inputs = visit.encoded | side.encoder.candidates(shopper, columns, time_ms)
        with clock.stage("score"):
            scored = await self._score(query, found, inputs, side, model, time_ms, clock)
        with clock.stage("select"):
            shelf, places = self._select(query, found, scored, side, rules)
        shelf.degraded = late or scored.unscored or missing or self._items_state()
        shelf.features_offset = shopper.offset
        return Made(shelf, side, shopper, inputs, columns, places)

    async def _hydrate(self, query: Query, time_ms: int, side: Side, clock: Clock) -> tuple[ShopperRow, str]:
        """The shopper's row with the page's items as just looked at; an empty row and the reason when the store does not answer."""
        row, late = side.features.shopper(query.shopper), ""

        async def read(_: float) -> ShopperRow | None:
            return await self._rows.shopper(query.shopper, side.features)

        try:
            stored = await self._store.ask(read, STORE_SHARE * clock.left_s())
            row = row if stored is None else stored
        except PartUnavailableError as error:
            late = error.reason
        look_at(row, query.context, time_ms, side.features.sequence.n)
        return row, late

    async def _find(self, query: Query, visit: Visit, clock: Clock) -> tuple[Found, str]:
        """Candidates, each with the first source that found it; and why a source is missing, if one is."""
        records = visit.items.records
        if query.candidates:
            rows = records.rows(query.candidates)
            return Found(rows, np.zeros(len(rows), dtype=np.int8), ["request"]), ""
        missing = ""
        answers: list[Rows] = []
        asked: dict[int, asyncio.Task[Rows]] = {}
        left_s = RETRIEVAL_SHARE * clock.left_s()
        try:
            for place, source in enumerate(self._sources):  # other processes work while this one looks into its memory
                if source.timeout_s and not isinstance(answer := source.candidates(visit), np.ndarray):
                    asked[place] = asyncio.ensure_future(self._ask(source, answer, left_s, self._who(visit.model)))
            if asked:
                for _ in range(TURNS_TO_SEND):
                    await asyncio.sleep(0)
            for source in self._sources:
                answers.append(NOTHING if source.timeout_s else self._looked_up(source, visit))
            for place, task in asked.items():
                try:
                    answers[place] = await task
                except (LiveshelfError, TimeoutError) as error:
                    reason = getattr(error, "reason", "unavailable")
                    SOURCE_FAILED.labels(self._sources[place].name, reason).inc()
                    missing = missing or f"{self._sources[place].name}_unavailable"
        finally:
            for task in asked.values():
                task.cancel()
        names = [source.name for source in self._sources]
        return _merged(
            [a[: s.quota] for a, s in zip(answers, self._sources, strict=True)], names, query, records, self._rules()
        ), missing

    async def _ask(self, source: CandidateSource, answer: Awaitable[Rows], left_s: float, who: str) -> Rows:
        began = time.perf_counter()

        async def wait(_: float) -> Rows:
            return await answer

        try:
            found = await self._asked[source.name + who].ask(wait, left_s)
        except NotFoundError:
            await self._models.refresh()
            raise
        finally:
            if asyncio.iscoroutine(answer):
                answer.close()  # never started where the circuit is open
            _source_seconds(source.name).observe(time.perf_counter() - began)
        _candidates(source.name).inc(min(len(found), source.quota))
        return found

    def _who(self, model: LiveModel | None) -> str:
        return "_canary" if model is not None and model is self._models.canary else ""

    def _looked_up(self, source: CandidateSource, visit: Visit) -> Rows:
        began = time.perf_counter()
        found = source.candidates(visit)
        assert isinstance(found, np.ndarray), f"{source.name} has no timeout, so it must answer at once"
        _source_seconds(source.name).observe(time.perf_counter() - began)
        _candidates(source.name).inc(min(len(found), source.quota))
        return found

    async def _score(
        self, query: Query, found: Found, inputs: Inputs, side: Side, model: LiveModel | None, time_ms: int, clock: Clock
    ) -> Scores:
        """By the model, or by heuristics and the last good scores with version 0 and the reason."""
        reason = self._models.reason
        if model is not None:
            try:
                chances = await self._rank[self._who(model)].ask(partial(model.rank, inputs, len(found.rows)), clock.left_s())
            except ModelNotFoundError as error:
                reason = error.reason
                await self._models.refresh()
            except PartUnavailableError as error:
                reason = error.reason
            else:
                scores = chances @ OBJECTIVE_WEIGHTS
                if self._policy.price_weight:
                    scores = valued(
                        chances, side.items.records.price[np.maximum(found.rows, 0)] * (found.rows >= 0), self._policy.price_weight
                    )
                return Scores(scores, chances, model.version, "")
        scores = side.by_heuristics(inputs["candidate_features"])
        if (good := self._last_good.scores(query.shopper, time_ms, found.rows)) is not None:
            scores = scores + good
        return Scores(scores, np.zeros((len(scores), len(OBJECTIVE_WEIGHTS)), dtype=np.float32), 0, reason)

    def _select(self, query: Query, found: Found, scored: Scores, side: Side, rules: Rules) -> tuple[Shelf, list[int]]:
        """Order, rules, variety, exploration, and the cut. Sorting is stable: equal scores keep the order of their sources."""
        records, scores = side.items.records, scored.scores
        if (factors := rules.factors(found.rows, records, query.placement)) is not None:
            scores = np.where(scores >= 0, scores * factors, scores / factors).astype(np.float32)
        order = (-scores).argsort(kind="stable")
        if scored.version:
            best = order[:LAST_GOOD_ITEMS]
            self._last_good.keep(query.shopper, self._clock_ms(), found.rows.take(best), scores.take(best))
        request_id = uuid.uuid4().hex
        if query.candidates:
            places, propensities = order[: query.count].tolist(), [1.0] * min(query.count, len(order))
        else:
            if self._policy.diversity:
                kinds = Kinds(*(_nameless(records, name, found.rows) for name in ("item_category", "item_brand")))
                order = diversify(scores, order, kinds, query.count, self._policy.diversity)
            order, fixed = _pinned(order, found.rows, rules.pins(records, query.placement))
            new = side.lists.is_new(found.rows)
            places, propensities, explored = explore(order, new, query.count, self._policy.explore_share, request_id, fixed)
            EXPLORED.inc(sum(explored))
        names, at = found.names, np.array(places, dtype=np.intp)
        rows = found.rows.take(at)
        ids = [query.candidates[place] for place in places] if query.candidates else records.items(rows)
        columns = (found.source.take(at).tolist(), scores.take(at).tolist(), *scored.chances.take(at, 0).T.tolist())
        items = [Scored(item, names[source], *values) for item, source, *values in zip(ids, *columns, strict=True)]
        shelf = Shelf(
            request_id=request_id,
            items=items,
            model_version=scored.version,
            propensities=propensities,
            feature_version=side.features.version,
            rows=rows,
        )
        return shelf, places

    def _last_resort(self, query: Query, time_ms: int, side: Side, reason: str) -> Made:
        """What is popular in the page's categories, then anywhere, then what the disk holds; the caller's own candidates in their order."""
        records, rules = side.items.records, self._rules()
        shopper = side.features.shopper(query.shopper)
        look_at(shopper, query.context, time_ms, side.features.sequence.n)
        encoded = side.encoder.shopper(shopper, time_ms)
        source = "fallback"
        if query.candidates:
            items = list(query.candidates[: query.count])
        else:
            visit = Visit(shopper, encoded, time_ms, side.items, side.lists, None)
            lists = [side.lists.popular_in(code, time_ms) for code in visit.categories(3)]
            rows = np.concatenate([*lists, side.lists.popular(time_ms)])
            rows = rows[records.distinct(rows)]
            rows = rows[allowed(query, shopper, rows, records, rules)][: query.count]
            items = records.items(rows)
            if not items and self._static is not None and not len(side.items):
                source = "static"
                unwanted = query.exclude | set(query.context)
                items = [i for i in self._static.items() if i not in unwanted][: query.count] if query.filters == ANYTHING else []
            reason = reason or ("" if items else "empty_catalog")
        columns = side.items.columns(items, shopper, time_ms)
        shelf = Shelf(
            uuid.uuid4().hex,
            [Scored(item, source, 0.0) for item in items],
            degraded="empty_catalog" if not len(side.items) and reason in ("no_candidates", "") else reason,
            propensities=[1.0] * len(items),
            feature_version=side.features.version,
        )
        inputs = encoded | side.encoder.candidates(shopper, columns, time_ms)
        return Made(shelf, side, shopper, inputs, columns, list(range(len(items))))

    def _after(self, query: Query, time_ms: int, made: Made) -> None:
        """What the answer did not have to wait for: metrics, the line of a degraded answer, the impression."""
        shelf = made.shelf
        _shelves(shelf.degraded).inc()
        shown: dict[str, int] = {}
        for scored in shelf.items:
            shown[scored.source] = shown.get(scored.source, 0) + 1
        for source, count in shown.items():
            _shown(source).inc(count)
        if shelf.degraded:
            log.warning(
                "degraded shelf",
                request_id=shelf.request_id,
                reason=shelf.degraded,
                placement=query.placement,
                items=len(shelf.items),
                model_version=shelf.model_version,
                timings_ms={name: round(ms, 1) for name, ms in shelf.timings_ms.items()},
            )
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
                features=made.side.encoder.served(made.shopper, made.inputs, made.columns, time_ms, made.places),
            )
        )


def allowed(query: Query, shopper: ShopperRow, rows: Rows, records: Catalog, rules: Rules) -> npt.NDArray[np.bool_]:
    """[len(rows)] what may be shown: available, neither bought nor on the page nor excluded, and as filters and rules say."""
    filters = query.filters
    keep = np.ones(len(rows), dtype=bool) if filters.include_unavailable else records.available.take(rows)
    bought = [i for i, event in zip(shopper.recent_items, shopper.recent_events, strict=True) if event == PURCHASE]
    unwanted = records.rows([*bought, *query.exclude, *query.context])
    if len(unwanted):
        keep &= ~records.among(rows, unwanted)
    if filters != ANYTHING:
        keep &= _narrowed(filters, rows, records)
    if (by_rules := rules.allowed(rows, records, query.placement)) is not None:
        keep &= by_rules
    return keep


def _narrowed(filters: Filters, rows: Rows, records: Catalog) -> npt.NDArray[np.bool_]:
    """[len(rows)] `Filters.allow` but for availability."""
    keep = np.ones(len(rows), dtype=bool)
    for values, name in ((filters.categories, "item_category"), (filters.brands, "item_brand")):
        if values:
            codes = [code for value in values if (code := records.codes[name].get(value)) is not None]
            keep &= np.isin(records.code[name][rows], codes)
    if filters.price_min is not None or filters.price_max is not None:
        price = records.price[rows]
        keep &= records.time_ms[rows] >= 0
        keep &= price >= (-np.inf if filters.price_min is None else filters.price_min)
        keep &= price <= (np.inf if filters.price_max is None else filters.price_max)
    return keep


def valued(chances: npt.NDArray[np.float32], price: npt.NDArray[np.float64], weight: float) -> npt.NDArray[np.float32]:
    """[C] expected value: carts and purchases count as (price / median price) ** weight; without a price, as at the median.

    At weight 1 two items are equal when probability times price is; at 0 prices do not count.
    """
    priced = price > 0
    median = float(np.median(price[priced])) if priced.any() else 1.0
    worth = np.where(priced, np.maximum(price, 1e-9) / median, 1.0) ** weight
    click, cart, purchase = (chances * OBJECTIVE_WEIGHTS).T
    scores: npt.NDArray[np.float32] = (click + (cart + purchase) * worth).astype(np.float32)
    return scores


def _merged(answers: list[Rows], names: list[str], query: Query, records: Catalog, rules: Rules) -> Found:
    """The sources' answers, each item once, credited to the first; pinned items come as a source of their own."""
    pins = np.array([row for _, row in rules.pins(records, query.placement)], dtype=np.int32)
    rows = np.concatenate([*answers, pins])
    source = np.arange(len(names) + 1, dtype=np.int8).repeat([*map(len, answers), len(pins)])
    first = records.distinct(rows)
    return Found(rows.take(first), source.take(first), [*names, "pinned"])


def _nameless(records: Catalog, name: str, rows: Rows) -> npt.NDArray[np.int32]:
    """[len(rows)] codes of a field, -1 where it is empty too."""
    code = np.where(rows >= 0, records.code[name][rows], -1)
    result: npt.NDArray[np.int32] = np.where(code == records.codes[name].get("", -1), -1, code)
    return result


def _pinned(order: npt.NDArray[np.intp], rows: Rows, pins: Sequence[tuple[int, int]]) -> tuple[npt.NDArray[np.intp], int]:
    """`order` with pinned rows at their positions, and how many leading places that fixes."""
    if not pins:
        return order, 0
    by_row = {row: place for place, row in enumerate(rows.tolist())}
    wanted = [(position, by_row[row]) for position, row in pins if row in by_row]
    rest = order[~np.isin(order, [place for _, place in wanted])].tolist()
    for position, place in wanted:
        rest.insert(min(position, len(rest)), place)
    return np.array(rest, dtype=np.intp), 1 + max((position for position, _ in wanted), default=-1)
