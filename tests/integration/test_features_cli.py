"""`liveshelf features` on a real broker, store and agents: rebuild beside running agents, verify, impressions, history, show."""

import copy
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pandas as pd
import pytest
from confluent_kafka import Producer
from feast import FeatureStore

from features.declarations import default_text
from features.encoder import Encoder, look_at
from features.events import Event, EventItem
from features.feature_set import ViewSpec, load_feature_set
from features.fold import Fold
from features.items import ItemTable
from features.registry import FeatureRegistry, repo_config
from features.rows import CatalogItem, ItemRow, ShopperRow
from features.store import FeatureRows
from liveshelf.cli.main import run
from liveshelf.settings import Settings
from streams.partition_log import PartitionLog
from streams.pseudonym import Pseudonyms
from streams.rebuild import PartitionFold
from streams.records import Impression, encode
from streams.topics import CATALOG, CLICKSTREAM, IMPRESSIONS, PARTITIONER, kafka_config
from tests.conftest import broker, running

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90
CHANGED = default_text().replace("n: 20", "n: 7").replace("half_lives: [3d]", "half_lives: [3d, 12h]")
NOW_MS = 1_790_000_000_000


@pytest.fixture(scope="module")
def settings(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with broker(tmp_path_factory.mktemp("features")) as settings:
        yield msgspec.structs.replace(settings, store=store, partitions=4)


@pytest.fixture(scope="module")
def changed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("declared") / "features.yml"
    path.write_text(CHANGED)
    return path


def environment(settings: Settings) -> dict[str, str]:
    changed = {f: getattr(settings, f) for f in Settings.__struct_fields__}
    return os.environ | {f"LIVESHELF_{name.upper()}": str(value) for name, value in changed.items()} | {"PYTHONPATH": str(ROOT)}


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def liveshelf(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `liveshelf features …` in this process: a process of its own would spend seconds on imports."""
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(["features", *map(str, arguments)])
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call


def until(condition: Callable[[], object], what: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"not within {DEADLINE_S} s: {what}; the log ends:\n{log.read_text()[-3000:]}")


def visits(seed: int, count: int, logins: int) -> list[Event]:
    """Clicks of 40 browsers, some of which sign in as one of 10 people, late or not."""
    rng = random.Random(seed)
    events = []
    for n in range(count):
        items = tuple(
            EventItem(item_id=f"i{rng.randrange(30)}", item_category=f"c{rng.randrange(4)}", price=float(rng.randrange(1, 90)))
            for _ in range(rng.randint(1, 3))
        )
        name = rng.choice(["view_item_list", "view_item", "view_item", "select_item", "add_to_cart", "purchase"])
        time_ms = NOW_MS + n * 1000 - rng.randrange(5000)
        events.append(
            Event(event_id=f"{seed}-{n}", event_name=name, shopper=f"b{rng.randrange(40)}", time_ms=time_ms, items=items)  # type: ignore[arg-type]
        )
    for n in range(logins):
        at = rng.randrange(count)
        login = Event(
            event_id=f"{seed}-login-{n}",
            event_name="login",
            shopper=events[at].shopper,
            time_ms=events[at].time_ms + rng.randrange(-3000, 3000),
            link_to=f"p{rng.randrange(10)}",
        )
        events.insert(at, login)
    return events


def send(settings: Settings, events: list[Event]) -> None:
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER, "enable.idempotence": True})
    for event in events:
        producer.produce(CLICKSTREAM, encode(event), event.shopper.encode())
    assert producer.flush(20) == 0


def folded_to_the_end(settings: Settings, version: str) -> bool:
    rows, reader = FeatureRows(settings, 5.0), PartitionLog(settings)
    return rows.folded(version) == {p: reader.ends(p)[1] - 1 for p in range(settings.partitions)}


def test_rebuild_verify_and_retire_beside_running_agents(
    settings: Settings, liveshelf: Callable[..., Done], changed_file: Path, tmp_path: Path
) -> None:
    """A changed set becomes a version whose rows equal the log's, sign-ins from before it included, and the agents go on from there."""
    log = tmp_path / "agents.log"
    old, new = load_feature_set(default_text(), "default"), load_feature_set(CHANGED, "changed")
    send(settings, visits(1, 1500, 25))
    with running([sys.executable, "-m", "streams.agents"], log, env=environment(settings)):
        until(lambda: FeatureRegistry(settings).registered() and folded_to_the_end(settings, old.version), "folded", log)
        verified = liveshelf("verify").json()
        assert (verified["different"], verified["versions"], verified["behind"]) == (0, [old.version], 0)
        assert verified["handovers"] > 10

        rebuilt = liveshelf("rebuild", "--file", changed_file, "--json").json()
        assert (rebuilt["version"], rebuilt["already"]) == (new.version, False)
        assert rebuilt["handovers"] >= verified["handovers"]
        assert liveshelf("rebuild", "--file", changed_file, "--json").json()["already"]

        send(settings, visits(2, 800, 15))
        until(lambda: all(folded_to_the_end(settings, v) for v in (old.version, new.version)), "both versions folded", log)
        verified = liveshelf("verify", "--json").json()
        assert verified["versions"] == [old.version, new.version]
        assert (verified["different"], verified["unverifiable"], verified["behind"]) == (0, 0, 0), verified["differences"]
        people = FeatureRows(settings, 5.0).read_shoppers([f"p{n}" for n in range(10)], new)
        assert any(row.recent_items for row in people.values())  # what they did before the new version was there

    listed = liveshelf("list", "--file", changed_file, "--json").json()
    assert [(v["version"], v["newest"], v["declared"]) for v in listed["registered"]] == [
        (old.version, False, False),
        (new.version, True, True),
    ]
    assert liveshelf("retire", old.version).code == 0
    refused = liveshelf("retire", new.version)
    assert (refused.code, "the only one" in refused.err) == (5, True)


def test_history_is_point_in_time_correct(settings: Settings, liveshelf: Callable[..., Done]) -> None:
    """Feast's get_historical_features, at a moment within the log, gives each shopper's and item's row as the fold had it then."""
    features = FeatureRegistry(settings).newest()
    written = liveshelf("history", "--json").json()
    assert written["events"] > 2000
    moment_ms = NOW_MS + 700_000
    shoppers: dict[str, ShopperRow] = {}
    items: dict[tuple[str, int], ItemRow] = {}
    for partition in range(settings.partitions):
        folded = PartitionFold(features, partition)

        def keep(row: ShopperRow, touched: list[ItemRow]) -> None:
            if 0 < row.time_ms <= moment_ms:
                shoppers[row.shopper] = copy.deepcopy(row)
            for item in touched:
                if item.time_ms <= moment_ms:
                    items[item.item, item.partition] = copy.deepcopy(item)

        folded.changed = keep
        for batch in PartitionLog(settings).read(partition, 0, PartitionLog(settings).ends(partition)[1]):
            folded.fold(raw for raw in batch if b'"handover"' not in raw.value)  # people's rows take given states; see verify
    browsers = {name: row for name, row in shoppers.items() if name.startswith("b")}
    at = datetime.fromtimestamp(moment_ms / 1000, UTC)
    found = historical_features(settings, features.shopper_view, [{"shopper": name} for name in browsers], at)
    assert len(found) > 20
    for row in found:
        expected = browsers[row["shopper"]]
        assert (row["offset"], list(row["recent_items"])) == (expected.offset, expected.recent_items)
        slots = features.shopper_slots["activity"]
        assert list(row["activity"]) == expected.numbers[slots[0].at : slots[0].at + len(slots)]
    keys = [{"item": item, "source_partition": partition} for item, partition in items]
    for row in historical_features(settings, features.item_view, keys, at):
        contributed = items[row["item"], row["source_partition"]]
        assert (row["offset"], list(row["covisit_keys"])) == (contributed.offset, list(contributed.neighbours))


def historical_features(settings: Settings, view: ViewSpec, keys: list[dict[str, Any]], at: datetime) -> list[dict[str, Any]]:
    store = FeatureStore(config=repo_config(settings, FeatureRegistry(settings).path, {"type": "redis", "connection_string": ""}))
    asked = pd.DataFrame([key | {"event_timestamp": at} for key in keys])
    found = store.get_historical_features(asked, features=store.get_feature_service(view.name)).to_df()
    return [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]


def test_impressions_recompute_as_served(settings: Settings, liveshelf: Callable[..., Done]) -> None:
    """Features of shelves as the scorer logs them equal those recomputed from the log; one changed bit is found; what cannot be
    recomputed is counted with its reason."""
    rows, registry = FeatureRows(settings, 5.0), FeatureRegistry(settings)
    features = registry.newest()
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER})
    catalog = [CatalogItem(item_id=f"i{n}", item_category=f"c{n % 4}", price=3.0 * n, time_ms=5 + n) for n in range(30)]
    for item in catalog:
        producer.produce(CATALOG, encode(item), item.item_id.encode())
    table = ItemTable(features)
    for item in catalog[:20]:
        table.apply_catalog(item)
    for row in rows.read_items([(f"i{n}", p) for n in range(30) for p in range(settings.partitions)], features).values():
        table.apply(row)
    encoder = Encoder(features)
    for n in range(12):
        shopper, time_ms = f"b{n}", NOW_MS + 10_000_000 + n
        row = rows.read_shopper(shopper, features) or features.shopper(shopper)
        context = ["i3", "i4"] if n % 2 else []
        look_at(row, context, time_ms, features.sequence.n)
        items = [f"i{(n + m) % 30}" for m in range(6)] + ["unknown"]
        columns = table.columns(items, row, time_ms)
        inputs = encoder.shopper(row, time_ms) | encoder.candidates(row, columns, time_ms)
        served = encoder.served(row, inputs, columns, time_ms, range(len(items)))
        if n == 10:
            served = msgspec.structs.replace(served, shopper_features=b"\0" * len(served.shopper_features))
        if n == 11:
            served = msgspec.structs.replace(served, catalog_ms=[1] * len(items))
        impression = Impression(
            request_id=f"r{n}", shopper=shopper, time_ms=time_ms, context_items=context, items=items, scores=[0.0] * 7,
            sources=["x"] * 7, propensities=[1.0] * 7, features=served,
        )  # fmt: skip
        producer.produce(IMPRESSIONS, encode(impression), shopper.encode())
    assert producer.flush(20) == 0
    done = liveshelf("verify", "--impressions", 50)
    result = done.json()
    assert [result[f"impressions{what}"] for what in ("", "_different", "_unverifiable")] == [12, 1, 1], result
    assert (done.code, result["impressions_differences"]) == (1, ["impression r10: shopper_features differ"])
    assert "1 not verifiable: a catalog record was replaced and compacted away" in done.out


