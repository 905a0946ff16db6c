"""What collector and scorer rely on, of the producer to Kafka and of the one in memory alike."""

import asyncio
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings
from streams.producer import Delivery, EventProducer, InflightLimitError, MemoryProducer, Message, Producer
from streams.topics import CLICKSTREAM, kafka_config
from tests.conftest import broker

Make = Callable[[int], Producer]


def read_back(producer: Producer, settings: Settings | None, where: Delivery) -> tuple[str | None, bytes]:
    """Key and value of the clickstream record at `where`."""
    if isinstance(producer, MemoryProducer):
        return next((key, value) for at, key, value in producer.log[CLICKSTREAM] if at == where)
    assert settings is not None
    consumer = Consumer(kafka_config(settings) | {"group.id": "contract", "enable.auto.commit": False})
    consumer.assign([TopicPartition(CLICKSTREAM, where.partition, where.offset)])
    record = consumer.poll(20)
    consumer.close()
    assert record is not None
    assert record.error() is None
    assert (record.partition(), record.offset()) == where
    return record.key().decode(), record.value()


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker of its own: what these tests send to `clickstream` is no event."""
    with broker(tmp_path_factory.mktemp("producer")) as settings:
        yield settings


@pytest.fixture(params=["memory", "kafka"])
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Make, Settings | None]]:
    if request.param == "memory":
        yield MemoryProducer, None
    else:
        settings: Settings = request.getfixturevalue("kafka")
        yield lambda inflight_max: EventProducer(settings, inflight_max), settings


@pytest.fixture(params=["memory", "kafka"])
def down(request: pytest.FixtureRequest) -> Producer:
    """A producer whose Kafka does not answer."""
    if request.param == "memory":
        producer = MemoryProducer(10)
        producer.down = True
        return producer
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
    return EventProducer(msgspec.structs.replace(Settings(), kafka=nobody), 10, delivery_timeout_s=0.5)


def run(producer: Producer, work: Callable[[], Any]) -> Any:
    async def inside() -> Any:
        async with producer:
            return await work()

    return asyncio.run(inside())


def test_sent_record_stands_where_it_says_and_a_key_keeps_its_partition(made: tuple[Make, Settings | None]) -> None:
    make, settings = made
    producer, key = make(10), uuid.uuid4().hex

    async def work() -> tuple[Delivery, Delivery]:
        await producer.prepare(20)
        return await producer.send(CLICKSTREAM, key, b"one"), await producer.send(CLICKSTREAM, key, b"two")

    first, second = run(producer, work)
    assert first.partition == second.partition
    assert second.offset > first.offset
    assert read_back(producer, settings, first) == (key, b"one")
    assert read_back(producer, settings, second) == (key, b"two")


def test_batch_has_one_outcome_per_record_in_order(made: tuple[Make, Settings | None]) -> None:
    make, settings = made
    producer, keys = make(200), [uuid.uuid4().hex for _ in range(5)]
    messages = [Message(CLICKSTREAM, keys[i % 5], b"%d" % i) for i in range(200)]
    outcomes = run(producer, lambda: producer.send_all(messages))
    assert len(outcomes) == 200
    for start in range(5):
        own = outcomes[start::5]
        assert len({where.partition for where in own}) == 1
        assert [where.offset for where in own] == sorted({where.offset for where in own}), "in the order sent"
    assert read_back(producer, settings, outcomes[123]) == (messages[123].key, messages[123].value)
    assert producer.inflight == 0


def test_a_named_partition_overrules_the_key(made: tuple[Make, Settings | None]) -> None:
    """The agents write each item under the partition that its contributions came from."""
    producer = made[0](10)
    outcomes = run(producer, lambda: producer.send_all([Message(CLICKSTREAM, "same-key", b"v", p) for p in (3, 0, 2)]))
    assert [where.partition for where in outcomes] == [3, 0, 2]


def test_more_than_may_be_in_flight_is_refused_as_a_whole(made: tuple[Make, Settings | None]) -> None:
    producer = made[0](2)

    async def work() -> None:
        with pytest.raises(InflightLimitError, match="limit of 2"):
            await producer.send_all([Message(CLICKSTREAM, "k", b"v")] * 3)
        assert producer.inflight == 0
        await producer.send_all([Message(CLICKSTREAM, "k", b"v")] * 2)

    run(producer, work)


def test_empty_batch_needs_no_kafka(down: Producer) -> None:
    assert run(down, lambda: down.send_all([])) == []


def test_record_that_nobody_waits_for_is_in_the_log_at_the_end(made: tuple[Make, Settings | None]) -> None:
    make, settings = made
    producer, key = make(1000), uuid.uuid4().hex

    async def work() -> Delivery:
        where = await producer.send(CLICKSTREAM, key, b"before")
        assert all(producer.send_nowait(CLICKSTREAM, key, b"%d" % i) for i in range(100))
        return where

    where = run(producer, work)
    assert producer.dropped == 0
    assert read_back(producer, settings, Delivery(where.partition, where.offset + 100)) == (key, b"99")


def test_record_that_nobody_waits_for_is_dropped_and_counted_when_too_many_wait(made: tuple[Make, Settings | None]) -> None:
    producer = made[0](0)

    async def work() -> None:
        assert not producer.send_nowait(CLICKSTREAM, "k", b"v")

    run(producer, work)
    assert producer.dropped == 1


def test_kafka_that_does_not_answer(down: Producer) -> None:
    async def work() -> None:
        assert not await down.reachable(0.2)
        with pytest.raises(UnavailableError):
            await down.prepare(0.2)
        with pytest.raises(UnavailableError):
            await down.send(CLICKSTREAM, "k", b"v")
        outcomes = await down.send_all([Message(CLICKSTREAM, "k", b"v")] * 3)
        assert all(isinstance(outcome, UnavailableError) for outcome in outcomes)
        down.send_nowait(CLICKSTREAM, "k", b"v")

    run(down, work)
    assert down.dropped == 1
    assert down.inflight == 0


def test_kafka_that_answers(made: tuple[Make, Settings | None]) -> None:
    producer = made[0](1)
    assert run(producer, lambda: producer.reachable(20))
    assert producer.fatal == ""


def test_record_too_large_for_kafka_fails_alone(kafka: Settings) -> None:
    producer = EventProducer(kafka, 10)
    messages = [
        Message(CLICKSTREAM, "k", b"small"),
        Message(CLICKSTREAM, "k", bytes(2_000_000)),
        Message(CLICKSTREAM, "k", b"small"),
    ]
    first, large, last = run(producer, lambda: producer.send_all(messages))
    assert isinstance(first, Delivery)
    assert isinstance(last, Delivery)
    assert isinstance(large, UnavailableError)
    assert producer.inflight == 0


def test_waiter_that_is_cancelled_harms_nobody(kafka: Settings) -> None:
    producer = EventProducer(kafka, 10)

    async def work() -> Delivery:
        task = asyncio.create_task(producer.send(CLICKSTREAM, "k", b"v"))
        await asyncio.sleep(0)
        task.cancel()
        return await producer.send(CLICKSTREAM, "k", b"w")

    assert isinstance(run(producer, work), Delivery)
    assert producer.inflight == 0
