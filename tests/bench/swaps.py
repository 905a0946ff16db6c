"""Version swaps under load, through the scorer: `python -m tests.bench.swaps [--swaps N] [--items N] [--rps R]`.

Kafka, store, model server and scorer are processes of their own; versions appear in the model directory as the trainer's promotions do.
A paced load runs without and with swaps, in turns, so that both meet the same neighbours on the machine.

    swaps, swap_failed, swap_degraded   of every request, with and without
    swap_p99_ratio                      p99 while versions come and go, over p99 of the same load without
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np

from liveshelf.settings import Settings
from tests.conftest import broker
from tests.swaps import PacedLoad, copy_version, served_shop

ROUNDS = 4
WARM_REQUESTS = 200
BAR = 1.5


def p(values: list[float], q: float) -> float:
    return round(float(np.percentile(values, q)), 2)


async def measure(settings: Settings, swaps: int, rps: float) -> dict[str, float]:
    steady, swapping = PacedLoad(settings, rps), PacedLoad(settings, rps)
    version = 1

    async def during(load: PacedLoad, work: Awaitable[Any]) -> float:
        done, began = asyncio.Event(), asyncio.get_running_loop().time()
        loading = asyncio.create_task(load.until(done))
        await work
        took_s = asyncio.get_running_loop().time() - began
        done.set()
        await loading
        return took_s

    async def answered(load: PacedLoad) -> None:
        while len(load.times_ms) < WARM_REQUESTS:  # noqa: ASYNC110 - the answers themselves tell
            await asyncio.sleep(0.02)

    async def swap(count: int) -> None:
        nonlocal version
        for _ in range(count):
            version += 1
            await asyncio.to_thread(copy_version, settings, version)
            async with asyncio.timeout(60):
                while not swapping.versions[version]:  # noqa: ASYNC110 - the answers themselves tell; asking the scorer would be a load
                    await asyncio.sleep(0.02)

    warm = PacedLoad(settings, rps)
    await during(warm, answered(warm))
    took_s = 0.0
    for round_ in range(ROUNDS):
        in_round = swaps * (round_ + 1) // ROUNDS - swaps * round_ // ROUNDS
        one_s = await during(swapping, swap(in_round))
        took_s += one_s
        await during(steady, asyncio.sleep(one_s))
    print("degraded with swaps:", dict(swapping.degraded), "without:", dict(steady.degraded))
    return {
        "swaps": version - 1,
        "swap_failed": sum(swapping.failed.values()) + sum(steady.failed.values()),
        "swap_degraded": sum(swapping.degraded.values()),
        "steady_degraded": sum(steady.degraded.values()),
        "swap_s_each": round(took_s / swaps, 2),
        "swap_requests": len(swapping.times_ms),
        "steady_p50_ms": p(steady.times_ms, 50),
        "steady_p99_ms": p(steady.times_ms, 99),
        "swap_p50_ms": p(swapping.times_ms, 50),
        "swap_p99_ms": p(swapping.times_ms, 99),
        "swap_p99_ratio": round(p(swapping.times_ms, 99) / p(steady.times_ms, 99), 2),
    }


def run(swaps: int, items: int, rps: float) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory(prefix="liveshelf-bench-", ignore_cleanup_errors=True) as home,
        broker(Path(home)) as kafka,
        served_shop(kafka, Path(home), items) as settings,
    ):
        return asyncio.run(measure(settings, swaps, rps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rps", type=float, default=60.0, help="on two cores, which the load itself shares: about a third of them")
    given = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    found = run(given.swaps, given.items, given.rps)
    for key, value in found.items():
        print(f"{key:<28}{value:>10}")
    print("ok" if not found["swap_failed"] and found["swap_p99_ratio"] <= BAR else f"MISSED: 0 failed and a ratio of at most {BAR}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
