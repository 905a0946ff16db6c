"""Traffic through the public interfaces: past days in batches, and visits now that read real shelves, so that the loop is closed."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import msgspec
import numpy as np

from liveshelf.client import Client
from liveshelf.errors import UnavailableError
from liveshelf.simulator.browsers import browse, sign_in
from liveshelf.simulator.feed import Feed, Receipt
from liveshelf.simulator.history import DAY_MS, history, shifted
from liveshelf.simulator.shop import Shop
from liveshelf.simulator.visits import SHELF_COUNT, Identity, Page, Shelf, SimulatedEvent, to_event

VISITS_AT_ONCE = 8  # a visit mostly waits for answers; eight keep a two-core machine busy

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Tally(msgspec.Struct):
    """What traffic came to; safe to add to from several threads."""

    catalog: int = 0
    visits: int = 0
    events: int = 0
    accepted: int = 0
    rejected: int = 0
    shelves: int = 0
    shelves_degraded: int = 0
    shelves_missed: int = 0
    """No answer within the deadline: the page was shown without a shelf."""
    shown: int = 0
    clicks: int = 0
    purchases: int = 0
    logins: int = 0
    reasons: dict[str, int] = {}
    """Refusals by what the collector said."""
    _lock: Any = msgspec.field(default_factory=threading.Lock)

    @property
    def click_rate(self) -> float:
        """Clicks per item shown."""
        return self.clicks / self.shown if self.shown else 0.0

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def add_receipt(self, receipt: Receipt) -> None:
        self.add(events=receipt.accepted + len(receipt.rejected), accepted=receipt.accepted, rejected=len(receipt.rejected))
        with self._lock:
            self.reasons = dict(Counter(self.reasons) + Counter(receipt.rejected))

    def as_dict(self) -> dict[str, object]:
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if not name.startswith("_")}
        return {**fields, "click_rate": round(self.click_rate, 4)}


def seed_history(
    shop: Shop, feed: Feed, days: float, now_ms: int, progress: Progress | None = None, sign_in_share: float = 0.0
) -> Tally:
    """Send the catalog, then `days` of past events in order of event time, the last of them at `now_ms`.

    `sign_in_share` of members' visits begin anonymously.

    Raises:
        UnavailableError: the collector does not answer; what it accepted before stays in the log.
    """
    tally = Tally()
    for receipt in feed.catalog([msgspec.structs.replace(item, time_ms=now_ms) for item in shop.catalog]):
        tally.add(catalog=receipt.accepted, rejected=len(receipt.rejected))
    events = shifted(history(shop, days, sign_in_share), now_ms)
    for event in events:
        _count(tally, event)
    tally.visits = len({event.session_id for event in events})
    for receipt in feed.events(events):
        tally.add_receipt(receipt)
        if progress:
            progress(tally.events, len(events))
    return tally


def live(
    shop: Shop,
    feed: Feed,
    client: Client,
    *,
    visits: int,
    rate_per_s: float,
    run: str,
    absent: Sequence[int] = (),
    sign_in_share: float = 0.0,
    progress: Progress | None = None,
    tally: Tally | None = None,
) -> Tally:
    """`visits` visits now, begun at `rate_per_s` (0: as fast as they go), reading shelves from `client` and reporting to `feed`.

    Shoppers and their choices follow from the shop's seed; `run` goes into session and event ids, so that two runs do not repeat ids.
    Shoppers in `absent` stay away; `sign_in_share` of members' visits begin anonymously. Within a visit nobody waits to think: each event bears the time at which it is sent.

    Raises:
        UnavailableError: the collector does not answer. A scorer that does not answer costs a shelf, not the visit.
    """
    tally = Tally() if tally is None else tally
    started = time.monotonic()
    rng = np.random.default_rng([shop.seed, 4])
    present = shop.activity.copy()
    present[list(absent)] = 0.0
    visitors = rng.choice(len(shop.shoppers), size=visits, p=present / present.sum())
    slots = threading.Semaphore(VISITS_AT_ONCE)
    failed = threading.Event()

    def one(number: int) -> None:
        try:
            _visit_now(shop, feed, client, int(visitors[number]), number, run, started, sign_in_share, tally)
            tally.add(visits=1)
            if progress:
                progress(tally.visits, visits)
        except BaseException:
            failed.set()
            raise
        finally:
            slots.release()

    futures: list[Future[None]] = []
    with ThreadPoolExecutor(VISITS_AT_ONCE, thread_name_prefix="visit") as pool:
        for number in range(visits):
            slots.acquire()
            if failed.is_set():
                break
            if rate_per_s and (early_s := started + number / rate_per_s - time.monotonic()) > 0:
                time.sleep(early_s)
            futures.append(pool.submit(one, number))
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    return tally


def _visit_now(
    shop: Shop,
    feed: Feed,
    client: Client,
    shopper: int,
    number: int,
    run: str,
    started: float,
    sign_in_share: float,
    tally: Tally,
) -> None:
    session_id = f"{run}-{number:06d}"
    rng = np.random.default_rng([shop.seed, 5, number])
    plan = sign_in(shop, shopper, sign_in_share, np.random.default_rng([shop.seed, 6, number]))

    def shelf_for(page: Page, who: Identity) -> Shelf:
        try:
            answer = client.recommend(
                user_id=who.user_id,
                client_id=who.client_id,
                session_id=session_id,
                count=SHELF_COUNT,
                placement=page.placement,
                context_item_ids=page.context,
            )
        except UnavailableError:
            tally.add(shelves_missed=1)
            return Shelf(())
        tally.add(shelves=1, shelves_degraded=int(answer.degraded))
        return Shelf([item.item_id for item in answer.items], answer.request_id)

    day = (time.monotonic() - started) * 1_000 / DAY_MS
    for n, (action, who) in enumerate(browse(shop, shopper, day, rng, shelf_for, plan)):
        event = to_event(shop, shopper, action, session_id=session_id, number=n, time_ms=time.time_ns() // 1_000_000, who=who)
        tally.add_receipt(feed.event(event))
        _count(tally, event)


def _count(tally: Tally, event: SimulatedEvent) -> None:
    match event.event_name:
        case "view_item_list":
            tally.add(shown=len(event.items))
        case "select_item":
            tally.add(clicks=1)
        case "purchase":
            tally.add(purchases=1)
        case "login":
            tally.add(logins=1)
