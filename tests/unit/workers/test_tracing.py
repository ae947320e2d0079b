"""A source that is asked of a trajectory is a span below the trajectory's last call, and its facts' records name it."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from claw_r1.codec import Headers, encode, header
from claw_r1.errors import WrongUse
from claw_r1.events import Reward, Trajectory
from claw_r1.rewards.rollout import Missing
from claw_r1.settings import WorkersSettings
from claw_r1.topics import TRAJECTORIES
from claw_r1.tracing import Spans
from streams.workers import app
from streams.workers.app import Desk
from streams.workers.sources import Steps
from streams.workers.tracing import SERVICE, Tracing
from tests.factories import a_finished, a_reward

CALL = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


class Source:
    """Says these rewards; a text is the reason why there is none."""

    def __init__(self, name: str, said: Sequence[Reward] | str) -> None:
        self.name, self._said = name, said

    async def facts(self, trajectory: Trajectory, steps: Steps) -> Sequence[Reward]:
        if isinstance(self._said, str):
            raise Missing(self._said, "none")
        return self._said

    async def close(self) -> None: ...


class Logged:
    """A record of the trajectories topic."""

    def __init__(self, traceparent: str | None) -> None:
        self.key, self.value, self.headers = encode(a_finished(1), source="test", key=b"k", traceparent=traceparent)


class Store:
    async def is_purged(self, run_id: str) -> bool:
        return False


def play(
    monkeypatch: pytest.MonkeyPatch, *sources: Source, call: str | None = CALL, trace: bool = True
) -> tuple[dict[str, ReadableSpan], list[Headers]]:
    """The spans by source, and the headers of the facts that became durable."""
    exporter, written = InMemorySpanExporter(), list[Headers]()

    async def publish(producer: Any, topic: str, record: Any, **more: Any) -> None:
        written.append(record.headers)

    async def run() -> None:
        spans = Spans(SERVICE, exporter, lambda result, many: None)
        tracing = Tracing(spans, "claw-workers") if trace else None
        desk = Desk(WorkersSettings(), sources, Store(), None, tracing)  # type: ignore[arg-type]
        await desk.work(Logged(call))
        await spans.stop()

    monkeypatch.setattr(app.bus, "publish", publish)  # type: ignore[attr-defined]
    asyncio.run(run())
    return {str((span.attributes or {})["claw.source"]): span for span in exporter.get_finished_spans()}, written


def test_each_source_is_a_span_that_the_facts_name(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Source("judge", [a_reward(1.0), a_reward(0.5, step_id="s")])
    spans, written = play(monkeypatch, judge, Source("silent", []))
    assert spans.keys() == {"judge", "silent"}
    span = spans["judge"]
    assert span.name == "ask judge"
    assert span.parent is not None
    assert span.context is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == CALL[3:52]
    named = [(header(headers, "traceparent") or b"").decode() for headers in written]
    assert len(named) == 2
    assert {trace[3:52] for trace in named} == {f"{span.context.trace_id:032x}-{span.context.span_id:016x}"}
    assert dict(span.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "ask",
        "messaging.operation.type": "process",
        "messaging.destination.name": TRAJECTORIES,
        "messaging.consumer.group.name": "claw-workers",
        "claw.source": "judge",
        "claw.run_id": "default",
        "claw.prompt_uid": "p1",
        "claw.trajectory_uid": "default-t1",
        "claw.facts": 2,
    }
    assert (spans["silent"].attributes or {})["claw.facts"] == 0
    assert spans["silent"].status.is_ok


def test_a_reward_that_could_not_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, written = play(monkeypatch, Source("judge", "late"))
    assert written == []
    assert (spans["judge"].attributes or {})["error.type"] == "late"
    assert not spans["judge"].status.is_ok


@pytest.mark.parametrize("call", [None, "garbage"])
def test_a_trajectory_whose_calls_have_no_trace_begins_one(monkeypatch: pytest.MonkeyPatch, call: str | None) -> None:
    spans, _ = play(monkeypatch, Source("judge", [a_reward(1.0)]), call=call)
    assert spans["judge"].parent is None


def test_a_worker_that_tells_nothing_writes_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, (headers,) = play(monkeypatch, Source("judge", [a_reward(1.0)]), trace=False)
    assert spans == {}
    assert header(headers, "traceparent") is None


def test_without_the_packages_a_worker_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["opentelemetry", *(name for name in sys.modules if name.startswith("opentelemetry."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "streams.workers.tracing")
    with pytest.raises(WrongUse, match=r"CLAW_WORKERS_TRACE needs .* pip install 'claw-r1\[otel\]'"):
        app._open_tracing(WorkersSettings(trace=True))
