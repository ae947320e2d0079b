"""What a partition decides is told once, when it was written, with links to the calls that its steps came from."""

import asyncio
import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from claw_r1.codec import decode, encode, header
from claw_r1.errors import WrongUse
from claw_r1.events import (
    Event,
    Fact,
    GroupFact,
    GroupReady,
    Outcome,
    RecipeActive,
    RecipeSet,
    Sample,
    Step,
    Trajectory,
    TrajectoryEnd,
)
from claw_r1.settings import StreamsSettings
from claw_r1.topics import EVENTS
from claw_r1.tracing import Spans
from streams import app
from streams.carry import Copied, draft, hold
from streams.outbox import Sending
from streams.partition import PartitionWorker
from tests.factories import RUN, a_group, a_recipe, a_started, a_step

START = 1000.0


@dataclass(frozen=True)
class Logged:
    """A record of the events topic, as far as a partition looks at it."""

    offset: int
    timestamp: int
    """Milliseconds."""
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]]


def a_trace(number: int, flags: str = "01") -> str:
    return f"00-{number:032x}-{number:016x}-{flags}"


def a_log(facts: Iterable[Fact]) -> list[Logged]:
    """A record a second; each step's call, the first of which is number 1, is told in a trace of its own."""
    calls = itertools.count(1)
    log: list[Logged] = []
    for offset, fact in enumerate(facts):
        trace = a_trace(next(calls)) if isinstance(fact, Step) else None
        record = encode(fact, source="test", traceparent=trace)
        log.append(Logged(offset, int((START + offset) * 1000), record.key, record.value, record.headers))
    return log


def set_recipe(**over: Any) -> RecipeSet:
    recipe = a_recipe(**over)
    return RecipeSet(fact_id="recipe", run_id=RUN, at=1.0, name=recipe.name, version=1, recipe=recipe)


class Told:
    """Partition 0 of one process after another, the records that became durable, and the spans that a collector got."""

    def __init__(self, folder: Path) -> None:
        self._exporters: list[InMemorySpanExporter] = []
        self._folder = folder
        self.written: list[Sending] = []

    def worker(self) -> PartitionWorker:
        """Of a process that just started."""
        told = self

        class Writing(PartitionWorker):
            async def _write(self, records: Sequence[Sending]) -> None:
                told.written += records

        self._exporters.append(InMemorySpanExporter())
        self.spans = Spans("claw-streams", self._exporters[-1], lambda result, many: None)
        return Writing(StreamsSettings(worker="w0", spill=str(self._folder)), 0, spans=self.spans)

    def end(self) -> list[ReadableSpan]:
        """The process ends; what it and those before it told."""
        asyncio.run(self.spans.stop())
        return [span for exporter in self._exporters for span in exporter.get_finished_spans()]

    def events(self, *kinds: type[Event]) -> list[tuple[Event, str | None]]:
        """What of these kinds is durable, with the traces that the records name."""
        found = [(decode(r.headers, r.value), header(r.headers, "traceparent")) for _, _, r in self.written]
        return [(e, None if trace is None else trace.decode()) for e, trace in found if isinstance(e, kinds)]


def flush(worker: PartitionWorker) -> None:
    asyncio.run(worker.write())


