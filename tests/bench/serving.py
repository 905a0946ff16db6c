"""The scorer on real parts: `make bench-serving`, or `python -m tests.bench.serving [--items N] [--seconds S] [--profile FILE]`.

Kafka, store, collector, agents, model server and scorer are processes of their own, as `liveshelf up` starts them; this process asks.

    recommend_p50_ms, recommend_p99_ms            one client, one request after the other; 10 of about 500 ranked candidates
    rank_{50,100,300}_p50_ms, …_p99_ms            one client, that many candidates of its own
    load_rps, load_p99_ms, load_failed            16 clients, each asking again as soon as it is answered
    scorer_cpu_ms_per_request, model_server_…     processor time of that load: hardly depends on what else the machine does
    changed_p50_ms, changed_p99_ms                an event's 202 to the shelf that it changed, while 1,000 events/s flow
    scorer_mb_per_100k_items                      resident memory of the scorer with its items and 25,000 sessions, less that with none
    impressions_dropped                           of all requests above
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import grpc
import httpx
import msgspec
import numpy as np

from features.store import FeatureRows
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings
from liveshelf.v1 import recommendation_pb2 as pb
from liveshelf.v1 import recommendation_pb2_grpc as pb_grpc
from tests.conftest import broker, running, wait_for_port
from tests.live_shop import (
    client_id,
    export_model,
    fill_sessions,
    fill_store,
    fill_topics,
    is_serving,
    item_id,
    resident_mb,
    role,
    serving_state,
    until,
)

SHOPPERS = 1_000
SESSIONS = 25_000  # that the scorer learns from the log
CLIENTS = 16
EVENTS_PER_SECOND = 1_000
WARM_EVENTS = 2 * EVENTS_PER_SECOND
EVENTS_PER_POST = 20
DIM = 64
RANKED = (50, 100, 300)
BARS = {  # key: (bar, goal, whether more is better)
    "recommend_p50_ms": (8, 4, False),
    "recommend_p99_ms": (20, 8, False),
    "rank_50_p50_ms": (3, 1.5, False),
    "rank_50_p99_ms": (10, None, False),
    "rank_100_p50_ms": (4, 2, False),
    "rank_100_p99_ms": (12, None, False),
    "rank_300_p50_ms": (8, 5, False),
    "rank_300_p99_ms": (20, None, False),
    "load_rps": (300, 600, True),
    "load_p99_ms": (60, 40, False),
    "load_failed": (0, 0, False),
    "changed_p50_ms": (150, 60, False),
    "changed_p99_ms": (400, None, False),
    "scorer_mb_per_100k_items": (300, 100, False),
    "impressions_dropped": (0, 0, False),
}


class Bench(NamedTuple):
    settings: Settings
    items: int
    seconds: float


def p(values: list[float], q: float) -> float:
    return round(float(np.percentile(values, q)), 2) if values else float("nan")


def timed(call: Any, requests: Iterator[Any], seconds: float) -> list[float]:
    """Milliseconds of one request after the other, after a tenth of the time to warm up."""
    taken: list[float] = []
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        answer = call(next(requests), timeout=1.0)
        assert answer.items
        if now > began + seconds / 10:
            taken.append(1000 * (time.perf_counter() - now))
    return taken


def recommend_requests() -> Iterator[pb.RecommendRequest]:
    rng = random.Random(1)
    while True:
        yield pb.RecommendRequest(shopper=pb.Shopper(client_id=client_id(rng.randrange(SHOPPERS))), placement="home", count=10)


def rank_requests(items: int, count: int) -> Iterator[pb.RankRequest]:
    rng = random.Random(2)
    while True:
        chosen = [item_id(n) for n in rng.sample(range(items), count)]
        yield pb.RankRequest(shopper=pb.Shopper(client_id=client_id(rng.randrange(SHOPPERS))), item_ids=chosen)


def one_client(bench: Bench) -> dict[str, float]:
    found: dict[str, float] = {}
    with grpc.insecure_channel(bench.settings.scoring_address) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        taken = timed(stub.Recommend, recommend_requests(), bench.seconds)
        found |= {"recommend_p50_ms": p(taken, 50), "recommend_p99_ms": p(taken, 99)}
        degraded = {stub.Recommend(request).degraded_reason for request, _ in zip(recommend_requests(), range(20), strict=False)}
        print("reasons for degraded shelves:", sorted(degraded - {""}) or "none", flush=True)
        for count in RANKED:
            taken = timed(stub.Rank, rank_requests(bench.items, count), bench.seconds / 2)
            found |= {f"rank_{count}_p50_ms": p(taken, 50), f"rank_{count}_p99_ms": p(taken, 99)}
    return found


async def load(bench: Bench) -> dict[str, float]:
    taken: list[float] = []
    failed = degraded = 0
    until_s = time.perf_counter() + bench.seconds

    async def client(stub: Any, requests: Iterator[pb.RecommendRequest]) -> None:
        nonlocal failed, degraded
        while (began := time.perf_counter()) < until_s:
            try:
                answer = await stub.Recommend(next(requests), timeout=1.0)
                degraded += answer.degraded
                taken.append(1000 * (time.perf_counter() - began))
            except grpc.aio.AioRpcError as error:
                failed += 1
                print("failed:", error.code(), error.details())

    requests = recommend_requests()
    async with grpc.aio.insecure_channel(bench.settings.scoring_address) as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        await asyncio.gather(*(client(stub, requests) for _ in range(CLIENTS)))
    return {
        "load_rps": round(len(taken) / bench.seconds, 1),
        "load_p50_ms": p(taken, 50),
        "load_p99_ms": p(taken, 99),
        "load_failed": failed,
        "load_degraded": degraded,
    }


async def changed(bench: Bench) -> dict[str, float]:
    """Events of other shoppers flow; now and then one of ours, and its shelf is asked until it was made of it."""
    taken: list[float] = []
    sent = 0
    done = asyncio.Event()
    rng = random.Random(4)

    def event(who: str, item: str) -> dict[str, Any]:
        return {"name": "view_item", "client_id": who, "event_id": uuid4().hex, "items": [{"item_id": item}]}

    async with (
        httpx.AsyncClient(base_url=bench.settings.collector_url, trust_env=False, timeout=10.0) as http,
        grpc.aio.insecure_channel(bench.settings.scoring_address) as channel,
    ):
        stub = pb_grpc.RecommendationServiceStub(channel)

        async def flow() -> None:
            nonlocal sent
            due = time.perf_counter()
            while not done.is_set():
                others = [
                    event(f"other-{rng.randrange(5_000)}", item_id(rng.randrange(bench.items))) for _ in range(EVENTS_PER_POST)
                ]
                (await http.post("/v1/events", json={"events": others})).raise_for_status()
                sent += EVENTS_PER_POST
                due += EVENTS_PER_POST / EVENTS_PER_SECOND
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

        async def measure(n: int) -> None:
            who, item = f"measured-{n}", item_id(rng.randrange(1_000))
            request = pb.RecommendRequest(shopper=pb.Shopper(client_id=who), count=10)
            (await http.post("/v1/events", json=event(who, item))).raise_for_status()
            began = time.perf_counter()
            while (await stub.Recommend(request, timeout=1.0)).features_offset < 0:
                await asyncio.sleep(0.002)
                assert time.perf_counter() - began < 30, "the shelf never changed"
            taken.append(1000 * (time.perf_counter() - began))

        flowing = asyncio.create_task(flow())
        began = time.perf_counter()
        while sent < WARM_EVENTS:  # noqa: ASYNC110 - another task's progress
            await asyncio.sleep(0.02)
        n, measuring = 0, time.perf_counter()
        while time.perf_counter() < measuring + bench.seconds:
            await measure(n)
            n += 1
            await asyncio.sleep(0.02)
        took = time.perf_counter() - began
        done.set()
        await flowing
    return {
        "changed_p50_ms": p(taken, 50),
        "changed_p99_ms": p(taken, 99),
        "changed_measured": len(taken),
        "events_per_second": round(sent / took, 1),
    }


def dropped(settings: Settings) -> float:
    text = httpx.get(f"http://{settings.host}:{settings.scoring_metrics_port}/metrics", trust_env=False).text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("liveshelf_scoring_impressions_dropped ")))


def stages(settings: Settings) -> list[tuple[str, float]]:
    """Mean milliseconds by stage, of all requests."""
    text = httpx.get(f"http://{settings.host}:{settings.scoring_metrics_port}/metrics", trust_env=False).text
    sums: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        for kind in ("sum", "count"):
            for family, label in (("stage", "stage"), ("source", "source")):
                head = f'liveshelf_scoring_{family}_seconds_{kind}{{{label}="'
                if line.startswith(head):
                    sums.setdefault(f"{family} {line[len(head) :].split(chr(34))[0]}", {})[kind] = float(line.split()[1])
    return [(name, 1000 * value["sum"] / max(value["count"], 1)) for name, value in sums.items()]


def cpu_ms(process: Any) -> float:
    """Processor time of a process and its children so far."""
    import psutil

    root = psutil.Process(process.pid)
    times = [p.cpu_times() for p in [root, *root.children(recursive=True)]]
    return 1000 * sum(t.user + t.system for t in times)


def run(items: int, seconds: float, home: Path, profile: str, without_events: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    with ExitStack() as stack:
        settings = stack.enter_context(broker(home))
        settings = msgspec.structs.replace(settings, recommend_deadline_ms=1_000)
        store = stack.enter_context(running(valkey_command(settings), home / "store.log"))
        wait_for_port(settings.store_port, store, home / "store.log")
        now_ms = int(time.time() * 1000)
        fill_store(settings, SHOPPERS, items, now_ms)
        print("exporting the model", flush=True)
        export_model(settings, items, DIM)
        module = "serving.service"
        if profile:
            os.environ["BENCH_PROFILE"] = profile
            module = "tests.bench.profiled_service"
        scorer = stack.enter_context(role(settings, module, home / "scoring.log"))
        until(lambda: is_serving(settings.scoring_address), 120, f"the scorer serves; see {home}/scoring.log")
        empty_mb = resident_mb(scorer)
        began = time.perf_counter()
        fill_topics(settings, items, now_ms)
        until(lambda: serving_state(settings).get("items", 0) >= items, 300, "items loaded")
        fill_sessions(settings, SESSIONS, items, now_ms)
        until(lambda: serving_state(settings).get("sessions", 0) >= SESSIONS, 60, "sessions loaded")
        print(f"{items} items produced and loaded in {time.perf_counter() - began:.1f} s", flush=True)
        full_mb = resident_mb(scorer)
        found["scorer_mb_per_100k_items"] = round((full_mb - empty_mb) * 100_000 / items, 1)
        found["scorer_mb"] = round(full_mb, 1)
        model_server = stack.enter_context(role(settings, "serving.model_server", home / "model-server.log"))
        until(lambda: serving_state(settings).get("model") == 1, 120, f"the model serves; see {home}/model-server.log")
        found |= one_client(Bench(settings, items, seconds))
        for name, ms in stages(settings):
            print(f"  {name:<28} {ms:7.3f} ms")
        before = {"scorer": cpu_ms(scorer), "model_server": cpu_ms(model_server)}
        found |= asyncio.run(load(Bench(settings, items, seconds)))
        for name, process in (("scorer", scorer), ("model_server", model_server)):
            found[f"{name}_cpu_ms_per_request"] = round((cpu_ms(process) - before[name]) / (found["load_rps"] * seconds), 2)
        if without_events:
            found["impressions_dropped"] = dropped(settings)
            return found
        stack.enter_context(role(settings, "streams.collector", home / "collector.log"))
        stack.enter_context(role(settings, "streams.agents", home / "agents.log"))
        for port in (settings.collector_port, settings.agents_metrics_port):
            until(lambda port=port: _ready(settings, port), 120, "collector and agents are ready")
        until(lambda: _caught_up(settings, items), 300, "catalog and past sessions are in the store: they came before the events")
        found |= asyncio.run(changed(Bench(settings, items, seconds)))
        found["impressions_dropped"] = dropped(settings)
    return found


def _ready(settings: Settings, port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://{settings.host}:{port}/readyz", trust_env=False).status_code == 200
    return False


def _caught_up(settings: Settings, items: int) -> bool:
    answer = httpx.get(f"http://{settings.host}:{settings.agents_metrics_port}/readyz", trust_env=False).json()
    last = [item_id(n) for n in range(items - 100, items)]  # of every partition
    return not any(answer["lag"].values()) and len(FeatureRows(settings, 5.0).read_catalog(last)) == len(last)


def show(found: dict[str, float]) -> None:
    print(f"\n{'':<28}{'measured':>10}{'bar':>8}{'goal':>8}")
    for key, value in found.items():
        bar, goal, more = BARS.get(key, (None, None, False))
        met = "" if bar is None else "goal" if goal is not None and (value >= goal if more else value <= goal) else ""
        met = met or ("" if bar is None else "ok" if (value >= bar if more else value <= bar) else "MISSED")
        print(f"{key:<28}{value:>10}{bar if bar is not None else '':>8}{goal if goal is not None else '':>8}  {met}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--profile", default="", help="write the scorer's cProfile there (figures are then twice as slow)")
    parser.add_argument("--without-events", action="store_true", help="skip what needs collector and agents")
    given = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="liveshelf-bench-", ignore_cleanup_errors=True) as home:
        try:
            found = run(given.items, given.seconds, Path(home), given.profile, given.without_events)
        except (TimeoutError, AssertionError):
            for path in sorted(Path(home).glob("*.log")):
                print(f"--- {path.name}\n{path.read_text()[-1500:]}", file=sys.stderr)
            raise
    found |= {"load_average_before": round(before, 2), "load_average_after": round(os.getloadavg()[0], 2)}
    show(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
