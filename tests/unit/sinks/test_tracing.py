"""A flush is one span with what was stored, linked to what its records name, and with the reason if it failed."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import TopicPartition
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from claw_r1.codec import encode
from claw_r1.errors import RetryableError, WrongUse
from claw_r1.membership import Fenced
from claw_r1.settings import SinksSettings
from claw_r1.topics import EVENTS, OUTCOMES
from claw_r1.tracing import Spans
from sinks import app
from sinks.app import Sink
from sinks.plan import Partition
from sinks.tracing import SERVICE, Tracing
from tests.factories import a_reward, a_step

EVENTS_3, OUTCOMES_0 = TopicPartition(EVENTS, 3), TopicPartition(OUTCOMES, 0)


def a_trace(number: int) -> bytes:
    return f"00-{number:032x}-{number:016x}-01".encode()


def a_partition(tp: TopicPartition, first: int) -> Partition:
    return Partition(f"{tp.topic}/{tp.partition}", first, "life", next=first)


def told(use: Callable[[Tracing], None]) -> tuple[ReadableSpan, ...]:
    """The spans that a collector gets."""
    exporter = InMemorySpanExporter()

    async def run() -> None:
        tracing = Tracing(Spans(SERVICE, exporter, lambda result, many: None), "claw-sinks", "pool")
        use(tracing)
        await tracing.stop()

    asyncio.run(run())
    return exporter.get_finished_spans()


def values(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def links(span: ReadableSpan) -> list[int]:
    return [one.context.span_id for one in span.links]


class Logged:
    """A record of the events topic, as far as a sink looks at it."""

    topic, partition, timestamp = EVENTS, 3, 1_000_000

    def __init__(self, offset: int, event: Any, trace: bytes | None) -> None:
        self.offset = offset
        self.key, self.value, self.headers = encode(
            event, source="test", traceparent=None if trace is None else trace.decode()
        )


def taken(tracing: Tracing | None) -> Partition:
    """A partition with a step, its announcement's trace again, and a fact without a trace, at 5 to 7."""
    sink = Sink(SinksSettings(), asyncio.Event(), tracing=tracing)
    partition = sink._partitions[EVENTS_3] = a_partition(EVENTS_3, 5)
    log = [(a_step(), a_trace(1)), (a_step([7], [8]), a_trace(1)), (a_reward(), None)]
    sink._take(EVENTS_3, [Logged(5 + number, event, trace) for number, (event, trace) in enumerate(log)])
    return partition


def test_a_flush_says_what_it_stored() -> None:
    def use(tracing: Tracing) -> None:
        partition = taken(tracing)
        partition.promise()
        with tracing.flush({EVENTS_3: partition}):
            partition.stored()

    (span,) = told(use)
    assert span.name == f"store {EVENTS}"
    assert span.status.is_ok
    assert links(span) == [1]
    assert values(span) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "store",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "claw-sinks",
        "messaging.destination.name": EVENTS,
        "messaging.batch.message_count": 3,
        "db.system.name": "clickhouse",
        "db.namespace": "pool",
        "claw.ranges": (f"{EVENTS}/3 5-7",),
        "claw.rows.rewards": 1,
        "claw.rows.step_tokens": 2,
        "claw.rows.steps": 2,
        "claw.rows.trajectory_lookup": 2,
    }


def test_partitions_of_several_topics_are_one_span_of_their_ranges_alone() -> None:
    def use(tracing: Tracing) -> None:
        one, other = a_partition(EVENTS_3, 5), a_partition(OUTCOMES_0, 0)
        for partition, trace in ((one, 1), (other, 2), (one, 3)):
            partition.take(partition.next, 100, 0.0, [("outcomes", ())])
            partition.pending.traces[a_trace(trace)] = None
        one.promise()
        other.promise()
        one.take(one.next, 100, 0.0, [("outcomes", ())])
        one.pending.traces[a_trace(9)] = None  # of the next range
        with tracing.flush({EVENTS_3: one, OUTCOMES_0: other}):
            one.stored()
        one.promise()
        with tracing.flush({EVENTS_3: one}):
            one.stored()

    both, following = told(use)
    assert (both.name, links(both)) == ("store", [1, 3, 2])
    assert "messaging.destination.name" not in values(both)
    assert values(both)["claw.ranges"] == (f"{EVENTS}/3 5-6", f"{OUTCOMES}/0 0-0")
    assert values(both)["claw.rows.outcomes"] == 3
    assert (links(following), values(following)["claw.ranges"]) == ([9], (f"{EVENTS}/3 7-7",))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RetryableError("away"), "unavailable"), (Fenced(), "fenced"), (ValueError("?"), "ValueError")],
)
def test_a_flush_that_fails_says_why_and_is_another_span_when_it_is_tried_again(error: Exception, reason: str) -> None:
    def use(tracing: Tracing) -> None:
        partition = taken(tracing)
        partition.promise()
        with pytest.raises(type(error)), tracing.flush({EVENTS_3: partition}):
            raise error
        with tracing.flush({EVENTS_3: partition}):
            partition.stored()

    failed, done = told(use)
    assert (values(failed)["error.type"], failed.status.is_ok, done.status.is_ok) == (reason, False, True)
    assert links(failed) == links(done) == [1]


def test_a_sink_that_tells_nothing_keeps_no_traces() -> None:
    partition = taken(None)
    assert partition.range.count == 3
    assert partition.range.traces == {}


def test_without_the_packages_a_sink_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["opentelemetry", *(name for name in sys.modules if name.startswith("opentelemetry."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "sinks.tracing")
    with pytest.raises(WrongUse, match=r"CLAW_SINKS_TRACE needs .* pip install 'claw-r1\[otel\]'"):
        app._open_tracing(SinksSettings(trace=True))
