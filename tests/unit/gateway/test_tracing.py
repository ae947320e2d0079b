"""A call's span says who called what, what came of it and how long it took, and nothing of what was said."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import REGISTRY

from claw_r1.errors import WrongUse
from claw_r1.events import Sampling, Timings
from claw_r1.settings import GatewaySettings
from claw_r1.tracing import Spans
from gateway.app import Gateway
from gateway.calls.capture import Served, Status, make_steps
from gateway.calls.chains import Chains
from gateway.calls.steps import Attempt
from gateway.dialects.captured import Captured, Choice
from gateway.dialects.chat import asked
from gateway.dialects.completions import dialect as completions
from gateway.replies import Headers, Refusal
from gateway.tracing import SERVICE, CallSpan, Tracing, count, open_tracing
from tests.unit.gateway.test_capture import a_call, a_captured, a_choice

PARENT = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
SECRET = "the word of the prompt"
BODY = json.dumps(
    {
        "model": "tiny",
        "messages": [{"role": "user", "content": SECRET}],
        "tools": [{"type": "function", "function": {"name": SECRET}}],
        "stop": [SECRET],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "max_tokens": 64,
        "seed": 7,
    }
).encode()


def told(use: Callable[[Tracing], None]) -> tuple[ReadableSpan, ...]:
    """The spans that a collector gets."""
    exporter = InMemorySpanExporter()

    async def run() -> None:
        tracing = Tracing(Spans(SERVICE, exporter, count), lambda url: "vllm")
        use(tracing)
        await tracing.stop()

    asyncio.run(run())
    return exporter.get_finished_spans()


def begin(tracing: Tracing, body: bytes = BODY, headers: Headers | None = None, received: float = 100.0) -> CallSpan:
    return tracing.begin(asked(body), headers or [], received)


def commit(span: CallSpan, captured: Captured, status: Status = "complete", *reasons: str, **over: Any) -> None:
    fields: dict[str, Any] = {"engine": "http://engine.test:8000/a", "first_byte": 100.25, "received": 100.0}
    attempt = Attempt(a_call(), **(fields | over))
    attempt.steps = make_steps(
        attempt.call, captured, Chains(), status=status, timings=Timings(), engine="e", at=200.0, reasons=reasons
    )
    span.commit(attempt, captured, status, reasons)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_span_says_what_was_asked_and_what_came() -> None:
    def use(tracing: Tracing) -> None:
        span = begin(tracing)
        span.prepare(a_call(sampling=Sampling(temperature=1.0, top_p=0.9, top_k=4, max_tokens=64, seed=7)))
        commit(span, a_captured(a_choice(), response_id="chatcmpl-1", model="tiny-3"))
        span.end("ok")

    (span,) = told(use)
    assert (span.name, span.kind, span.status.is_ok) == ("chat tiny", SpanKind.CLIENT, True)
    assert span.start_time == 100_000_000_000
    found = attributes(span)
    assert found.pop("claw.record_wait") > 0
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": False,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 4,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "tiny-3",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "server.address": "engine.test",
        "server.port": 8000,
        "claw.dialect": "chat",
        "claw.run_id": "run",
        "claw.prompt_uid": "p",
        "claw.trajectory_uid": "t",
        "claw.step_id": "call",
        "claw.time_to_first_byte": 0.25,
    }
    assert SECRET not in span.to_json()


def test_the_version_that_sampled_is_named() -> None:
    def use(tracing: Tracing) -> None:
        span = begin(tracing)
        captured = a_captured()
        attempt = Attempt(a_call(), 100.0)
        served, timings = Served(first=12, last=12), Timings()
        attempt.steps = make_steps(
            attempt.call, captured, Chains(), status="complete", timings=timings, engine="e", at=1.0, served=served
        )
        span.commit(attempt, captured, "complete", ())
        span.end("ok")

    (span,) = told(use)
    assert attributes(span)["claw.policy_version"] == 12


def test_the_agents_span_is_the_parent_and_the_engine_is_told_of_ours() -> None:
    given = [(b"accept", b"*/*"), (b"traceparent", PARENT.encode()), (b"tracestate", b"a=1")]
    sent: list[Headers] = []

    def use(tracing: Tracing) -> None:
        span = begin(tracing, headers=given)
        sent.append(span.headers)
        span.end("ok")

    (span,) = told(use)
    assert span.parent is not None
    assert span.context is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:52]
    own = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01".encode()
    assert sent == [[(b"accept", b"*/*"), (b"traceparent", own), (b"tracestate", b"a=1")]]


@pytest.mark.parametrize("value", [b"", b"no trace", b"\xff"])
def test_a_traceparent_that_is_none_begins_a_trace(value: bytes) -> None:
    sent: list[Headers] = []

    def use(tracing: Tracing) -> None:
        span = begin(tracing, headers=[(b"traceparent", value)])
        sent.append(span.headers)
        span.end("ok")

    (span,) = told(use)
    assert span.parent is None
    assert [name for name, _ in sent[0]] == [b"traceparent"]


def test_what_is_not_sampled_is_handed_on_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    sent: list[Headers] = []

    def use(tracing: Tracing) -> None:
        span = begin(tracing, headers=[(b"traceparent", PARENT.encode())])
        sent.append(span.headers)
        commit(span, a_captured())
        span.end("ok")

    assert told(use) == ()
    ((_, value),) = sent[0]
    assert value.startswith(PARENT[:35].encode())
    assert value.endswith(b"-00")


def refused(span: CallSpan) -> None:
    span.fail(Refusal(404, "no such model", code="unknown_model"))
    span.end("failed")


def left(span: CallSpan) -> None:
    commit(span, a_captured(), "partial", "hung_up")
    span.end("failed")


def told_by_the_engine(span: CallSpan) -> None:
    commit(span, Captured(), "failed", "status_429")
    span.end("engine_error")


def crashed(span: CallSpan) -> None:
    span.end("failed")


def aborted(span: CallSpan) -> None:
    commit(span, a_captured(a_choice(finish_reason="abort")))
    span.fail(Refusal(503, "given up", code="engine_aborted"))
    span.end("failed")


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (refused, "unknown_model"),
        (left, "hung_up"),
        (told_by_the_engine, "429"),
        (crashed, "failed"),
        (aborted, "engine_aborted"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_call_that_failed_says_why(use: Callable[[CallSpan], None], error: str) -> None:
    (span,) = told(lambda tracing: use(begin(tracing)))
    assert (attributes(span)["error.type"], span.status.is_ok) == (error, False)


def test_a_call_that_an_engine_gave_up_and_another_made_is_one_span_without_an_error() -> None:
    def use(tracing: Tracing) -> None:
        span = begin(tracing)
        commit(span, a_captured(a_choice(finish_reason="abort")))
        commit(span, a_captured(), engine="https://other.test")
        span.end("ok")

    (span,) = told(use)
    found = attributes(span)
    assert span.status.is_ok
    assert (found["claw.attempts"], found["server.address"], found["server.port"]) == (2, "other.test", 443)


def test_several_choices_and_a_legacy_completion() -> None:
    def use(tracing: Tracing) -> None:
        body = json.dumps({"model": "tiny", "prompt": SECRET, "n": 2, "stream": True}).encode()
        span = tracing.begin(completions().read(body, "call", 100.0), [], 100.0)
        choices = [a_choice(), a_choice(1, finish_reason="length")]
        commit(span, a_captured(*choices))
        span.end("ok")

    (span,) = told(use)
    found = attributes(span)
    assert span.name == "text_completion tiny"
    assert (found["gen_ai.request.choice.count"], found["gen_ai.request.stream"]) == (2, True)
    assert found["gen_ai.response.finish_reasons"] == ("stop", "length")
    assert SECRET not in span.to_json()


def test_what_agents_and_engines_say_has_a_bound() -> None:
    def use(tracing: Tracing) -> None:
        span = begin(tracing, json.dumps({"model": "m" * 5000, "messages": []}).encode())
        captured = a_captured(response_id="r" * 5000, usage={"prompt_tokens": 2**70, "completion_tokens": "many"})
        captured.choices = [Choice(0, finish_reason="f" * 5000)]
        commit(span, captured)
        span.end("ok")

    (span,) = told(use)
    found = attributes(span)
    assert len(span.name) < 300
    assert max(len(value) for value in found.values() if isinstance(value, str)) == 256
    assert len(found["gen_ai.response.finish_reasons"][0]) == 256
    assert "gen_ai.usage.input_tokens" not in found


class Away(SpanExporter):
    """A collector that takes nothing."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.FAILURE


