"""The online store on a real Valkey: Feast's own answers, fenced writes, folded offsets, and each way in which a store fails."""

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import features.registry  # noqa: F401 - first: it readies the process for Feast's import

# isort: split
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import StringList, Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int64, String
from redis import Redis

from features.online import FencedOnlineStore, MovedError, Row, StoreBehindError, WrongTypeError
from features.packed import UNFENCED, pack
from features.values import View, entity_key
from liveshelf.errors import CorruptError, LiveshelfError, UnavailableError
from liveshelf.local.valkey import valkey_command
from tests.conftest import HOST, START_DEADLINE_S, free_port, local_settings, running, wait_for_port

VIEW = View(
    "visitor_features",
    (("visitor", str),),
    (
        ("offset", "int64"),
        ("price", "double"),
        ("name", "string"),
        ("known", "bool"),
        ("hashes", "bytes"),
        ("times", "int64_list"),
        ("weights", "double_list"),
        ("shares", "float_list"),
        ("items", "string_list"),
    ),
)
SEED = 7


class Store:
    """The fenced store by Feast's own wiring, in a project of its own."""

    def __init__(self, address: str, home: Path, project: str = "shop", timeout_s: float = 5.0) -> None:
        self.address, self.home, self.project = address, home, project
        options = f"socket_timeout={timeout_s},socket_connect_timeout={timeout_s},retry=null"
        self.config = self._config("features.online.FencedOnlineStore", f"{address},{options}")
        self.feast = FeatureStore(config=self.config)
        self.online: FencedOnlineStore = self.feast._get_provider().online_store
        host, port = address.split(":")
        self.redis = Redis(host, int(port))

    def write(self, rows: list[Row], view: View = VIEW) -> tuple[int, int, int]:
        """(written, stale, same)."""
        written = self.online.write_rows(self.config, view, rows)
        assert written.size == sum(len(pack(view, *row[1:])) for row in rows)
        return written[:3]

    def read(self, *visitors: str) -> list[list[Any] | None]:
        rows = self.online.read_rows(self.config, VIEW, [entity_key(VIEW, visitor) for visitor in visitors])
        return [None if row is None else row.values for row in rows]

    def key(self, visitor: str) -> bytes:
        return entity_key(VIEW, visitor) + self.project.encode()

    def _config(self, kind: str, connection: str) -> RepoConfig:
        return RepoConfig(
            project=self.project,
            provider="local",
            registry={"path": str(self.home / f"{self.project}.db"), "cache_ttl_seconds": 0},
            online_store={"type": kind, "connection_string": connection},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )


@pytest.fixture
def shop(store: str, tmp_path: Path) -> Store:
    """A project of its own on the session's server."""
    return Store(store, tmp_path, f"shop{random.Random(str(tmp_path)).getrandbits(64):x}")


@contextmanager
def valkey(home: Path, *options: str, data: str = "data") -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Address and process of a server with `options`; its data stays in `home` for the next."""
    settings = local_settings(home / data)
    log = home / "valkey.log"
    with running([*valkey_command(settings), *options], log) as process:
        wait_for_port(settings.store_port, process, log)
        yield settings.store_address, process


def values(offset: int) -> list[Any]:
    """A row's values, all of them far from the defaults and different for each offset."""
    return [
        offset,
        0.1 * offset,
        f"n{offset}",
        True,
        b"\x00\xff" * 80,
        [1_700_000_000_000 + offset] * 20,
        [offset / 3] * 30,
        [offset % 1000 / 4] * 30,
        ["é" * 9] * 20,
    ]


def row(visitor: str, offset: int, partition: int = 3, fields: list[Any] | None = None) -> Row:
    fields = values(offset) if fields is None else fields
    return Row(entity_key(VIEW, visitor), partition, offset, 1_700_000_000_123, fields)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.02)


