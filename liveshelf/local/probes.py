"""How the health of each kind of part is asked: one cheap, bounded question over the part's own protocol.

Each `…_probe(…)` makes a coroutine function that returns when the part answers and raises UnavailableError saying why it does not.
Clients are imported and made at the first question, and kept.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from importlib import metadata
from typing import Any

from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings

Probe = Callable[[], Coroutine[Any, Any, None]]

# A healthy part on the same machine answers in milliseconds; a part under full load on two cores has been seen to take 1 s.
PROBE_TIMEOUT_S = 3.0


def distribution_version(name: str) -> str:
    """Installed version of a distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


async def port_answers(address: str) -> None:
    """Raises UnavailableError when nothing accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), PROBE_TIMEOUT_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise UnavailableError(f"nothing answers at {address}: {_reason(error)}") from error
    writer.close()


def kafka_probe(settings: Settings) -> Probe:
    """Healthy: one of the brokers lists its topics."""
    admin: Any = None

    async def ask() -> None:
        nonlocal admin
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        from streams.topics import kafka_config

        if admin is None:
            # librdkafka complains on stderr about each refused connection; a port that is still closed need not be asked by it.
            answers = await asyncio.gather(*map(port_answers, settings.kafka_address.split(",")), return_exceptions=True)
            if (refusal := answers[0]) is not None and all(answers):
                raise refusal
            admin = AdminClient(kafka_config(settings) | {"log_level": 0, "reconnect.backoff.max.ms": 500})
        try:
            await asyncio.to_thread(admin.list_topics, timeout=PROBE_TIMEOUT_S)
        except KafkaException as error:
            raise UnavailableError(f"Kafka at {settings.kafka_address} does not list its topics: {error.args[0].str()}") from error

    return ask


def _store_client(settings: Settings, client: Any, retry: Any) -> Any:
    """A client of class `client` for Feast's connection string: host:port[,password=…,ssl=true,db=0]. `retry` is redis' class for it:
    the default of three retries takes 7 s to say that nobody listens."""
    from redis.backoff import NoBackoff

    address, *options = settings.store_address.split(",")
    host, _, port = address.rpartition(":")
    values: dict[str, Any] = dict(option.split("=", 1) for option in options)
    if "ssl" in values:
        values["ssl"] = values["ssl"].lower() == "true"
    timeouts = {"socket_timeout": PROBE_TIMEOUT_S, "socket_connect_timeout": PROBE_TIMEOUT_S}
    return client(host=host, port=int(port), retry=retry(NoBackoff(), 0), **values, **timeouts)


def store_probe(settings: Settings) -> Probe:
    """Healthy: answers PING."""

    async def ask() -> None:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.exceptions import RedisError

        client = _store_client(settings, Redis, Retry)
        try:
            await client.ping()
        except (RedisError, OSError, TimeoutError) as error:
            raise UnavailableError(f"the store does not answer PING: {_reason(error)}") from error
        finally:
            await client.aclose()

    return ask


def store_version(settings: Settings) -> str:
    """Name and version that the store says of itself; `yours` if it will not."""
    from redis import Redis
    from redis.exceptions import RedisError
    from redis.retry import Retry

    client = _store_client(settings, Redis, Retry)
    try:
        info = client.info("server")
    except (RedisError, OSError):
        return "yours"
    finally:
        client.close()
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


def http_probe(url: str) -> Probe:
    """Healthy: GET answers 200."""

    async def ask() -> None:
        import httpx

        try:
            # A client each time: nothing to close when the supervisor stops. verify: reading certificates took 0.2 s a probe, for plain
            # HTTP; trust_env: no proxy stands before this machine's own address.
            async with httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, verify=False, trust_env=False) as client:  # noqa: S501
                response = await client.get(url)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{url} does not answer: {_reason(error)}") from error
        if response.status_code != 200:
            raise UnavailableError(f"{url} answers {response.status_code}: {response.text[:200].strip()}")

    return ask


def grpc_health_probe(address: str) -> Probe:
    """Healthy: the standard health service says SERVING for the whole server."""

    async def ask() -> None:
        import grpc
        from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
        from grpc_health.v1.health_pb2_grpc import HealthStub

        await port_answers(address)  # a refused connection fails at once, where gRPC would wait and back off
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                answer = await HealthStub(channel).Check(HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
            except grpc.RpcError as error:
                raise UnavailableError(f"grpc.health at {address}: {error.code().name} {error.details()}") from error
        if answer.status != HealthCheckResponse.SERVING:
            raise UnavailableError(f"grpc.health at {address}: {HealthCheckResponse.ServingStatus.Name(answer.status)}")

    return ask


def grpc_channel_probe(address: str) -> Probe:
    """Healthy: an HTTP/2 connection is established."""

    async def ask() -> None:
        import grpc

        async with grpc.aio.insecure_channel(address) as channel:
            try:
                await asyncio.wait_for(channel.channel_ready(), PROBE_TIMEOUT_S)
            except TimeoutError as error:
                raise UnavailableError(f"no gRPC server answers at {address}") from error

    return ask


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