def test_spans_that_the_collector_does_not_take_are_counted() -> None:
    def failed() -> float:
        return REGISTRY.get_sample_value("claw_gateway_spans_total", {"result": "failed"}) or 0.0

    async def run() -> None:
        tracing = Tracing(Spans(SERVICE, Away(), count), lambda url: "vllm")
        begin(tracing).end("ok")
        await tracing.stop()

    before = failed()
    asyncio.run(run())
    assert failed() == before + 1


def test_the_process_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    (span,) = told(lambda tracing: begin(tracing).end("ok"))
    assert span.resource.attributes["service.name"] == "claw-gateway"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "rollouts")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab")
    (span,) = told(lambda tracing: begin(tracing).end("ok"))
    assert span.resource.attributes["service.name"] == "rollouts"
    assert span.resource.attributes["deployment.environment.name"] == "lab"


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_BSP_MAX_QUEUE_SIZE", "-3")],
)
def test_variables_that_cannot_be_followed_are_wrong_use(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(WrongUse, match="OTEL_"):
        open_tracing(lambda url: "vllm")


def test_without_the_packages_the_gateway_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "gateway.tracing")
    with pytest.raises(WrongUse, match=r"pip install 'claw-r1\[otel\]'"):
        Gateway(GatewaySettings(trace=True))


def test_a_gateway_that_tells_no_spans_needs_no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "gateway.tracing")
    Gateway(GatewaySettings())
    assert "gateway.tracing" not in sys.modules
