"""`make bench-features`: how fast and how small the features are. Every figure stands beside the simplest thing that does the same,
measured in the same run on the same machine; the last line is one JSON object.

Stages come in the order of STAGES; each is bounded by its own deadline. Broker, store, workers and this program share the machine.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from redis import Redis
from rich.console import Console
from rich.table import Table

from features.events import Event, EventItem
from features.feature_set import FeatureSet
from features.fold import Fold
from features.registry import declared_set
from features.rows import ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.cli.console import table_console
from liveshelf.local.parts import role_environment
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings
from streams.records import decode, encode
from streams.topics import CLICKSTREAM, PARTITIONER, kafka_config
from tests.chaos.run import AGENTS_GROUP, lag_of
from tests.conftest import broker, free_port, running, wait_for_port

SHOPPERS, ITEMS, ZIPF = 20_000, 5_000, 1.1
EVENTS = 40_000  # a burst: some ten seconds for a worker
FRESH_EVENTS_PER_S, FRESH_S, FRESH_EVERY = 1_000, 10, 20  # every 20th event is watched: 50 a second
WATCH_S, WATCHED_MAX = 0.002, 16  # a read of the oldest watched rows each 2 ms: more would take the core that is being measured
READS = 2_000
STORED_SHOPPERS, STORED_EVENTS, STORED_KINDS = 100_000, 20, 4_000
SPREAD_MS, PAUSE_LOG_MS = 14 * 86_400_000, (11.0, 2.2)  # first events over two weeks; log-normal pauses, median 60 s, mean 11 min
AGENTS, BARE = "streams.agents", "tests.bench.bare_agent"
GROUPS = {AGENTS: AGENTS_GROUP, BARE: "bench-bare"}
STARTED_S, STAGE_S = 90.0, 120.0
METARANK_GIB = 0.8  # documented for 1,000,000 users with 20 events each
READ_TIMEOUT_S = 10.0


class Bar(NamedTuple):
    """What one figure must reach, and should."""

    name: str
    what: str
    bar: float
    goal: float
    less_is_better: bool = False


BARS = (
    Bar("live_ratio", "live, one worker: of a bare agent's rate", 0.35, 0.6),
    Bar("workers2_ratio", "two workers: of one worker's rate", 1.5, 1.8),
    Bar("rebuild_events_per_s", "rebuild from the log, events/s", 50_000, 100_000),
    Bar("fresh_p50_ms", "produced → row readable, p50 ms", 60, 25, True),
    Bar("fresh_p99_ms", "produced → row readable, p99 ms", 250, 250, True),
    Bar("read_p50_ms", "one shopper through Feast, p50 ms", 1.0, 1.0, True),
    Bar("read_ratio", "the same: of a bare HGETALL", float("inf"), 2.0, True),
    Bar("store_gib_per_million", "GiB per 1,000,000 shoppers", METARANK_GIB, 0.4, True),
)


class Bench:
    """A broker and a store, and what the stages share."""

    def __init__(self, settings: Settings, home: Path) -> None:
        self.settings, self.home = settings, home
        self.rows = FeatureRows(settings, READ_TIMEOUT_S)
        self.features = declared_set(settings)
        host, _, port = settings.store_address.partition(":")
        self.redis = Redis(host=host, port=int(port))
        self.producer = Producer(
            kafka_config(settings) | {"partitioner": PARTITIONER, "linger.ms": 0, "acks": "all", "log_level": 0}
        )

    def ends(self) -> dict[int, int]:
        """Next offset of each partition of the clickstream."""
        consumer = Consumer(kafka_config(self.settings) | {"group.id": "bench"})
        try:
            return {
                p: consumer.get_watermark_offsets(TopicPartition(CLICKSTREAM, p), timeout=10)[1]
                for p in range(self.settings.partitions)
            }
        finally:
            consumer.close()

    def produce(self, events: list[Event]) -> None:
        for n, event in enumerate(events):
            self.producer.produce(CLICKSTREAM, encode(event), event.shopper.encode())
            if n % 5_000 == 0:
                self.producer.flush(30)
        self.producer.flush(30)


class Worker(NamedTuple):
    """A running worker process, its address, and its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ask(self) -> dict[str, Any]:
        """What /readyz says, ready or not; empty while nobody answers."""
        try:
            with urllib.request.urlopen(self.url, timeout=2) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)
        except OSError:
            return {}