def values(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def links(span: ReadableSpan) -> list[int]:
    """The numbers of the calls that the span is linked to."""
    return [one.context.span_id for one in span.links]


def name_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def test_a_group_that_is_emitted_is_a_span_that_its_records_name(tmp_path: Path) -> None:
    told = Told(tmp_path)
    worker = told.worker()
    log = a_log([set_recipe(), *a_group(rewards=(1.0, 0.0), steps=2)])
    worker.fold(log)
    flush(worker)
    (span,) = told.end()
    assert (span.name, span.parent) == (f"decide {EVENTS}", None)
    assert values(span) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "decide",
        "messaging.operation.type": "process",
        "messaging.destination.name": EVENTS,
        "messaging.destination.partition.id": "0",
        "messaging.consumer.group.name": "claw-streams",
        "messaging.batch.message_count": 4,
        "claw.recipe": "test",
        "claw.run_id": RUN,
        "claw.group_id": "prompt-1",
        "claw.outcome": "emitted",
        "claw.reason": "size",
        "claw.trajectories": 2,
        "claw.steps": 4,
    }
    assert links(span) == [1, 3, 2, 4], "of each trajectory in turn"
    first = next(r for r in log if isinstance(decode(r.headers, r.value), Step))
    assert span.start_time == first.timestamp * 1_000_000
    assert span.end_time is not None
    assert span.end_time > span.start_time
    decided = told.events(Sample, GroupReady)
    assert len(decided) == 3
    assert {trace for _, trace in decided} == {name_of(span)}
    fates = [(e, trace) for e, trace in told.events(Outcome) if isinstance(e, Outcome)]
    assert {e.outcome: trace for e, trace in fates} == {"emitted": name_of(span), "closed": None}
    ended = {e.trajectory_uid: trace for e, trace in told.events(Trajectory) if isinstance(e, Trajectory)}
    assert ended == {"prompt-1-t0": a_trace(2), "prompt-1-t1": a_trace(4)}, "of an ended trajectory its last call"


def test_a_group_that_is_dropped_is_a_span_with_the_reason(tmp_path: Path) -> None:
    told = Told(tmp_path)
    worker = told.worker()
    worker.fold(
        a_log([set_recipe(rewards={"required": ["judge"]}, group={"size": 2, "idle": "5s"}), *a_group(steps=1)])
    )
    worker.state.now = START + 3600
    worker._queue(worker.state.tick(START + 7200))
    flush(worker)
    (span,) = told.end()
    assert (values(span)["claw.outcome"], links(span)) == ("discarded", [1, 2])
    fates = {e.reason for e, _ in told.events(Outcome) if isinstance(e, Outcome) and e.trajectory_uid is None}
    assert values(span)["claw.reason"] in fates
    assert span.status.is_ok


def test_the_step_that_was_waited_for_is_linked_too(tmp_path: Path) -> None:
    """With it the group is decided and closes: it is in no open round when it was taken in."""
    told = Told(tmp_path)
    worker = told.worker()
    facts = a_group(rewards=(1.0, 0.0), steps=1)
    last = next(fact for fact in reversed(facts) if isinstance(fact, Step))
    facts.remove(last)
    worker.fold(a_log([set_recipe(), a_started(last), *facts, last]))
    flush(worker)
    (span,) = told.end()
    assert (links(span), values(span)["claw.steps"]) == ([1, 2], 2)


def test_two_recipes_are_two_spans_and_the_records_of_each_name_its_own(tmp_path: Path) -> None:
    told = Told(tmp_path)
    worker = told.worker()
    other = set_recipe(name="other").model_copy(update={"fact_id": "other"})
    worker.fold(a_log([set_recipe(), other, *a_group(steps=1)]))
    flush(worker)
    spans = {values(span)["claw.recipe"]: span for span in told.end()}
    assert spans.keys() == {"test", "other"}
    named = {(e.recipe, trace) for e, trace in told.events(GroupReady, Sample) if isinstance(e, GroupReady | Sample)}
    assert named == {(recipe, name_of(span)) for recipe, span in spans.items()}


def test_what_was_not_written_is_not_told_and_what_was_is_not_told_again(tmp_path: Path) -> None:
    told = Told(tmp_path)
    log = a_log([set_recipe(), *a_group(steps=2, prompt_uid="p1"), *a_group(steps=1, prompt_uid="p2")])
    of_p1 = [r for r in log if r.key != f"{RUN}/p2".encode()]
    first = told.worker()
    first.fold(of_p1)
    flush(first)
    first.fold(log[len(of_p1) :])  # it is killed before this is written
    told.end()
    second = told.worker()
    durable = [e for e, _ in told.events(RecipeActive, Outcome)]
    second.state.load_recipes([e for e in durable if isinstance(e, RecipeActive)], before=0)
    second.state.load_ledger([e for e in durable if isinstance(e, Outcome)])
    second.fold(log)
    second.state.end_replay()
    flush(second)
    spans = told.end()
    assert [values(span)["claw.group_id"] for span in spans] == ["p1", "p2"]
    assert links(spans[1]) == [5, 6]
    assert [e.group_id for e, _ in told.events(GroupReady) if isinstance(e, GroupReady)] == ["p1", "p2"]


