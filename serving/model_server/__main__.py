"""`python -m serving.model_server [--model_config_file=FILE]`: the flag that TensorFlow Serving has; all else from the settings."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from liveshelf.errors import LiveshelfError
from liveshelf.settings import load_settings
from serving.model_server.config import default_config, read_config
from streams.logs import configure_logs


@contextmanager
def native_stderr_closed() -> Iterator[None]:
    """TensorFlow's C++ side writes notices (oneDNN, CPU features) while it is imported, before it looks at TF_CPP_MIN_LOG_LEVEL; they are no
    JSON lines. What goes wrong in an import still comes as an exception."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.model_server", description=__doc__)
    parser.add_argument("--model_config_file", type=Path, help="TensorFlow Serving's ModelServerConfig, as text")
    arguments = parser.parse_args()
    # Only what is fatal, for TensorFlow's notices are no JSON lines; and no look for GPUs, which are TensorFlow Serving's work (on a machine
    # without one the failed look is logged as an error).
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    configure_logs()
    try:
        settings = load_settings()
        models = read_config(arguments.model_config_file) if arguments.model_config_file else default_config(settings)
        with native_stderr_closed():
            from serving.model_server.app import serve  # imports TensorFlow: after whatever may be wrong with the settings

        uvloop.run(serve(settings, models))
    except LiveshelfError as error:
        print(f"model server: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