@contextlib.contextmanager
def workers(bench: Bench, module: str, count: int) -> Iterator[list[Worker]]:
    """`count` processes of `module` that share the partitions, and have nothing left to do."""
    with contextlib.ExitStack() as stack:
        started = []
        for n in range(count):
            settings = msgspec.structs.replace(bench.settings, agents_metrics_port=free_port())
            log = bench.home / f"{module}-{n}.log"
            command = [sys.executable, "-P", "-m", module]
            process = stack.enter_context(running(command, log, env=role_environment(settings, os.environ)))
            started.append(Worker(process, f"http://{settings.host}:{settings.agents_metrics_port}/readyz", log))
        share = bench.settings.partitions // count
        _until(lambda: all(len(w.ask().get("partitions", [])) == share for w in started), f"{module} has its partitions", STARTED_S)
        _until(lambda: lag_of(bench.settings, GROUPS[module]) == 0, f"{module} is caught up", STAGE_S)
        yield started


def _until(condition: Any, what: str, deadline_s: float, pause_s: float = 0.05) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(pause_s)


def events(prefix: str, count: int, seed: int = 1) -> list[Event]:
    """Shoppers of equal activity, items by Zipf's law, one item an event."""
    rng = random.Random(seed)
    picked = rng.choices(range(ITEMS), cum_weights=list(accumulate(1 / r**ZIPF for r in range(1, ITEMS + 1))), k=count)
    names = rng.choices(["view_item", "select_item", "add_to_cart", "purchase"], [0.7, 0.15, 0.1, 0.05], k=count)
    start_ms = int(time.time() * 1000) - count
    return [
        Event(
            event_id=f"{prefix}{n:032}"[-32:],
            event_name=name,  # type: ignore[arg-type]
            shopper=f"{prefix}{rng.randrange(SHOPPERS):032}"[-32:],  # as long as a pseudonym
            time_ms=start_ms + n,
            items=(
                EventItem(
                    item_id=f"sku-{item:05}",
                    item_category=f"category-{item % 23}",
                    item_brand=f"brand-{item % 41}",
                    price=1.0 + item % 97,
                ),
            ),
        )
        for n, (item, name) in enumerate(zip(picked, names, strict=True))
    ]


# stages


def drain_rate(bench: Bench, module: str, count: int, prefix: str) -> float:
    """Events/s with which `count` workers work off EVENTS of shoppers nobody has seen. They stand still while the log is filled."""
    with workers(bench, module, count) as started:
        for worker in started:
            worker.process.send_signal(signal.SIGSTOP)
        before = bench.ends()
        bench.produce(events(prefix, EVENTS))
        ends = bench.ends()
        for worker in started:
            worker.process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + STAGE_S
        first: tuple[float, int] | None = None
        while time.monotonic() < deadline:
            applied = [worker.ask().get("applied", {}) for worker in started]
            now = time.monotonic()
            left = sum(end - 1 - max(before[p] - 1, *(a.get(str(p), -1) for a in applied)) for p, end in ends.items())
            if first is None and left < EVENTS:
                first = now, left
            if left == 0 and first:
                return first[1] / (now - first[0])
            time.sleep(0.05)
    raise TimeoutError(f"{module} did not work off {EVENTS} events in {STAGE_S:.0f} s")


def live(bench: Bench) -> dict[str, float]:
    """One worker, two workers and a bare agent, each on a burst of its own of the same make."""
    one = drain_rate(bench, AGENTS, 1, "a")
    two = drain_rate(bench, AGENTS, 2, "b")
    bare = drain_rate(bench, BARE, 1, "c")
    return {
        "live_events_per_s": one,
        "bare_events_per_s": bare,
        "live_ratio": one / bare,
        "workers2_events_per_s": two,
        "workers2_ratio": two / one,
    }


def _records(bench: Bench) -> Iterator[tuple[int, int, bytes]]:
    """The clickstream from its beginning to where it ends now."""
    ends = {p: end for p, end in bench.ends().items() if end}
    config = {"group.id": "bench-read", "enable.auto.commit": False, "queued.max.messages.kbytes": 65_536}
    consumer = Consumer(kafka_config(bench.settings) | config)
    try:
        consumer.assign([TopicPartition(CLICKSTREAM, p, 0) for p in ends])
        left = sum(ends.values())
        while left:
            for message in consumer.consume(10_000, 1.0):
                yield message.partition(), message.offset(), message.value()
                left -= 1
    finally:
        consumer.close()


