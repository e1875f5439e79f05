"""Traces: the server exports its spans to a real collector, within the caller's trace."""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import grpc
import pytest
from opentelemetry import propagate, trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider

from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_serve.observe.tracing import Tracing
from foveate_serve.process import load_tracing
from foveate_serve.rpc.interceptor import CallRecord
from foveate_serve.settings import SettingsError

from .conftest import http_address

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
UNSAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)


class Collector(TraceServiceServicer):
    def __init__(self) -> None:
        self.exports: Queue[ExportTraceServiceRequest] = Queue()

    def Export(self, request, context) -> ExportTraceServiceResponse:  # noqa: N802
        self.exports.put(request)
        return ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        """Return the spans that have come."""
        requests = [self.exports.get_nowait() for _ in range(self.exports.qsize())]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[tuple[Collector, dict[str, str]]]:
    """Return a collector, and the environment that leads to it."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    yield collector, {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    server.stop(None).wait()


def test_a_call_is_told_from_the_caller_to_its_batch(
    start: Callable, collector, picture: ClassifyRequest
) -> None:
    collected, environment = collector
    server = start("--tracing", "--max-batch", "2", "--max-delay", "60", env=environment)
    with server.channel() as channel:
        classify = ClassifierServiceStub(channel).Classify
        # Two pictures fill a batch.
        calls = [classify.future(picture, timeout=60, metadata=SAMPLED) for _ in range(2)]
        assert all(call.result().predictions for call in calls)
        with pytest.raises(grpc.RpcError):
            classify(ClassifyRequest(encoded=b"no picture"), timeout=60, metadata=SAMPLED)
        # Not sampled by its caller, and so not at all.
        unsampled = [classify.future(picture, timeout=60, metadata=UNSAMPLED) for _ in range(2)]
        assert all(call.result().predictions for call in unsampled)
    assert server.stop() == 0  # which exports what is left

    spans = collected.spans()
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    names = [span.name for span in spans]
    assert sorted(names) == sorted(
        ["foveate.v1.ClassifierService/Classify", "classify"] * 3
        + ["decode", "queue", "infer", "encode"] * 2
        + ["batch"]
    )
    by_id = {span.span_id: span for span in spans}
    parents = {"classify": "foveate.v1.ClassifierService/Classify", "batch": "classify"}
    for span in spans:
        if span.kind == Span.SPAN_KIND_SERVER:
            assert span.parent_span_id.hex() == PARENT
            continue
        parent = by_id[span.parent_span_id]
        assert parent.name == parents.get(span.name, "classify")
        assert (
            parent.start_time_unix_nano - 5_000_000
            <= span.start_time_unix_nano
            <= span.end_time_unix_nano
            <= parent.end_time_unix_nano + 5_000_000
        )
    (batch,) = (span for span in spans if span.name == "batch")
    assert {a.key: a.value.int_value for a in batch.attributes}["foveate.batch_size"] == 2
    links = [link.span_id for span in spans if span.name == "infer" for link in span.links]
    assert links == [batch.span_id] * 2
    failed = [span for span in spans if span.status.code == Status.STATUS_CODE_ERROR]
    assert [(span.name, span.status.message) for span in failed] == [
        ("classify", "IMAGE_UNSUPPORTED")
    ]


def test_a_request_over_http_is_named_by_its_route(start: Callable, collector) -> None:
    collected, environment = collector
    server = start("--tracing", "--http-address", "127.0.0.1:0", env=environment)
    url = f"http://{http_address(server)}/v1/models/colours:classify"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, data=b"no picture"), timeout=60)
    refused.value.close()
    assert server.stop() == 0
    (span,) = (span for span in collected.spans() if span.kind == Span.SPAN_KIND_SERVER)
    assert span.name == "POST /v1/models/{model}:classify"
    attributes = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
    del attributes["foveate.request_id"]
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}:classify",
        "url.scheme": "http",
        "http.response.status_code": refused.value.code,
    }
    # A client's fault is none of the server's span.
    assert span.status.code == Status.STATUS_CODE_UNSET


async def test_baggage_that_is_bad_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    metadata = dict(SAMPLED) | {"baggage": ",".join(["no=;; entry"] * 150)}
    propagate.extract(metadata)
    assert len(caplog.records) > 100
    caplog.clear()
    tracing = Tracing(TracerProvider())
    with tracing.call(CallRecord(method="/grpc.health.v1.Health/Check", metadata=metadata)):
        context = trace.get_current_span().get_span_context()
    assert not caplog.records
    assert f"{context.trace_id:032x}" == TRACE


def test_without_opentelemetry_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "foveate_serve.observe.tracing", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r'pip install "foveate-serve\[tracing\]"'):
        load_tracing()
