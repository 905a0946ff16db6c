"""A shop of any size on real parts, for benchmarks and fault tests: topics filled, shoppers in the store, a model exported, roles started."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
from confluent_kafka import Producer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from features.declarations import read_declarations
from features.events import Event, EventItem
from features.feature_set import FeatureSet
from features.rows import CatalogItem, ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.local.parts import role_environment
from liveshelf.settings import Settings
from streams.pseudonym import Pseudonyms
from streams.records import encode
from streams.topics import CATALOG, CLICKSTREAM, ITEM_UPDATES, PARTITIONER, item_update_key, kafka_config
from tests.conftest import running

FEATURES = FeatureSet(read_declarations(None))
NEIGHBOURS = 10  # of an item in each of the partitions that its shoppers fall into
PARTITIONS_OF_AN_ITEM = 2
CLICKS_OF_A_SESSION = 4
CATEGORIES, BRANDS = 300, 2_000
SERVICE = "liveshelf.v1.RecommendationService"


def item_id(n: int) -> str:
    return f"item-{n:06}"


def fill_topics(settings: Settings, items: int, now_ms: int) -> None:
    """A catalog of `items`, ever less popular, and what shoppers did with them lately."""
    rng = random.Random(5)
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER, "queue.buffering.max.messages": 1_000_000})
    long_ago = now_ms - 30 * 86_400_000
    for n in range(items):
        record = CatalogItem(
            item_id=item_id(n),
            item_name=f"Item number {n} of the shop",
            item_category=f"category {n % CATEGORIES}",
            item_brand=f"brand {n % BRANDS}",
            price=1.0 + n % 97,
            time_ms=long_ago,
        )
        producer.produce(CATALOG, encode(record), record.item_id)
        for partition in rng.sample(range(settings.partitions), min(PARTITIONS_OF_AN_ITEM, settings.partitions)):
            row = _item_row(rng, n, partition, items, now_ms)
            producer.produce(ITEM_UPDATES, encode(row), item_update_key(FEATURES.version, row.item), partition=partition)
        producer.poll(0)
    assert producer.flush(120) == 0


def _item_row(rng: random.Random, n: int, partition: int, items: int, now_ms: int) -> ItemRow:
    time_ms = now_ms - rng.randrange(86_400_000)
    weights = FEATURES.item_half_lives.weights(time_ms)
    numbers = [0.0] * FEATURES.item_numbers
    for slots in FEATURES.item_slots.values():
        for slot in slots:
            numbers[slot.at] = 1_000.0 / (1 + n) ** 0.5 * rng.random() * weights[slot.half_life]
    scale = weights[FEATURES.half_life_at(FEATURES.item_half_lives, FEATURES.covisit.half_life)]
    near = {item_id((n + rng.randrange(1, 500)) % items): rng.random() * 10 * scale for _ in range(NEIGHBOURS)}
    return ItemRow(item_id(n), partition, offset=n, time_ms=time_ms, numbers=numbers, neighbours=near)


def fill_sessions(settings: Settings, sessions: int, items: int, now_ms: int) -> None:
    """What shoppers looked at in `sessions` visits of four items, near to each other as neighbours are."""
    rng = random.Random(8)
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER, "queue.buffering.max.messages": 1_000_000})
    for n in range(sessions):
        at = int(items * rng.random() ** 2)
        for click in range(CLICKS_OF_A_SESSION):
            event = Event(
                event_id=f"{n}-{click}",
                event_name="view_item",
                shopper=f"past-{n}",
                time_ms=now_ms - 86_400_000 + 3_000 * n // 4 + 20_000 * click,
                items=(EventItem(item_id=item_id((at + rng.randrange(1, 500)) % items)),),
            )
            producer.produce(CLICKSTREAM, encode(event), event.shopper)
        producer.poll(0)
    assert producer.flush(120) == 0


def client_id(n: int) -> str:
    return f"visitor-{n}"


def fill_store(settings: Settings, shoppers: int, items: int, now_ms: int) -> None:
    """Shoppers with a full sequence, counts and affinities."""
    rng = random.Random(6)
    pseudonyms, store = Pseudonyms.open(settings), FeatureRows(settings, 5.0)
    store.register_first()
    rows = []
    for n in range(shoppers):
        row: ShopperRow = FEATURES.shopper(pseudonyms.shopper("", client_id(n), ""))
        row.partition, row.offset, row.time_ms = 0, n, now_ms
        r = FEATURES.sequence.n
        row.recent_items = [item_id(int(items * rng.random() ** 2)) for _ in range(r)]
        row.recent_events = [rng.choice([1, 2, 2, 2, 3]) for _ in range(r)]
        row.recent_times_ms = [now_ms - 60_000 * i for i in range(r)]
        row.numbers = [rng.random() * 10 for _ in row.numbers]
        row.affinities = [
            {f"category {rng.randrange(CATEGORIES)}": rng.random() for _ in range(10)},
            {f"brand {rng.randrange(BRANDS)}": rng.random() for _ in range(10)},
            {str(rng.randrange(1, 8)): 1.0},
        ][: len(row.affinities)]
        rows.append(row)
    store.write_shoppers(rows, FEATURES)


def export_model(settings: Settings, items: int, dim: int | None = None) -> None:
    """A model of the trainer's making over `items`, untrained, as version 1; in a process of its own, for TensorFlow stays where it is imported."""
    subprocess.run(
        [sys.executable, "-m", "tests.live_shop", str(settings.model_path), settings.model_name, str(items), str(dim or 0)],
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parents[1],
    )


@contextmanager
def role(settings: Settings, module: str, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with running([sys.executable, "-m", module], log, env=role_environment(settings, os.environ)) as process:
        yield process


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """What `condition` answers once that is true.

    Raises:
        TimeoutError: not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")


def serving_state(settings: Settings) -> dict[str, Any]:
    """What the scorer's /readyz says; empty while it does not answer."""
    try:
        answer: dict[str, Any] = httpx.get(f"http://{settings.host}:{settings.scoring_metrics_port}/readyz", trust_env=False).json()
        return answer
    except httpx.HTTPError:
        return {}


def is_serving(address: str, service: str = SERVICE) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def resident_mb(process: "subprocess.Popen[bytes]") -> float:
    """Of the process and its children: a role may have been started through a helper."""
    import psutil

    root = psutil.Process(process.pid)
    return sum(p.memory_info().rss for p in [root, *root.children(recursive=True)]) / 2**20


@contextmanager
def paused(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """The process and its children stand still, and go on when the block ends."""
    import psutil

    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for p in everyone:
        p.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for p in everyone:
            p.send_signal(signal.SIGCONT)


def _export(model_path: Path, model_name: str, items: int, dim: int) -> None:
    from trainer import directory, export, model
    from trainer.learner import Learner
    from trainer.vocabulary import FIRST_ROW

    if dim:
        model.DIM = dim
    learner = Learner(FEATURES, 7)
    learner.vocabulary.admit(item_id(n).encode() for n in range(items))
    if (capacity := 1 << (FIRST_ROW + items).bit_length()) > learner.model.capacity:
        learner._grow(capacity)
    part = directory.partial(model_path, 1)
    export.write(learner, part, 1, model_name)
    directory.publish(part, 1)


if __name__ == "__main__":
    _export(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
