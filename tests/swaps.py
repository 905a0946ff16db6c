"""A scorer on real parts whose model versions change under load: for the swap test and the swap bench."""

import asyncio
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings
from liveshelf.v1 import recommendation_pb2 as pb
from liveshelf.v1 import recommendation_pb2_grpc as pb_grpc
from tests.conftest import local_settings, running, wait_for_port
from tests.live_shop import client_id, export_model, fill_store, fill_topics, is_serving, role, serving_state, until

SHOPPERS = 50


@contextmanager
def served_shop(kafka: Settings, home: Path, items: int, **changes: object) -> Iterator[Settings]:
    """Store, model server with version 1, and scorer, as processes of their own on `kafka`."""
    settings = local_settings(home, kafka=kafka.kafka, partitions=kafka.partitions, recommend_deadline_ms=1_000, **changes)
    now_ms = int(time.time() * 1000)
    with ExitStack() as stack:
        store = stack.enter_context(running(valkey_command(settings), home / "store.log"))
        wait_for_port(settings.store_port, store, home / "store.log")
        fill_store(settings, SHOPPERS, items, now_ms)
        fill_topics(settings, items, now_ms)
        export_model(settings, items)
        stack.enter_context(role(settings, "serving.model_server", home / "model-server.log"))
        stack.enter_context(role(settings, "serving.service", home / "scoring.log"))
        until(lambda: is_serving(settings.scoring_address), 120, f"the scorer serves; see {home}/scoring.log")
        until(lambda: serving_state(settings).get("model") == 1, 120, f"the model serves; see {home}/model-server.log")
        until(lambda: serving_state(settings).get("items", 0) >= items, 120, "items loaded")
        yield settings


def copy_version(settings: Settings, version: int) -> None:
    """Version 1 once more under another number, appearing whole."""
    half = settings.model_path / f".partial-{version}"
    shutil.copytree(settings.model_path / "1", half, copy_function=os.link)
    half.rename(settings.model_path / str(version))


class PacedLoad:
    """A request every 1/rps s, whatever became of the one before."""

    def __init__(self, settings: Settings, rps: float, deadline_s: float = 1.0) -> None:
        self._settings, self._rps, self._deadline_s = settings, rps, deadline_s
        self.times_ms: list[float] = []
        self.failed: Counter[str] = Counter()
        self.degraded: Counter[str] = Counter()
        self.versions: Counter[int] = Counter()
        self.by_shopper: dict[int, set[int]] = {}

    async def until(self, done: asyncio.Event) -> None:
        async with grpc.aio.insecure_channel(self._settings.scoring_address) as channel:
            stub = pb_grpc.RecommendationServiceStub(channel)
            under_way: set[asyncio.Task[None]] = set()
            due, n = time.perf_counter(), 0
            while not done.is_set():
                task = asyncio.create_task(self._one(stub, n % SHOPPERS))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                n, due = n + 1, due + 1 / self._rps
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await asyncio.gather(*under_way)

    async def _one(self, stub: pb_grpc.RecommendationServiceStub, shopper: int) -> None:
        began = time.perf_counter()
        request = pb.RecommendRequest(shopper=pb.Shopper(client_id=client_id(shopper)), placement="home", count=10)
        try:
            answer = await stub.Recommend(request, timeout=self._deadline_s)
        except grpc.aio.AioRpcError as error:
            self.failed[error.code().name] += 1
        else:
            self.versions[answer.model_version] += 1
            self.by_shopper.setdefault(shopper, set()).add(answer.model_version)
            if answer.degraded or not answer.items:
                self.degraded[answer.degraded_reason or "no items"] += 1
        self.times_ms.append(1000 * (time.perf_counter() - began))


def trained_version(settings: Settings, version: int) -> None:
    """A version as the trainer's promotion makes it, and wait until it answers."""
    copy_version(settings, version)
    until(lambda: serving_state(settings).get("model") == version, 60, f"version {version} answers")