def definitions(home: Path) -> tuple[list[Any], FeatureView, FeatureView]:
    """Feast objects for `VIEW` and for a view with two join keys."""
    visitor = Entity(name="visitor", join_keys=["visitor"], value_type=ValueType.STRING)
    zone = Entity(name="zone", join_keys=["zone"], value_type=ValueType.INT64)
    types = [Int64, Float64, String, Bool, Bytes, Array(Int64), Array(Float64), Array(Float32), Array(String)]
    fields = [Field(name=name, dtype=dtype) for (name, _), dtype in zip(VIEW.fields, types, strict=True)]

    def view(name: str, entities: list[Entity], schema: list[Field]) -> FeatureView:
        source = FileSource(name=f"{name}_history", path=str(home / f"{name}.parquet"), timestamp_field="event_timestamp")
        push = PushSource(name=f"{name}_push", batch_source=source)
        return FeatureView(name=name, entities=entities, ttl=timedelta(0), schema=schema, source=push)

    one = view(VIEW.name, [visitor], [Field(name="visitor", dtype=String), *fields])
    keys = [Field(name="visitor", dtype=String), Field(name="zone", dtype=Int64)]
    two = view("zone_features", [visitor, zone], [*keys, Field(name="offset", dtype=Int64)])
    return [visitor, zone, one, two, FeatureService(name="served", features=[one])], one, two


def test_what_was_written_is_read_through_feast_and_the_short_way_answers_as_the_long_one(shop: Store, tmp_path: Path) -> None:
    objects, _, _ = definitions(tmp_path)
    shop.feast.apply(objects)
    sparse = [7, 0.0, "", False, b"", [], [], [], ["x"]]
    zones = View("zone_features", (("visitor", str), ("zone", int)), (("offset", "int64"),))
    assert shop.write([row("ann", 5), row("bob", 7, fields=sparse)]) == (2, 0, 0)
    shop.write([Row(entity_key(zones, "ann", 4), 3, 9, 0, [9])], zones)

    service = objects[-1]
    asked: list[tuple[Any, dict[str, list[Any]], bool]] = [
        (service, {"visitor": ["ann"]}, False),
        (service, {"visitor": ["nobody", "ann", "bob", "ann"]}, False),
        (service, {"visitor": ["ann", "bob"]}, True),
        (["visitor_features:items", "visitor_features:offset"], {"visitor": ["bob", "ann"]}, False),
        (["zone_features:offset"], {"zone": [4, 5], "visitor": ["ann", "ann"]}, False),
        (["zone_features:offset", "visitor_features:name"], {"zone": [4], "visitor": ["ann"]}, False),
    ]
    for asked_for, entities, full in asked:
        short = shop.feast.get_online_features(asked_for, entities, full_feature_names=full)
        rows = [dict(zip(entities, values, strict=True)) for values in zip(*entities.values(), strict=True)]
        long = shop.feast.get_online_features(asked_for, rows, full_feature_names=full)  # rows are left to Feast
        assert short.proto == long.proto
        assert short.to_dict(include_event_timestamps=True) == long.to_dict(include_event_timestamps=True)
        later = asyncio.run(shop.feast.get_online_features_async(asked_for, rows, full_feature_names=full))
        assert later.proto == long.proto

    served = shop.feast.get_online_features(service, {"visitor": ["ann", "bob", "nobody"]}).to_dict(include_event_timestamps=True)
    assert served["offset"] == [5, 7, None]
    for (name, _), value in zip(VIEW.fields, values(5), strict=True):
        assert served[name][0] == value
        assert served[f"{name}__ts"] == [1_700_000_000, 1_700_000_000, 0]
    assert [name for name, _ in VIEW.fields if served[name][1] is not None] == ["offset", "items"]


def test_rows_pushed_through_feast_are_read_and_overwritten(shop: Store, tmp_path: Path) -> None:
    objects, one, _ = definitions(tmp_path)
    shop.feast.apply(objects)
    names = [name for name, _ in VIEW.fields]
    key = EntityKey(join_keys=["visitor"], entity_values=[Value(string_val="ann")])
    full = {name: Value.FromString(encode(value)) for name, encode, value in zip(names, VIEW.encoders, values(4), strict=True)}
    shop.online.online_write_batch(shop.config, one, [(key, full, datetime.now(UTC), None)], None)
    assert shop.read("ann") == [values(4)]
    assert shop.write([row("ann", 2)]) == (1, 0, 0)  # it carries no fence
    part = {"offset": Value(int64_val=7), "items": Value(string_list_val=StringList(val=["x"]))}
    shop.online.online_write_batch(shop.config, one, [(key, part, datetime.now(UTC), None)], None)
    assert shop.read("ann") == [[7, 0.0, "", False, b"", [], [], [], ["x"]]]
    assert shop.write([row("ann", 2)]) == (0, 0, 1)  # the fence is still the log's


