"""What recommendations are worth to simulated shoppers: the loop closed in one process, on the classes that serve and train.

A visit's events go through the collector's own validation, the live fold, the join and the trainer's steps; its shelves are made by the
scorer's `ShelfMaker`. Left out are Kafka, Feast, HTTP and gRPC between them, the export of each version (weights are asked where they are),
the gate (every step is taken), and exploration, whose choices follow from random request ids. Time is the simulation's own.
"""

import asyncio
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from features.encoder import Inputs
from features.feature_set import FeatureSet
from features.rows import ShopperRow
from liveshelf.settings import Settings
from liveshelf.simulator.history import DAY_MS, START_MS, VISITS_PER_SHOPPER_DAY, history, moments, shifted
from liveshelf.simulator.shop import Shop
from liveshelf.simulator.visits import SHELF_COUNT, Page, Shelf, SimulatedEvent, to_event, visit
from serving.candidates import default_sources
from serving.fallback import Side
from serving.live_model import OBJECTIVES, ModelFollower
from serving.query import Query
from serving.shelf import Policy, ShelfMaker
from streams.intake import read_events
from streams.join import Join
from streams.pseudonym import KEY_BYTES, Pseudonyms
from streams.records import Event, Impression
from trainer.bootstrap import Past
from trainer.examples import samples_of
from trainer.increment import begin, go_on, stirred
from trainer.learner import Learner, be_deterministic
from trainer.log import Logged
from trainer.nearest import Nearest
from trainer.samples import Array, Samples, empty, stack

PATIENCE_S = 60.0  # no part is slow here but for what else the machine does, and that is not measured

OURS, FROZEN, POPULAR, POPULAR_IN_CATEGORY = "ours", "frozen", "popular", "popular_in_category"
RECOMMENDERS = (OURS, FROZEN, POPULAR, POPULAR_IN_CATEGORY)


@dataclass(frozen=True)
class Plan:
    """One simulation. All but `seed` is the same for every seed."""

    seed: int
    drift: float
    shoppers: int = 200
    items: int = 600
    history_days: float = 7.0
    """Of a shop without recommender; the first weights are learnt from it."""
    warm_days: float = 3.0
    """With ours, learning; then it is copied, and one copy learns no more."""
    days: float = 7.0
    """That are measured."""
    step_ms: int = 3_600_000


@dataclass
class Tally:
    """[S] by shopper, of one recommender."""

    shelves: Array
    shown: Array
    clicks: Array
    revenue: Array
    """Of what was bought from a shelf: by way of an item that was clicked there."""
    degraded: int = 0

    @classmethod
    def of(cls, shoppers: int) -> "Tally":
        return cls(np.zeros(shoppers), np.zeros(shoppers), np.zeros(shoppers), np.zeros(shoppers))


class _Visit(NamedTuple):
    number: int
    shopper: int
    day: float


class _Store:
    """`FeatureRows` over the rows of one world."""

    def __init__(self, past: Past) -> None:
        self._past = past

    async def shopper(self, shopper: str, features: FeatureSet) -> ShopperRow | None:
        return msgspec.structs.replace(self._past.shopper(shopper))


class _Model:
    """`ModelClient` over a learner in this process: one version, a new one after each step."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.version = learner, 1
        self._nearest = Nearest(learner)

    def stepped(self) -> None:
        self.version += 1
        self._nearest = Nearest(self.learner)

    async def versions(self) -> list[int]:
        return [self.version]

    async def labelled(self, label: str) -> int:
        return 0

    async def predict(
        self, version: int, signature: str, inputs: Inputs, timeout_s: float, outputs: Sequence[str]
    ) -> dict[str, Array]:
        assert version == self.version, (version, self.version)
        if signature == "describe":
            return {"feature_version": np.array([self.learner.features.version.encode()], dtype=object)}
        if signature == "retrieve":
            found = self._nearest.items({name: column[0] for name, column in inputs.items()}, 200)
            return {"item": np.array([[item.encode() for item in found]], dtype=object)}
        labels = np.zeros((*inputs["candidates"].shape, len(OBJECTIVES)), np.float32)
        ids = {name: inputs[name].astype("S") for name in ("recent_items", "candidates")}
        chances = self.learner.predict(Samples(**(inputs | ids), labels=labels, served=np.ones(len(labels), bool)))
        return {objective: chances[:, :, i] for i, objective in enumerate(OBJECTIVES)}


@dataclass
class _World:
    """Everything that one recommender's shoppers leave behind."""

    past: Past
    join: "Join[None]"
    reservoir: Samples
    offset: int = 0
    steps: int = 0
    due_ms: int = START_MS


