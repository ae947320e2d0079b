"""A stream worker that is killed again and again tells no decision twice, and links what it tells after as before."""

import asyncio
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from claw_r1 import bus, registry, topics
from claw_r1.codec import Record
from claw_r1.events import GroupFact
from tests.conftest import Stack
from tests.factories import a_group, a_recipe
from tests.integration.collector import Collector, a_collector, values
from tests.integration.gateway_stand import wait_for
from tests.log import read_emitted, send, wait_for_groups
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack
GROUPS = [f"g{n}" for n in range(40)]
OPEN = [f"g{n}" for n in range(100, 140)]
"""They are never whole, so that offsets stay before them and a restart reads all of their partitions again."""


def traced(record: Record) -> Record:
    """Its group's number is its trace."""
    number = int((record.key or b"").rpartition(b"/g")[2]) + 1
    return record._replace(headers=[*record.headers, ("traceparent", f"00-{number:032x}-{number:016x}-01".encode())])


def told(collector: Collector) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in collector.spans:
        found.setdefault(values(span)["claw.group_id"], []).append(span)
    return found


def halves(groups: list[str]) -> tuple[list[GroupFact], list[GroupFact]]:
    facts = [a_group(prompt_uid=group) for group in groups]
    return [f for one in facts for f in one[: len(one) // 2]], [f for one in facts for f in one[len(one) // 2 :]]


def test_a_worker_that_is_killed_tells_no_decision_twice(
    spare: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = spare.kafka

    async def play() -> dict[str, list[Span]]:
        await bus.apply_topics(kafka, topics.all_topics())
        async with a_collector(monkeypatch) as collector:
            settings = {"streams_port": 0, "streams_worker": "w0", "streams_trace": True}
            worker = Worker("streams", tmp_path / "w0.log", kafka=kafka, **settings)
            with workers(worker):
                await registry.apply_recipe(kafka, a_recipe(), deadline=60)
                await send(kafka, halves(OPEN)[0], form=traced)
                for start in range(0, len(GROUPS), 10):
                    begun, rest = halves(GROUPS[start : start + 10])
                    await send(kafka, begun, form=traced)
                    await asyncio.to_thread(worker.kill)  # with open groups, and what was decided since the last commit
                    await asyncio.to_thread(worker.start)
                    await send(kafka, rest, form=traced)
                    await wait_for_groups(kafka, "test", start + 10)
                    newest = set(GROUPS[start : start + 10])
                    await wait_for(lambda newest=newest: newest <= told(collector).keys(), "they are told")  # type: ignore[misc]
                assert await asyncio.to_thread(worker.end) == 0
            emitted = await read_emitted(kafka, "test")
            emitted.check_once()
            return told(collector)

    found = asyncio.run(play())
    assert found.keys() == set(GROUPS)
    assert {group: len(spans) for group, spans in found.items()} == dict.fromkeys(GROUPS, 1)
    for group, (span,) in found.items():
        assert [int.from_bytes(link.span_id) - 1 for link in span.links] == [int(group[1:])]
        assert values(span)["claw.steps"] == 6
