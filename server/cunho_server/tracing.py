"""Traces of calls, by OpenTelemetry: a span of each, below its caller's span. Loaded and made only where asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cunho_server.call import Call

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class TracingError(Exception):
    """Calls cannot be traced; the message says what to do."""


def make_tracing() -> "Tracing":
    """Tracing to where the variables of OpenTelemetry say. Raises TracingError."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource, get_aggregated_resources
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingError(
            "CUNHO_TRACES needs OpenTelemetry: install it with `pip install 'cunho-server[tracing]'`"
        ) from None
    ours = Resource({SERVICE_NAME: "cunho"})
    provider = TracerProvider(resource=get_aggregated_resources([OTELResourceDetector()], ours))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Makes spans of calls with a provider, and ends with it."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("cunho")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, call: Call) -> Iterator[None]:
        """The span of a call, from here to its outcome."""
        from opentelemetry.trace import SpanKind

        carrier: dict[str, Any] = {key: value for key, value in call.metadata if key in self._propagator.fields}
        service, name, _ = call.method
        span = self._tracer.start_span(
            f"{service}/{name}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "cunho.call_id": call.call_id,
            },
        )
        try:
            yield
        finally:
            _end(span, call)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


#: Codes that are the server's fault, which alone are errors of its spans.
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


def _end(span: Any, call: Call) -> None:
    from google.rpc import code_pb2
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("rpc.grpc.status_code", code_pb2.Code.Value(call.code))
    if call.refusal:
        span.set_attribute("cunho.reason", call.refusal.reason.value)
        span.set_attribute("cunho.rule", call.refusal.rule)
    if call.code in _FAULTS:
        span.set_status(Status(StatusCode.ERROR))
    span.end()
