"""The Faust workers on a real broker and a real store: log in, rows and examples out, through a kill -9."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from features.declarations import read_declarations
from features.events import Event, EventItem, Handover
from features.feature_set import FeatureSet
from features.fold import Fold
from features.rows import FeaturesAsServed, ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings
from streams.agents import FeatureWriter
from streams.partition_log import PartitionLog
from streams.producer import EventProducer
from streams.records import Example, Impression, Rejected, decode, encode
from streams.topics import (
    CLICKSTREAM,
    CLICKSTREAM_REJECTED,
    IMPRESSIONS,
    ITEM_UPDATES,
    PARTITIONER,
    TRAINING_EXAMPLES,
    kafka_config,
)
from tests.conftest import broker, read_all, running

DEADLINE_S = 90
FEATURES = FeatureSet(read_declarations(None))
OF_TOMORROW = b'{"v":2,"event_id":"e","event_name":"view_item","shopper":"kill-s1","time_ms":1700000000000}'
"""An event in a version of the format that is not known yet."""


@pytest.fixture(scope="module")
def settings(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A broker of its own: this log holds garbage, and is read from its beginning by workers that only know theirs."""
    with broker(tmp_path_factory.mktemp("agents")) as settings:
        yield msgspec.structs.replace(settings, store=store, feedback_window_s=2)


def role(settings: Settings, module: str, log: Path) -> subprocess.Popen[bytes]:
    changed = {f: getattr(settings, f) for f in Settings.__struct_fields__}
    env = {f"LIVESHELF_{name.upper()}": str(value) for name, value in changed.items()}
    return running([sys.executable, "-m", module], log, env={**os.environ, **env})


def until(condition: Callable[[], object], what: str, worker: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and worker.poll() is None:
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"not within {DEADLINE_S} s: {what}; the log ends:\n{log.read_text()[-3000:]}")


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER, "enable.idempotence": True})
    yield producer
    producer.flush(10)


def undisturbed(log: list[tuple[int, int, bytes, bytes]]) -> tuple[dict[str, ShopperRow], dict[tuple[str, int], ItemRow]]:
    """The rows that the log folds into, without workers or stores."""
    shoppers: dict[str, ShopperRow] = {}
    items: dict[tuple[str, int], ItemRow] = {}
    fold = Fold(FEATURES)
    for partition, offset, _, value in sorted(log, key=lambda r: r[:2]):
        try:
            event = decode(Event, value)
        except msgspec.DecodeError:
            continue
        row = shoppers.setdefault(event.shopper, FEATURES.shopper(event.shopper))
        said, weights = fold.shopper(row, event, partition, offset), fold.item_weights(event)
        for touch in said.touches:
            item_row = items.setdefault((touch.item, partition), FEATURES.item(touch.item, partition))
            fold.item(item_row, touch, event.event_name, weights, offset)
    return shoppers, items


def random_events(seed: int, count: int, prefix: str) -> list[Event]:
    rng = random.Random(seed)
    names = ["view_item_list", "view_item", "view_item", "select_item", "add_to_cart", "purchase"]
    events = []
    for n in range(count):
        picked = [
            EventItem(item_id=f"{prefix}i{rng.randrange(40)}", item_category=f"c{rng.randrange(5)}")
            for _ in range(rng.randint(1, 4))
        ]
        events.append(
            Event(
                event_id=f"{prefix}{n if rng.random() > 0.05 else max(n - 1, 0)}",
                event_name=rng.choice(names),
                shopper=f"{prefix}s{rng.randrange(60)}",
                time_ms=1_700_000_000_000 + n * 1000 - rng.randrange(5000),
                items=tuple(picked),
            )
        )
    return events


def test_rows_equal_an_undisturbed_fold_through_a_kill(settings: Settings, producer: Producer, tmp_path: Path) -> None:
    """Kill -9 in the middle of a stream, restart: every shopper row equals the pure fold of the log bit for bit, every item row too."""
    log = tmp_path / "agents.log"
    events = random_events(1, 3000, "kill-")
    with role(settings, "streams.agents", log) as worker:
        until(lambda: ready(settings.agents_metrics_port), "the worker is ready", worker, log)
        for event in events[:2000]:
            producer.produce(CLICKSTREAM, encode(event), event.shopper.encode())
        producer.produce(CLICKSTREAM, b"not json", b"kill-s1")
        producer.produce(CLICKSTREAM, OF_TOMORROW, b"kill-s1")
        # Decodes, and then its state fits no row: it must take nobody with it.
        state = ShopperRow("", numbers=[1.0])
        handover = Handover(id="poison", states={FEATURES.version: state})
        poison = msgspec.structs.replace(events[0], event_id="poison", shopper="poison", handover=handover)
        producer.produce(CLICKSTREAM, encode(poison), b"poison")
        producer.flush(10)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    for event in events[2000:]:
        producer.produce(CLICKSTREAM, encode(event), event.shopper.encode())
    producer.flush(10)
    shoppers, items = undisturbed([r for r in read_all(settings, CLICKSTREAM) if r[2].startswith(b"kill-")])
    rows = FeatureRows(settings, 5.0)
    with role(settings, "streams.agents", log) as worker:
        until(
            lambda: rows.registered() and rows.read_shoppers(sorted(shoppers), FEATURES) == shoppers,
            "rows equal the fold",
            worker,
            log,
        )
    assert rows.read_items(sorted(items), FEATURES) == items
    latest = {(m[2].decode().partition("/")[2], m[0]): decode(ItemRow, m[3]) for m in read_all(settings, ITEM_UPDATES)}
    assert {key: row for key, row in latest.items() if key in items} == items
    refused = [decode(Rejected, m[3]) for m in read_all(settings, CLICKSTREAM_REJECTED)]
    assert {(r.original, r.reason) for r in refused} == {
        (b"not json", "undecodable_record"),
        (OF_TOMORROW, "undecodable_record"),
        (encode(poison), "unfoldable_event"),
    }


