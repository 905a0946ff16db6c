"""The scorer's client: light to import, and every failure has its reason. (What it answers: tests/contract/test_model_server.py.)"""

import asyncio
import socket
import subprocess
import sys
from typing import Any

import grpc
import numpy as np
import pytest

from liveshelf.errors import NotFoundError, UnavailableError
from liveshelf.settings import Settings
from serving.model_client import ModelClient, ModelNotFoundError, ModelUnavailableError


def test_importing_it_does_not_import_tensorflow() -> None:
    code = "import serving.model_client, sys; sys.exit(any(name.startswith('tensorflow') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


async def predict_from(behaviour: Any, timeout_s: float = 5.0) -> Any:
    """What the client makes of a server whose Predict is `behaviour(request, context)`."""
    server = grpc.aio.server()
    handlers = {"Predict": grpc.unary_unary_rpc_method_handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with ModelClient(Settings(model_server=f"127.0.0.1:{port}")) as client:
            return await client.predict(3, "rank", {"x": np.zeros((1, 2), np.float32)}, timeout_s)
    finally:
        await server.stop(None)


def aborting(code: grpc.StatusCode) -> Any:
    async def behaviour(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(code, "because")
        return b""

    return behaviour


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        (grpc.StatusCode.NOT_FOUND, ModelNotFoundError, "model_version_not_found"),
        (grpc.StatusCode.UNAVAILABLE, ModelUnavailableError, "model_server_unavailable"),
        (grpc.StatusCode.INVALID_ARGUMENT, ModelUnavailableError, "model_refused"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ModelUnavailableError, "model_refused"),
    ],
)
def test_status_becomes_a_reason(code: grpc.StatusCode, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match="because") as caught:
        asyncio.run(predict_from(aborting(code)))
    assert caught.value.reason == reason  # type: ignore[attr-defined]
    assert isinstance(caught.value, NotFoundError if code is grpc.StatusCode.NOT_FOUND else UnavailableError)


def test_slow_server_is_a_timeout() -> None:
    async def never(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.Event().wait()
        return b""

    with pytest.raises(ModelUnavailableError) as caught:
        asyncio.run(predict_from(never, timeout_s=0.05))
    assert caught.value.reason == "model_server_timeout"


def test_no_server_is_unavailable_at_once() -> None:
    with socket.socket() as probe:  # bound and not listening: nobody else gets the port meanwhile
        probe.bind(("127.0.0.1", 0))
        asyncio.run(asyncio.wait_for(ask_nobody(probe.getsockname()[1]), 4.0))


async def ask_nobody(port: int) -> None:
    async with ModelClient(Settings(model_server=f"127.0.0.1:{port}")) as client:
        with pytest.raises(ModelUnavailableError) as caught:
            await client.versions()
        assert caught.value.reason == "model_server_unavailable"
        with pytest.raises(ModelUnavailableError) as caught:
            await client.predict(1, "rank", {}, timeout_s=5.0)
        assert caught.value.reason == "model_server_unavailable"


def test_unreadable_answer_is_refused() -> None:
    async def broken(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        from serving import tfserving_pb2 as pb

        return pb.PredictResponse(outputs={"y": pb.Tensor(dtype=1, tensor_content=b"1")}).SerializeToString()

    with pytest.raises(ModelUnavailableError, match="unreadable answer") as caught:
        asyncio.run(predict_from(broken))
    assert caught.value.reason == "model_refused"
