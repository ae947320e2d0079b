"""A sink whose broker is frozen still ends when it is told to."""

import asyncio
import signal
from pathlib import Path

import pytest

from claw_r1 import bus, topics
from claw_r1.local.ports import find_port
from sinks import migrations
from tests.conftest import Stack, wait_until
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


def test_a_sink_ends_while_its_broker_is_frozen(stack: Stack, spare: Stack, tmp_path: Path) -> None:
    asyncio.run(bus.apply_topics(spare.kafka, topics.all_topics()))
    asyncio.run(migrations.apply(stack.clickhouse, "frozen"))
    settings = {"kafka": spare.kafka, "clickhouse": stack.clickhouse, "database": "frozen"}
    sink = Worker("sinks", tmp_path / "sink.log", sinks_port=find_port(), **settings)
    with workers(sink):
        wait_until(lambda: "partitions assigned" in sink.logged(), what="the sink has its partitions")
        spare.freeze("kafka")
        try:
            assert sink.end() == 0
        finally:
            spare.kill("kafka", signal.SIGCONT)
