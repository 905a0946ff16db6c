"""Health is asked over each part's own protocol, and the answer says why not."""

import asyncio
from pathlib import Path

import grpc
import msgspec
import pytest
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from liveshelf.errors import UnavailableError
from liveshelf.local import probes
from liveshelf.settings import Settings
from tests.conftest import free_port, local_settings


def test_kafka_and_store_are_asked(kafka: Settings, store: str) -> None:
    asyncio.run(probes.kafka_probe(kafka)())
    settings = msgspec.structs.replace(kafka, store=store)
    asyncio.run(probes.store_probe(settings)())
    assert probes.store_version(settings).startswith("Valkey 9.")


def test_nobody_at_any_address(tmp_path: Path) -> None:
    """Each probe says so quickly, with the address."""
    settings = local_settings(tmp_path)
    nobody = f"127.0.0.1:{free_port()}"
    asked = [
        (probes.kafka_probe(settings), settings.kafka_address),
        (probes.store_probe(settings), "store"),
        (probes.http_probe(f"http://{nobody}/readyz"), nobody),
        (probes.grpc_health_probe(nobody), nobody),
        (probes.grpc_channel_probe(nobody), nobody),
    ]
    for probe, where in asked:
        with pytest.raises(UnavailableError, match=where):
            asyncio.run(asyncio.wait_for(probe(), probes.PROBE_TIMEOUT_S + 2))


def test_a_grpc_server_says_whether_it_serves() -> None:
    async def run() -> None:
        server, servicer = grpc.aio.server(), health.HealthServicer()
        add_HealthServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        await probes.grpc_channel_probe(address)()
        await probes.grpc_health_probe(address)()
        await servicer.set("", HealthCheckResponse.NOT_SERVING)
        with pytest.raises(UnavailableError, match="NOT_SERVING"):
            await probes.grpc_health_probe(address)()
        await server.stop(0)

    asyncio.run(run())


def test_an_http_part_that_is_not_ready_says_why() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 14\r\nconnection: close\r\n\r\nKafka is away.")
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/readyz"
            with pytest.raises(UnavailableError, match="503: Kafka is away"):
                await probes.http_probe(url)()

    asyncio.run(run())
