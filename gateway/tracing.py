"""A model call is told as one OpenTelemetry span, by the conventions for generative AI, to a collector that speaks OTLP.

https://github.com/open-telemetry/semantic-conventions-genai says what the gen_ai.* attributes mean; claw.* are ours. Everything
else (endpoint, headers, sampling, batches) is set by the standard OTEL_* variables, which the SDK reads.

Invariants:
- no prompt, no reply, no tool and no key is ever part of a span;
- the span's parent is the agent's span (`traceparent`), and the engine's spans are its children;
- telling never holds up a call: spans wait in a bounded queue, and what the collector does not take is dropped and counted.
"""

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from claw_r1.errors import WrongUse
from claw_r1.events import Sampling
from claw_r1.metrics import GATEWAY_SPANS
from gateway.calls.capture import Call, Status
from gateway.calls.steps import Attempt
from gateway.dialects.base import Asked
from gateway.dialects.captured import Captured
from gateway.replies import Headers, Refusal

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

log = logging.getLogger("claw.gateway.tracing")

SERVICE: Final = "claw-gateway"
STOP_WITHIN: Final = 5.0
"""Seconds for which the collector may take what is left at the end."""
MAX_TEXT: Final = 256
"""Longest text of an attribute; what agents and engines call things has no bound of its own."""
PROTOCOL: Final = "http/protobuf"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CONTEXT: Final = (b"traceparent", b"tracestate")
_CONTEXTS: Final = TraceContextTextMapPropagator()
_OPERATIONS: Final = {"completions": "text_completion"}
"""Dialect → the operation's name in the conventions; the others are chats."""

KindOf = Callable[[str], str]
"""An engine's URL → what kind of engine it is."""


class CallSpan:
    """The span of one call; `headers` go to the engine in place of the agent's."""

    __slots__ = ("_attempts", "_error", "_kind_of", "_received", "_span", "_waited", "headers")

    def __init__(self, span: "Span", headers: Headers, received: float, kind_of: KindOf) -> None:
        self._span = span
        self._received = received
        self._kind_of = kind_of
        self._attempts = 0
        self._waited = 0.0
        self._error: str | None = None
        context: dict[str, str] = {}
        _CONTEXTS.inject(context, set_span_in_context(span))
        own = [(name.encode(), value.encode()) for name, value in context.items()]
        self.headers = [header for header in headers if header[0] not in _CONTEXT] + own

    def prepare(self, call: Call) -> None:
        """The call has its place, and its sampling is what the engine is asked for."""
        self._set(
            {
                **_sampling(call.sampling),
                "claw.run_id": call.run_id,
                "claw.prompt_uid": call.prompt_uid,
                "claw.trajectory_uid": call.trajectory_uid,
                "claw.step_id": call.step_id,
            }
        )

    def commit(self, attempt: Attempt, captured: Captured, status: Status, reasons: tuple[str, ...]) -> None:
        """A try of the call is durable; the last one counts."""
        self._attempts += 1
        aborted = "engine_aborted" if captured.aborted else None
        self._error = aborted if status == "complete" else (reasons or (status,))[0]
        usage = captured.usage or {}
        found: dict[str, object] = {
            "claw.step_id": attempt.call.step_id,
            "claw.attempts": self._attempts if self._attempts > 1 else None,
            "gen_ai.response.id": captured.response_id,
            "gen_ai.response.model": captured.model,
            "gen_ai.response.finish_reasons": [c.finish_reason[:MAX_TEXT] for c in captured.choices if c.finish_reason],
            "gen_ai.usage.input_tokens": usage.get("prompt_tokens"),
            "gen_ai.usage.output_tokens": usage.get("completion_tokens"),
        }
        if attempt.engine is not None:
            host, port = _address(attempt.engine)
            kind = self._kind_of(attempt.engine)
            found |= {"server.address": host, "server.port": port, "gen_ai.provider.name": kind}
        if attempt.first_byte is not None:
            found["claw.time_to_first_byte"] = attempt.first_byte - self._received
        if attempt.steps:
            step = attempt.steps[0].step
            self._waited += time.time() - step.at
            found |= {"claw.policy_version": step.policy_version, "claw.record_wait": self._waited}
        self._set(found)

    def fail(self, refusal: Refusal) -> None:
        """The call ended with an error of the gateway's own."""
        self._error = refusal.code or str(refusal.status)

    def end(self, result: str) -> None:
        """The call is over; `result` is what became of it."""
        error = self._error or (None if result == "ok" else result)
        if error is not None:
            self._set({"error.type": error.removeprefix("status_")})
            self._span.set_status(StatusCode.ERROR)
        GATEWAY_SPANS.labels("ended").inc()
        self._span.end()

    def _set(self, found: dict[str, object]) -> None:
        if self._span.is_recording():
            self._span.set_attributes(_attributes(found))


