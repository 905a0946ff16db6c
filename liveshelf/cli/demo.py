"""`liveshelf demo`: the whole loop once, from an empty shop to a model that has learned from the shopper's clicks.

start every part → seed a shop → train the first model → show a shelf → three clicks → show what moved and how soon
→ feedback on that shelf → an incremental step → the new version answers.
"""

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from liveshelf.errors import ConflictError, LiveshelfError, UnavailableError
from liveshelf.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from liveshelf.local.state import PartState
    from liveshelf.simulator.shop import Shop, Shopper

HISTORY_DAYS = 7.0
SHELF_COUNT = 10
CLICKS = 3
FEEDBACK_WINDOW_S = 5  # the shop's is minutes; the demo will not wait so long for its labels
JOIN_GRACE_S = 3.0  # the joiner waits two seconds for late events, and the log needs a moment
VISITS = 60  # some 180 shelves, two dozen clicks
STEPS_MAX = 3
TRAIN_INTERVAL_S = 600  # longer than the demo takes, so that the step it shows is the one it asked for
INTERRUPTED = 130

# Bounds on each wait. On two cores the first training, the longest, takes about 30 s.
FOLD_TIMEOUT_S, TRAIN_TIMEOUT_S, MODEL_TIMEOUT_S, CHANGE_TIMEOUT_S = 90.0, 150.0, 60.0, 30.0
POLL_S = 0.1
POLL_FRESHNESS_S = 0.002  # finer than what is measured, and still leaves the core to those who do the work
CALL_DEADLINE_MS = 2_000

Result = TypeVar("Result")


class Shown(msgspec.Struct, frozen=True):
    """One item of a shelf, as the last line reports it."""

    item_id: str
    title: str
    category: str
    price: float
    score: float
    source: str


class Report(msgspec.Struct, kw_only=True):
    """What the demo measured: the last line of `--once`."""

    ready_s: float = 0.0
    parts: list[dict[str, Any]] = []
    events: int = 0
    seed_s: float = 0.0
    fold_s: float = 0.0
    """From the last event's receipt until all are in the features."""
    train_s: float = 0.0
    freshness_ms: float = 0.0
    """From the last click's HTTP 202 to the first answer that knew of it."""
    freshness_each_ms: list[float] = []
    shelf_before: list[Shown] = []
    shelf_after: list[Shown] = []
    moved: dict[str, str] = {}
    model_versions: list[int] = []
    step: dict[str, Any] = {}
    total_s: float = 0.0


def command(
    ctx: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="Stop everything after the last step; the last line is one JSON object.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Nothing but the JSON object on stdout; the story goes to stderr.")
    ] = False,
) -> None:
    """Run the whole loop once, from an empty shop to a model that has learned.

    Starts every part on this machine, in a data directory of its own (`demo` inside the data directory; emptied each time), and stays up
    with the addresses printed until Ctrl-C, which stops every part.
    """
    from rich.console import Console

    console = Console(stderr=as_json, highlight=False)
    settings = demo_settings(ctx.obj)
    told = threading.Event()
    try:
        asyncio.run(_run(settings, console, once, as_json, told))
    except KeyboardInterrupt:
        console.print("stopped, every part is down")
        raise typer.Exit(0 if told.is_set() else INTERRUPTED) from None
    except LiveshelfError:
        Console(stderr=True).print(f"the demo stopped; its logs: {settings.data_path / 'logs'}", markup=False, soft_wrap=True)
        raise


def demo_settings(settings: Settings) -> Settings:
    """The user's settings with the demo's own parts and data, whatever Kafka or store they use otherwise."""
    return msgspec.structs.replace(
        settings,
        data_dir=str(settings.data_path / "demo"),
        kafka="",
        kafka_security_protocol="PLAINTEXT",
        kafka_replication=1,
        store="",
        model_server="",
        feedback_window_s=FEEDBACK_WINDOW_S,
        train_interval_s=TRAIN_INTERVAL_S,
        # A laptop that starts eight processes and trains is slow for a moment; the story is about the model's shelves, not the fallback's.
        recommend_deadline_ms=CALL_DEADLINE_MS,
        store_timeout_ms=CALL_DEADLINE_MS // 2,
        model_timeout_ms=CALL_DEADLINE_MS // 2,
    )


