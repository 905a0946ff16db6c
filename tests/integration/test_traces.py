"""A browser's event can be followed to the shelf that it changed: collector, agents and scorer export spans of one trace."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from liveshelf.local.parts import role_environment
from liveshelf.local.valkey import valkey_command
from liveshelf.v1 import recommendation_pb2 as pb
from liveshelf.v1.recommendation_pb2_grpc import RecommendationServiceStub
from tests.conftest import broker, running, wait_for_port
from tests.live_shop import is_serving, until

pytest.importorskip("opentelemetry.sdk")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CARRIER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "baggage": "event_id=e-17"}
ROLES = {"collector": "streams.collector", "agents": "streams.agents", "scoring": "serving.service"}


def spans(log: Path) -> Iterator[dict[str, Any]]:
    """What the console exporter wrote, between the lines of the log."""
    text, at = log.read_text(), 0
    while (at := text.find("{", at)) >= 0:
        try:
            found, length = json.JSONDecoder().raw_decode(text[at:])
        except json.JSONDecodeError:  # half written
            return
        at += length
        if "context" in found:
            yield found


def of_trace(log: Path, name: str, **attributes: str) -> dict[str, Any] | None:
    wanted = {f"liveshelf.{key}": value for key, value in attributes.items()}
    for span in spans(log):
        if (span["name"], span["context"]["trace_id"]) == (name, f"0x{TRACE}") and wanted.items() <= span["attributes"].items():
            return span
    return None


def test_one_trace_leads_from_the_browsers_event_to_the_shelf(tmp_path: Path) -> None:
    with ExitStack() as stack:
        settings = stack.enter_context(broker(tmp_path))
        store = stack.enter_context(running(valkey_command(settings), tmp_path / "store.log"))
        wait_for_port(settings.store_port, store, tmp_path / "store.log")
        environment = role_environment(settings, os.environ) | {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        logs = {role: tmp_path / f"{role}.log" for role in ROLES}
        for role, module in ROLES.items():
            stack.enter_context(running([sys.executable, "-m", module], logs[role], env=environment))
        http = stack.enter_context(httpx.Client(base_url=settings.collector_url, trust_env=False, timeout=10.0))
        until(lambda: is_ready(http), 60, "the collector is ready")
        until(lambda: is_serving(settings.scoring_address), 60, "the scorer serves")

        event = {"name": "view_item", "event_id": "e-17", "client_id": "c", "items": [{"item_id": "i1"}]}
        http.post("/v1/events", json=event, headers=CARRIER).raise_for_status()
        http.post("/v1/events", json=event | {"event_id": "e-18"}).raise_for_status()  # without a trace: of its own
        accepted = until(lambda: of_trace(logs["collector"], "POST /v1/events"), 20, "the collector's span")
        folded = until(lambda: of_trace(logs["agents"], "fold"), 30, "the agents' span")

        scorer = RecommendationServiceStub(stack.enter_context(grpc.insecure_channel(settings.scoring_address)))

        def recommended() -> Any:
            request = pb.RecommendRequest(shopper=pb.Shopper(client_id="c"))
            answer = scorer.Recommend(request, metadata=tuple(CARRIER.items()), timeout=5)
            return answer if answer.features_offset >= 0 else None  # on a busy machine the store may be late

        answer = until(recommended, 20, "a shelf made of the shopper's features")
        shelf = until(lambda: of_trace(logs["scoring"], "Recommend", request_id=answer.request_id), 20, "the span of that shelf")

    assert (accepted["parent_id"], shelf["parent_id"]) == (f"0x{PARENT}", f"0x{PARENT}")
    assert accepted["attributes"]["liveshelf.event_ids"] == ["e-17"]
    assert folded["parent_id"] == accepted["context"]["span_id"]
    (offset,) = folded["attributes"]["liveshelf.offsets"]
    assert accepted["attributes"]["liveshelf.offsets"] == [offset]
    partition, _, number = offset.partition(":")
    found = shelf["attributes"]
    assert found["liveshelf.features_partition"] == int(partition)
    assert found["liveshelf.features_offset"] == answer.features_offset >= int(number), "the shelf was made of that event"
    assert found["liveshelf.event_id"] == "e-17"


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False
