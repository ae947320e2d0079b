"""Spans are linked to what they are about, sampled with it, and counted until a collector has them."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, use_span

from claw_r1.tracing import MAX_LINKS, Spans, fail, link, read_context, traceparent_of


def a_trace(number: int, flags: str = "01") -> bytes:
    return f"00-{number:032x}-{number:016x}-{flags}".encode()


def told(use: Callable[[Spans], None]) -> tuple[tuple[ReadableSpan, ...], Counter[str]]:
    """The spans that a collector gets, and what was counted."""
    exporter, counts = InMemorySpanExporter(), Counter[str]()

    async def run() -> None:
        spans = Spans("claw-test", exporter, lambda result, many: counts.update({result: many}))
        use(spans)
        await spans.stop()

    asyncio.run(run())
    return exporter.get_finished_spans(), counts


def linked(traces: list[bytes]) -> list[int]:
    return [one.context.span_id for one in link(traces)[0]]


def test_links_are_different_bounded_and_in_order() -> None:
    traces = [a_trace(number) for number in (3, 1, 3, 2, 1)]
    assert linked(traces) == [3, 1, 2]
    links, left_out = link([a_trace(number + 1) for number in range(MAX_LINKS + 7)])
    assert ([one.context.trace_id for one in links], left_out) == (list(range(1, MAX_LINKS + 1)), 7)


def test_what_nobody_has_is_linked_only_if_there_is_nothing_else() -> None:
    assert linked([a_trace(1, "00"), a_trace(2), a_trace(3, "00"), a_trace(4, "03")]) == [2, 4]
    assert linked([a_trace(1, "00"), a_trace(2, "00")]) == [1, 2]


@pytest.mark.parametrize("trace", [b"ff" + a_trace(1)[2:], b"", b"no trace", b"\xff" * 55, a_trace(0), a_trace(1)[:-1]])
def test_what_is_no_traceparent_is_no_link(trace: bytes) -> None:
    assert linked([trace, a_trace(5)]) == [5]
    assert linked([trace]) == []


def test_a_span_says_how_many_links_it_left_out() -> None:
    def use(spans: Spans) -> None:
        spans.begin("few", SpanKind.CONSUMER, {}, traces=[a_trace(1)]).end()
        spans.begin("many", SpanKind.CONSUMER, {}, traces=[a_trace(n + 1) for n in range(MAX_LINKS + 1)]).end()

    (few, many), _ = told(use)
    assert "claw.links_left_out" not in (few.attributes or {})
    assert (many.attributes or {})["claw.links_left_out"] == 1
    assert len(many.links) == MAX_LINKS


@pytest.mark.parametrize("sampler", ["parentbased_always_off", "parentbased_always_on"])
def test_what_was_sampled_is_sampled_on_and_what_was_not_is_not(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)

    def use(spans: Spans) -> None:
        spans.begin("one of them", SpanKind.CONSUMER, {}, traces=[a_trace(1, "00"), a_trace(2)]).end()
        spans.begin("none of them", SpanKind.CONSUMER, {}, traces=[a_trace(1, "00")]).end()
        parent = read_context({"traceparent": a_trace(1, "00").decode()})
        spans.begin("its parent", SpanKind.CONSUMER, {}, context=parent, traces=[a_trace(2)]).end()
        spans.begin("nothing before it", SpanKind.CONSUMER, {}).end()

    found, counts = told(use)
    own = ["nothing before it"] if sampler == "parentbased_always_on" else []
    assert [span.name for span in found] == ["one of them", *own]
    assert counts == {"ended": len(found), "exported": len(found)}


def test_links_do_not_overrule_a_sampler_that_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    named: list[str] = []

    def use(spans: Spans) -> None:
        span = spans.begin("off", SpanKind.CONSUMER, {}, traces=[a_trace(1)])
        named.append(traceparent_of(span))
        span.end()

    assert told(use) == ((), Counter())
    assert int(named[0][-2:], 16) % 2 == 0


def test_a_span_is_below_none_that_happens_to_be_current() -> None:
    def use(spans: Spans) -> None:
        with use_span(spans.begin("the trainer's own", SpanKind.INTERNAL, {}), end_on_exit=True):
            spans.begin("a batch", SpanKind.CONSUMER, {}).end()

    batch, _ = told(use)[0]
    assert (batch.name, batch.parent) == ("a batch", None)


def test_a_span_begins_when_it_is_told_to_and_says_why_it_failed() -> None:
    def use(spans: Spans) -> None:
        span = spans.begin("late", SpanKind.CONSUMER, {"known": 1, "unknown": None, "huge": 2**70}, start=100.5)
        fail(span, "unavailable")
        span.end()

    ((span,), _) = told(use)
    assert (span.start_time, span.status.is_ok) == (100_500_000_000, False)
    assert dict(span.attributes or {}) == {"known": 1, "error.type": "unavailable"}