def test_a_group_that_was_carried_is_linked_to_the_calls_from_before(tmp_path: Path) -> None:
    told = Told(tmp_path)
    log = a_log([set_recipe(), *a_group(steps=2)])
    half = next(r.offset for r in log if isinstance(decode(r.headers, r.value), TrajectoryEnd)) + 1
    before = told.worker()
    before.fold(log[:half])
    flush(before)
    told.end()
    (group,) = before.state.groups.values()
    carried = draft(before.state, group)
    active = [e for e, _ in told.events(RecipeActive) if isinstance(e, RecipeActive)]
    copies = [
        Copied(r.offset, r.timestamp / 1000, fact, header(r.headers, "traceparent"))
        for r in log[1:half]
        if isinstance(fact := decode(r.headers, r.value), GroupFact)
    ]
    worker = told.worker()
    assert worker._traces is not None
    worker.state.position = half
    worker.state.load_recipes(active, before=half)
    hold(worker.state, carried, copies, {(a.name, a.version): a for a in active})
    worker._traces.hold(carried, copies)
    worker.fold(log[half:])
    worker.state.end_replay()
    flush(worker)
    (span,) = told.end()
    assert sorted(links(span)) == [1, 2, 3, 4]
    assert values(span)["claw.steps"] == 4


def test_a_step_that_comes_again_or_too_late_changes_no_span(tmp_path: Path) -> None:
    told = Told(tmp_path)
    worker = told.worker()
    facts = a_group(steps=1)
    step = next(fact for fact in facts if isinstance(fact, Step))
    log = a_log([set_recipe(), *facts])
    worker.fold(log)
    worker.fold([Logged(len(log), log[-1].timestamp, *encode(step, source="test", traceparent=a_trace(8)))])
    late = a_step([9], [9], trajectory_uid=step.trajectory_uid)
    worker.fold([Logged(len(log) + 1, log[-1].timestamp, *encode(late, source="test", traceparent=a_trace(9)))])
    flush(worker)
    (span,) = told.end()
    assert (links(span), values(span)["claw.steps"]) == ([1, 2], 2)


def test_a_prompt_that_is_used_again_is_linked_to_its_own_rounds_calls(tmp_path: Path) -> None:
    told = Told(tmp_path)
    worker = told.worker()
    again = [
        fact.model_copy(update={"fact_id": f"again-{fact.fact_id}", "trajectory_uid": f"again-{fact.trajectory_uid}"})  # type: ignore[attr-defined]
        for fact in a_group(steps=1)
    ]
    worker.fold(a_log([set_recipe(), *a_group(steps=1), *again]))
    flush(worker)
    spans = told.end()
    assert [(values(span)["claw.group_id"], links(span)) for span in spans] == [
        ("prompt-1", [1, 2]),
        ("prompt-1#2", [3, 4]),
    ]


def test_a_worker_that_tells_nothing_writes_no_trace_and_needs_no_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "streams.tracing", raising=False)
    written: list[Sending] = []

    class Writing(PartitionWorker):
        async def _write(self, records: Sequence[Sending]) -> None:
            written.extend(records)

    worker = Writing(StreamsSettings(worker="w0", spill=str(tmp_path)), 0)
    worker.fold(a_log([set_recipe(), *a_group(steps=1)]))
    flush(worker)
    assert "streams.tracing" not in sys.modules
    assert len(written) > 3
    assert not any(header(sending.record.headers, "traceparent") for sending in written)


def test_without_the_packages_a_worker_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["opentelemetry", *(name for name in sys.modules if name.startswith("opentelemetry."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "streams.tracing", raising=False)
    with pytest.raises(WrongUse, match=r"CLAW_STREAMS_TRACE needs .* pip install 'claw-r1\[otel\]'"):
        app._open_spans()