def empty_data_dir(settings: Settings) -> None:
    """Remove what an earlier demo left in the data directory.

    Raises:
        ConflictError: another demo runs there, or the directory is not one of ours.
    """
    from liveshelf.local import state

    path = settings.data_path
    if path.exists() and any(path.iterdir()) and not (path / "run.lock").exists():
        raise ConflictError(
            f"{path} is not a data directory of Liveshelf, so it will not be emptied. Set LIVESHELF_DATA_DIR elsewhere."
        )
    with contextlib.closing(state.lock_data_dir(settings)):
        state.end_leftovers(settings)
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "run.lock":
                entry.unlink()


async def _run(settings: Settings, console: "Console", once: bool, as_json: bool, told: threading.Event) -> None:
    from liveshelf.local.supervisor import Supervisor

    started = time.monotonic()
    empty_data_dir(settings)
    report, stopping = Report(), threading.Event()
    story: asyncio.Task[None] | None = None
    try:
        async with contextlib.AsyncExitStack() as stack:
            with console.status("starting") as status:
                supervisor = Supervisor(settings, on_change=_status_line(status.update))
                running = await stack.enter_async_context(supervisor)
            report.ready_s = _since(started)
            report.parts = [
                {"name": p.name, "address": p.address, "version": p.version, "ready_s": p.ready_s} for p in running.state.parts
            ]
            console.print(_parts_table(report))
            story = asyncio.create_task(asyncio.to_thread(Story(settings, console, stopping, report).tell))
            await _first_of(story, running.wait())
            report.total_s = _since(started)
            told.set()
            if not once:
                if as_json:
                    print_report(report)
                console.print(_addresses(settings), markup=False, soft_wrap=True)
                await running.wait()
    finally:
        # After the parts: a thread that waits for an answer of theirs has got it, or an error, by now.
        stopping.set()
        if story:
            await asyncio.gather(story, return_exceptions=True)
    print_report(report)  # --once, and every part is down: nothing else comes after this line


async def _first_of(story: "asyncio.Task[None]", running: Coroutine[Any, Any, None]) -> None:
    """Wait for the end of the story; raise what ends it early, be it its own error or a part's."""
    failure = asyncio.create_task(running)
    try:
        await asyncio.wait([story, failure], return_when=asyncio.FIRST_COMPLETED)
        for task in (story, failure):
            if task.done():
                task.result()
    finally:
        failure.cancel()
        await asyncio.gather(failure, return_exceptions=True)


def _status_line(update: Callable[[str], None]) -> "Callable[[PartState], None]":
    health: dict[str, str] = {}

    def on_change(part: "PartState") -> None:
        health[part.name] = part.health
        update("starting " + ", ".join(f"{name}: {state}" for name, state in health.items()))

    return on_change


def print_report(report: Report) -> None:
    typer.echo(msgspec.json.encode(report).decode())