class Tracing:
    """Makes the spans of calls, and hands them over."""

    def __init__(self, exporter: SpanExporter, kind_of: KindOf) -> None:
        self._exporter = _Counted(exporter)
        self._provider = TracerProvider(resource=_resource())
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._kind_of = kind_of

    def begin(self, asked: Asked, headers: Headers, received: float) -> CallSpan:
        """The span of a call that came at `received`, seconds since the epoch."""
        carried = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CONTEXT}
        operation = _OPERATIONS.get(asked.dialect, "chat")
        model = None if asked.model is None else asked.model[:MAX_TEXT]
        span = self._tracer.start_span(
            operation if model is None else f"{operation} {model}",
            context=_CONTEXTS.extract(carried),
            kind=SpanKind.CLIENT,
            attributes=_attributes(
                {
                    "gen_ai.operation.name": operation,
                    "gen_ai.provider.name": "unknown",
                    "gen_ai.request.model": model,
                    "gen_ai.request.stream": asked.stream,
                    "gen_ai.request.choice.count": asked.n if asked.n != 1 else None,
                    "claw.dialect": asked.dialect,
                    **_sampling(asked.sampling),
                }
            ),
            start_time=int(received * 1e9),
        )
        return CallSpan(span, headers, received, self._kind_of)

    async def stop(self) -> None:
        """Hand over what is left, within a bound."""
        ending = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        done, _ = await asyncio.wait((ending,), timeout=STOP_WITHIN)
        if not done:
            log.warning("the collector did not take all spans before the stop")
            self._exporter.shutdown()  # what is tried again and again ends
        await ending


class _Counted(SpanExporter):
    """Counts what the collector takes."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE if self._ended else self._exporter.export(spans)
        GATEWAY_SPANS.labels("exported" if result is SpanExportResult.SUCCESS else "failed").inc(len(spans))
        return result

    def shutdown(self) -> None:
        if not self._ended:
            self._ended = True
            self._exporter.shutdown()


def open_tracing(kind_of: KindOf) -> Tracing:
    """Tracing as the OTEL_* variables want it. Raises WrongUse for what they may not say."""
    for name in _PROTOCOLS:
        if os.environ.get(name, PROTOCOL) != PROTOCOL:
            raise WrongUse(f"{name}={os.environ[name]}: the gateway speaks {PROTOCOL} to collectors")
    try:
        return Tracing(OTLPSpanExporter(), kind_of)
    except ValueError as error:
        raise WrongUse(f"an OTEL_* variable has a wrong value: {error}") from error


def _resource() -> Resource:
    """The process as OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES describe it."""
    said = Resource.create()
    if str(said.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return said.merge(Resource({SERVICE_NAME: SERVICE}))
    return said


@functools.lru_cache(maxsize=256)
def _address(url: str) -> tuple[str | None, int]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _sampling(sampling: Sampling) -> dict[str, object]:
    return {
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.seed": sampling.seed,
    }


def _attributes(found: dict[str, object]) -> "dict[str, AttributeValue]":
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
