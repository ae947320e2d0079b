"""From an agent's trace one comes to the batch that trained its calls, by parents and links, through every process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from claw_r1 import bus, registry, topics
from claw_r1.codec import header
from sinks import migrations
from tests.conftest import Stack
from tests.factories import a_recipe
from tests.integration.collector import Collector, a_collector, values
from tests.integration.gateway_stand import Stand, a_gateway, a_reply, an_engine, replying, wait_for
from tests.workers import Worker, workers
from trainer_adapter import AsyncBatchStream

pytestmark = pytest.mark.stack
RUN, POOL = "traced", "traced"
TRACE = "a" * 32
PARENT = f"00-{TRACE}-{'b' * 16}-01"
SERVICES = {"claw-gateway", "claw-streams", "claw-workers", "claw-sinks", "claw-trainer"}


@contextlib.asynccontextmanager
async def processes(kafka: str, clickhouse: str, folder: Path) -> AsyncIterator[None]:
    """A stream worker, a reward worker and a sink, all of which tell spans."""
    await bus.apply_topics(kafka, topics.all_topics())
    await migrations.apply(clickhouse, POOL)
    where: dict[str, Any] = {"kafka": kafka, "clickhouse": clickhouse, "database": POOL}
    score = {"workers_rewards": "tests.integration.plugins:length", "workers_port": 0, "workers_trace": True}
    started = [
        Worker("streams", folder / "streams.log", streams_port=0, streams_worker="w0", streams_trace=True, **where),
        Worker("streams.workers", folder / "workers.log", **score, **where),
        Worker("sinks", folder / "sinks.log", sinks_port=0, sinks_trace=True, **where),
    ]
    with workers(*started):
        yield


async def roll_out(stand: Stand, trajectory: str) -> None:
    """One call within the agent's trace, and the end."""
    url = f"{stand.url}/{trajectory}/p/v1"
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    async with stand.http.post(f"{url}/chat/completions", json=body, headers={"traceparent": PARENT}) as response:
        assert response.status == 200
    async with stand.http.post(f"{url}/complete_trajectory", json={}) as response:
        assert response.status == 200


async def train(kafka: str) -> str | None:
    """One batch; the trace that it names."""
    async with AsyncBatchStream(RUN, kafka=kafka, trace=True) as stream:
        batch = await stream.next(90)
        await batch.commit(policy_version=4)
        return batch.traceparent


def led_to(told: list[tuple[str, Span]]) -> list[tuple[str, Span]]:
    """What one comes to from the agent's trace: by trace, parent and link from span to span, whatever their order."""
    found: list[tuple[str, Span]] = []
    reached: set[bytes] = set()
    left = told
    while True:
        new = [
            (service, span)
            for service, span in left
            if span.trace_id.hex() == TRACE
            or span.parent_span_id in reached
            or any(link.span_id in reached for link in span.links)
        ]
        if not new:
            return found
        found += new
        reached |= {span.span_id for _, span in new}
        left = [one for one in left if one not in new]


def stored_in(told: list[tuple[str, Span]]) -> set[bytes]:
    """The spans that flushes of sinks are linked to."""
    return {link.span_id for service, span in told if service == "claw-sinks" for link in span.links}


def test_an_agents_trace_leads_to_the_batch_that_trained_its_calls(
    spare: Stack, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the broker to spare: stream workers own whole topics."""
    kafka = spare.kafka

    async def run() -> tuple[Collector, str | None]:
        async with a_collector(monkeypatch) as collector, an_engine(replying(a_reply([1, 2, 3], [4, 5]))) as engine:
            async with processes(kafka, stack.clickhouse, tmp_path):
                recipe = a_recipe(name=RUN, run_id=RUN, rewards={"required": ["length"]})
                await registry.apply_recipe(kafka, recipe, deadline=60)
                async with a_gateway(kafka, engine.url, run=RUN, trace=True) as stand:
                    for trajectory in ("t1", "t2"):
                        await roll_out(stand, trajectory)
                    batch = await train(kafka)

                    def arrived() -> bool:
                        found = led_to(collector.told())
                        trained = {span.span_id for service, span in found if service == "claw-trainer"}
                        return bool(trained & stored_in(found))

                    await wait_for(arrived, "the commit of the batch is stored, and that is told", deadline=60)
            return collector, batch

    collector, named = asyncio.run(asyncio.wait_for(run(), 170))
    found = led_to(collector.told())
    assert {service for service, _ in found} == SERVICES
    by_service = {service: [span for one, span in found if one == service] for service in SERVICES}

    calls = {span.span_id for span in by_service["claw-gateway"]}
    assert len(calls) == 2
    assert {span.trace_id.hex() for span in by_service["claw-gateway"]} == {TRACE}
    assert {span.parent_span_id for span in by_service["claw-workers"]} == calls
    assert {span.trace_id.hex() for span in by_service["claw-workers"]} == {TRACE}
    assert {values(span)["claw.facts"] for span in by_service["claw-workers"]} == {1}

    (decision,) = by_service["claw-streams"]
    assert {link.span_id for link in decision.links} == calls
    said = values(decision)
    assert (said["claw.recipe"], said["claw.outcome"], said["claw.reason"]) == (RUN, "emitted", "size")
    assert (said["claw.steps"], said["claw.trajectories"]) == (2, 2)

    (trained,) = by_service["claw-trainer"]
    assert [link.span_id for link in trained.links] == [decision.span_id]
    assert named is not None
    assert named[3:52] == f"{trained.trace_id.hex()}-{trained.span_id.hex()}"
    said = values(trained)
    assert (said["claw.sequence"], said["claw.policy_version"], said["claw.groups"], said["claw.trajectories"]) == (
        *(1, 4, 1),
        2,
    )
    assert "error.type" not in said

    assert stored_in(found) >= calls | {decision.span_id, trained.span_id}
    rows = [values(span).get("claw.rows.steps", 0) for span in by_service["claw-sinks"]]
    assert sum(rows) == 2
    assert not any(b"hello" in body for body in collector.bodies)
    asyncio.run(check_log(kafka))


async def check_log(kafka: str) -> None:
    """The records of every stop name their traces."""

    async def traces(topic: str) -> dict[str, set[bytes]]:
        found: dict[str, set[bytes]] = {}
        for record in await bus.read_topic(kafka, topic, client_id="test"):
            kind = (header(record.headers, "ce_type") or b"").decode()
            found.setdefault(kind, set()).add(header(record.headers, "traceparent") or b"")
        return found

    ready = await traces(topics.batch_topic(RUN))
    assert ready["claw.sample.v1"] == ready["claw.group-ready.v1"]
    (decision,) = ready["claw.group-ready.v1"]
    assert decision in (await traces(topics.OUTCOMES))["claw.outcome.v1"]
    facts = await traces(topics.EVENTS)
    assert (await traces(topics.TRAJECTORIES))["claw.trajectory.v1"] == facts["claw.step.v1"]
    assert {trace[3:35] for trace in facts["claw.reward.v1"]} == {TRACE.encode()}
    assert b"" not in (await traces(topics.CUTS))["claw.batch-trained.v1"]