class Story:
    """What happens once every part is up. Blocking: runs in a thread beside the supervisor's loop, and gives up when `stopping` is set."""

    def __init__(self, settings: Settings, console: "Console", stopping: threading.Event, report: Report) -> None:
        self._settings, self._console, self._stopping, self._report = settings, console, stopping, report
        self._events = 0

    def tell(self) -> None:
        """
        Raises:
            UnavailableError: a part did not do its share in time; the message names it.
        """
        import httpx

        from liveshelf.client import Client
        from liveshelf.simulator.feed import Feed
        from liveshelf.simulator.shop import Shop

        shop = Shop(self._settings.seed)
        with (
            Feed(self._settings.collector_url) as self._feed,
            Client(self._settings.scoring_address, CALL_DEADLINE_MS) as self._client,
            httpx.Client(timeout=TRAIN_TIMEOUT_S, trust_env=False) as self._http,
        ):
            self._seed(shop)
            first = self._train()
            shopper = chosen_shopper(shop)
            before = self._shelf(shopper)
            self._show(before, f"What {shopper.client_id} sees")
            after = self._click(shop, shopper, before)
            self._leave_feedback(shop, shopper, after)
            second = self._learn(shop, shopper, first)
            self._show(self._shelf(shopper), f"Version {second} answers")

    def _seed(self, shop: "Shop") -> None:
        from liveshelf.cli.simulate import bar
        from liveshelf.simulator.traffic import seed_history

        started = time.monotonic()
        with bar("seeding a week of events", quiet=not self._console.is_terminal) as progress:
            tally = seed_history(shop, self._feed, HISTORY_DAYS, _now_ms(), progress)
        if tally.rejected:
            raise LiveshelfError(f"the collector refused {tally.rejected} of the simulator's own events: {tally.reasons}")
        self._report.events, self._report.seed_s = tally.events, _since(started)
        started = time.monotonic()
        url = f"http://{self._settings.host}:{self._settings.agents_metrics_port}/readyz"

        def folded() -> int | None:
            applied = self._http.get(url).json()["applied"]
            # The log is new and holds nothing but these events: offsets count them.
            return sum(offset + 1 for offset in applied.values()) >= tally.accepted or None

        self._until(folded, FOLD_TIMEOUT_S, "agents", f"all {tally.accepted} events in the features")
        self._report.fold_s = _since(started)
        self._say(
            f"seeded {tally.catalog} items and {tally.events} events of {tally.visits} visits in {self._report.seed_s} s, "
            f"in the features {self._report.fold_s} s later"
        )

    def _train(self) -> int:
        """The first model; returns its version when it answers."""
        started = time.monotonic()
        with self._console.status("training the first model"):
            step = self._step(bootstrap=True)
            if step["outcome"] != "promoted":
                raise LiveshelfError(f"the first model was {step['outcome']}: {step['reason']}. See {self._log('trainer')}.")
            version = self._answering(int(step["version"]))
        self._report.train_s = _since(started)
        self._report.model_versions.append(version)
        self._say(f"trained and serving model {version} in {self._report.train_s} s")
        return version

    def _click(self, shop: "Shop", shopper: "Shopper", before: Any) -> Any:
        """Three clicks on items unlike the shelf, one HTTP request each; returns the shelf that knows of them all."""
        items = unlike(shop, shopper, {item.category for item in before.items})
        seen = before
        for at in items:
            self._emit(shop, shopper, "view_item", [at])
            accepted = time.monotonic()

            def changed(since: Any = seen) -> Any:
                answer = self._ask(shopper)
                return answer if is_changed(since, answer) else None

            seen = self._until(changed, CHANGE_TIMEOUT_S, "agents", "a shelf that knows of the click", POLL_FRESHNESS_S)
            self._report.freshness_each_ms.append(round((time.monotonic() - accepted) * 1_000, 1))
            self._say(f"clicked {shop.catalog[at].item_name} ({shop.catalog[at].item_category})")
        self._report.freshness_ms = self._report.freshness_each_ms[-1]
        moves = moved(before, seen)
        self._report.shelf_before, self._report.shelf_after, self._report.moved = shown(before), shown(seen), moves
        self._show(seen, f"The same shelf {self._report.freshness_ms:.0f} ms after the last click's HTTP 202", moves)
        gone = [item.title or item.item_id for item in before.items if moves[item.item_id] == "gone"]
        if gone:
            self._say("gone: " + ", ".join(gone))
        return seen

    def _leave_feedback(self, shop: "Shop", shopper: "Shopper", shelf: Any) -> None:
        """The shopper sees the shelf and follows its first item, with the shelf's request id."""
        ats = [at for item in shelf.items if (at := shop.index(item.item_id)) is not None]
        self._emit(shop, shopper, "view_item_list", ats, shelf.request_id)
        self._emit(shop, shopper, "select_item", ats[:1], shelf.request_id)

    def _learn(self, shop: "Shop", shopper: "Shopper", first: int) -> int:
        """Incremental steps on what shoppers did with their shelves, until one is promoted; returns its version when it answers.

        The gate may rightly refuse a step: a few dozen visits are little to learn from. Then more shoppers come.
        """
        for attempt in range(STEPS_MAX):
            self._visits(shop, shopper, attempt)
            with self._console.status("waiting for the feedback window"):
                self._wait(FEEDBACK_WINDOW_S + JOIN_GRACE_S)
            with self._console.status("an incremental step"):
                step = self._report.step = self._step()
            self._say(
                f"step on {step['consumed']} examples in {step['seconds']:.1f} s: {step['outcome']} {step['reason']}".rstrip()
            )
            if step["outcome"] == "promoted":
                version = self._answering(int(step["version"]))
                self._report.model_versions.append(version)
                self._say(f"model {first} → {version}")
                return version
        raise LiveshelfError(f"{STEPS_MAX} steps and none promoted; the last: {self._report.step}. See {self._log('trainer')}.")

    def _visits(self, shop: "Shop", but: "Shopper", attempt: int) -> None:
        """Simulated shoppers read shelves and follow what they like; all but the one whose shelf is shown."""
        from liveshelf.simulator.traffic import live

        with self._console.status("shoppers visit"):
            run = f"demo-{attempt}"
            tally = live(shop, self._feed, self._client, visits=VISITS, rate_per_s=0, run=run, absent=[but.index])
        self._say(f"{tally.visits} visits of others: {tally.shelves} shelves, {tally.clicks} clicks, CTR {tally.click_rate:.1%}")

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise UnavailableError("stopped")

    def _step(self, bootstrap: bool = False) -> dict[str, Any]:
        """One training step, or a first model from the whole log. The trainer may still be loading TensorFlow, or be in a step of its own."""
        return self._until(lambda: self._post_step(bootstrap), TRAIN_TIMEOUT_S, "trainer", "a training step", 1.0)

    def _post_step(self, bootstrap: bool) -> dict[str, Any]:
        import httpx

        url = f"{self._settings.trainer_url}/v1/step"
        try:
            answer = self._http.post(url, json={"bootstrap": bootstrap})
            step: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise UnavailableError(f"{url} did not answer with a step: {error}.") from error
        if answer.status_code != 200:
            kind = UnavailableError if answer.status_code in (409, 503) else LiveshelfError
            raise kind(f"{url} answered {answer.status_code}: {answer.text[:300]}. See {self._log('trainer')}.")
        return step

    def _answering(self, version: int) -> int:
        """Wait until shelves are scored by `version`."""

        def scored() -> int | None:
            answer = self._client.recommend(client_id="demo-probe", count=1, placement="demo-probe")
            return int(answer.model_version) if answer.model_version >= version and not answer.degraded else None

        return self._until(scored, MODEL_TIMEOUT_S, "scoring", f"a shelf scored by model {version}")

    def _shelf(self, shopper: "Shopper") -> Any:
        """A shelf as it should be. Under load one may come degraded, past the scorer's deadline; then the next is shown."""

        def full() -> Any:
            answer = self._ask(shopper)
            return None if answer.degraded or answer.features_offset < 0 else answer

        return self._until(full, CHANGE_TIMEOUT_S, "scoring", f"a full shelf for {shopper.client_id}")

    def _ask(self, shopper: "Shopper") -> Any:
        return self._client.recommend(client_id=shopper.client_id, count=SHELF_COUNT, placement="demo")

    def _emit(self, shop: "Shop", shopper: "Shopper", name: str, ats: list[int], request_id: str = "") -> None:
        from liveshelf.simulator.visits import Action, event_item, to_event

        items = tuple(event_item(shop, at, index if name == "view_item_list" else -1) for index, at in enumerate(ats))
        action = Action(name, items, request_id)
        event = to_event(shop, shopper.index, action, session_id="demo-visit", number=self._events, time_ms=_now_ms())
        self._events += 1
        receipt = self._feed.event(event)
        if receipt.rejected:
            raise LiveshelfError(f"the collector refused {name}: {receipt.rejected}. See {self._log('collector')}.")

    def _until(self, ask: Callable[[], Result | None], timeout_s: float, part: str, what: str, poll_s: float = POLL_S) -> Result:
        """Ask until there is a result. A part that does not answer is asked again: it may be starting."""
        deadline = time.monotonic() + timeout_s
        problem = ""
        while time.monotonic() < deadline:
            try:
                if (result := ask()) is not None:
                    return result
            except UnavailableError as error:
                problem = f" {error}"
            self._wait(poll_s)
        raise UnavailableError(f"{part}: no sign of {what} within {timeout_s:.0f} s.{problem} See {self._log(part)}.")

    def _log(self, part: str) -> str:
        return str(self._settings.data_path / "logs" / f"{part}.log")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _show(self, answer: Any, title: str, moves: dict[str, str] | None = None) -> None:
        from liveshelf.cli.recommend import shelf_table

        self._console.print(shelf_table(answer, title, moves))