def test_show_tells_values_and_where_they_come_from(settings: Settings, liveshelf: Callable[..., Done]) -> None:
    shown = liveshelf("show", "--item", "i3", "--json").json()
    assert {source["partition"] for source in shown["sources"]} <= set(range(settings.partitions))
    assert {"demand", "covisit", "price"} <= shown["features"].keys()
    pseudonym = Pseudonyms.open(settings).shopper("", "browser-1", "")
    now_ms = int(time.time() * 1000)
    event = Event(event_id="e", event_name="view_item", shopper=pseudonym, time_ms=now_ms - 7_200_000, items=(EventItem("i1"),))
    rows, features = FeatureRows(settings, 5.0), FeatureRegistry(settings).newest()
    row = features.shopper(pseudonym)
    Fold(features).shopper(row, event, 1, 17)
    rows.write_shoppers([row], features)
    out = liveshelf("show", "browser-1").out
    assert "folded up to 1@17" in out
    assert "view_item 2 h ago, add_to_cart never" in out
    missing = liveshelf("show", "nobody")
    assert (missing.code, "no events of client 'nobody'" in missing.err) == (4, True)


def test_verify_tells_which_row_differs(settings: Settings, liveshelf: Callable[..., Done]) -> None:
    """A row of the store that says it is further than the log: one difference, exit code 1."""
    rows = FeatureRows(settings, 5.0)
    features = rows.newest()
    shopper = next(iter(rows.read_shoppers([f"b{n}" for n in range(40)], features).values()))
    shopper.offset += 1_000_000  # past the fence
    rows.write_shoppers([shopper], features)
    done = liveshelf("verify")
    result = done.json()
    assert (done.code, result["different"]) == (1, 1)
    assert result["differences"][0]["row"] == f"shopper {shopper.shopper}"
    assert "where the log changes no such row" in done.out