class Loop:
    """One seed's shop, from its history to the end."""

    def __init__(self, plan: Plan, settings: Settings, features: FeatureSet) -> None:
        be_deterministic()
        self._plan, self._settings, self._features = plan, msgspec.structs.replace(settings, event_age_max_h=0), features
        self._shop = Shop(plan.seed, plan.items, plan.shoppers, plan.drift)
        self._pseudonyms = Pseudonyms(plan.seed.to_bytes(KEY_BYTES))
        days = plan.warm_days + plan.days
        rng = np.random.default_rng([plan.seed, 8])
        count = round(plan.shoppers * days * VISITS_PER_SHOPPER_DAY)
        visitors = rng.choice(plan.shoppers, count, p=self._shop.activity)
        starts = np.sort(moments(rng, count, days))
        self.visits = [_Visit(n, int(who), float(day)) for n, (who, day) in enumerate(zip(visitors, starts, strict=True))]

    def run(self, on_visit: Callable[[int], None] = lambda n: None) -> dict[str, Tally]:
        """What shoppers did with each of RECOMMENDERS, after the warm-up, each beginning from the same world."""
        warm = [v for v in self.visits if v.day < self._plan.warm_days]
        measured = self.visits[len(warm) :]
        world, learner = self._first()
        with asyncio.Runner() as runner:
            self._live(world, learner, True, warm, runner, on_visit)
            state, found = learner.state(), {}
            for name in RECOMMENDERS:
                own: Learner | None = None
                if name in (OURS, FROZEN):
                    own = Learner(self._features, self._plan.seed)
                    own.restore(state)
                found[name] = self._live(
                    deepcopy(world), own, name == OURS, measured, runner, on_visit, name == POPULAR_IN_CATEGORY
                )
        return found

    def _first(self) -> tuple[_World, Learner]:
        """The world after the history, and a model learnt from it."""
        plan = self._plan
        catalog = [msgspec.structs.replace(item, time_ms=START_MS - 30 * DAY_MS) for item in self._shop.catalog]
        join: Join[None] = Join(self._settings.feedback_window_s * 1000)
        world = _World(Past(catalog, plan.seed, self._features), join, empty(self._features))
        samples = []
        for simulated in shifted(history(self._shop, plan.history_days), START_MS):
            event = self._taken(simulated)
            if (sample := world.past.sample(event)) is not None:
                samples.append(sample)
            self._fold(world, event)
        learner, rng = Learner(self._features, plan.seed), np.random.default_rng([plan.seed, 10])
        first, _ = stack(samples, self._features)
        begin(learner, first, START_MS, rng)
        world.reservoir = stirred(world.reservoir, first, rng)
        return world, learner

    def _taken(self, simulated: SimulatedEvent) -> Event:
        """As the collector takes it."""
        time_ms = simulated.timestamp_micros // 1000
        intake = read_events(msgspec.json.encode(simulated), time_ms, self._settings, self._pseudonyms)
        assert len(intake.accepted) == 1, intake.refusals
        event: Event = intake.accepted[0]
        return event

    @staticmethod
    def _fold(world: _World, event: Event) -> None:
        world.past.fold(Logged(0, world.offset, event), world.offset)
        world.offset += 1

    def _live(
        self,
        world: _World,
        learner: Learner | None,
        learns: bool,
        visits: Sequence[_Visit],
        runner: asyncio.Runner,
        on_visit: Callable[[int], None],
        by_category: bool = False,
    ) -> Tally:
        """`visits` one after the other; without a learner shelves are what is popular."""
        tally = Tally.of(self._plan.shoppers)
        shelves: _Served | _Popular = (
            _Popular(world, self._features, by_category) if learner is None else _Served(world, learner, self._settings, runner)
        )
        for one in visits:
            start_ms = START_MS + int(one.day * DAY_MS)
            if learner is not None and learns and start_ms >= world.due_ms:
                self._step(world, learner, start_ms)
                assert isinstance(shelves, _Served)
                shelves.stepped()
            self._visit(one, start_ms, world, shelves, tally)
            on_visit(1)
        tally.degraded = shelves.degraded
        return tally

    def _step(self, world: _World, learner: Learner, time_ms: int) -> None:
        """Learn from the shelves whose feedback windows are over."""
        plan = self._plan
        world.due_ms = (time_ms // plan.step_ms + 1) * plan.step_ms
        examples = world.join.close().examples
        new, _ = samples_of(examples, world.past.encoder)
        if not new.size:
            return
        rng = np.random.default_rng([plan.seed, 11, world.steps])
        go_on(learner, new, world.reservoir, time_ms, rng)
        world.reservoir, world.steps = stirred(world.reservoir, new, rng), world.steps + 1

    def _visit(self, one: _Visit, start_ms: int, world: _World, shelves: "_Served | _Popular", tally: Tally) -> None:
        shop, shopper = self._shop, one.shopper
        who = shop.shoppers[shopper]
        pseudonym = self._pseudonyms.shopper(who.user_id, who.client_id, "")
        time_ms = float(start_ms)
        session = f"c{shop.seed}-{one.number:06d}"

        def shelf_for(page: Page) -> Shelf:
            tally.shelves[shopper] += 1
            return shelves.shelf(pseudonym, page, int(time_ms))

        actions = visit(shop, shopper, one.day, np.random.default_rng([shop.seed, 9, one.number]), shelf_for)
        for n, action in enumerate(actions):
            time_ms += action.after_s * 1000
            event = self._taken(to_event(shop, shopper, action, session_id=session, number=n, time_ms=int(time_ms)))
            self._fold(world, event)
            world.join.add_event(event, max(event.time_ms, world.join.events_ms), None)
            match action.name:
                case "view_item_list":
                    tally.shown[shopper] += len(action.items)
                case "select_item":
                    tally.clicks[shopper] += 1
                case "purchase" if action.request_id:
                    tally.revenue[shopper] += event.value


class _Served:
    """Shelves of the scorer."""

    def __init__(self, world: _World, learner: Learner, settings: Settings, runner: asyncio.Runner) -> None:
        self._world, self._runner, self._now_ms, self.degraded = world, runner, 0, 0
        side = Side(learner.features, world.past.items)
        self._model = _Model(learner)
        self._follower = ModelFollower(self._model, PATIENCE_S, lambda version: True)  # type: ignore[arg-type]  # the calls it makes
        self._maker = ShelfMaker(
            _Store(world.past),  # type: ignore[arg-type]  # the one call it makes
            lambda version: side,
            self._follower,
            default_sources(PATIENCE_S),
            self._log,
            PATIENCE_S,
            lambda: self._now_ms,
            model_timeout_s=PATIENCE_S,
            policy=Policy(settings.diversity, 0.0, settings.price_weight),
        )
        runner.run(self._follower.refresh())

    def stepped(self) -> None:
        self._model.stepped()
        self._runner.run(self._follower.refresh())

    def shelf(self, shopper: str, page: Page, time_ms: int) -> Shelf:
        self._now_ms = time_ms
        return self._runner.run(self._shelf(Query(shopper, "", page.placement, SHELF_COUNT, page.context)))

    async def _shelf(self, query: Query) -> Shelf:
        answer = await self._maker.shelf(query, 10 * PATIENCE_S)
        await asyncio.sleep(0)  # the impression is logged after the answer
        self.degraded += bool(answer.degraded)
        return Shelf([scored.item for scored in answer.items], answer.request_id)

    def _log(self, impression: Impression) -> None:
        join = self._world.join
        join.add_impression(impression, max(impression.time_ms, join.impressions_ms), None)


class _Popular:
    """What is engaged with most now, anywhere or, on an item's page, in its category."""

    degraded = 0

    def __init__(self, world: _World, features: FeatureSet, by_category: bool) -> None:
        self._items, self._by_category, self._asked = world.past.items, by_category, 0
        self._lists = Side(features, world.past.items).lists

    def shelf(self, shopper: str, page: Page, time_ms: int) -> Shelf:
        records = self._items.records
        rows = self._lists.popular(time_ms)
        if self._by_category and page.context and (at := records.find(page.context[-1])) >= 0:
            rows = self._lists.popular_in(int(records.code["item_category"][at]), time_ms)
        items = [item for item in records.items(rows[: 2 * SHELF_COUNT]) if item not in page.context][:SHELF_COUNT]
        self._asked += 1
        return Shelf(items, f"popular-{self._asked}")