def fold_log(log: Iterator[tuple[int, int, bytes]], features: FeatureSet) -> int:
    """The rebuild without the store: decode and fold. Returns the number of events."""
    fold = Fold(features)
    shoppers: dict[str, ShopperRow] = {}
    items: dict[tuple[str, int], ItemRow] = {}
    count = 0
    for partition, offset, value in log:
        event = decode(Event, value)
        row = shoppers.get(event.shopper)
        if row is None:
            row = shoppers[event.shopper] = features.shopper(event.shopper)
        said = fold.shopper(row, event, partition, offset)
        if said.touches:
            weights = fold.item_weights(event)
            for touch in said.touches:
                key = (touch.item, partition)
                item_row = items.get(key)
                if item_row is None:
                    item_row = items[key] = features.item(*key)
                fold.item(item_row, touch, event.event_name, weights, offset)
        count += 1
    return count


def rebuild(bench: Bench) -> dict[str, float]:
    """Read, decode and fold the whole log on one core, beside reading and decoding the same records."""
    started = time.perf_counter()
    count = sum(1 for _, _, value in _records(bench) if decode(Event, value))
    decoding_s = time.perf_counter() - started
    started = time.perf_counter()
    fold_log(_records(bench), bench.features)
    folding_s = time.perf_counter() - started
    return {
        "rebuild_events_per_s": count / folding_s,
        "decode_only_events_per_s": count / decoding_s,
        "rebuild_ratio": decoding_s / folding_s,
    }


def fresh(bench: Bench) -> dict[str, float]:
    """Milliseconds from producing an event until its shopper's row in the store holds its offset; beside produce → bare agent."""
    with workers(bench, AGENTS, 1):
        delays_ms = sorted(_watch_rows(bench))
    with workers(bench, BARE, 1) as (bare,):
        for _ in _at_rate(bench, stamped=True):
            pass
        _until(lambda: bare.ask()["p50_ms"], "the bare agent saw stamped events", STAGE_S)
        bare_p50_ms = bare.ask()["p50_ms"]
    return {
        "fresh_p50_ms": statistics.median(delays_ms),
        "fresh_p99_ms": delays_ms[int(len(delays_ms) * 0.99)],
        "fresh_bare_p50_ms": bare_p50_ms,
    }


def _at_rate(bench: Bench, *, stamped: bool = False) -> Iterator[tuple[Event, float, list[int]]]:
    """Produce FRESH_EVENTS_PER_S for FRESH_S; yields (event, time produced, [offset once it is acknowledged])."""
    started = time.monotonic()
    for n, event in enumerate(events("f", FRESH_EVENTS_PER_S * FRESH_S, seed=3)):
        while time.monotonic() < started + n / FRESH_EVENTS_PER_S:
            bench.producer.poll(0.001)
        offset: list[int] = []
        produced = time.perf_counter()
        sent = msgspec.structs.replace(event, value=time.time()) if stamped else event
        bench.producer.produce(
            CLICKSTREAM, encode(sent), event.shopper.encode(), on_delivery=lambda _, m, o=offset: o.append(m.offset())
        )
        yield event, produced, offset
    bench.producer.flush(10)


def _watch_rows(bench: Bench) -> list[float]:
    waiting: list[tuple[Event, float, list[int]]] = []
    delays_ms: list[float] = []
    finished = threading.Event()

    def watch() -> None:
        while not (finished.is_set() and not waiting):
            time.sleep(WATCH_S)
            here = [entry for entry in waiting[:WATCHED_MAX] if entry[2]]
            rows = bench.rows.read_shoppers([event.shopper for event, _, _ in here], bench.features)
            now = time.perf_counter()
            for entry in here:
                row = rows.get(entry[0].shopper)
                if row is not None and row.offset >= entry[2][0]:
                    delays_ms.append((now - entry[1]) * 1000)
                    waiting.remove(entry)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    for n, entry in enumerate(_at_rate(bench)):
        if n % FRESH_EVERY == 0:
            waiting.append(entry)
    finished.set()
    watcher.join(STAGE_S)
    if waiting:
        raise TimeoutError(f"{len(waiting)} watched events did not reach the store in {STAGE_S:.0f} s")
    return delays_ms


