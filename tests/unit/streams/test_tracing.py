"""Traces: a call, its stages and the model server's calls are spans of the caller's own trace; without an exporter there are none."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings
from liveshelf.v1 import recommendation_pb2 as pb
from serving import tfserving_pb2 as tfs
from serving.live_model import OBJECTIVES, LiveModel
from serving.model_client import ModelClient
from serving.tensors import encode_tensor
from streams.tracing import Tracing, open_tracing, wanted
from tests.scoring_api import Api, raw_call, scoring_api
from tests.small_shop import FEATURES, Shop, shopper_row, table

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CARRIER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "baggage": "event_id=e-17"}


class Traced:
    """A Tracing whose spans stay here."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracing = Tracing(provider)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._kept.get_finished_spans())

    def one(self, name: str) -> Any:
        (span,) = [span for span in self.spans if span.name == name]
        return span


def ids(span: Any) -> tuple[str, str]:
    """Trace and parent."""
    return f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}"


async def ask_over_grpc(api: Api, name: str, request: Any) -> bytes:
    method = next(m for m in api.methods if m.name == name)
    async with grpc.aio.insecure_channel(api.settings.scoring_address) as channel:
        answer: bytes = await raw_call(channel, method)(request.SerializeToString(), metadata=tuple(CARRIER.items()))
        return answer


async def ask_over_http(api: Api, name: str, request: Any) -> bytes:
    answer = await api.http.post(f"/v1/{name.lower()}", json={"shopper": {"client_id": "c"}}, headers=CARRIER)
    return answer.raise_for_status().content


@pytest.mark.parametrize("ask", [ask_over_grpc, ask_over_http])
def test_a_call_is_a_span_of_the_callers_trace_and_names_the_event_that_led_to_it(tmp_path: Path, ask: Callable[..., Any]) -> None:
    traced = Traced()

    async def run() -> None:
        async with scoring_api(tmp_path, tracing=traced.tracing) as api:
            assert await ask(api, "Recommend", pb.RecommendRequest(shopper=pb.Shopper(client_id="c")))

    asyncio.run(run())
    span = traced.one("Recommend")
    assert ids(span) == (TRACE, PARENT)
    assert span.attributes["liveshelf.event_id"] == "e-17"
    assert span.attributes["rpc.service"] == "liveshelf.v1.RecommendationService"


def test_recorded_events_are_named_with_where_they_stand_in_the_log(tmp_path: Path) -> None:
    traced = Traced()

    async def run() -> None:
        async with scoring_api(tmp_path, tracing=traced.tracing) as api:
            event = pb.Event(name="view_item", event_id="e-17", client_id="c", items=[pb.EventItem(item_id="i1")])
            await ask_over_grpc(api, "RecordEvents", pb.RecordEventsRequest(events=[event]))

    asyncio.run(run())
    span = traced.one("RecordEvents")
    assert ids(span) == (TRACE, PARENT)
    assert span.attributes["liveshelf.event_ids"] == ("e-17",)
    (offset,) = span.attributes["liveshelf.offsets"]
    assert offset.endswith(":0")


def test_a_call_that_fails_is_a_failed_span(tmp_path: Path) -> None:
    traced = Traced()

    async def run() -> None:
        async with scoring_api(tmp_path, tracing=traced.tracing) as api:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask_over_grpc(api, "Recommend", pb.RecommendRequest())

    asyncio.run(run())
    assert not traced.one("Recommend").status.is_ok


class ModelServer:
    """Answers both signatures, and keeps what metadata came."""

    def __init__(self) -> None:
        self.came: dict[str, dict[str, str]] = {}

    async def predict(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        request, answer = tfs.PredictRequest.FromString(body), tfs.PredictResponse()
        signature = request.model_spec.signature_name
        self.came[signature] = {key: str(value) for key, value in context.invocation_metadata() or ()}
        if signature == "retrieve":
            encode_tensor(np.array([[b"i9"]], dtype=object), answer.outputs["item"])
        else:
            count = len(request.inputs["candidates"].string_val)
            for objective in OBJECTIVES:
                encode_tensor(np.full((1, count), 0.5, np.float32), answer.outputs[objective])
        return answer.SerializeToString()


def test_stages_and_the_model_servers_calls_are_spans_below_the_call() -> None:
    traced, model_server = Traced(), ModelServer()

    async def run() -> None:
        server = grpc.aio.server()
        handlers = {"Predict": grpc.unary_unary_rpc_method_handler(model_server.predict)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with ModelClient(Settings(model_server=f"127.0.0.1:{port}"), traced.tracing) as client:
                model: Any = LiveModel(client, 5, FEATURES.version)
                shop = Shop(table(), shopper_row("i1"), model, tracing=traced.tracing)
                with traced.tracing.call("service", "Recommend", CARRIER):
                    shelf = await shop.shelf(10.0)
                assert not shelf.degraded
        finally:
            await server.stop(None)

    asyncio.run(run())
    call = traced.one("Recommend")
    stages = ["read features", "retrieve", "filter", "encode", "rank", "shelf"]
    below = sorted(
        (s for s in traced.spans if s.parent and s.parent.span_id == call.context.span_id), key=lambda s: s.start_time or 0
    )
    assert [span.name for span in below] == stages
    assert call.attributes["liveshelf.features_offset"] == 41
    assert call.attributes["liveshelf.model_version"] == 5
    for stage, signature in (("retrieve", "retrieve"), ("rank", "rank")):
        asked = traced.one(f"Predict {signature}")
        assert ids(asked) == (TRACE, f"{traced.one(stage).context.span_id:016x}")
        assert model_server.came[signature]["traceparent"] == f"00-{TRACE}-{asked.context.span_id:016x}-01"


@pytest.mark.parametrize(
    ("environ", "exporter"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
    ],
)
def test_the_standard_variables_turn_it_on(environ: dict[str, str], exporter: str) -> None:
    assert wanted(environ) == exporter


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin: expected one of otlp, console, none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "traces are sent over grpc"),
    ],
)
def test_what_is_not_had_here_is_refused_at_the_start(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        wanted(environ)


def test_it_opens_where_an_exporter_is_configured_and_nowhere_else() -> None:
    assert open_tracing({}, "liveshelf-scoring") is None
    tracing = open_tracing({"OTEL_TRACES_EXPORTER": "console"}, "liveshelf-scoring")
    assert tracing is not None
    tracing.close()
