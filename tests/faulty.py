"""Ways to break a part from outside: a TCP proxy that delays or cuts, and a model server that answers garbage."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from serving import tfserving_pb2 as pb
from serving.tensors import encode_tensor
from tests.conftest import HOST, free_port


class Proxy:
    """Forwards a port to another, on loopback, from a thread of its own. `delay_s` holds back what goes towards the part; `cut` refuses."""

    def __init__(self, target_port: int) -> None:
        self.port, self._target_port = free_port(), target_port
        self.delay_s, self.cut = 0.0, False
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()

    @contextmanager
    def running(self) -> "Iterator[Proxy]":
        started = threading.Event()

        async def serve() -> None:
            self._stopping = asyncio.Event()
            server = await asyncio.start_server(self._accept, HOST, self.port)
            started.set()
            await self._stopping.wait()
            server.close()
            self._close_all()

        thread = threading.Thread(target=self._loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join(10)

    @contextmanager
    def slow(self, delay_s: float) -> Iterator[None]:
        self.delay_s = delay_s
        try:
            yield
        finally:
            self.delay_s = 0.0

    @contextmanager
    def down(self) -> Iterator[None]:
        """Connections break, and new ones too."""
        self.cut = True
        self._loop.call_soon_threadsafe(self._close_all)
        try:
            yield
        finally:
            self.cut = False

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer, True), self._pump(far_reader, writer, False))
        self._writers -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delayed: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if delayed and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@contextmanager
def garbled_model_server(real_address: str) -> "Iterator[Garbler]":
    """A model server that passes everything on to the real one, and can be told to spoil what comes back."""
    garbler = Garbler(real_address)
    server = grpc.server(_threads())
    for service, methods in {
        "PredictionService": ("Predict", "GetModelMetadata"),
        "ModelService": ("GetModelStatus", "HandleReloadConfigRequest"),
    }.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(garbler.handler(f"/tensorflow.serving.{service}/{name}")) for name in methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", handlers),))
    garbler.port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        yield garbler
    finally:
        server.stop(None)


def _threads() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(8)


class Garbler:
    """`spoil`: "" passes on, "nan" answers scores that are no numbers, "garbage" scores of another shape."""

    def __init__(self, real_address: str) -> None:
        self.spoil, self.port = "", 0
        self._channel = grpc.insecure_channel(real_address)

    @contextmanager
    def answering(self, spoil: str) -> Iterator[None]:
        self.spoil = spoil
        try:
            yield
        finally:
            self.spoil = ""

    def handler(self, method: str) -> Any:
        call = self._channel.unary_unary(method)

        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                answer: bytes = call(data, timeout=5)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            return self._spoiled(answer) if self.spoil and method.endswith("/Predict") else answer

        return handle

    def _spoiled(self, answer: bytes) -> bytes:
        response = pb.PredictResponse.FromString(answer)
        for name in ("click", "cart", "purchase"):
            if name in response.outputs:
                response.outputs[name].Clear()
                shape = (1, 500) if self.spoil == "nan" else (3,)
                encode_tensor(np.full(shape, np.nan, dtype=np.float32), response.outputs[name])
        return bytes(response.SerializeToString())