def read(bench: Bench) -> dict[str, float]:
    """One shopper's row through Feast, beside HGETALL of one row."""
    shoppers = sorted({event.shopper for event in events("a", READS)})
    keys = [
        key for key, _ in zip(bench.redis.scan_iter(count=1000), range(READS), strict=False) if bench.redis.type(key) == b"hash"
    ]
    through_feast = statistics.median(_timed_ms(lambda s: bench.rows.read_shopper(s, bench.features), shoppers))
    bare = statistics.median(_timed_ms(bench.redis.hgetall, keys))
    return {"read_p50_ms": through_feast, "hgetall_p50_ms": bare, "read_ratio": through_feast / bare}


def _timed_ms(call: Any, arguments: list[Any]) -> list[float]:
    taken = []
    for argument in arguments:
        started = time.perf_counter()
        call(argument)
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def memory(bench: Bench) -> dict[str, float]:
    """Memory that the store takes for STORED_SHOPPERS rows of STORED_EVENTS events; STORED_KINDS different ones under as many names.

    Events are a minute apart, often much more: neighbouring milliseconds would pack better than shoppers do.
    """
    bench.redis.flushall()
    before = bench.redis.info("memory")["used_memory"]
    kinds = []
    fold, rng = Fold(bench.features), random.Random(5)
    start_ms = int(time.time() * 1000) - SPREAD_MS
    stream = iter(events("m", STORED_KINDS * STORED_EVENTS, seed=4))
    for _ in range(STORED_KINDS):
        row = bench.features.shopper("")
        time_ms = start_ms + rng.randrange(SPREAD_MS)
        for offset in range(STORED_EVENTS):
            time_ms += int(rng.lognormvariate(*PAUSE_LOG_MS))
            fold.shopper(row, msgspec.structs.replace(next(stream), time_ms=time_ms), 0, offset)
        kinds.append(row)
    for start in range(0, STORED_SHOPPERS, 1_000):
        batch = [msgspec.structs.replace(kinds[n % STORED_KINDS], shopper=f"m{n:032}"[-32:]) for n in range(start, start + 1_000)]
        bench.rows.write_shoppers(batch, bench.features)
    taken = bench.redis.info("memory")["used_memory"] - before
    return {"store_gib_per_million": taken * (1_000_000 / STORED_SHOPPERS) / 2**30, "metarank_gib_per_million": METARANK_GIB}


STAGES = (live, rebuild, fresh, read, memory)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.features", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    console = Console(stderr=True, quiet=options.json)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="liveshelf-bench-") as name, _parts(Path(name)) as bench:
        for stage in STAGES:
            console.print(f"[dim]{stage.__name__} …[/dim]")
            figures |= stage(bench)
    figures["load_average"] = os.getloadavg()[0]
    figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
    if not options.json:
        table_console().print(_table(figures))
    print(json.dumps(figures))
    return 0


@contextlib.contextmanager
def _parts(home: Path) -> Iterator[Bench]:
    with broker(home) as settings:
        log = home / "valkey.log"
        with running(valkey_command(settings), log) as process:
            wait_for_port(settings.store_port, process, log)
            bench = Bench(settings, home)
            bench.rows.register_first()
            yield bench


def _table(figures: dict[str, float]) -> Table:
    table = Table("what", "figure", "bar", "goal", "", title="features", title_justify="left")
    for bar in BARS:
        value = figures[bar.name]
        met = [value <= limit if bar.less_is_better else value >= limit for limit in (bar.bar, bar.goal)]
        sign = "≤" if bar.less_is_better else "≥"
        verdict = "[green]goal met[/green]" if all(met) else "[yellow]bar met[/yellow]" if met[0] else "[red]missed[/red]"
        shown = f"{sign} {bar.bar:,g}"
        if bar.bar == float("inf"):
            shown, verdict = "–", verdict if all(met) else "[yellow]goal missed[/yellow]"
        table.add_row(bar.what, f"{value:,.0f}" if value >= 1000 else f"{value:.3g}", shown, f"{sign} {bar.goal:,g}", verdict)
    table.caption = (
        f"load average {figures['load_average']:.1f} of {os.cpu_count()} cores, which the broker, store and workers share"
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
