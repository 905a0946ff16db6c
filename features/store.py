"""Feature rows in Feast's online store: rows in, rows out, in batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from feast import FeatureService, FeatureStore
from feast.errors import FeastObjectNotFoundException
from redis.exceptions import RedisError

from features import definitions
from features.feature_set import FeatureSet, ViewSpec
from features.online import FencedOnlineStore, Row, StoreBehindError, Written, store_error
from features.packed import UNFENCED
from features.registry import FeatureRegistry, repo_config
from features.rows import CatalogItem, ItemRow, ShopperRow
from features.values import View, entity_key, python_values
from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings

__all__ = ["FeatureRows", "StoreBehindError", "Written"]


class FeatureRows:
    """The online store, as rows of `features.rows`, for any registered feature version.

    Every call raises UnavailableError when the store does not answer within `timeout_s`, and WrongTypeError (see `features.online`) when a
    key holds something that is no row.
    """

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._partitions = range(settings.partitions)
        self._address = settings.store_address
        self._registry = FeatureRegistry(settings)
        options = f"socket_timeout={timeout_s},socket_connect_timeout={timeout_s},retry=null"
        self._config = repo_config(
            settings,
            self._registry.path,
            {
                "type": "features.online.FencedOnlineStore",
                "connection_string": f"{settings.store_address},{options}",
                "skip_dedup": True,  # Feast's timestamp check would drop a second write of one event time; order is kept by offsets
                "full_scan_for_deletion": False,
            },
        )
        self._feast = FeatureStore(config=self._config)
        online = self._feast._get_provider().online_store
        assert isinstance(online, FencedOnlineStore)
        self._online = online
        self._services: dict[str, FeatureService] = {}  # Feast builds one anew from its registry at each call: 1 ms
        self.feature_sets: Callable[[], dict[str, FeatureSet]] = self._registry.feature_sets
        self.feature_set: Callable[[str], FeatureSet | None] = self._registry.feature_set
        self.newest: Callable[[], FeatureSet] = self._registry.newest
        self.registered: Callable[[], bool] = self._registry.registered
        self.register: Callable[[FeatureSet], None] = self._registry.register
        self.register_first: Callable[[], None] = self._registry.register_first

    def read_shopper(self, shopper: str, features: FeatureSet) -> ShopperRow | None:
        """One shopper's row as Feast serves it; None for a shopper never seen."""
        view = _view(features.shopper_view)
        with self._answering():
            response = self._feast.get_online_features(self._service(features.shopper_view), entity_rows={"shopper": [shopper]})
        vectors = dict(zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True))
        values = python_values(view, [vectors[name].values[0] for name, _ in view.fields])
        return None if values is None else features.shopper_row(shopper, values)

    async def shopper(self, shopper: str, features: FeatureSet) -> ShopperRow | None:
        """As `read_shopper`, in the event loop that serves: for 86 µs of it instead of 390 by way of a thread and Feast's answer message."""
        row = await self._online.read_row(self._config, view := _view(features.shopper_view), entity_key(view, shopper))
        return None if row is None else features.shopper_row(shopper, row.values)

    async def close(self) -> None:
        """End what `shopper` holds, in its event loop."""
        await self._online.close()

    def read_shoppers(self, shoppers: Sequence[str], features: FeatureSet) -> dict[str, ShopperRow]:
        """Rows by shopper; a shopper never seen is absent."""
        rows = self._read(features.shopper_view, [(shopper,) for shopper in shoppers])
        return {s: features.shopper_row(s, values) for s, values in zip(shoppers, rows, strict=True) if values is not None}

    def write_shoppers(self, rows: Iterable[ShopperRow], features: FeatureSet) -> Written:
        """Write the rows that are further along the log than those stored; the others are left as they are."""
        view, values = _view(features.shopper_view), features.shopper_values
        return self._write(view, (Row(entity_key(view, r.shopper), r.partition, r.offset, r.time_ms, values(r)) for r in rows))

    def read_items(self, keys: Sequence[tuple[str, int]], features: FeatureSet) -> dict[tuple[str, int], ItemRow]:
        """Rows by (item, source partition); absent when that partition never contributed."""
        rows = self._read(features.item_view, keys)
        return {key: features.item_row(*key, values) for key, values in zip(keys, rows, strict=True) if values is not None}

    def write_items(self, rows: Iterable[ItemRow], features: FeatureSet) -> Written:
        view, values = _view(features.item_view), features.item_values
        return self._write(
            view,
            (Row(entity_key(view, r.item, r.partition), r.partition, r.offset, r.time_ms, values(r)) for r in rows),
        )

    def read_catalog(self, items: Sequence[str]) -> dict[str, CatalogItem]:
        view = definitions.CATALOG_VIEW
        names = [name for name, *_ in view.fields]
        rows = self._read(view, [(item,) for item in items])
        return {
            item: CatalogItem(item_id=item, **dict(zip(names, values, strict=True)))
            for item, values in zip(items, rows, strict=True)
            if values is not None
        }

    def write_catalog(self, items: Iterable[CatalogItem]) -> Written:
        """Write catalog records; a later call wins."""
        view = _view(definitions.CATALOG_VIEW)
        names = [name for name, *_ in definitions.CATALOG_VIEW.fields]
        return self._write(
            view,
            (Row(entity_key(view, i.item_id), 0, UNFENCED, i.time_ms, [getattr(i, name) for name in names]) for i in items),
        )

    def folded(self, version: str) -> dict[int, int]:
        """Partition → offset up to which, inclusive, the store holds everything; -1 where nothing."""
        return self._online.folded(self._config, self._partitions, version)

    def advance(self, version: str, offsets: Mapping[int, tuple[int, int]]) -> None:
        """Note that rows are folded further: partition → (held before, held now).

        Raises:
            StoreBehindError: the store holds less than it did.
        """
        self._online.advance(self._config, version, offsets)

    def _read(self, spec: ViewSpec, keys: Sequence[tuple[Any, ...]]) -> list[list[Any] | None]:
        view = _view(spec)
        rows = self._online.read_rows(self._config, view, [entity_key(view, *key) for key in keys])
        return [None if row is None else row.values for row in rows]

    def _write(self, view: View, rows: Iterator[Row]) -> Written:
        return self._online.write_rows(self._config, view, rows)

    def _service(self, spec: ViewSpec) -> FeatureService:
        if (known := self._services.get(spec.name)) is not None:
            return known
        try:
            service = self._services[spec.name] = self._feast.get_feature_service(spec.name, allow_cache=True)
            return service
        except FeastObjectNotFoundException as error:
            self._feast.refresh_registry()
            raise UnavailableError(
                f"the feature view {spec.name} is not registered yet: the agents do this when they start"
            ) from error

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise store_error(error, self._address) from error


@lru_cache(64)
def _view(spec: ViewSpec) -> View:
    return View(spec.name, spec.keys, tuple((name, kind) for name, kind, _ in spec.fields), spec.compressed)
