"""OpenTelemetry traces: a span for each call, for each picture and for its stages.

The spans of a picture are made once it has its answer, from the times that every
request is measured by: a call outside a trace costs nothing more.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from foveate_serve.classification import Answer
from foveate_serve.errors import ServeError
from foveate_serve.log_context import REQUEST_ID
from foveate_serve.observer import Observer
from foveate_serve.rpc.interceptor import CallRecord

_BATCHES_KEPT = 256

_BAGGAGE = "baggage"
"""The key of the callers' own values: nothing here reads them, and each bad one would be logged."""

_SERVER_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""The codes that mark a server's span as failed, by OpenTelemetry's conventions for gRPC."""

_FIRST_SERVER_FAULT = 500
"""The least status that marks a server's span as failed, by those for HTTP."""


class Tracing(Observer):
    """Makes the spans, and exports them through `provider`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("foveate_serve", version("foveate-serve"))
        self._batches: OrderedDict[int, SpanContext] = OrderedDict()

    @contextmanager
    def call(self, call: CallRecord) -> Iterator[None]:
        """Put a call in a span of its own, within the trace that its metadata names."""
        carrier = {
            key: value
            for key, value in call.metadata.items()
            if isinstance(value, str) and key != _BAGGAGE
        }
        service, _, method = call.method.strip("/").rpartition("/")
        http = call.http
        attributes = (
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
            if http is None
            else {
                "http.request.method": http.verb,
                "http.route": http.route,
                "url.scheme": http.scheme,
            }
        )
        span = self._tracer.start_span(
            f"{service}/{method}" if http is None else f"{http.verb} {http.route}",
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={**attributes, "foveate.request_id": REQUEST_ID.get()},
        )
        # Not detached: the context belongs to the call's task and ends with it.
        context.attach(trace.set_span_in_context(span))
        try:
            yield
        finally:
            if http is None:
                span.set_attribute("rpc.grpc.status_code", call.code.value[0])
                failed = call.code.name in _SERVER_FAULTS
            else:
                # A request that its client has left has no status.
                if http.status:
                    span.set_attribute("http.response.status_code", http.status)
                failed = http.status >= _FIRST_SERVER_FAULT
            if failed:
                span.set_status(Status(StatusCode.ERROR, call.code.name))
            span.end()

    def on_answer(self, answer: Answer) -> None:
        """Make the spans of a picture and of its stages."""
        if not trace.get_current_span().is_recording():
            return
        timing, end = answer.timing, time.time_ns()
        start = end - _nanoseconds(timing.total)
        picture = self._tracer.start_span(
            "classify",
            start_time=start,
            attributes={
                "foveate.model": answer.model,
                "foveate.version": answer.version,
                "foveate.variant": timing.variant,
                "foveate.backend": timing.backend,
                "foveate.device": timing.device,
                "foveate.batch_size": timing.batch_size,
                "foveate.cached": timing.cached,
            },
        )
        if timing.cached:
            picture.end(end)
            return
        decoded = start + _nanoseconds(timing.decode)
        queued = decoded + _nanoseconds(timing.queue)
        inferred = queued + _nanoseconds(timing.infer)
        batch = self._batch(picture, answer, queued, inferred)
        self._stage(picture, "decode", start, decoded)
        self._stage(picture, "queue", decoded, queued)
        self._stage(picture, "infer", queued, inferred, batch)
        self._stage(picture, "encode", end - _nanoseconds(timing.encode), end)
        picture.end(end)

    def on_failure(self, model: str, version: str, error: BaseException, seconds: float) -> None:
        """Make the span of a picture that has no answer."""
        if not trace.get_current_span().is_recording():
            return
        end = time.time_ns()
        reason = error.reason if isinstance(error, ServeError) else type(error).__name__
        picture = self._tracer.start_span(
            "classify",
            start_time=end - _nanoseconds(seconds),
            attributes={
                "foveate.model": model,
                "foveate.version": version,
                "error.type": reason,
            },
        )
        picture.set_status(Status(StatusCode.ERROR, reason))
        picture.end(end)

    def close(self) -> None:
        """Export the remaining spans. Takes some seconds where no collector responds."""
        self._provider.shutdown()

    def _batch(self, picture: Span, answer: Answer, start: int, end: int) -> SpanContext:
        """Return the span of the picture's batch: a child of the first answer from that batch."""
        number = answer.timing.batch
        known = self._batches.get(number)
        if known is not None:
            return known
        span = self._tracer.start_span(
            "batch",
            context=trace.set_span_in_context(picture),
            start_time=start,
            attributes={
                "foveate.model": answer.model,
                "foveate.version": answer.version,
                "foveate.batch": number,
                "foveate.batch_size": answer.timing.batch_size,
            },
        )
        span.end(end)
        self._batches[number] = span.get_span_context()
        if len(self._batches) > _BATCHES_KEPT:
            self._batches.popitem(last=False)
        return span.get_span_context()

    def _stage(
        self, picture: Span, name: str, start: int, end: int, batch: SpanContext | None = None
    ) -> None:
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(picture),
            start_time=start,
            links=None if batch is None else [Link(batch)],
        )
        span.end(end)


def make_tracing() -> Tracing:
    """Return tracing, configured by the OTEL_* environment variables."""
    resource = Resource.create(
        {"service.name": "foveate-serve", "service.version": version("foveate-serve")}
    )
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
