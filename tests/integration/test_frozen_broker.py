"""A stream worker and a sink whose broker is frozen still end when they are told to."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claw_r1 import bus, registry, topics
from claw_r1.local.ports import find_port
from sinks import migrations
from tests.conftest import Stack, wait_until
from tests.factories import a_group, a_recipe
from tests.log import send, wait_for_groups
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


async def judge_a_group(kafka: str) -> None:
    """Leaves an open group, too."""
    await registry.apply_recipe(kafka, a_recipe(), deadline=60)
    await send(kafka, [*a_group(prompt_uid="whole"), *a_group(prompt_uid="open")[:3]])
    await wait_for_groups(kafka, "test", 1)


def test_who_is_told_to_end_while_the_broker_is_frozen_ends(stack: Stack, spare: Stack, tmp_path: Path) -> None:
    asyncio.run(bus.apply_topics(spare.kafka, topics.all_topics()))
    asyncio.run(migrations.apply(stack.clickhouse, "frozen"))
    pool = {"clickhouse": stack.clickhouse, "database": "frozen", "sinks_port": find_port()}
    sink = Worker("sinks", tmp_path / "sink.log", kafka=spare.kafka, **pool)
    streams = Worker("streams", tmp_path / "w0.log", kafka=spare.kafka, streams_port=0, streams_worker="w0")
    with workers(sink, streams):
        wait_until(lambda: "partitions assigned" in sink.logged(), what="the sink has its partitions")
        asyncio.run(judge_a_group(spare.kafka))
        frozen = spare.freeze("kafka")
        try:
            with ThreadPoolExecutor(2) as both:
                assert [*both.map(Worker.end, (sink, streams))] == [0, 0]
        finally:
            spare.kill("kafka", signal.SIGCONT)
    assert spare.pids["kafka"] == frozen
