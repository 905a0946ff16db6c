"""`python -m serving.model_server [--model_config_file=FILE]`: the flag that TensorFlow Serving has; all else from the settings."""

import argparse
import os
import sys
from pathlib import Path

import structlog

from liveshelf.errors import LiveshelfError
from liveshelf.settings import load_settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.model_server", description=__doc__)
    parser.add_argument("--model_config_file", type=Path, help="TensorFlow Serving's ModelServerConfig, as text")
    arguments = parser.parse_args()
    # Before TensorFlow is imported: errors only. Its notices on CPU features and missing GPUs are no JSON lines.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        settings = load_settings()
        from serving.model_server.app import serve  # imports TensorFlow

        serve(settings, arguments.model_config_file)
    except LiveshelfError as error:
        print(f"model server: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