def test_only_a_higher_offset_overwrites(shop: Store) -> None:
    assert shop.write([row("ann", 0), row("bob", 5)]) == (2, 0, 0)
    zombie = [row("ann", 0), row("bob", 4), row("eve", 1)]
    assert shop.write(zombie) == (1, 1, 1)
    assert shop.read("ann", "bob", "eve") == [values(0), values(5), values(1)]
    assert shop.write([row("ann", 1), row("bob", 6)]) == (2, 0, 0)
    assert shop.read("ann", "bob", "nobody") == [values(1), values(6), None]


def test_offsets_are_exact_below_two_to_the_53(shop: Store) -> None:
    top = 2**53 - 1
    assert shop.write([row("ann", top - 1)]) == (1, 0, 0)
    assert shop.write([row("ann", top - 1)]) == (0, 0, 1)
    assert shop.write([row("ann", top)]) == (1, 0, 0)
    assert shop.read("ann") == [values(top)]


def test_in_whatever_order_two_workers_write_the_highest_offset_stands(shop: Store) -> None:
    """700 rows of 90 keys, in shuffled batches from two clients: several chunks, and a key several times within one."""
    rng = random.Random(SEED)
    rows = [row(f"v{rng.randrange(90)}", offset) for offset in rng.sample(range(10_000), 700)]
    other = Store(shop.address, shop.home, shop.project)
    written = (0, 0, 0)
    for start in range(0, len(rows), 350):
        done = (shop, other)[start % 700 > 0].write(rows[start : start + 350])
        written = (written[0] + done[0], written[1] + done[1], written[2] + done[2])
    assert sum(written) == 700
    highest: dict[bytes, int] = {}
    for r in rows:
        highest[r.key] = max(r.offset, highest.get(r.key, 0))
    stored = shop.online.read_rows(shop.config, VIEW, list(highest))
    assert [row.values[0] for row in stored if row] == list(highest.values())
    assert shop.read(*(f"absent{i}" for i in range(600))) == [None] * 600


def test_a_row_without_offset_is_always_written_and_leaves_the_fence(shop: Store) -> None:
    shop.write([row("ann", 5)])
    assert shop.write([row("ann", UNFENCED)]) == (1, 0, 0)
    assert shop.write([row("ann", 4)]) == (0, 1, 0)
    assert shop.write([row("bob", UNFENCED), row("bob", 0)]) == (2, 0, 0)


def test_a_row_from_another_partition_is_refused_and_the_others_are_written(shop: Store) -> None:
    shop.write([row("ann", 5, partition=3)])
    with pytest.raises(MovedError, match="partition count"):
        shop.write([row("ann", 9, partition=4), row("bob", 1, partition=4)])
    assert shop.read("ann", "bob") == [values(5), values(1)]


def test_two_views_of_one_entity_share_a_key_and_not_a_fence(shop: Store) -> None:
    other = View("visitor_other", VIEW.keys, VIEW.fields)
    shop.write([row("ann", 5)])
    assert shop.write([row("ann", 3)], other) == (1, 0, 0)
    assert shop.read("ann") == [values(5)]


def test_a_deleted_view_takes_its_fences_along(shop: Store, tmp_path: Path) -> None:
    _, one, _ = definitions(tmp_path)
    other = View("visitor_other", VIEW.keys, VIEW.fields)
    shop.write([row("ann", 5)])
    shop.write([row("ann", 5)], other)
    shop.online.delete_table(shop.config, one)
    assert shop.read("ann") == [None]
    assert shop.write([row("ann", 1)]) == (1, 0, 0)
    assert shop.write([row("ann", 1)], other) == (0, 1, 0)


