"""OpenTelemetry traces of scoring: one span a call, its stages below it, and the calls of the model server below those.

On only where an exporter is configured with the standard variables (OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT, …; see
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). Everywhere else there is no `Tracing`, and its callers
run nothing. A caller's W3C `traceparent` makes its trace ours; `event_id` in its `baggage` names the browser event that led here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from liveshelf.errors import SettingsError

SERVICE_NAME = "liveshelf-scoring"  # unless OTEL_SERVICE_NAME says otherwise
CARRIED = ("traceparent", "tracestate", "baggage")
"""Metadata keys and headers that a trace arrives in."""
EXPORTERS = ("otlp", "console")
SPAN_OF_STAGE = {"hydrate": "read features", "candidates": "retrieve", "score": "rank", "select": "shelf"}


class Tracing:
    """Makes spans. `provider` is OpenTelemetry's TracerProvider; whoever made it shuts it down (`close`)."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import baggage, trace
        from opentelemetry.baggage.propagation import W3CBaggagePropagator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._trace, self._baggage = provider, trace, baggage
        self._tracer = provider.get_tracer("liveshelf.serving")
        self._propagator, self._of_baggage = TraceContextTextMapPropagator(), W3CBaggagePropagator()

    @contextmanager
    def call(self, service: str, method: str, carrier: Mapping[str, str]) -> Iterator[None]:
        """One call of the API, in the trace that `carrier` (CARRIED keys → values) names. An error that leaves it is the span's too."""
        context = self._of_baggage.extract(carrier, self._propagator.extract(carrier))
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        if event := self._baggage.get_baggage("event_id", context):
            attributes["liveshelf.event_id"] = str(event)
        with self._tracer.start_as_current_span(method, context, self._trace.SpanKind.SERVER, attributes):
            yield

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


def open_tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Tracing as `environ` configures it; None where it does not. OpenTelemetry's SDK reads sampling, batching and endpoint there itself.

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
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": SERVICE_NAME}))
    provider.add_span_processor(BatchSpanProcessor(make()))
    return Tracing(provider)


def _exporters() -> dict[str, Callable[[], Any]]:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