def chosen_shopper(shop: "Shop") -> "Shopper":
    """Somebody not signed in, often here, and with the most pronounced taste: their shelf shows best what personal means."""
    often = sorted((s for s in shop.shoppers if not s.user_id), key=lambda s: -shop.activity[s.index])[:30]
    return max(often, key=lambda s: float(shop.category_taste(s.index, 0.0).max()))


def unlike(shop: "Shop", shopper: "Shopper", categories: set[str]) -> list[int]:
    """The most popular items of the category that the shopper likes least of those not in `categories`; catalog indices [CLICKS]."""
    from liveshelf.simulator.shop import AISLES

    taste = shop.category_taste(shopper.index, 0.0)
    others = [k for k, aisle in enumerate(AISLES) if aisle.category not in categories] or list(range(len(AISLES)))
    aisle = min(others, key=lambda k: float(taste[k]))
    return sorted((at for at in range(len(shop.catalog)) if shop.category[at] == aisle), key=lambda at: -shop.appeal[at])[:CLICKS]


def is_changed(before: Any, after: Any) -> bool:
    """The features know of a later event, and the shelf, a full one, is not what it was."""
    order = [[(item.item_id, item.score) for item in answer.items] for answer in (before, after)]
    return bool(not after.degraded and after.features_offset > before.features_offset and order[0] != order[1])


