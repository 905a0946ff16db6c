"""Which models to serve: TensorFlow Serving's ModelServerConfig, from its text format or made from the settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import text_format

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings
from serving import tfserving_pb2 as pb
from serving.model_client import LATEST
from serving.model_server.status import ServingError, invalid_argument
from streams.route import read_route

PLATFORM = "tensorflow"


@dataclass(frozen=True)
class ModelConfig:
    name: str
    base_path: Path
    """Directory of numbered versions; it need not exist yet."""
    latest: int = 1
    """Serve that many of the newest versions, unless `all` or `specific` is set."""
    all: bool = False
    specific: frozenset[int] = frozenset()
    labels: Mapping[str, int] = field(default_factory=dict)


def default_config(settings: Settings) -> list[ModelConfig]:
    """The model of the settings with its two newest versions: the scorer asks for an explicit version, and must not lose it at the
    moment that a newer one loads. Or those that are held (see `streams.route`): a restart changes nothing.

    Raises:
        CorruptError: what is held cannot be read.
    """
    route = read_route(settings.model_path)
    return [ModelConfig(settings.model_name, settings.model_path, LATEST, specific=frozenset(route.held), labels=route.labels)]


def read_config(file: Path) -> list[ModelConfig]:
    """Read `--model_config_file`.

    Raises:
        SettingsError: unreadable, not a ModelServerConfig, or one that TensorFlow Serving would refuse.
    """
    try:
        config = text_format.Parse(file.read_text(), pb.ModelServerConfig())
        return models_of(config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise SettingsError(
            f"--model_config_file={file}: {error}. It wants TensorFlow Serving's ModelServerConfig as text."
        ) from error
    except ServingError as error:
        raise SettingsError(f"--model_config_file={file}: {error.message}") from error


def models_of(config: pb.ModelServerConfig) -> list[ModelConfig]:
    """The models in a config.

    Raises:
        ServingError: with the codes and messages of tensorflow_serving/model_servers/server_core.cc (ValidateModelConfigList,
            GetPlatform, CreateStoragePathRoutes) and model_service_impl.cc (HandleReloadConfigRequest).
    """
    if config.WhichOneof("config") != "model_config_list":
        invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
        )
    models: dict[str, ModelConfig] = {}
    for entry in config.model_config_list.config:
        if entry.name in models:
            invalid_argument(f"Illegal to list model {entry.name} multiple times in config list")
        models[entry.name] = _model(entry)
    return list(models.values())


def _model(entry: pb.ModelConfig) -> ModelConfig:
    platform = entry.model_platform or (PLATFORM if entry.model_type == pb.TENSORFLOW else "")
    if not platform:
        invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    if platform != PLATFORM:
        invalid_argument(f"Model {entry.name} requests unsupported platform {platform}")
    if not entry.name or not entry.base_path:
        invalid_argument(f"a model needs a name and a base_path, got {entry.name!r}, {entry.base_path!r}")
    policy = entry.model_version_policy
    return ModelConfig(
        entry.name,
        Path(entry.base_path),
        latest=max(policy.latest.num_versions, 1),  # as file_system_storage_path_source.cc: unset or 0 means the newest one
        all=policy.HasField("all"),
        specific=frozenset(policy.specific.versions) if policy.HasField("specific") else frozenset(),
        labels=dict(entry.version_labels),
    )
