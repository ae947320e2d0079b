"""A model call is told as one OpenTelemetry span, by the conventions for generative AI, to a collector that speaks OTLP.

https://github.com/open-telemetry/semantic-conventions-genai says what the gen_ai.* attributes mean; claw.* are ours.

Invariants:
- no prompt, no reply, no tool and no key is ever part of a span;
- the span's parent is the agent's span (`traceparent`), and the engine's spans are its children.
"""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from opentelemetry.trace import SpanKind

from claw_r1 import tracing
from claw_r1.events import Sampling
from claw_r1.metrics import GATEWAY_SPANS
from claw_r1.tracing import MAX_TEXT
from gateway.calls.capture import Call, Status
from gateway.calls.steps import Attempt
from gateway.dialects.base import Asked
from gateway.dialects.captured import Captured
from gateway.replies import Headers, Refusal

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SERVICE: Final = "claw-gateway"
_CONTEXT: Final = (b"traceparent", b"tracestate")
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
        own = [(name.encode(), value.encode()) for name, value in tracing.write_context(span).items()]
        self.headers = [header for header in headers if header[0] not in _CONTEXT] + own

    def prepare(self, call: Call) -> None:
        """The call has its place, and its sampling is what the engine is asked for."""
        tracing.describe(
            self._span,
            {
                **_sampling(call.sampling),
                "claw.run_id": call.run_id,
                "claw.prompt_uid": call.prompt_uid,
                "claw.trajectory_uid": call.trajectory_uid,
                "claw.step_id": call.step_id,
            },
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
        tracing.describe(self._span, found)

    def fail(self, refusal: Refusal) -> None:
        """The call ended with an error of the gateway's own."""
        self._error = refusal.code or str(refusal.status)

    def end(self, result: str) -> None:
        """The call is over; `result` is what became of it."""
        error = self._error or (None if result == "ok" else result)
        if error is not None:
            tracing.fail(self._span, error.removeprefix("status_"))
        self._span.end()


class Tracing:
    """Makes the spans of calls, and hands them over."""

    def __init__(self, spans: tracing.Spans, kind_of: KindOf) -> None:
        self._spans = spans
        self._kind_of = kind_of

    def begin(self, asked: Asked, headers: Headers, received: float) -> CallSpan:
        """The span of a call that came at `received`, seconds since the epoch."""
        carried = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CONTEXT}
        operation = _OPERATIONS.get(asked.dialect, "chat")
        model = None if asked.model is None else asked.model[:MAX_TEXT]
        span = self._spans.begin(
            operation if model is None else f"{operation} {model}",
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "unknown",
                "gen_ai.request.model": model,
                "gen_ai.request.stream": asked.stream,
                "gen_ai.request.choice.count": asked.n if asked.n != 1 else None,
                "claw.dialect": asked.dialect,
                **_sampling(asked.sampling),
            },
            context=tracing.read_context(carried),
            start=received,
        )
        return CallSpan(span, headers, received, self._kind_of)

    async def stop(self) -> None:
        """Hand over what is left, within a bound."""
        await self._spans.stop()


def count(result: str, spans: int) -> None:
    GATEWAY_SPANS.labels(result).inc(spans)


def open_tracing(kind_of: KindOf) -> Tracing:
    """Tracing as the OTEL_* variables want it. Raises WrongUse for what they may not say."""
    return Tracing(tracing.open_spans(SERVICE, count), kind_of)


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
