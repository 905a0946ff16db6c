"""The collector as a process of its own, on real Kafka."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka.partitioner import murmur2
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from starlette.testclient import TestClient

from liveshelf.local.kafka import kafka_command
from liveshelf.settings import Settings
from streams.collector import create_app
from streams.producer import EventProducer
from streams.pseudonym import KEY_FILE, Pseudonyms
from streams.records import CatalogItem, Event, Rejected, decode, encode
from streams.topics import CATALOG, CLICKSTREAM, CLICKSTREAM_REJECTED, kafka_config
from tests.conftest import local_settings, running, wait_for_port

DEADLINE_S = 30


def on_free_ports(kafka: Settings, home: Path) -> Settings:
    """Settings of a collector of one's own on the session's broker."""
    return local_settings(home, kafka=kafka.kafka)


@contextmanager
def collector(settings: Settings, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A collector process that is ready, and a client of it."""
    environment = {
        f"LIVESHELF_{name.upper()}": str(getattr(settings, name))
        for name in Settings.__struct_fields__
        if getattr(settings, name) != getattr(Settings(), name)
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        starting = running([sys.executable, "-m", "streams.collector"], log)
        process = starting.__enter__()
    try:
        with httpx.Client(base_url=settings.collector_url, timeout=DEADLINE_S, trust_env=False) as client:
            wait_until_ready(client, process, log)
            yield process, client
    finally:
        starting.__exit__(None, None, None)


def wait_until_ready(client: Any, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"not ready; its log ends: {log.read_text()[-2000:] if log else ''}")


def records(settings: Settings, topic: str) -> list[tuple[int, str | None, bytes]]:
    """(partition, key, value) of every record of `topic` that stands in the log now."""
    consumer = Consumer(kafka_config(settings) | {"group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions
    ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=DEADLINE_S)[1] for p in partitions}
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p, end in ends.items() if end])
    left = {p for p, end in ends.items() if end}
    found = []
    deadline = time.monotonic() + DEADLINE_S
    while left and time.monotonic() < deadline:
        for record in consumer.consume(1000, 0.2):
            assert record.error() is None
            found.append((record.partition(), record.key().decode() if record.key() else None, record.value()))
            if record.offset() == ends[record.partition()] - 1:
                left.discard(record.partition())
    consumer.close()
    assert not left, f"{topic} could not be read to its end"
    return found


@pytest.fixture(scope="module")
def served(kafka: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, httpx.Client]]:
    home = tmp_path_factory.mktemp("collector")
    settings = on_free_ports(kafka, home)
    with collector(settings, home / "collector.log") as (_, client):
        yield settings, client


def test_accepted_event_stands_in_clickstream_as_it_was_sent_and_where_java_would_put_it(
    served: tuple[Settings, httpx.Client],
) -> None:
    settings, client = served
    pseudonyms = Pseudonyms((settings.data_path / KEY_FILE).read_bytes())
    now_ms = time.time_ns() // 1_000_000
    expected = [
        Event(
            event_id=uuid.uuid4().hex,
            event_name="refund",
            shopper=pseudonyms.shopper("", f"c{n}", ""),
            session=pseudonyms.session("s"),
            time_ms=now_ms - n,
        )
        for n in range(20)
    ]
    sent = [
        {
            "name": "refund",
            "event_id": event.event_id,
            "client_id": f"c{n}",
            "session_id": "s",
            "timestamp_micros": event.time_ms * 1000,
        }
        for n, event in enumerate(expected)
    ]
    answer = client.post("/v1/events", json={"events": sent})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 20, "rejected": []})
    log = records(settings, CLICKSTREAM)
    for event in expected:
        (partition,) = {p for p, key, value in log if (key, value) == (event.shopper, encode(event))}
        assert partition == (murmur2(event.shopper.encode()) & 0x7FFFFFFF) % settings.partitions


def test_login_stands_behind_what_the_browser_did_before(served: tuple[Settings, httpx.Client]) -> None:
    """The anonymous row's partition, so that whoever folds it meets the login after everything that it links."""
    settings, client = served
    pseudonyms = Pseudonyms((settings.data_path / KEY_FILE).read_bytes())
    browser, person = uuid.uuid4().hex, uuid.uuid4().hex
    names = ["refund", "login", "refund"]
    for n, name in enumerate(names):
        who = {"client_id": browser} | ({"user_id": person} if n else {})
        assert client.post("/v1/events", json=who | {"name": name, "event_id": f"{browser[:8]}-{n}"}).status_code == 202
    found = [(partition, decode(Event, value)) for partition, _, value in records(settings, CLICKSTREAM)]
    anonymous, signed_in = pseudonyms.shopper("", browser, ""), pseudonyms.shopper(person, "", "")
    before = [(partition, event.event_name, event.link_to) for partition, event in found if event.shopper == anonymous]
    assert [(name, link) for _, name, link in before] == [("refund", ""), ("login", signed_in)]
    assert len({partition for partition, _, _ in before}) == 1
    assert [event.event_name for _, event in found if event.shopper == signed_in] == ["refund"]