def moved(before: Any, after: Any) -> dict[str, str]:
    """How each item moved, by id: `↑3`, `↓1`, `=`, `new`, `gone`."""
    was = {item.item_id: item.position for item in before.items}
    moves = {}
    for item in after.items:
        rose = was.pop(item.item_id, None)
        if rose is None:
            moves[item.item_id] = "new"
        else:
            by = rose - item.position
            moves[item.item_id] = f"↑{by}" if by > 0 else f"↓{-by}" if by else "="
    return moves | dict.fromkeys(was, "gone")


def shown(answer: Any) -> list[Shown]:
    return [Shown(i.item_id, i.title, i.category, round(i.price, 2), round(i.score, 5), i.candidate_source) for i in answer.items]


def _parts_table(report: Report) -> Any:
    from rich.table import Table

    table = Table("part", "address", "version", title=f"Every part is healthy after {report.ready_s} s", title_justify="left")
    table.add_column("ready", justify="right")
    for part in report.parts:
        table.add_row(part["name"], part["address"], part["version"], f"{part['ready_s']:.1f} s")
    return table


def _addresses(settings: Settings) -> str:
    return (
        f"\nThe shop stays open. Events: POST {settings.collector_url}/v1/events; shelves: gRPC {settings.scoring_address}; "
        f"a training step: POST {settings.trainer_url}/v1/step.\n"
        "Try `liveshelf simulate --sessions 200` and `liveshelf recommend --client me`. Ctrl-C stops every part."
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)
