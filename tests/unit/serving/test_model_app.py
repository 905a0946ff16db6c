"""A model server that cannot listen says which port, and which setting moves it."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from liveshelf.errors import ConflictError
from liveshelf.settings import Settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from serving.model_server.app import Options, serve
from serving.model_server.config import default_config


@pytest.mark.parametrize("setting", ["model_server_port", "model_server_metrics_port"])
def test_port_in_use_is_said(tmp_path: Path, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"model_server_port": 0, "model_server_metrics_port": 0, setting: taken.getsockname()[1]}
        settings = Settings(data_dir=str(tmp_path), **ports)
        with pytest.raises(ConflictError, match=f"LIVESHELF_{setting.upper()}"):
            asyncio.run(serve(settings, default_config(settings), Options()))
