"""A span of each call, below that of its caller, where the settings ask for traces."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from tests import world as worlds
from tests.end_to_end.requests_of import BY_NAME, call
from tests.world import Postgres, World

from cunho import v1 as pb
from cunho_server import app
from cunho_server.call import UNKNOWN, Call
from cunho_server.tracing import Tracing, TracingError, make_tracing

PATH = BY_NAME["GetImage"].path
ABSENT = pb.GetImageRequest(image_id="img-00000000").SerializeToString()
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def world(postgres: Postgres, exporter: InMemorySpanExporter) -> Iterator[World]:
    def made() -> Tracing:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return Tracing(provider)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "make_tracing", made)
        with worlds.world(postgres, workers=0, traces=True) as running:
            yield running


def span(
    world: World, exporter: InMemorySpanExporter, *metadata: tuple[str, str], data: bytes = ABSENT
) -> ReadableSpan:
    """The span of a call."""
    exporter.clear()
    with grpc.insecure_channel(world.address) as channel:
        call(channel, PATH, data, world.token("acme"), *metadata)
    (made,) = exporter.get_finished_spans()
    return made


def test_a_call_is_a_span_below_that_of_its_caller(world: World, exporter: InMemorySpanExporter) -> None:
    image = pb.GetImageRequest(image_id=world.public_image().image_id).SerializeToString()
    made = span(world, exporter, TRACEPARENT, data=image)
    assert (made.name, made.kind) == ("cunho.v1.ImageService/GetImage", SpanKind.SERVER)
    assert made.parent
    assert (f"{made.parent.trace_id:032x}", f"{made.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(made.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "cunho.v1.ImageService",
        "rpc.method": "GetImage",
        "rpc.grpc.status_code": 0,
        "cunho.call_id": "test",
    }
    assert made.status.is_unset


@pytest.mark.parametrize("sent", [(), (("traceparent", "no trace"),), (("traceparent", f"00-{'0' * 32}-{PARENT}-01"),)])
def test_a_call_of_an_untraced_caller_begins_a_trace(
    world: World, exporter: InMemorySpanExporter, sent: tuple[tuple[str, str], ...]
) -> None:
    assert span(world, exporter, *sent).parent is None


def test_a_refusal_is_told_by_its_reason_and_is_no_fault(world: World, exporter: InMemorySpanExporter) -> None:
    made = span(world, exporter)
    attributes = dict(made.attributes or {})
    assert attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert (attributes["cunho.reason"], attributes["cunho.rule"]) == ("IMAGE_NOT_FOUND", "SEL-2")
    assert made.status.is_unset


def test_what_the_server_failed_at_is_an_error(world: World, exporter: InMemorySpanExporter) -> None:
    world.service.admission._closed = True
    try:
        made = span(world, exporter)
    finally:
        world.service.admission._closed = False
    assert dict(made.attributes or {})["cunho.reason"] == "SERVICE_STOPPING"
    assert not made.status.is_ok
    assert not made.status.is_unset


def test_calls_are_traced_only_where_asked_for(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Tracing:
        raise AssertionError

    monkeypatch.setattr(app, "make_tracing", never)
    with worlds.world(postgres, workers=0) as world:
        assert list(world.operator.list_regions())


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the names of the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: dict[str, str] = {}

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> object:
        for sent in request.resource_spans:
            (service,) = (each.value.string_value for each in sent.resource.attributes if each.key == "service.name")
            self.spans |= {span.name: service for scope in sent.scope_spans for span in scope.spans}
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.mark.parametrize("name", ["", "clouds"])
def test_spans_are_sent_where_the_variables_of_opentelemetry_say(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    collector = Collector()
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        if name:
            monkeypatch.setenv("OTEL_SERVICE_NAME", name)
        made = make_tracing()
        with made.span(Call(UNKNOWN, "ipv4:127.0.0.1:1", ())):
            pass
        made.close()
        server.stop(0).wait()
    assert collector.spans == {"unknown/unknown": name or "cunho"}


def test_without_the_extra_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match=r"pip install 'cunho-server\[tracing\]'"):
        make_tracing()
