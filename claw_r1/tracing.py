"""What every process's tracing shares: how spans are made, linked, sampled, counted and handed to a collector that speaks OTLP.

Everything that users set (endpoint, headers, sampling, batches) is set by the standard OTEL_* variables, which the SDK reads.
To be imported only where spans are told: it brings OpenTelemetry's SDK with it.

Invariants:
- telling never holds up work: spans wait in a bounded queue, and what the collector does not take is dropped and counted;
- a span that says what became of others is linked to theirs, to a bounded number of them, and says how many it left out;
- where samplers follow parents they follow links too: what was sampled is sampled on, through every stop.
"""

import asyncio
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from claw_r1.errors import WrongUse

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TraceState
    from opentelemetry.util.types import Attributes, AttributeValue

log = logging.getLogger("claw.tracing")

STOP_WITHIN: Final = 5.0
"""Seconds for which the collector may take what is left at the end."""
MAX_TEXT: Final = 256
"""Longest text of an attribute; what agents and engines call things has no bound of its own."""
MAX_LINKS: Final = 128
"""Most links of a span: as many as the SDK keeps unless it is told otherwise."""
PROTOCOL: Final = "http/protobuf"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CONTEXTS: Final = TraceContextTextMapPropagator()
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.DOTALL)
"""https://www.w3.org/TR/trace-context/#traceparent-header; the propagator's own reading takes five times as long."""
_ODD: Final = frozenset(b"13579bdf")
_FLAGS_END: Final = 54
"""Where in a traceparent the digit is whose lowest bit says that the trace is sampled."""

Count = Callable[[str, int], None]
"""Counts so many spans by their result: ended, exported, failed."""


class Spans:
    """Makes the spans of one process, and hands them over."""

    def __init__(self, service: str, exporter: SpanExporter, count: Count) -> None:
        """`service` is the process's name where OTEL_SERVICE_NAME gives none."""
        self._exporter = _Counted(exporter, count)
        self._provider = TracerProvider(resource=_resource(service))
        if isinstance(self._provider.sampler, ParentBased):
            self._provider.sampler = LinkBased(self._provider.sampler)
        self._provider.add_span_processor(_Processor(self._exporter, count))
        self._tracer = self._provider.get_tracer(service)

    def begin(
        self,
        name: str,
        kind: SpanKind,
        found: Mapping[str, object],
        *,
        context: Context | None = None,
        traces: Iterable[bytes] = (),
        start: float | None = None,
    ) -> "Span":
        """A span with these attributes, linked to the spans that `traces` (traceparents) name. `context` has its parent; None:
        it has none, whatever span is current here. `start` in seconds since the epoch; None: now."""
        links, left_out = link(traces)
        return self._tracer.start_span(
            name,
            context=Context() if context is None else context,
            kind=kind,
            attributes=attributes_of({**found, "claw.links_left_out": left_out or None}),
            links=links,
            start_time=None if start is None else int(start * 1e9),
        )

    async def stop(self) -> None:
        """Hand over what is left, within a bound."""
        ending = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        done, _ = await asyncio.wait((ending,), timeout=STOP_WITHIN)
        if not done:
            log.warning("the collector did not take all spans before the stop")
            self._exporter.shutdown()  # what is tried again and again ends
        await ending


class _Processor(BatchSpanProcessor):
    """Counts what is to be exported, also what its queue has no room for."""

    def __init__(self, exporter: SpanExporter, count: Count) -> None:
        super().__init__(exporter)
        self._count = count

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._count("ended", 1)
        super().on_end(span)


class _Counted(SpanExporter):
    """Counts what the collector takes."""

    def __init__(self, exporter: SpanExporter, count: Count) -> None:
        self._exporter = exporter
        self._count = count
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE if self._ended else self._exporter.export(spans)
        self._count("exported" if result is SpanExportResult.SUCCESS else "failed", len(spans))
        return result

    def shutdown(self) -> None:
        if not self._ended:
            self._ended = True
            self._exporter.shutdown()


class LinkBased(Sampler):
    """A span without a parent is sampled if one that it is linked to was, and not if none was; without links `base` decides."""

    def __init__(self, base: ParentBased) -> None:
        self._base = base

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: "Attributes" = None,
        links: Sequence[Link] | None = None,
        trace_state: "TraceState | None" = None,
    ) -> SamplingResult:
        if links and not get_current_span(parent_context).get_span_context().is_valid:
            sampled = any(one.context.trace_flags.sampled for one in links)
            return SamplingResult(Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP, attributes)
        return self._base.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"LinkBased{{{self._base.get_description()}}}"  # type: ignore[no-untyped-call]


def open_spans(service: str, count: Count) -> Spans:
    """Spans as the OTEL_* variables want it. Raises WrongUse for what they may not say."""
    for name in _PROTOCOLS:
        if os.environ.get(name, PROTOCOL) != PROTOCOL:
            raise WrongUse(f"{name}={os.environ[name]}: spans are told to collectors by {PROTOCOL} alone")
    try:
        return Spans(service, OTLPSpanExporter(), count)
    except ValueError as error:
        raise WrongUse(f"an OTEL_* variable has a wrong value: {error}") from error


def _resource(service: str) -> Resource:
    """The process as OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES describe it."""
    said = Resource.create()
    if str(said.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return said.merge(Resource({SERVICE_NAME: service}))
    return said


# ------------------------------------------------------------------------------------------------------------- contexts


def read_context(headers: Mapping[str, str]) -> Context:
    """The parent that `traceparent` and `tracestate` name; none if they name none."""
    return _CONTEXTS.extract(headers)


def write_context(span: "Span") -> dict[str, str]:
    """`traceparent`, and `tracestate` if there is one, of a span."""
    context: dict[str, str] = {}
    _CONTEXTS.inject(context, set_span_in_context(span))
    return context


def traceparent_of(span: "Span") -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def link(traces: Iterable[bytes]) -> tuple[list[Link], int]:
    """Links to the spans that the first MAX_LINKS different traceparents name, and how many there are beyond.

    Of those that are sampled, if any is: nobody has the others' spans. What is no traceparent is passed over.
    """
    different = list(dict.fromkeys(traces))
    wanted = [
        trace for trace in different if trace[_FLAGS_END : _FLAGS_END + 1] and trace[_FLAGS_END] in _ODD
    ] or different
    contexts = (context for trace in wanted if (context := _span_context(trace)) is not None and context.is_valid)
    return [Link(context) for context in itertools.islice(contexts, MAX_LINKS)], max(0, len(wanted) - MAX_LINKS)


def _span_context(trace: bytes) -> SpanContext | None:
    if (told := _TRACEPARENT.fullmatch(trace)) is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in told.groups())
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


# ----------------------------------------------------------------------------------------------------------- attributes


def attributes_of(found: Mapping[str, object]) -> "dict[str, AttributeValue]":
    """What is known and what OTLP can hold: one number beyond 64 bits would take its whole batch with it."""
    held: dict[str, AttributeValue] = {}
    for name, value in found.items():
        if isinstance(value, str):
            held[name] = value[:MAX_TEXT]
        elif isinstance(value, list):
            if value:
                held[name] = value
        elif isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
            held[name] = value
    return held


def describe(span: "Span", found: Mapping[str, object]) -> None:
    """Set further attributes."""
    if span.is_recording():
        span.set_attributes(attributes_of(found))


def fail(span: "Span", error: str) -> None:
    """The span's work failed, for a reason that is one of few."""
    describe(span, {"error.type": error})
    span.set_status(StatusCode.ERROR)
