"""OpenTelemetry traces, from a browser's event to the shelf that it changed.

Scoring: one span a call, its stages below it, and the calls of the model server below those. Collector: one span a request, which names its
events and where they stand in the log; their records carry the trace on (a Kafka header), and what the agents make of them is a span
below. A shelf's span names the offset that its features were folded up to.

On only where an exporter is configured with the standard variables (OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT, …; see
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). Everywhere else there is no `Tracing`, and its callers
run nothing. A caller's W3C `traceparent` makes its trace ours; `event_id` in its `baggage` names the browser event that led here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from liveshelf.errors import SettingsError
from streams.producer import Delivery, Headers

CARRIED = ("traceparent", "tracestate", "baggage")
"""Metadata keys and headers that a trace arrives in."""
EVENTS_NAMED_MAX = 100  # of one request, in its span
EXPORTERS = ("otlp", "console")
SPAN_OF_STAGE = {"hydrate": "read features", "candidates": "retrieve", "score": "rank", "select": "shelf"}


class Tracing:
    """Makes spans. `provider` is OpenTelemetry's TracerProvider; whoever made it shuts it down (`close`)."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import baggage, trace
        from opentelemetry.baggage.propagation import W3CBaggagePropagator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._trace, self._baggage = provider, trace, baggage
        self._tracer = provider.get_tracer("liveshelf")
        self._propagator, self._of_baggage = TraceContextTextMapPropagator(), W3CBaggagePropagator()

    @contextmanager
    def call(self, service: str, method: str, carrier: Mapping[str, str]) -> Iterator[None]:
        """One call of the API, in the trace that `carrier` (CARRIED keys → values) names. An error that leaves it is the span's too."""
        with self._answering(method, carrier, {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}):
            yield

    @contextmanager
    def request(self, method: str, path: str, carrier: Mapping[str, str]) -> Iterator[None]:
        """Likewise one HTTP request."""
        with self._answering(f"{method} {path}", carrier, {"http.request.method": method, "url.path": path}):
            yield

    @contextmanager
    def _answering(self, name: str, carrier: Mapping[str, str], attributes: dict[str, str]) -> Iterator[None]:
        context = self._of_baggage.extract(carrier, self._propagator.extract(carrier))
        if event := self._baggage.get_baggage("event_id", context):
            attributes["liveshelf.event_id"] = str(event)
        with self._tracer.start_as_current_span(name, context, self._trace.SpanKind.SERVER, attributes):
            yield

    def recorded(self, event_ids: Sequence[str], offsets: Sequence[Delivery]) -> None:
        """Name events and where they stand in the log, in the span under way."""
        self.note(
            event_ids=event_ids[:EVENTS_NAMED_MAX], offsets=[f"{at.partition}:{at.offset}" for at in offsets[:EVENTS_NAMED_MAX]]
        )

    def headers(self) -> Headers:
        """What carries the trace of the span under way on with a Kafka record; nothing where it is not sampled."""
        if not self._trace.get_current_span().get_span_context().trace_flags.sampled:
            return ()
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return tuple((key, value.encode()) for key, value in carrier.items())

    def consumed(self, name: str, headers: Headers, began_ns: int, partition: int, offset: int) -> None:
        """A record was dealt with, from `began_ns` (since 1970) until now: a span below the one that its `headers` name, if they do."""
        carrier = {key: value.decode(errors="replace") for key, value in headers if key in CARRIED}
        if "traceparent" not in carrier:
            return
        span = self._tracer.start_span(
            name,
            self._propagator.extract(carrier),
            self._trace.SpanKind.CONSUMER,
            {"messaging.system": "kafka", "liveshelf.offsets": [f"{partition}:{offset}"]},
            start_time=began_ns,
        )
        span.end()

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """One stage of the call that is under way."""
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(SPAN_OF_STAGE.get(name, name))
        return span

    @contextmanager
    def model_call(self, signature: str, version: int) -> Iterator[tuple[tuple[str, str], ...]]:
        """One call of the model server; yields the metadata that carries the trace on."""
        attributes: dict[str, Any] = {"liveshelf.model_signature": signature, "liveshelf.model_version": version}
        with self._tracer.start_as_current_span(f"Predict {signature}", None, self._trace.SpanKind.CLIENT, attributes):
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            yield tuple(carrier.items())

    def note(self, **attributes: str | int | Sequence[str]) -> None:
        """Attributes (`liveshelf.` is put before) of the innermost span under way."""
        span = self._trace.get_current_span()
        for name, value in attributes.items():
            span.set_attribute(f"liveshelf.{name}", value)

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def wanted(environ: Mapping[str, str]) -> str:
    """The exporter that the standard variables ask for, one of EXPORTERS; empty: none.

    Raises:
        SettingsError: one that is not had here.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if exporter == "none":
        return ""
    if exporter not in EXPORTERS:
        raise SettingsError(f"OTEL_TRACES_EXPORTER={exporter}: expected one of {', '.join(EXPORTERS)}, none")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if exporter == "otlp" and protocol != "grpc":
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: traces are sent over grpc; set that, and the endpoint's gRPC port"
        )
    return exporter


def open_tracing(environ: Mapping[str, str], service: str) -> Tracing | None:
    """Tracing as `environ` configures it, of `service` unless OTEL_SERVICE_NAME says otherwise; None where it does not. OpenTelemetry's SDK
    reads sampling, batching and endpoint there itself.

    Raises:
        SettingsError: an exporter that is not had here, or the extra `tracing` is not installed.
    """
    if not (exporter := wanted(environ)):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        make = _exporters()[exporter]
    except ImportError as error:
        raise SettingsError(f"traces are asked for (OTEL_…), which needs: pip install 'liveshelf[tracing]' ({error})") from error
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(make()))
    return Tracing(provider)


def _exporters() -> dict[str, Callable[[], Any]]:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
