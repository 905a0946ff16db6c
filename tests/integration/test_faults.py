"""Each part of scoring breaks under load: every request is answered in time, says why it is degraded, and all is well again by itself.

`make faults` prints the table.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("tensorflow")

from liveshelf.local.kafka import kafka_command
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings
from streams.topics import ensure_topics
from tests.conftest import HOST, local_settings, running, wait_for_port
from tests.faulty import Garbler, Proxy, garbled_model_server
from tests.live_shop import export_model, fill_store, fill_topics, is_serving, item_id, paused, role, serving_state, until
from tests.swaps import SHOPPERS, PacedLoad

ITEMS = 500
RPS = 25
DEADLINE_MS = 400  # of the scorer, and twice that of the callers: the machine that runs this may be busy
FAULT_S, AFTER_S = 3.0, 2.0
STALE_FAULT_S = 9.0  # items count as stale after 5
MODEL_REASONS = {"model_server_unavailable", "model_server_timeout", "model_garbage", "retrieval_unavailable"}


@dataclass
class Shop:
    settings: Settings
    kafka: Any
    store: Proxy
    store_process: Any
    model: Proxy
    model_process: Any
    garbler: Garbler
    while_empty: PacedLoad
    table: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    home = tmp_path_factory.mktemp("faults")
    settings = local_settings(home, recommend_deadline_ms=DEADLINE_MS, store_timeout_ms=DEADLINE_MS)
    now_ms = int(time.time() * 1000)
    with ExitStack() as stack:
        kafka = stack.enter_context(running(kafka_command(settings), home / "kafka.log"))
        wait_for_port(settings.kafka_port, kafka, home / "kafka.log")
        ensure_topics(settings, 60)
        store_process = stack.enter_context(running(valkey_command(settings), home / "store.log"))
        wait_for_port(settings.store_port, store_process, home / "store.log")
        fill_store(settings, SHOPPERS, ITEMS, now_ms)
        export_model(settings, ITEMS)
        model_process = stack.enter_context(role(settings, "serving.model_server", home / "model-server.log"))
        wait_for_port(settings.model_server_port, model_process, home / "model-server.log")
        garbler = stack.enter_context(garbled_model_server(settings.model_server_address))
        model = stack.enter_context(Proxy(garbler.port).running())
        store = stack.enter_context(Proxy(settings.store_port).running())
        (home / "serving").mkdir()
        static = {"popular": [item_id(n) for n in range(20)], "by_category": {}}
        (home / "serving" / "static-shelf.json").write_bytes(msgspec.json.encode(static))
        settings = msgspec.structs.replace(settings, store=f"{HOST}:{store.port}", model_server=f"{HOST}:{model.port}")
        stack.enter_context(role(settings, "serving.service", home / "scoring.log"))
        until(lambda: is_serving(settings.scoring_address), 120, f"the scorer serves; see {home}/scoring.log")
        until(lambda: serving_state(settings).get("model") == 1, 60, "the model serves")
        while_empty = asyncio.run(loaded(settings, FAULT_S))
        fill_topics(settings, ITEMS, now_ms)
        until(lambda: serving_state(settings).get("items", 0) >= ITEMS, 60, "items loaded")
        recovered(settings)
        shop = Shop(settings, kafka, store, store_process, model, model_process, garbler, while_empty)
        yield shop
        print(f"\n{'fault':<26}{'requests':>9}{'failed':>8}{'degraded':>10}{'p99 ms':>9}{'after':>8}{'well after s':>14}  reasons")
        print("\n".join(shop.table))


async def loaded(settings: Settings, seconds: float) -> PacedLoad:
    load, done = PacedLoad(settings, RPS, 2 * DEADLINE_MS / 1000), asyncio.Event()
    loading = asyncio.create_task(load.until(done))
    await asyncio.sleep(seconds)
    done.set()
    await loading
    return load


def recovered(settings: Settings) -> None:
    """Ten shelves in a row without a reason."""

    def well() -> bool:
        load = asyncio.run(loaded(settings, 11 / RPS))
        return not load.degraded and not load.failed

    until(well, 40, "shelves are as before")


def p99(load: PacedLoad) -> float:
    return float(np.percentile(load.times_ms, 99))


def told(shop: Shop, fault: str, during: PacedLoad, well_s: float) -> None:
    """A line of the table."""
    after = asyncio.run(loaded(shop.settings, AFTER_S))
    reasons = ", ".join(f"{reason} {count}" for reason, count in during.degraded.most_common())
    shop.table.append(
        f"{fault:<26}{len(during.times_ms):>9}{sum(during.failed.values()):>8}{sum(during.degraded.values()):>10}"
        f"{p99(during):>9.0f}{p99(after):>8.0f}{well_s:>14.1f}  {reasons or '-'}"
    )
    assert not after.failed


Fault = Callable[[Shop], AbstractContextManager[Any]]


@pytest.mark.parametrize(
    ("fault", "inject", "seconds", "reasons"),
    [
        ("store down", lambda s: s.store.down(), FAULT_S, {"store_unavailable", "store_late"}),
        ("store slow (0.5 s)", lambda s: s.store.slow(0.5), FAULT_S, {"store_unavailable", "store_late"}),
        ("store stands still", lambda s: paused(s.store_process), FAULT_S, {"store_unavailable", "store_late"}),
        ("model server down", lambda s: s.model.down(), FAULT_S, MODEL_REASONS),
        ("model server slow (0.5 s)", lambda s: s.model.slow(0.5), FAULT_S, MODEL_REASONS),
        ("model server stands still", lambda s: paused(s.model_process), FAULT_S, MODEL_REASONS),
        ("model answers NaN", lambda s: s.garbler.answering("nan"), FAULT_S, {"model_garbage"}),
        ("model answers garbage", lambda s: s.garbler.answering("garbage"), FAULT_S, {"model_garbage"}),
        ("Kafka away, items stale", lambda s: paused(s.kafka), STALE_FAULT_S, {"items_stale"}),
    ],
)
def test_every_request_is_answered_says_why_it_is_degraded_and_all_is_well_again(
    shop: Shop, fault: str, inject: Fault, seconds: float, reasons: set[str]
) -> None:
    with inject(shop):
        during = asyncio.run(loaded(shop.settings, seconds))
    began = time.monotonic()
    recovered(shop.settings)
    told(shop, fault, during, time.monotonic() - began)
    assert not during.failed
    assert set(during.degraded) & reasons, during.degraded
    assert set(during.degraded) <= reasons | {"deadline"}, during.degraded


def test_an_empty_catalog_is_answered_from_the_disk(shop: Shop) -> None:
    """Before the first catalog record; it ended by itself when the records came."""
    told(shop, "empty catalog", shop.while_empty, 0.0)
    assert not shop.while_empty.failed
    assert set(shop.while_empty.degraded) == {"empty_catalog"}