def test_refused_event_stands_in_clickstream_rejected(served: tuple[Settings, httpx.Client]) -> None:
    settings, client = served
    note = uuid.uuid4().hex
    answer = client.post("/v1/events", json=[{"name": "view_itm", "user_id": "ann@shop.example", "note": note}])
    assert answer.status_code == 400
    found = [decode(Rejected, value) for _, _, value in records(settings, CLICKSTREAM_REJECTED)]
    (rejected,) = (one for one in found if note.encode() in one.original)
    assert (rejected.reason, rejected.source) == ("unknown_event_name", "collector")
    assert b"ann@" not in rejected.original


def test_catalog_item_stands_in_catalog(served: tuple[Settings, httpx.Client]) -> None:
    settings, client = served
    item = uuid.uuid4().hex
    assert client.post("/v1/catalog", json={"item_id": item, "price": 5}).status_code == 202
    (value,) = (value for _, key, value in records(settings, CATALOG) if key == item)
    assert decode(CatalogItem, value).price == 5.0


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_everything_answered_with_202_is_in_kafka_when_the_collector_ends(
    kafka: Settings, tmp_path: Path, signal_: signal.Signals
) -> None:
    settings = on_free_ports(kafka, tmp_path)
    acknowledged: set[str] = set()
    refused: list[int] = []

    def shopper(number: int) -> None:
        with httpx.Client(base_url=settings.collector_url, timeout=DEADLINE_S, trust_env=False) as client:
            while True:
                ids = [uuid.uuid4().hex for _ in range(5)]
                events = [{"name": "refund", "client_id": f"c{number}", "event_id": event_id} for event_id in ids]
                try:
                    answer = client.post("/v1/events", json=events)
                except httpx.TransportError:
                    return
                if answer.status_code == 202:
                    acknowledged.update(ids)
                else:
                    refused.append(answer.status_code)

    with collector(settings, tmp_path / "collector.log") as (process, _):
        shoppers = [threading.Thread(target=shopper, args=(number,)) for number in range(6)]
        for thread in shoppers:
            thread.start()
        deadline = time.monotonic() + DEADLINE_S
        while len(acknowledged) < 300:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal_)
        # The process is a wrapper's child: it carries the collector's own exit status.
        assert process.wait(DEADLINE_S) == (0 if signal_ == signal.SIGTERM else -signal.SIGKILL)
        for thread in shoppers:
            thread.join(DEADLINE_S)
    assert refused == []
    log = {decode(Event, value).event_id for _, _, value in records(settings, CLICKSTREAM)}
    assert acknowledged <= log


def test_broker_gone_is_503_and_the_collector_goes_on_when_it_is_back(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    settings = msgspec.structs.replace(settings, kafka=settings.kafka_address)
    log = tmp_path / "kafka.log"
    app = create_app(settings, EventProducer(settings, 100, delivery_timeout_s=2.0), Pseudonyms(b"k" * 32))
    event = {"name": "refund", "client_id": "c"}
    with TestClient(app) as client:
        assert client.get("/readyz").status_code == 503, "started before its Kafka"
        with running(kafka_command(settings), log) as broker:
            wait_for_port(settings.kafka_port, broker, log)
            wait_until_ready(client)
            assert client.post("/v1/events", json=event | {"event_id": "before"}).status_code == 202
            broker.kill()
            broker.wait()
        answer = client.post("/v1/events", json=event | {"event_id": "lost"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "accepted" not in answer.json()
        with running(kafka_command(settings), log) as broker:
            wait_for_port(settings.kafka_port, broker, log)
            deadline = time.monotonic() + DEADLINE_S
            while client.post("/v1/events", json=event | {"event_id": "after"}).status_code != 202:
                assert time.monotonic() < deadline
            ids = [decode(Event, value).event_id for _, _, value in records(settings, CLICKSTREAM)]
    assert "before" in ids
    assert "after" in ids


def test_port_in_use_is_a_conflict(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    with socket.create_server((settings.host, settings.collector_port)):
        ended = subprocess.run(
            [sys.executable, "-m", "streams.collector"],
            env=os.environ | {"LIVESHELF_DATA_DIR": str(tmp_path), "LIVESHELF_COLLECTOR_PORT": str(settings.collector_port)},
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert ended.returncode == 5
    line = json.loads(ended.stderr.splitlines()[-1])
    assert "LIVESHELF_COLLECTOR_PORT" in line["error"]


def test_topic_with_another_partition_count_ends_the_collector(kafka: Settings, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "streams.collector"],
        env=os.environ
        | {
            "LIVESHELF_DATA_DIR": str(tmp_path),
            "LIVESHELF_KAFKA": kafka.kafka_address,
            "LIVESHELF_COLLECTOR_PORT": str(local_settings(tmp_path).collector_port),
            "LIVESHELF_PARTITIONS": "3",
        },
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 5
    assert "LIVESHELF_PARTITIONS=4" in json.loads(ended.stderr.splitlines()[-1])["error"]
