"""The scoring API as JSON over HTTP, for frontends: `POST /v1/recommend` and so on take and answer the proto's messages as protobuf JSON.

Errors are google.rpc.Status as JSON, with the HTTP code that belongs to its gRPC code. A deadline goes in the header `Grpc-Timeout`
(`150m` is 150 ms). When the browser goes away, the work stops.
"""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import Message

from liveshelf.errors import ConflictError, SettingsError
from liveshelf.settings import Settings
from serving import openapi, status
from serving.edge import NO_TRACE, Method
from serving.rpc import REQUEST_BYTES_MAX, tls_on
from serving.status import HTTP_CODES, ApiError
from streams.tracing import CARRIED

CONTENT_TYPES = ("", "application/octet-stream", "application/json", "text/plain")
"""None at all reads as octet-stream; text/plain is what a browser may post to another origin without asking first."""

_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")  # as gRPC spells it
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
CORS = {
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "content-type, authorization, grpc-timeout, traceparent, tracestate, baggage",
    "Access-Control-Max-Age": "86400",
}


async def serve_http(settings: Settings, methods: Sequence[Method]) -> web.AppRunner:
    """Serve the API on `settings.scoring_http_port`; `await runner.cleanup()` stops it.

    Raises:
        SettingsError: the TLS settings.
        ConflictError: the port is taken.
    """
    runner = web.AppRunner(make_app(methods), access_log=None, handle_signals=False, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.scoring_http_port, ssl_context=ssl_context(settings)).start()
    except OSError as error:
        await runner.cleanup()
        raise ConflictError(
            f"cannot listen on {settings.host}:{settings.scoring_http_port}: {error}. Stop what listens there, or set "
            "LIVESHELF_SCORING_HTTP_PORT."
        ) from error
    return runner


def make_app(methods: Sequence[Method]) -> web.Application:
    app = web.Application(client_max_size=REQUEST_BYTES_MAX, middlewares=[_cors, _errors])
    for method in methods:
        app.router.add_post(path_of(method), partial(_call, method))
    document = msgspec.json.encode(openapi.document({path_of(method): method for method in methods}))

    async def show_openapi(_: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    app.router.add_get("/openapi.json", show_openapi)
    return app


def path_of(method: Method) -> str:
    """BatchSimilarItems → /v1/batch-similar-items."""
    return "/v1/" + re.sub(r"(?<!^)(?=[A-Z])", "-", method.name).lower()


async def _call(method: Method, request: web.Request) -> web.Response:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in CONTENT_TYPES:
        return _error(
            ApiError(grpc.StatusCode.INVALID_ARGUMENT, f"content-type {request.content_type!r}, expected application/json"), 415
        )
    left_s = _left_s(request.headers.get("grpc-timeout", ""))
    body = await request.read()
    try:
        async with asyncio.timeout(left_s):
            authorization = request.headers.get("authorization", "")
            answer = await method.answer(partial(_parse, body, method.request), left_s, authorization, _carrier(method, request))
    except TimeoutError:
        raise status.late() from None
    return web.Response(text=_json(answer), content_type="application/json")


def _carrier(method: Method, request: web.Request) -> Mapping[str, str]:
    return {key: value for key in CARRIED if (value := request.headers.get(key))} if method.tracing else NO_TRACE


def _parse(body: bytes, kind: type[Message]) -> Message:
    """Raises ValueError: no JSON, or not of this message."""
    try:
        return json_format.Parse(body or b"{}", kind())  # type: ignore[no-any-return]
    except json_format.Error as error:
        raise ValueError(str(error)) from None


def _json(message: Message) -> str:
    """Every field is there, so that a frontend needs no defaults of its own; names are the proto's."""
    return json_format.MessageToJson(  # type: ignore[no-any-return]
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
    )


def _left_s(timeout: str) -> float | None:
    if not timeout:
        return None
    if not (match := _TIMEOUT.fullmatch(timeout)):
        got = status.violation("Grpc-Timeout", status.quoted(timeout), "a number and one of H, M, S, m (ms), u, n, such as 150m")
        raise status.invalid([got])
    return int(match[1]) * _UNIT_S[match[2]]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _cors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Any origin, as the collector: no cookie is read here, and no answer depends on one."""
    origin = request.headers.get("origin")
    preflight = request.method == "OPTIONS" and "access-control-request-method" in request.headers
    response = web.Response() if preflight else await handler(request)
    if origin:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Allow-Credentials"] = "true"
        response.headers["Vary"] = "Origin"
        if preflight:
            response.headers.update(CORS)
    return response


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer that is none is a google.rpc.Status, aiohttp's own (no such path, too large) included."""
    try:
        return await handler(request)
    except ApiError as error:
        return _error(error, HTTP_CODES[error.code])
    except web.HTTPRequestEntityTooLarge:
        message = f"the body is larger than {REQUEST_BYTES_MAX} bytes"
        return _error(ApiError(grpc.StatusCode.INVALID_ARGUMENT, message), 413)
    except web.HTTPException as error:
        code = grpc.StatusCode.NOT_FOUND if error.status == 404 else grpc.StatusCode.UNIMPLEMENTED
        return _error(ApiError(code, f"{request.method} {request.path[:100]}: {error.reason}; see /openapi.json"), error.status)


def _error(error: ApiError, http_code: int) -> web.Response:
    headers: dict[str, Any] = {}
    if error.retry_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_s)))  # whole seconds are all that HTTP knows
    return web.Response(text=_json(error.status), status=http_code, headers=headers, content_type="application/json")


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """As the gRPC server's TLS. Raises SettingsError."""
    if not tls_on(settings):
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(Path(settings.scoring_tls_cert).expanduser(), Path(settings.scoring_tls_key).expanduser())
        if settings.scoring_tls_client_ca:
            context.load_verify_locations(Path(settings.scoring_tls_client_ca).expanduser())
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the scoring_tls_* files: {error}. Name readable PEM files, or unset them.") from error
    return context
