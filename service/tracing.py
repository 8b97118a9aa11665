"""Requests as OpenTelemetry spans, with their pieces below them.

Imported only where traces are wanted: it needs the extra ``otel``. The SDK is set up by the
standard variables: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``,
``OTEL_SERVICE_NAME`` and the others. The provider is not made the process' own, so that no
library adds spans of its own to these.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from service.request_context import Parent, RequestContext

_NAME: Final = "thacil-ctr"
_NONE: Final = "none"
_FAILED: Final = 500
_FLUSH_SECONDS: Final = 3.0
_EXPORTERS: Final[dict[str, type[SpanExporter]]] = {
    "otlp": OTLPSpanExporter,
    "console": ConsoleSpanExporter,
}


class Tracer:
    """Makes spans of requests.

    A request's span begins with it, so that answers and log lines name it; the spans below it
    are made at its end, of the pieces that were measured anyway.

    Args:
        provider: samples and exports.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_NAME)

    def begin(self, request: RequestContext) -> None:
        """Begin a request's span; from now on the request has its ids."""
        parent = set_span_in_context(_remote(request.parent)) if request.parent else None
        span = self._tracer.start_span(
            "request", parent, SpanKind.SERVER, start_time=_wall_ns(request, request.start)
        )
        context = span.get_span_context()
        request.trace_id, request.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        request.sampled = context.trace_flags.sampled
        request.span = span

    def end(
        self, request: RequestContext, method: str, route: str, status: int | None, end: float
    ) -> None:
        """End a request's span, by ``time.perf_counter()``, and make those of its pieces."""
        span = request.span
        if not isinstance(span, Span) or not span.is_recording():
            return
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "ctr.request_id": request.request_id,
            }
        )
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= _FAILED:
            span.set_status(StatusCode.ERROR)
        below = set_span_in_context(span)
        for name, start, stop in request.laps:
            piece = self._tracer.start_span(name, below, start_time=_wall_ns(request, start))
            piece.end(_wall_ns(request, stop))
        span.end(_wall_ns(request, end))

    async def close(self) -> None:
        """Send what is left, for a moment at most."""
        flushing = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait([flushing], timeout=_FLUSH_SECONDS)


def wanted_exporter() -> str:
    """Return where the ``OTEL_`` variables want spans to go: ``otlp``, ``console`` or ``none``.

    Raises:
        ValueError: they name another.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return _NONE
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if wanted not in {*_EXPORTERS, _NONE}:
        raise ValueError(f"OTEL_TRACES_EXPORTER is {wanted!r}: there are otlp, console and none")
    return wanted


def tracer_from_environment() -> Tracer | None:
    """Make a tracer as the ``OTEL_`` variables want it; ``None`` where they want none.

    Raises:
        ValueError: a variable has a value that the SDK, or this service, does not know.
    """
    wanted = wanted_exporter()
    if wanted == _NONE:
        return None
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: _NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_EXPORTERS[wanted]()))
    return Tracer(provider)


def _remote(parent: Parent) -> Span:
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    return NonRecordingSpan(
        SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=True,
            trace_flags=flags,
            trace_state=TraceState.from_header([parent.state] if parent.state else []),
        )
    )


def _wall_ns(request: RequestContext, moment: float) -> int:
    return request.began_ns + round(1e9 * (moment - request.start))
