"""A batch is one span from its hand-over to its commit, linked to the decisions that made its groups."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from claw_r1.errors import WrongUse
from claw_r1.events import BatchCut, CutExclusion, CutMember
from claw_r1.tracing import Spans
from tests.factories import RUN, a_ready_group
from tests.pool import a_cut
from trainer_adapter import AsyncBatchStream, tracing
from trainer_adapter.tracing import SERVICE, BatchTracing

COLUMNS = {"trajectory_index": np.array([0, 0, 1], np.int32), "offsets": np.array([0, 4, 9, 12])}


def told(use: Callable[[BatchTracing], None]) -> tuple[ReadableSpan, ...]:
    """The spans that a collector gets."""
    exporter = InMemorySpanExporter()

    async def run() -> None:
        found = BatchTracing(Spans(SERVICE, exporter, lambda result, many: None), "test")
        use(found)
        await found.stop()

    asyncio.run(run())
    return exporter.get_finished_spans()


def note(found: BatchTracing, *offsets: int) -> None:
    """Markers at these offsets were read; each was decided in a trace of its offset's number."""
    for offset in offsets:
        found.note(offset, [("ce_type", b"?"), ("traceparent", f"00-{offset:032x}-{offset:016x}-01".encode())])


def cut(sequence: int, *offsets: int, excluded: tuple[int, ...] = ()) -> BatchCut:
    _, group = a_ready_group()
    members = [CutMember(group_id=f"g{o}", run_id=RUN, offset=o, sample_ids=()) for o in offsets]
    out = [CutExclusion(group_id=f"g{o}", run_id=RUN, offset=o, reason="stale") for o in excluded]
    return a_cut(group, sequence=sequence, batch_id=f"b{sequence}", members=members, excluded=out)


def values(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def links(span: ReadableSpan) -> list[int]:
    return [one.context.span_id for one in span.links]


def test_a_batch_that_is_trained_is_one_span_linked_to_its_groups() -> None:
    named: list[str] = []

    def use(found: BatchTracing) -> None:
        note(found, 3, 5, 8)
        found.note(9, [("ce_type", b"?")])
        named.append(found.hand_out(cut(1, 3, 8, 9), COLUMNS))
        found.commit(1, 7)
        found.commit(1, 7)

    (span,) = told(use)
    assert span.name == "train claw.batch.test.v1"
    assert span.status.is_ok
    assert links(span) == [3, 8]
    assert span.context is not None
    assert named[0][3:52] == f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
    assert values(span) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "train",
        "messaging.operation.type": "process",
        "messaging.destination.name": "claw.batch.test.v1",
        "messaging.batch.message_count": 3,
        "claw.batch_id": "b1",
        "claw.recipe": "test",
        "claw.recipe_version": 1,
        "claw.run_id": RUN,
        "claw.sequence": 1,
        "claw.trained_version": 1,
        "claw.policy_version": 7,
        "claw.groups": 3,
        "claw.trajectories": 2,
        "claw.samples": 3,
        "claw.tokens": 12,
    }


def test_what_a_cut_has_taken_is_forgotten_until_it_is_read_again() -> None:
    def use(found: BatchTracing) -> None:
        note(found, 1, 2)
        found.hand_out(cut(1, 1, excluded=(2,)), COLUMNS)
        found.commit(1, 2)
        found.hand_out(cut(2, 1, 2), COLUMNS)
        found.commit(2, 3)
        note(found, 1)
        found.hand_out(cut(3, 1), COLUMNS)
        found.commit(3, 4)

    assert [links(span) for span in told(use)] == [[1], [], [1]]


def test_what_is_remembered_has_a_bound_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_MARKED", 2)

    def use(found: BatchTracing) -> None:
        note(found, 1, 2, 3)
        found.hand_out(cut(1, 1, 2, 3), COLUMNS)
        found.commit(1, 2)

    (span,) = told(use)
    assert links(span) == [2, 3]


def seek(found: BatchTracing) -> None:
    found.give_up("seek")
    found.commit(2, 6)


@pytest.mark.parametrize(("end", "reason"), [(seek, "seek"), (lambda found: None, "not_committed")])
def test_batches_that_are_not_committed_say_why(end: Callable[[BatchTracing], None], reason: str) -> None:
    def use(found: BatchTracing) -> None:
        for sequence in (1, 2, 3):
            found.hand_out(cut(sequence, sequence), COLUMNS)
        found.commit(1, 5)
        end(found)

    spans = sorted(told(use), key=lambda span: int(values(span)["claw.sequence"]))
    assert [values(span).get("error.type") for span in spans] == [None, reason, reason]
    assert [span.status.is_ok for span in spans] == [True, False, False]
    assert [values(span).get("claw.policy_version") for span in spans] == [5, None, None]


def test_a_stream_that_tells_nothing_imports_nothing_of_it() -> None:
    program = """
import asyncio, sys
from trainer_adapter import BatchStream, AsyncBatchStream
AsyncBatchStream("test")
print([name for name in sys.modules if name.startswith("opentelemetry") or name.endswith(".tracing")])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_packages_a_stream_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["opentelemetry", *(name for name in sys.modules if name.startswith("opentelemetry."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "trainer_adapter.tracing")
    with pytest.raises(WrongUse, match=r"trace=True needs .* pip install 'claw-r1\[otel\]'"):
        asyncio.run(AsyncBatchStream("test", trace=True).open())
