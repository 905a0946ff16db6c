"""Feature rows in Feast's online store: rows in, rows out, in batches.

Writes go straight to the online store's batch write (one Feast `push` an event makes about 120 rows/s, this about 15,000). Feast's
own timestamp check is off (`skip_dedup`): it would drop a second write within one event time, and order is kept by offsets here.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import prometheus_client  # noqa: F401 - before Feast, whose import would switch every counter of this process to files in /tmp

os.environ.setdefault("FEAST_USAGE", "False")  # Feast reads this at import; nothing may be sent anywhere

# isort: split
from feast import FeatureStore, FeatureView, RepoConfig
from feast.errors import FeastObjectNotFoundException
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import DoubleList, Int64List, StringList, Value
from redis.exceptions import RedisError

from features import definitions
from features.rows import CatalogItem, ItemRow, ShopperRow
from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings

for name in ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"):  # Feast's import sets them; they are not for our children
    os.environ.pop(name, None)

Values = dict[str, Value]


class FeatureRows:
    """The online store, as rows of `features.rows`.

    Not safe to share between threads that write the same rows. Every call raises UnavailableError when the store does not answer
    within `timeout_s`.
    """

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._registry = settings.data_path / "feast" / "registry.db"
        self._registry.parent.mkdir(parents=True, exist_ok=True)
        self._objects = definitions.build(self._registry.parent)
        self._address = settings.store_address
        options = f"socket_timeout={timeout_s},socket_connect_timeout={timeout_s},retry=null"
        self._config = _config(self._registry, f"{settings.store_address},{options}")
        self._feast = FeatureStore(config=self._config)

    def apply(self) -> None:
        """Register every definition. The agents do this at start; it is idempotent.

        Feast writes its registry file in place, and a reader of half a file sees half of the definitions: so beside it, then into place.
        """
        with TemporaryDirectory(dir=self._registry.parent) as beside:
            fresh = Path(beside) / self._registry.name
            if self._registry.exists():
                shutil.copy(self._registry, fresh)
            FeatureStore(config=_config(fresh, self._config.online_store.connection_string)).apply(list(self._objects.values()))
            fresh.replace(self._registry)
        self._feast.refresh_registry()

    def applied(self) -> bool:
        """Whether the agents have registered the definitions yet."""
        try:
            self._feast.refresh_registry()
            self._feast.get_feature_service("shopper_features")
        except (FeastObjectNotFoundException, FileNotFoundError):
            return False
        return True

    def read_shoppers(self, shoppers: Sequence[str]) -> dict[str, ShopperRow]:
        """Rows by shopper; a shopper never seen is absent."""
        rows = self._read("shopper_features", {"shopper": list(shoppers)})
        return {shopper: _shopper_row(shopper, values) for shopper, values in zip(shoppers, rows, strict=True) if values}

    def write_shoppers(self, rows: Iterable[ShopperRow]) -> None:
        self._write("shopper_features", [(_key(shopper=row.shopper), _shopper_values(row), row.time_ms) for row in rows])

    def read_items(self, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], ItemRow]:
        """Rows by (item, source partition); absent when that partition never contributed."""
        columns: dict[str, list[Any]] = {
            "item": [item for item, _ in keys],
            "source_partition": [partition for _, partition in keys],
        }
        rows = self._read("item_features", columns)
        return {key: _item_row(*key, values) for key, values in zip(keys, rows, strict=True) if values}

    def write_items(self, rows: Iterable[ItemRow]) -> None:
        self._write(
            "item_features",
            [(_key(item=row.item, source_partition=row.partition), _item_values(row), row.time_ms) for row in rows],
        )

    def read_catalog(self, items: Sequence[str]) -> dict[str, CatalogItem]:
        rows = self._read("item_catalog", {"item": list(items)})
        return {item: _catalog_item(item, values) for item, values in zip(items, rows, strict=True) if values}

    def write_catalog(self, items: Iterable[CatalogItem]) -> None:
        self._write("item_catalog", [(_key(item=i.item_id), _catalog_values(i), i.time_ms) for i in items])

    def _read(self, service: str, entities: dict[str, list[Any]]) -> list[Values]:
        if not next(iter(entities.values())):
            return []
        features = self._answering(
            lambda: self._feast.get_online_features(self._objects[f"service:{service}"], entity_rows=entities)
        )
        response = features.proto
        rows: list[Values] = [{} for _ in next(iter(entities.values()))]
        for name, result in zip(response.metadata.feature_names.val, response.results, strict=True):
            if name in entities:
                continue
            for row, value in zip(rows, result.values, strict=True):
                if value.WhichOneof("val"):
                    row[name] = value
        return rows

    def _write(self, name: str, rows: list[tuple[EntityKey, Values, int]]) -> None:
        if not rows:
            return
        view: FeatureView = self._objects[name]
        data = [(key, values, datetime.fromtimestamp(ms / 1000, UTC), None) for key, values, ms in rows]
        self._answering(lambda: self._feast._get_provider().online_write_batch(self._config, view, data, None))

    def _answering(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except FeastObjectNotFoundException as error:
            raise UnavailableError("the feature definitions are not registered yet: the agents do this when they start") from error
        except (RedisError, OSError) as error:
            raise UnavailableError(f"the online store at {self._address} does not answer: {error}") from error


def _config(registry: Path, connection: str) -> RepoConfig:
    return RepoConfig(
        project="liveshelf",
        provider="local",
        registry={"path": str(registry), "cache_ttl_seconds": 0},  # 0: never expires; definitions only change with the code
        online_store={"type": "redis", "connection_string": connection, "skip_dedup": True, "full_scan_for_deletion": False},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )


def _key(**parts: str | int) -> EntityKey:
    names = sorted(parts)  # Feast's order inside a key
    values = [Value(int64_val=v) if isinstance(v := parts[n], int) else Value(string_val=v) for n in names]
    return EntityKey(join_keys=names, entity_values=values)


def _strings(values: Iterable[str]) -> Value:
    return Value(string_list_val=StringList(val=values))


def _weights(name: str, weights: dict[str, float]) -> Values:
    return {
        f"{name}_keys": _strings(weights),
        f"{name}_values": Value(double_list_val=DoubleList(val=weights.values())),
    }


def _read_weights(name: str, values: Values) -> dict[str, float]:
    return dict(zip(values[f"{name}_keys"].string_list_val.val, values[f"{name}_values"].double_list_val.val, strict=True))


def _shopper_values(row: ShopperRow) -> Values:
    return {
        "partition": Value(int64_val=row.partition),
        "offset": Value(int64_val=row.offset),
        "time_ms": Value(int64_val=row.time_ms),
        "recent_items": _strings(row.recent_items),
        "recent_events": _strings(row.recent_events),
        "recent_times_ms": Value(int64_list_val=Int64List(val=row.recent_times_ms)),
        **_weights("counts", row.counts),
        **_weights("category_affinity", row.category_affinity),
        **_weights("brand_affinity", row.brand_affinity),
        "event_ids": _strings(row.event_ids),
    }


def _shopper_row(shopper: str, values: Values) -> ShopperRow:
    return ShopperRow(
        shopper=shopper,
        partition=values["partition"].int64_val,
        offset=values["offset"].int64_val,
        time_ms=values["time_ms"].int64_val,
        recent_items=list(values["recent_items"].string_list_val.val),
        recent_events=list(values["recent_events"].string_list_val.val),
        recent_times_ms=list(values["recent_times_ms"].int64_list_val.val),
        counts=_read_weights("counts", values),
        category_affinity=_read_weights("category_affinity", values),
        brand_affinity=_read_weights("brand_affinity", values),
        event_ids=list(values["event_ids"].string_list_val.val),
    )


def _item_values(row: ItemRow) -> Values:
    return {
        "offset": Value(int64_val=row.offset),
        "time_ms": Value(int64_val=row.time_ms),
        **_weights("counts", row.counts),
        **_weights("neighbours", row.neighbours),
    }


def _item_row(item: str, partition: int, values: Values) -> ItemRow:
    return ItemRow(
        item=item,
        partition=partition,
        offset=values["offset"].int64_val,
        time_ms=values["time_ms"].int64_val,
        counts=_read_weights("counts", values),
        neighbours=_read_weights("neighbours", values),
    )


def _catalog_values(item: CatalogItem) -> Values:
    return {
        "item_name": Value(string_val=item.item_name),
        "item_category": Value(string_val=item.item_category),
        "item_brand": Value(string_val=item.item_brand),
        "price": Value(double_val=item.price),
        "available": Value(bool_val=item.available),
        "time_ms": Value(int64_val=item.time_ms),
    }


def _catalog_item(item: str, values: Values) -> CatalogItem:
    return CatalogItem(
        item_id=item,
        item_name=values["item_name"].string_val,
        item_category=values["item_category"].string_val,
        item_brand=values["item_brand"].string_val,
        price=values["price"].double_val,
        available=values["available"].bool_val,
        time_ms=values["time_ms"].int64_val,
    )
