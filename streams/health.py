"""Health and metrics over HTTP for roles that are not web applications themselves."""

from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

Readiness = Callable[[], tuple[bool, dict[str, Any]]]


async def serve_health(host: str, port: int, readiness: Readiness) -> web.AppRunner:
    """Serve GET /healthz, /readyz and /metrics; `await runner.cleanup()` stops it.

    `readiness` returns whether the role makes progress, and what is worth showing of it. It is asked at every /readyz and /healthz:
    a worker that stopped consuming is unhealthy even though its process answers.

    Raises:
        OSError: the port is in use.
    """

    async def health(_: web.Request) -> web.Response:
        ready, detail = readiness()
        return web.json_response(
            {"ready": ready, **detail}, status=200 if ready else 503, dumps=lambda value: msgspec.json.encode(value).decode()
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", health), web.get("/readyz", health), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