def test_rows_stay_in_the_compact_encoding(shop: Store) -> None:
    shop.write([row("ann", 5)])
    assert shop.redis.object("encoding", shop.key("ann")) == b"listpack"
    assert shop.redis.hlen(shop.key("ann")) == 1


def test_a_value_that_is_no_row_is_named_and_not_overwritten(shop: Store) -> None:
    shop.redis.hset(shop.key("ann"), VIEW.field, "mine")
    with pytest.raises(CorruptError, match="cannot be read"):
        shop.read("ann")
    with pytest.raises(WrongTypeError, match="another type"):
        shop.write([row("ann", 1), row("bob", 1)])
    assert shop.read("bob") == [values(1)]


def test_folded_offsets_only_go_forward(shop: Store) -> None:
    store, config = shop.online, shop.config
    assert store.folded(config, [0, 1], "1") == {0: -1, 1: -1}
    store.advance(config, "1", {0: (-1, 10), 1: (-1, 2**53)})
    store.advance(config, "1", {0: (4, 8)})  # another owner is ahead
    assert store.folded(config, [1, 0, 2], "1") == {1: 2**53, 0: 10, 2: -1}
    assert store.folded(config, [0], "2") == {0: -1}
    assert store.folded(config, [], "1") == {}


def test_a_store_that_lost_its_latest_writes_is_noticed(shop: Store) -> None:
    store, config = shop.online, shop.config
    store.advance(config, "1", {0: (-1, 10), 1: (-1, 20)})
    with pytest.raises(StoreBehindError, match="partition 1: up to 20, expected 25") as caught:
        store.advance(config, "1", {0: (10, 11), 1: (25, 26), 7: (3, 4)})
    assert caught.value.stored == {1: 20, 7: -1}
    assert store.folded(config, [0, 1, 7], "1") == {0: 10, 1: 20, 7: -1}


def test_a_wrong_type_key_is_named_and_harms_no_other_row(shop: Store, tmp_path: Path) -> None:
    objects, _, _ = definitions(tmp_path)
    shop.feast.apply(objects)
    shop.redis.set(shop.key("ann"), "mine")
    named = repr(shop.key("ann"))[2:-1].replace("\\", "\\\\")
    with pytest.raises(WrongTypeError, match=named) as caught:
        shop.write([row("bob", 1), row("ann", 1), row("eve", 1)])
    assert caught.value.keys == [shop.key("ann")]
    assert shop.read("bob", "eve") == [values(1), values(1)]
    with pytest.raises(WrongTypeError, match=named):
        shop.read("bob", "ann")
    with pytest.raises(WrongTypeError, match=named):
        shop.feast.get_online_features(objects[-1], {"visitor": ["ann"]})
    assert shop.read("bob") == [values(1)]  # the connection is in step
    shop.redis.set(f"{shop.project}:folded:1", "mine")
    for call in (lambda: shop.online.folded(shop.config, [0], "1"), lambda: shop.online.advance(shop.config, "1", {0: (-1, 1)})):
        with pytest.raises(WrongTypeError, match="folded:1"):
            call()


def test_a_full_store_says_so_keeps_what_it_has_and_takes_rows_again_once_it_has_room(tmp_path: Path) -> None:
    with valkey(tmp_path) as (address, _):
        shop = Store(address, tmp_path)
        shop.write([row("ann", 1)])
        shop.redis.config_set("maxmemory", "1mb")
        sparse = [2, 0.0, "", False, b"", [], [], [], ["x"]]  # would free memory too: that must not open the door
        for fields in (values(2), sparse):
            with pytest.raises(UnavailableError, match="is full"):
                shop.write([row("ann", 2, fields=fields), row("bob", 2, fields=fields)])
        with pytest.raises(UnavailableError, match="is full"):
            shop.online.advance(shop.config, "1", {0: (-1, 1)})
        assert shop.read("ann", "bob") == [values(1), None]
        shop.redis.config_set("maxmemory", "0")
        assert shop.write([row("ann", 2), row("bob", 2)]) == (2, 0, 0)


