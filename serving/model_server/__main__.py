"""`python -m serving.model_server`: with the flags that TensorFlow Serving has; all else from the settings. (`liveshelf model-server` is this
for people.)"""

import argparse
import os
import sys
from pathlib import Path

import uvloop

from liveshelf.errors import LiveshelfError
from liveshelf.settings import Settings, load_settings
from serving.model_server.app import Options, serve
from serving.model_server.batching import read_batching_parameters
from serving.model_server.config import ModelConfig, default_config, read_config
from serving.model_server.runtime import Threads
from serving.model_server.tls import read_ssl_config
from streams.logs import configure_logs


def run(settings: Settings, models: list[ModelConfig], options: Options) -> None:
    """Serve until SIGTERM or SIGINT, logging JSON lines to stderr.

    Raises:
        LiveshelfError: it could not begin.
    """
    # Only what is fatal, for TensorFlow's notices are no JSON lines; and no look for GPUs, which are TensorFlow Serving's work (on a machine
    # without one the failed look is logged as an error).
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    configure_logs()
    uvloop.run(serve(settings, models, options))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.model_server", description=__doc__)
    parser.add_argument("--model_config_file", type=Path, help="TensorFlow Serving's ModelServerConfig, as text")
    parser.add_argument(
        "--batching_parameters_file", type=Path, help="TensorFlow Serving's BatchingParameters, as text; batches requests"
    )
    parser.add_argument("--ssl_config_file", type=Path, help="TensorFlow Serving's SSLConfig, as text; gRPC over TLS")
    parser.add_argument("--tensorflow_intra_op_parallelism", type=int, default=Threads.intra_op, help="threads of one op (1)")
    parser.add_argument(
        "--tensorflow_inter_op_parallelism", type=int, default=Threads.inter_op, help="ops at once (-1: none, in the caller)"
    )
    given = parser.parse_args()
    try:
        settings = load_settings()
        models = read_config(given.model_config_file) if given.model_config_file else default_config(settings)
        batching = read_batching_parameters(given.batching_parameters_file) if given.batching_parameters_file else None
        credentials = read_ssl_config(given.ssl_config_file) if given.ssl_config_file else None
        threads = Threads(given.tensorflow_intra_op_parallelism, given.tensorflow_inter_op_parallelism)
        run(settings, models, Options(threads, batching, credentials))
    except LiveshelfError as error:
        print(f"model server: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
