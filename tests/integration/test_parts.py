"""The embedded broker and store are real, keep their data over a restart, and start without a network."""

import time
from pathlib import Path

import msgspec
import pytest
import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from liveshelf.errors import ConflictError
from liveshelf.local.kafka import kafka_command
from liveshelf.local.valkey import valkey_command
from liveshelf.settings import Settings
from streams.topics import CATALOG, ensure_topics, kafka_config, topics
from tests.conftest import local_settings, running, wait_for_port


def test_the_session_broker_has_every_topic(kafka: Settings) -> None:
    """A second call finds all topics as the settings want them and creates none."""
    assert ensure_topics(kafka) == {topic.name: topic.partitions for topic in topics(kafka)}


def test_another_partition_count_is_refused_since_shoppers_would_move(kafka: Settings) -> None:
    with pytest.raises(
        ConflictError, match=f"has {kafka.partitions} partitions, the settings want {kafka.partitions + 1}. Shoppers would move"
    ):
        ensure_topics(msgspec.structs.replace(kafka, partitions=kafka.partitions + 1))


def test_the_session_store_answers(store: str) -> None:
    host, port = store.split(":")
    client = redis.Redis(host, int(port))
    assert client.ping() is True
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    client.close()


def test_kafka_keeps_records_over_kill_and_restart(tmp_path: Path) -> None:
    """A record acknowledged before kill -9 is there after a start for which no repository could be reached."""
    settings = local_settings(tmp_path)
    log = tmp_path / "kafka.log"
    with running(kafka_command(settings), log) as process:
        wait_for_port(settings.kafka_port, process, log)
        ensure_topics(settings)
        producer = Producer(kafka_config(settings) | {"acks": "all"})
        producer.produce(CATALOG, key=b"item-1", value=b"kept")
        assert producer.flush(20) == 0
        process.kill()
        process.wait()
    cluster_id = (tmp_path / "kafka" / "cluster.id").read_text()

    offline = local_settings(tmp_path, maven_repository="http://127.0.0.1:9", kafka_port=settings.kafka_port)
    with running(kafka_command(offline), log) as process:
        wait_for_port(settings.kafka_port, process, log)
        consumer = Consumer(kafka_config(settings) | {"group.id": "test"})
        consumer.assign([TopicPartition(CATALOG, 0, OFFSET_BEGINNING)])
        record, deadline = None, time.monotonic() + 30
        while record is None and time.monotonic() < deadline:
            record = consumer.poll(0.5)
        consumer.close()
    assert record is not None
    assert (record.error(), record.key(), record.value()) == (None, b"item-1", b"kept")
    assert (tmp_path / "kafka" / "cluster.id").read_text() == cluster_id


def test_valkey_keeps_rows_over_restart(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    log = tmp_path / "valkey.log"
    for expected in (None, b"kept"):
        with running(valkey_command(settings), log) as process:
            wait_for_port(settings.store_port, process, log)
            client = redis.Redis(settings.host, settings.store_port)
            assert client.get("row") == expected
            client.set("row", "kept")
            client.close()
