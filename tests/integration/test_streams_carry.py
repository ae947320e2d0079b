"""A group that is open for long does not hold back the log: it is carried, and outlives the facts that it was made of."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete

from claw_r1 import bus, registry, topics
from claw_r1.codec import header
from claw_r1.local.stack import running_stack
from streams.carry import CARRIED
from tests.factories import a_group, a_recipe
from tests.log import Emitted, read_emitted, send, wait_for_groups
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.slow]

APP = "claw-streams"


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[str]:
    with running_stack(tmp_path / "stack", processes=("kafka",)) as stack:
        asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics(1)))
        yield stack.kafka


def test_a_carried_group_outlives_its_first_facts(kafka: str, tmp_path: Path) -> None:
    worker = Worker(
        "streams",
        tmp_path / "w0.log",
        kafka=kafka,
        streams_port=0,
        streams_worker="w0",
        streams_carry_after="1s",
        streams_spill=tmp_path / "spill",
        streams_memory_bytes=1,
    )
    place = TopicPartition(topics.EVENTS, 0)
    facts = a_group(prompt_uid="slow")

    async def play() -> Emitted:
        await registry.apply_recipe(kafka, a_recipe(group={"size": 2, "idle": "10m"}), deadline=60)
        await send(kafka, facts[:-1])
        committed, number = 0, 0
        async with asyncio.timeout(60):
            while committed < len(facts):  # the recipe's fact, and all but the last of these
                number += 1
                await send(kafka, a_group(prompt_uid=f"quick-{number}"))
                committed = (await bus.committed_offsets(kafka, APP, [place]))[place] or 0
        await asyncio.to_thread(worker.kill)
        async with bus.admin(kafka) as client:  # what retention does
            await client.delete_records({place: RecordsToDelete(before_offset=committed)})
        await asyncio.to_thread(worker.start)
        await send(kafka, facts[-1:])
        await wait_for_one(kafka, "slow")
        return await read_emitted(kafka, "test")

    with workers(worker):
        emitted = asyncio.run(play())
    emitted.check_once()
    (ready,) = [ready for ready in emitted.ready if ready.group_id == "slow"]
    assert [member.reward for member in ready.members] == [1.0, 0.0]
    assert ready.trained_tokens == 2 * 3 * 2
    assert [o for o in emitted.outcomes if o.outcome == "late"] == []
    records = asyncio.run(bus.read_topic(kafka, topics.EVENTS, client_id="test"))
    copies = [record for record in records if header(record.headers, CARRIED) is not None]
    assert {record.key for record in copies} == {b"default/slow"}


async def wait_for_one(kafka: str, group: str) -> None:
    """Until it is ready, whatever else is."""
    number = 1
    async with asyncio.timeout(90):
        while group not in {ready.group_id for ready in (await read_emitted(kafka, "test")).ready}:
            await wait_for_groups(kafka, "test", number)
            number += 1
