"""The scoring API over gRPC: its calls, standard health for each service, reflection, TLS."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from liveshelf.errors import ConflictError, SettingsError
from liveshelf.settings import Settings
from serving.edge import NO_TRACE, SERVICES, Method
from serving.status import ApiError
from streams.tracing import CARRIED

REQUEST_BYTES_MAX = 4 * 2**20  # 2,000 candidates with ids of 128 four-byte characters are 1 MB
ANSWER_BYTES_MAX = 16 * 2**20  # 10,000 ranked items of a batch, with long titles
STREAMS_MAX = 1_024  # calls under way on one connection; a caller with more waits at its own end
OTHER_CALLS_MAX = 1_024  # health watches, reflection, and calls on their way to being refused

OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second scorer on this port must fail, not share it
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", ANSWER_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    # A caller that vanished (its machine, not its process) is noticed after a minute, and its calls are given up.
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Callers may ping an idle connection every 10 s, to keep it through load balancers; more often is refused (GOAWAY).
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class Health:
    """Standard health: each service for itself; "", the server as a whole, is as RecommendationService, which a scorer is there for."""

    def __init__(self) -> None:
        self.servicer = health_aio.HealthServicer()

    async def set(self, service: str, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", service) if service == SERVICES[0] else (service,):
            await self.servicer.set(name, status)


async def make_server(settings: Settings, methods: Sequence[Method]) -> tuple[grpc.aio.Server, Health]:
    """A server that listens when started; no service is SERVING yet.

    Raises:
        SettingsError: the TLS settings.
        ConflictError: the port is taken.
    """
    bound = sum({id(method.admission): method.admission.limit for method in methods}.values())
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=bound + OTHER_CALLS_MAX)
    for service in SERVICES:
        handlers = {method.name: _handler(method) for method in methods if method.service == service}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    health = Health()
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection([*SERVICES, health_name, reflection.SERVICE_NAME], server)
    for service in SERVICES:
        await health.set(service, False)
    credentials = server_credentials(settings)
    try:
        if credentials is None:
            server.add_insecure_port(settings.scoring_address)
        else:
            server.add_secure_port(settings.scoring_address, credentials)
    except RuntimeError as error:
        raise ConflictError(
            f"cannot listen on {settings.scoring_address}: {error}. Stop what listens there, or set LIVESHELF_SCORING_PORT."
        ) from error
    return server, health


def _handler(method: Method) -> grpc.RpcMethodHandler:
    """Requests are decoded here and not by grpc, which would answer bytes that are no message with INTERNAL, and before admission."""

    async def call(body: bytes, context: grpc.aio.ServicerContext) -> Any:
        authorization = _metadata(context, "authorization") if method.token else ""
        carrier = {key: value for key in CARRIED if (value := _metadata(context, key))} if method.tracing else NO_TRACE
        try:
            return await method.answer(partial(method.request.FromString, body), context.time_remaining(), authorization, carrier)
        except ApiError as error:
            await context.abort(error.code, error.message, error.trailing_metadata)

    return grpc.unary_unary_rpc_method_handler(call, response_serializer=method.response.SerializeToString)


def _metadata(context: grpc.aio.ServicerContext, name: str) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return str(value)
    return ""


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """The server's side of TLS; None where it is off.

    Raises:
        SettingsError: only one of certificate and key is set, or a file cannot be read.
    """
    if not tls_on(settings):
        return None
    key, cert = read_pem("scoring_tls_key", settings.scoring_tls_key), read_pem("scoring_tls_cert", settings.scoring_tls_cert)
    client_ca = read_pem("scoring_tls_client_ca", settings.scoring_tls_client_ca) if settings.scoring_tls_client_ca else None
    return grpc.ssl_server_credentials([(key, cert)], client_ca, require_client_auth=client_ca is not None)


def tls_on(settings: Settings) -> bool:
    """Raises SettingsError when the TLS settings are half a set."""
    if bool(settings.scoring_tls_cert) != bool(settings.scoring_tls_key):
        raise SettingsError("set both scoring_tls_cert and scoring_tls_key, or neither: one alone serves nothing")
    if settings.scoring_tls_client_ca and not settings.scoring_tls_cert:
        raise SettingsError(
            "scoring_tls_client_ca is set but scoring_tls_cert is not: without TLS no caller can show a certificate"
        )
    return bool(settings.scoring_tls_cert)


def read_pem(name: str, path: str) -> bytes:
    """Raises SettingsError: the file that setting `name` names cannot be read."""
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}={path}: {error}. Name a readable PEM file, or unset it.") from error
