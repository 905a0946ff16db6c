"""What the feature agents are measured against: a Faust worker with their library settings that decodes each event and does nothing."""

import time
from typing import Any

import faust

from liveshelf.settings import Settings, load_settings
from streams.faust_app import create_app, run_worker
from streams.health import serve_health
from streams.logs import configure_logs
from streams.records import Event, decode
from streams.topics import CLICKSTREAM

DELAYS_MAX = 10_000


def create(settings: Settings) -> faust.App:
    app = create_app("bench-bare", settings, CLICKSTREAM)
    applied: dict[int, int] = {}
    delays_ms: list[float] = []
    assigned: set[int] = set()

    def readiness() -> tuple[bool, dict[str, Any]]:
        ordered = sorted(delays_ms)
        p50 = ordered[len(ordered) // 2] if ordered else 0.0
        return bool(assigned), {"applied": {str(p): o for p, o in applied.items()}, "partitions": sorted(assigned), "p50_ms": p50}

    @app.task
    async def start() -> None:
        await serve_health(settings.host, settings.agents_metrics_port, readiness)

    @app.on_partitions_assigned.connect
    async def on_assigned(sender: faust.App, assigned: set[Any], **_: Any) -> None:
        update(assigned)

    def update(partitions: set[Any]) -> None:
        assigned.clear()
        assigned.update(tp.partition for tp in partitions)

    @app.agent(app.topic(CLICKSTREAM, value_type=bytes, key_type=bytes))
    async def receive(stream: faust.StreamT) -> None:
        async for record in stream.events():
            event = decode(Event, record.value)
            applied[record.message.partition] = record.message.offset
            if event.value and len(delays_ms) < DELAYS_MAX:  # stamped by the freshness stage with the time of sending
                delays_ms.append((time.time() - event.value) * 1000)

    return app


if __name__ == "__main__":
    configure_logs()
    loaded = load_settings()
    run_worker(lambda: create(loaded))