def test_a_click_on_a_shelf_becomes_one_labelled_example(settings: Settings, producer: Producer, tmp_path: Path) -> None:
    """An impression and the click that names it make one example with one label, also when the worker dies while the window is open."""
    log = tmp_path / "joiner.log"
    now = int(time.time() * 1000)
    features = FeaturesAsServed(
        version=FEATURES.version, time_ms=now, shopper_features=b"\0" * 4, candidates=["a", "b", "c"], candidate_features=b"\1" * 12
    )
    impression = Impression(
        request_id="join-r", shopper="join-s", time_ms=now, items=["a", "b", "c"], scores=[3, 2, 1], sources=["trending"] * 3,
        propensities=[1.0] * 3, features=features,
    )  # fmt: skip
    click = Event(
        event_id="join-e",
        event_name="select_item",
        shopper="join-s",
        time_ms=now + 1,
        items=(EventItem(item_id="b"),),
        request_id="join-r",
    )
    with role(settings, "streams.joiner", log) as worker:
        until(lambda: ready(settings.joiner_metrics_port), "the joiner is ready", worker, log)
        producer.produce(IMPRESSIONS, encode(impression), b"join-s")
        producer.produce(CLICKSTREAM, encode(click), b"join-s")
        producer.flush(10)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    with role(settings, "streams.joiner", log) as worker:
        until(lambda: any(m[2] == b"join-s" for m in read_all(settings, TRAINING_EXAMPLES)), "the example is produced", worker, log)
    mine = [decode(Example, m[3]) for m in read_all(settings, TRAINING_EXAMPLES) if m[2] == b"join-s"]
    assert [(e.request_id, e.clicked, e.carted, e.purchased) for e in mine] == [("join-r", [0, 1, 0], [0, 0, 0], [0, 0, 0])]
    assert mine[0].features == features

    # The example is made. A purchase that comes now adds to it, by a joiner that remembers nothing but what the topics say.
    bought = msgspec.structs.replace(click, event_id="join-b", event_name="purchase", time_ms=now + 3_600_000, request_id="")
    producer.produce(CLICKSTREAM, encode(bought), b"join-s")
    producer.flush(10)
    with role(settings, "streams.joiner", log) as worker:
        until(lambda: committed(settings, "liveshelf-joiner"), "all is joined and acknowledged", worker, log)
    more = [decode(Example, m[3]) for m in read_all(settings, TRAINING_EXAMPLES) if m[2] == b"join-s"][1:]
    assert [(e.request_id, e.late, e.clicked, e.carted, e.purchased) for e in more] == [
        ("join-r", "join-b", [-1, -1, -1], [-1, 1, -1], [-1, 1, -1])
    ]
    assert more[0].features == features


def committed(settings: Settings, group: str) -> bool:
    """Whether the group has acknowledged all of `clickstream`."""
    made = PartitionLog(settings)
    return all(made.ends(p)[1] == at for p, at in made.committed(group, range(settings.partitions)).items())


def test_a_store_that_belongs_to_another_log_is_refused(settings: Settings) -> None:
    """Its offsets would make every new event look folded."""
    rows, partition = FeatureRows(settings, 5.0), 1
    rows.register_first()
    end, held = PartitionLog(settings).ends(partition)[1], rows.folded(FEATURES.version)[partition]
    rows.advance(FEATURES.version, {partition: (held, end)})

    async def assigned() -> None:
        async with EventProducer(settings, 10) as producer:
            writer = FeatureWriter(settings, rows, producer)
            writer.look_for_versions()
            await writer.catch_up({partition}, {})

    with pytest.raises(UnavailableError, match=f"up to offset {end}, but that log ends at {end}: is it another Kafka"):
        asyncio.run(assigned())
