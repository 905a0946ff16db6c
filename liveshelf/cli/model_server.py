"""`liveshelf model-server`: our model server by itself, for any SavedModel."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liveshelf.errors import NotFoundError, SettingsError

if TYPE_CHECKING:
    from liveshelf.settings import Settings
    from serving.model_server.config import ModelConfig


def command(
    ctx: typer.Context,
    model_base_path: Annotated[
        Path | None, typer.Option(help="Directory of numbered versions: PATH/1/saved_model.pb, PATH/2/saved_model.pb, …")
    ] = None,
    model_name: Annotated[str, typer.Option(help="What requests call that model. Default: the setting model_name.")] = "",
    versions: Annotated[int, typer.Option(min=1, help="Serve that many of its newest versions.")] = 2,
    model_config_file: Annotated[
        Path | None, typer.Option(help="Several models: TensorFlow Serving's ModelServerConfig, as text. Instead of a base path.")
    ] = None,
    batching_parameters_file: Annotated[
        Path | None, typer.Option(help="Batch requests: TensorFlow Serving's BatchingParameters, as text.")
    ] = None,
    ssl_config_file: Annotated[Path | None, typer.Option(help="gRPC over TLS: TensorFlow Serving's SSLConfig, as text.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of gRPC. Default: the setting model_server_port.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of HTTP. Default: the setting model_server_metrics_port.")
    ] = None,
    intra_op: Annotated[int, typer.Option(min=0, help="Threads of one TensorFlow op; 0: as many as cores.")] = 1,
    inter_op: Annotated[int, typer.Option(min=-1, help="TensorFlow ops at once; -1: one, in the request's own thread.")] = -1,
) -> None:
    """Serve SavedModels over TensorFlow Serving's own gRPC API, on this machine's processors.

    It answers Predict, GetModelMetadata, GetModelStatus and HandleReloadConfigRequest; every client of TensorFlow Serving works. A new
    version is found within a second of its directory appearing, loaded and warmed up (assets.extra/tf_serving_warmup_requests) while the
    old one serves, and then published. Ctrl-C ends it in good order. Without a path or a file it serves the trainer's model.

    Over HTTP: /healthz, /metrics, /v1/models/NAME. Both ports listen on the setting host, which is loopback. Examples:

        liveshelf model-server --model-base-path ~/models/half_plus_two

        liveshelf model-server --model-base-path models/shelf --model-name shelf --port 8500 --batching-parameters-file batching.config

        curl 127.0.0.1:18501/v1/models/shelf

        saved_model_cli show --dir ~/models/half_plus_two/1 --all     (prints the signatures; TensorFlow brings it)
    """
    import msgspec

    if model_base_path and model_config_file:
        raise SettingsError("--model-base-path and --model-config-file: give one of them, not both")
    changes = {"model_server_port": port, "model_server_metrics_port": metrics_port}
    settings = msgspec.structs.replace(ctx.obj, **{name: value for name, value in changes.items() if value})
    try:
        from serving.model_server.__main__ import run
        from serving.model_server.app import Options
        from serving.model_server.batching import read_batching_parameters
        from serving.model_server.runtime import Threads
        from serving.model_server.tls import read_ssl_config
    except ModuleNotFoundError as error:
        raise SettingsError(f"the model server needs {error.name}: pip install 'liveshelf[model-server]'") from error
    batching = read_batching_parameters(batching_parameters_file) if batching_parameters_file else None
    credentials = read_ssl_config(ssl_config_file) if ssl_config_file else None
    models = _models(settings, model_base_path, model_name, versions, model_config_file)
    run(settings, models, Options(Threads(intra_op, inter_op), batching, credentials))


def _models(
    settings: "Settings", base_path: Path | None, name: str, versions: int, config_file: Path | None
) -> "list[ModelConfig]":
    from serving.model_server.config import ModelConfig, default_config, read_config

    if config_file:
        return read_config(config_file)
    if base_path is None:
        return default_config(settings)
    path = base_path.expanduser().resolve()
    if not path.is_dir():
        raise NotFoundError(f"--model-base-path={base_path} is not a directory")
    if (path / "saved_model.pb").is_file():
        raise SettingsError(
            f"--model-base-path={base_path} is a SavedModel itself. Name the directory above it, which holds one directory a version, "
            f"named by its number: {path.parent if path.name.isdigit() else path.name + '/1'}"
        )
    return [ModelConfig(name or settings.model_name, path, latest=versions)]
