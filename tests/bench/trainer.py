"""`make bench-trainer`: from 100,000 new examples in the log to a model server that answers with a version that has learnt them all.

A broker, the trainer's service and the model server are processes of their own and share the machine's cores. The shop is a seeded one
whose features are folded and encoded by the code that serves; each of its shelves comes several times, under other request ids.

    step_to_serving_s   from the first request for a step to that version's answer
    examples_per_s      examples over the seconds that the steps took
    peak_rss_mb         most memory the trainer's process held (VmHWM), TensorFlow's own 600 MB included
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from liveshelf.cli.console import table_console
from liveshelf.local.parts import role_environment
from liveshelf.settings import Settings
from serving.model_client import ModelClient
from streams.records import Example, encode
from streams.topics import CATALOG, CLICKSTREAM, PARTITIONER, TRAINING_EXAMPLES, kafka_config
from tests.conftest import broker, running, wait_for_port
from tests.planted_shop import PlantedShop
from trainer import directory

EXAMPLES, DISTINCT, SHELF = 100_000, 5_000, 20
ITEMS, CATEGORIES, SHOPPERS, EVENTS = 2_000, 40, 500, 3_000
STEP_S_MAX = 600.0
SERVED_S_MAX = 60.0
BAR_S = 60.0


def produce(settings: Settings, shop: PlantedShop, examples: int) -> int:
    """Write the log of a shop with `examples` examples; the bytes of those."""
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER, "queue.buffering.max.kbytes": 2**20})
    for item in shop.catalog():
        producer.produce(CATALOG, encode(item), item.item_id.encode())
    for event in shop.events(EVENTS):
        producer.produce(CLICKSTREAM, encode(event), event.shopper.encode())
    producer.flush(60)
    made: list[Example] = [shop.example("", size=SHELF) for _ in range(min(DISTINCT, examples))]
    size = 0
    for n in range(examples):
        example = made[n % len(made)]
        value = encode(msgspec.structs.replace(example, request_id=f"r{n}"))
        size += len(value)
        producer.produce(TRAINING_EXAMPLES, value, example.shopper.encode())
        if n % 5_000 == 0:
            producer.flush(60)
    producer.flush(60)
    return size


class Service:
    """The trainer's HTTP interface."""

    def __init__(self, settings: Settings) -> None:
        self._client = httpx.Client(base_url=settings.trainer_url, timeout=STEP_S_MAX, trust_env=False)

    def ready(self, deadline_s: float = 120.0) -> None:
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            try:
                if self._client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        sys.exit("the trainer was not ready in time")

    def step(self) -> dict[str, Any]:
        answer = self._client.post("/v1/step")
        answer.raise_for_status()
        result: dict[str, Any] = answer.json()
        return result


async def served(settings: Settings, version: int) -> None:
    """Until the model server answers for `version`."""
    async with asyncio.timeout(SERVED_S_MAX), ModelClient(settings) as client:
        while version not in await client.versions():  # noqa: ASYNC110 - the server is asked, as a scorer asks it
            await asyncio.sleep(0.02)


def peak_rss_mb(pid: int) -> float:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return float(status["VmHWM"].split()[0]) / 1024


def measure(settings: Settings, home: Path, examples: int, console: Console) -> dict[str, Any]:
    began = time.monotonic()
    shop = PlantedShop(items=ITEMS, categories=CATEGORIES, shoppers=SHOPPERS)
    size = produce(settings, shop, examples)
    console.print(f"{examples:,} examples of {size / examples / 1000:.1f} kB written in {time.monotonic() - began:.0f} s")
    environment = role_environment(settings, os.environ)
    trainer_log, server_log = home / "trainer.log", home / "model-server.log"
    with (
        running([sys.executable, "-P", "-m", "trainer.service"], trainer_log, environment) as trainer,
        running([sys.executable, "-P", "-m", "serving.model_server"], server_log, environment) as server,
    ):
        wait_for_port(settings.model_server_port, server, server_log)
        service = Service(settings)
        service.ready()
        first = service.step()
        assert first["outcome"] == "promoted", first
        asyncio.run(served(settings, first["version"]))
        began, steps = time.monotonic(), []
        while sum(step["consumed"] for step in steps) < examples:
            steps.append(service.step())
            console.print(
                f"step {len(steps)}: {steps[-1]['consumed']:,} in {steps[-1]['seconds']:.1f} s: {steps[-1]['outcome']}: {steps[-1]['reason']}",
                highlight=False,
            )
            if not steps[-1]["consumed"]:
                sys.exit(f"the trainer read nothing: {steps[-1]['reason']}")
        version = directory.live_version(settings.model_path)
        asyncio.run(served(settings, version))
        took_s = time.monotonic() - began
        phases = {name: sum(step.get("phases_s", {}).get(name, 0.0) for step in steps) for name in steps[0].get("phases_s", {})}
        return {
            "examples": examples,
            "examples_per_s": round(examples / sum(step["seconds"] for step in steps)),
            "step_to_serving_s": round(took_s, 1),
            "peak_rss_mb": round(peak_rss_mb(trainer.pid)),
            "steps": len(steps),
            "promoted": sum(step["outcome"] == "promoted" for step in steps),
            "bootstrap_s": first["seconds"],
            "phases_s": {name: round(value, 1) for name, value in phases.items()},
            "load_average": round(os.getloadavg()[0], 1),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--step-examples", type=int, default=0, help="that one step reads at most; 0: as shipped")
    parser.add_argument("--json", action="store_true", help="only the last line")
    given = parser.parse_args()
    console = Console(stderr=True, quiet=given.json)
    with tempfile.TemporaryDirectory(prefix="liveshelf-bench-", ignore_cleanup_errors=True) as name, broker(Path(name)) as kafka:
        settings = msgspec.structs.replace(kafka, train_interval_s=0)
        if given.step_examples:
            settings = msgspec.structs.replace(settings, train_examples_max=given.step_examples)
        figures = measure(settings, Path(name), given.examples, console)
    if not given.json:
        table = Table("what", "figure", title="trainer", title_justify="left")
        for key, value in figures.items():
            table.add_row(key, str(value))
        table_console().print(table)
        met = figures["step_to_serving_s"] * EXAMPLES / given.examples <= BAR_S
        console.print("bar met" if met else f"MISSED: {BAR_S:.0f} s for {EXAMPLES:,} examples")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
