"""Overload of one scorer: what it answers in time at three times its capacity. `python -m tests.bench.overload [SECONDS]`

A real scorer process on a real Kafka and Valkey, 5,000 items with neighbours; with a model in a real model server, and before that without
(`heuristic_…`: shelves are heuristic, so that the scorer's own work is what is measured). Capacity is what 16 callers get who ask again as
soon as they are answered; then calls are made at a fixed rate of 1, 2 and 3 times that, whether or not earlier ones were answered, with a
deadline of 200 ms. Goodput counts answers in time that the whole pipeline made: no refusals, and with a model none without its scores.
Prints a table and, last, one JSON object.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
import uvloop
from confluent_kafka import Producer

from features.registry import declared_set
from features.rows import CatalogItem
from features.store import FeatureRows
from liveshelf.local.parts import role_environment
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings
from liveshelf.v1 import recommendation_pb2 as pb
from liveshelf.v1.recommendation_pb2_grpc import RecommendationServiceStub
from streams.records import encode
from streams.topics import CATALOG, ITEM_UPDATES, item_update_key, kafka_config
from tests.conftest import broker, local_settings, running, wait_for_port
from tests.live_shop import export_model, item_id, role, serving_state, until

ITEMS = 5_000
DEADLINE_S = 0.2
CALLERS = 16
WARM_UP_S = 3.0


def seed(settings: Settings) -> None:
    """Items with neighbours and popularity, as the collector and the agents would have left them in the log."""
    features, dice, now_ms = declared_set(settings), random.Random(7), int(time.time() * 1000)
    producer = Producer(kafka_config(settings))
    for n in range(ITEMS):
        item = CatalogItem(
            item_id=item_id(n), item_name=f"Item {n}", item_category=f"c{n % 20}", price=float(n % 90), time_ms=now_ms
        )
        producer.produce(CATALOG, encode(item), item.item_id)
        row = features.item(item_id(n), 0)
        row.offset, row.time_ms = n, now_ms
        row.numbers = [dice.random() * 50 for _ in row.numbers]
        row.neighbours = {item_id(dice.randrange(ITEMS)): dice.random() for _ in range(30)}
        producer.produce(ITEM_UPDATES, encode(row), item_update_key(features.version, row.item), partition=0)
        producer.poll(0)
    assert producer.flush(30) == 0


class Load:
    """Calls of Recommend, and what became of them. `modelled`: only what the model scored is good."""

    def __init__(self, address: str, modelled: bool) -> None:
        self._modelled = modelled
        # A connection each for a few callers, as from several backends.
        self._channels = [grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) for _ in range(4)]
        self._stubs = [RecommendationServiceStub(channel) for channel in self._channels]
        self._dice = random.Random(11)
        self.outcomes: Counter[str] = Counter()
        self.times_s: list[float] = []

    async def call(self) -> None:
        page = [item_id(self._dice.randrange(ITEMS)) for _ in range(3)]
        request = pb.RecommendRequest(shopper=pb.Shopper(client_id=f"c{self._dice.randrange(1_000)}"), context_item_ids=page)
        started = time.perf_counter()
        try:
            answer = await self._dice.choice(self._stubs).Recommend(request, timeout=DEADLINE_S)
            whole = not answer.degraded if self._modelled else answer.degraded_reason != "deadline"
            self.outcomes["good" if whole else "fallback"] += 1
            self.times_s.append(time.perf_counter() - started)
        except grpc.aio.AioRpcError as error:
            self.outcomes[error.code().name] += 1

    async def closed(self, seconds: float) -> float:
        """As many answers a second as CALLERS get who wait for each."""
        self.outcomes.clear()
        ends = time.monotonic() + seconds

        async def caller() -> None:
            while time.monotonic() < ends:
                await self.call()

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return self.outcomes["good"] / seconds

    async def open(self, rate: float, seconds: float) -> dict[str, float]:
        """Calls at `rate` a second, come what may."""
        self.outcomes.clear()
        self.times_s.clear()
        started, sent, calls = time.monotonic(), 0, set()
        while (elapsed := time.monotonic() - started) < seconds:
            while sent < elapsed * rate:
                task = asyncio.create_task(self.call())
                calls.add(task)
                task.add_done_callback(calls.discard)
                sent += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*calls)
        times = sorted(self.times_s) or [0.0]
        return {
            "offered_rps": sent / seconds,
            "good_rps": self.outcomes["good"] / seconds,
            "refused_rps": self.outcomes["RESOURCE_EXHAUSTED"] / seconds,
            "late_rps": (self.outcomes["DEADLINE_EXCEEDED"] + self.outcomes["fallback"]) / seconds,
            "other_rps": sum(n for code, n in self.outcomes.items() if code not in KNOWN) / seconds,
            "p50_ms": times[len(times) // 2] * 1000,
            "p99_ms": times[int(len(times) * 0.99)] * 1000,
        }

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


KNOWN = ("good", "fallback", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


async def measure(address: str, seconds: float, modelled: bool) -> dict[str, float]:
    load = Load(address, modelled)
    await load.closed(WARM_UP_S)
    capacity = await load.closed(seconds)
    print(f"capacity {capacity:.0f} answers/s ({CALLERS} callers)")
    found: dict[str, float] = {"capacity_rps": capacity}
    for times in (1, 2, 3):
        row = await load.open(times * capacity, seconds)
        print(f"{times} × capacity: " + ", ".join(f"{name} {value:.0f}" for name, value in row.items()))
        found |= {f"x{times}_{name}": value for name, value in row.items()}
        await asyncio.sleep(1)
    found["goodput_share_at_x3"] = found["x3_good_rps"] / capacity
    await load.close()
    return found


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        with broker(home) as kafka:
            settings = local_settings(home, kafka=kafka.kafka, scoring_concurrency_max=int(os.environ.get("CMAX", 64)))
            seed(settings)
            FeatureRows(settings, 5.0).register_first()
            with (
                running(valkey_command(settings), home / "store.log") as store,
                running(
                    [sys.executable, "-m", "serving.service"], home / "s.log", env=role_environment(settings, os.environ)
                ) as scorer,
            ):
                wait_for_port(settings.store_port, store, home / "store.log")
                wait_for_port(settings.scoring_port, scorer, home / "s.log")
                before = uvloop.run(measure(settings.scoring_address, seconds, modelled=False))
                found = {f"heuristic_{name}": value for name, value in before.items()}
                export_model(settings, ITEMS)
                with role(settings, "serving.model_server", home / "m.log"):
                    until(lambda: serving_state(settings).get("model") == 1, 120, "the model serves")
                    found |= uvloop.run(measure(settings.scoring_address, seconds, modelled=True))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
