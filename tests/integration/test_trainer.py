"""The trainer on a real Kafka: bootstrap, steps, refusals, crashes, and its HTTP service."""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from liveshelf.settings import Settings
from streams.records import encode
from streams.topics import CATALOG, CLICKSTREAM, TRAINING_EXAMPLES, kafka_config
from tests.planted_shop import PlantedShop
from trainer.step import Trainer


def produce(settings: Settings, topic: str, records: Iterable[Any], key: str) -> None:
    producer = Producer(kafka_config(settings) | {"partitioner": "murmur2_random"})
    for record in records:
        value = record if isinstance(record, bytes) else encode(record)
        producer.produce(topic, value, key=b"" if isinstance(record, bytes) else getattr(record, key).encode())
        producer.poll(0)
    assert producer.flush(20) == 0


@pytest.fixture(scope="module")
def shop() -> PlantedShop:
    return PlantedShop()


@pytest.fixture(scope="module")
def settings(kafka: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return msgspec.structs.replace(kafka, data_dir=str(tmp_path_factory.mktemp("trainer")), train_interval_s=0)


@pytest.fixture(scope="module")
def bootstrapped(settings: Settings, shop: PlantedShop) -> Settings:
    produce(settings, CATALOG, shop.catalog(), "item_id")
    produce(settings, CLICKSTREAM, shop.events(3_000), "shopper")
    t = time.time()
    result = Trainer(settings).bootstrap()
    print(result, time.time() - t)
    return settings


def test_x(bootstrapped, shop):
    s = bootstrapped
    tr = Trainer(s)
    for k in range(6):
        produce(s, TRAINING_EXAMPLES, shop.examples(100 if k else 700, f"a{k}"), "shopper")
        t = time.time()
        r = tr.step()
        print(r.outcome, r.reason, r.seconds, r.version, time.time() - t, {k: round(v, 4) for k, v in r.metrics.items()})
    produce(s, TRAINING_EXAMPLES, shop.examples(600, "p", poisoned=True), "shopper")
    r = tr.step()
    print(r.outcome, r.reason, r.seconds, r.version, time.time() - t, {k: round(v, 4) for k, v in r.metrics.items()})
    r = tr.step()
    print(r)
