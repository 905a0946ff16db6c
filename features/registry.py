"""Which feature versions there are: the Feast registry, where every role looks them up."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from feast import FeatureStore, RepoConfig
from feast.errors import FeastObjectNotFoundException

from features import definitions
from features.feature_set import FeatureSet, declared_set, load_feature_set
from liveshelf.errors import ConflictError, NotFoundError
from liveshelf.settings import Settings

for name in ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"):  # Feast's import sets them; they are not for our children
    os.environ.pop(name, None)

PROJECT = "liveshelf"


def repo_config(settings: Settings, registry: Path, online_store: dict[str, object]) -> RepoConfig:
    return RepoConfig(
        project=PROJECT,
        provider="local",
        registry={"path": str(registry), "cache_ttl_seconds": 0},  # 0: never expires by itself
        online_store=online_store,
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )


class FeatureRegistry:
    """The registered feature versions. Needs no store."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.path = settings.data_path / "feast" / "registry.db"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._read_at = (0, 0)
        self._sets: dict[str, FeatureSet] = {}
        self._rebuilding: set[str] = set()

    def feature_sets(self) -> dict[str, FeatureSet]:
        """Every version that is kept up to date, the newest last; the declared one alone while none is registered.

        One that is being rebuilt is not among them: only the rebuild writes its rows, until they are complete.
        """
        sets = self._known()
        return {version: features for version, features in sets.items() if version not in self._rebuilding}

    def feature_set(self, version: str) -> FeatureSet | None:
        """The version's declarations, also while it is being rebuilt; None when nobody registered it."""
        return self._known().get(version)

    def rebuilding(self) -> set[str]:
        """Versions that are being rebuilt, or whose rebuild was interrupted."""
        self._known()
        return set(self._rebuilding)

    def _known(self) -> dict[str, FeatureSet]:
        stat = self.path.stat() if self.path.exists() else None
        stamp = (stat.st_mtime_ns, stat.st_ino) if stat else (0, 0)
        if stamp != self._read_at or not self._sets:
            self._sets, self._rebuilding = self._read() if stat else ({}, set())
            self._read_at = stamp
        if not self._sets:
            declared = declared_set(self._settings)
            return {declared.version: declared}
        return self._sets

    def newest(self) -> FeatureSet:
        return list(self.feature_sets().values())[-1]

    def registered(self) -> bool:
        """Whether anything is registered yet: the agents do this when they start."""
        return bool(self._registered()[0])

    def register(self, features: FeatureSet, rebuilding: bool = False) -> None:
        """Add a version as the newest; one that is registered already stays where and as it is.

        `rebuilding`: its rows are not complete; agents, models and trainers leave it alone until `activate`.
        """
        registered, others = self._registered()
        if features.version not in registered:
            self._write([*registered.values(), features], others | ({features.version} if rebuilding else set()))

    def activate(self, version: str) -> None:
        """The version's rows are complete: from now on the agents keep them so.

        Raises:
            NotFoundError: there is no such version.
        """
        registered, rebuilding = self._registered()
        if version not in registered:
            raise NotFoundError(f"feature version {version!r} is not registered any more: was it retired meanwhile?")
        self._write(list(registered.values()), rebuilding - {version})

    def register_first(self) -> None:
        """Register the declared features if there are none; more come by `liveshelf features rebuild`."""
        if not self.registered():
            self.register(declared_set(self._settings))

    def retire(self, version: str) -> None:
        """Forget a version: nobody folds it any more.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: it is the only one.
        """
        registered, rebuilding = self._registered()
        if version not in registered:
            raise NotFoundError(f"feature version {version!r} is not registered; there are: {', '.join(registered) or 'none'}")
        if not registered.keys() - rebuilding - {version}:
            raise ConflictError(f"feature version {version} is the only one; without it nothing would be folded")
        self._write([features for name, features in registered.items() if name != version], rebuilding - {version})

    def _registered(self) -> tuple[dict[str, FeatureSet], set[str]]:
        return self._read() if self.path.exists() else ({}, set())

    def _read(self) -> tuple[dict[str, FeatureSet], set[str]]:
        """Every version, the newest last, and those being rebuilt."""
        store = FeatureStore(config=repo_config(self._settings, self.path, {"type": "redis", "connection_string": ""}))
        try:
            services = store.list_feature_services()
        except FeastObjectNotFoundException:
            return {}, set()
        sets: dict[str, FeatureSet] = {}
        rebuilding: set[str] = set()
        for service in sorted((s for s in services if definitions.DECLARATIONS in s.tags), key=_order):
            features = load_feature_set(service.tags[definitions.DECLARATIONS], f"registered {service.name}")
            if service.name != features.shopper_view.name:  # folded under another FOLD_FORMAT: such rows cannot be read here
                continue
            sets[features.version] = features
            if definitions.REBUILDING in service.tags:
                rebuilding.add(features.version)
        return sets, rebuilding

    def _write(self, sets: list[FeatureSet], rebuilding: set[str]) -> None:
        """Feast writes its registry file in place, and a reader of half a file sees half of the definitions: so beside it, then into
        place."""
        objects = list(definitions.build(sets, self.path.parent, rebuilding).values())
        with TemporaryDirectory(dir=self.path.parent) as beside:
            fresh = Path(beside) / self.path.name
            FeatureStore(config=repo_config(self._settings, fresh, {"type": "redis", "connection_string": ""})).apply(objects)
            shutil.copymode(self.path, fresh) if self.path.exists() else None
            fresh.replace(self.path)


def _order(service: object) -> int:
    return int(service.tags[definitions.ORDER])  # type: ignore[attr-defined]