def test_a_replica_is_read_only_and_serves_reads(tmp_path: Path) -> None:
    with valkey(tmp_path, data="primary") as (primary, _), valkey(tmp_path, data="replica") as (replica, _):
        Store(primary, tmp_path).write([row("ann", 1)])
        shop = Store(replica, tmp_path)
        shop.redis.replicaof(*primary.split(":"))
        until(lambda: shop.read("ann") == [values(1)])
        with pytest.raises(UnavailableError, match="read-only, a replica"):
            shop.write([row("ann", 2)])
        with pytest.raises(UnavailableError, match="read-only, a replica"):
            shop.online.advance(shop.config, "1", {0: (-1, 1)})
        shop.redis.replicaof("NO", "ONE")
        assert shop.write([row("ann", 2)]) == (1, 0, 0)


def test_killed_it_loses_nothing_acknowledged_and_loading_is_unavailable(tmp_path: Path) -> None:
    """kill -9, then a start slowed by some 0.1 ms a command, so that it is caught loading its file."""
    count = 1500
    rows = [row(f"v{i}", i) for i in range(count)]
    with valkey(tmp_path) as (address, process):
        shop = Store(address, tmp_path)
        assert shop.redis.config_get("appendonly", "appendfsync") == {"appendonly": "yes", "appendfsync": "everysec"}
        with shop.redis.pipeline(transaction=False) as padding:  # the server looks up from loading every 1024 commands
            for _ in range(20_000):
                padding.incr("padding")
            padding.execute()
        assert shop.write(rows) == (count, 0, 0)
        shop.online.advance(shop.config, "1", {3: (-1, count)})
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(UnavailableError, match="does not answer"):
            shop.read("v1")
    slow = ("--key-load-delay", "20")
    with valkey(tmp_path, *slow) as (address, _):
        shop = Store(address, tmp_path)
        said: list[str] = []

        def loaded() -> bool:
            try:
                shop.write([row("v1", 0)])
            except UnavailableError as error:
                said.append(str(error))
                return False
            return True

        until(loaded)
        assert any("still loading" in line for line in said), said
        assert shop.read(*(f"v{i}" for i in range(count))) == [values(i) for i in range(count)]
        assert shop.online.folded(shop.config, [3], "1") == {3: count}


def test_a_store_that_stalls_is_late_and_used_again_when_it_answers(tmp_path: Path) -> None:
    with valkey(tmp_path) as (address, process):
        shop = Store(address, tmp_path, timeout_s=0.2)
        shop.write([row("ann", 1)])
        calls: list[Callable[[], Any]] = [
            lambda: shop.write([row("ann", 2)]),
            lambda: shop.read("ann"),
            lambda: shop.online.folded(shop.config, [0], "1"),
        ]
        process.send_signal(signal.SIGSTOP)
        try:
            for call in calls:
                with pytest.raises(UnavailableError, match="in time"):
                    call()
        finally:
            process.send_signal(signal.SIGCONT)
        until(lambda: shop.read("ann") == [values(2)])  # sent before the stall was noticed, and done after it


def test_a_connection_cut_by_the_server_and_forgotten_scripts_are_got_over(shop: Store) -> None:
    shop.write([row("ann", 1)])
    shop.redis.script_flush()
    assert shop.write([row("ann", 2)]) == (1, 0, 0)
    shop.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert shop.write([row("ann", 3)]) == (1, 0, 0)
    assert shop.read("ann") == [values(3)]


def test_nobody_at_the_address_is_unavailable(tmp_path: Path) -> None:
    shop = Store(f"{HOST}:{free_port()}", tmp_path)
    calls: list[Callable[[], Any]] = [
        lambda: shop.write([row("ann", 1)]),
        lambda: shop.read("ann"),
        lambda: shop.online.advance(shop.config, "1", {0: (-1, 1)}),
    ]
    for call in calls:
        with pytest.raises(LiveshelfError, match="LIVESHELF_STORE") as caught:
            call()
        assert type(caught.value) is UnavailableError
