"""kill -9 of the broker and of the engine: what was acknowledged is there after the supervisor's restart."""

import asyncio
import urllib.error
from pathlib import Path

import clickhouse_connect
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from clickhouse_connect.driver.exceptions import Error

from claw_r1.local.archive import ensure_archive
from claw_r1.local.jars import ensure_jars
from claw_r1.local.java import find_archive
from claw_r1.local.stack import RunningStack, running_stack
from tests.conftest import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.kill]

TOPIC = "kill-test"


async def create_topic(kafka: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, 2, 1)])
    finally:
        await admin.close()


async def produce_through_a_kill(stack: RunningStack, count: int) -> list[bytes]:
    """The acknowledged values of `count` sent ones; the broker is killed after half of them."""
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka, acks="all", enable_idempotence=True, linger_ms=0)
    await producer.start()
    acknowledged = []
    try:
        for number in range(count):
            value = b"%06d" % number
            await asyncio.wait_for(producer.send_and_wait(TOPIC, value, partition=number % 2), 60)
            acknowledged.append(value)
            if number == count // 2:
                stack.kill("kafka")
    finally:
        await producer.stop()
    return acknowledged


async def read_all(kafka: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(TOPIC, bootstrap_servers=kafka, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        parts = consumer.assignment() or set()
        ends = await consumer.end_offsets(parts)
        values: list[bytes] = []
        while len(values) < sum(ends.values()):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                values += [record.value for record in records]
        return values
    finally:
        await consumer.stop()


def an_archive() -> Path:
    """The archive of the broker's classes; another test's stack may just be making it."""
    jars = ensure_jars()
    wait_until(lambda: ensure_archive(jars, print) is not None, what="there is an archive", timeout=120)
    found = find_archive(jars)
    assert found is not None
    return found


def maps(pid: int, file: Path) -> bool:
    """Whether a process has the file in its memory (where the system tells)."""
    listed = Path(f"/proc/{pid}/maps")
    return not listed.exists() or str(file) in listed.read_text()


def test_a_killed_broker_comes_back_with_every_acknowledged_record(tmp_path: Path) -> None:
    archive = an_archive()
    with running_stack(tmp_path, processes=("kafka",)) as stack:
        assert maps(stack.pids["kafka"], archive), stack.log("kafka")[:2000]
        asyncio.run(create_topic(stack.kafka))
        acknowledged = asyncio.run(produce_through_a_kill(stack, 200))
        assert len(acknowledged) == 200
        assert stack.state.processes["kafka"].restarts == 1
        assert sorted(asyncio.run(read_all(stack.kafka))) == acknowledged
    with running_stack(tmp_path, processes=("kafka",)) as stack:
        assert sorted(asyncio.run(read_all(stack.kafka))) == acknowledged


def test_a_killed_engine_comes_back_with_every_acknowledged_insert(tmp_path: Path) -> None:
    with running_stack(tmp_path, processes=("clickhouse",)) as stack:
        host, port = stack.clickhouse.removeprefix("http://").split(":")
        client = clickhouse_connect.get_client(host=host, port=int(port))
        client.command(
            "CREATE TABLE t (id UInt64) ENGINE = MergeTree ORDER BY id "
            "SETTINGS non_replicated_deduplication_window = 1000"
        )

        def insert(number: int) -> bool:
            """One insert with its token; a retry of an insert whose fate is unknown must add nothing."""
            try:
                token = {"insert_deduplication_token": f"insert-{number}"}
                client.insert("t", [[number * 10 + i] for i in range(10)], column_names=["id"], settings=token)
            except (Error, urllib.error.URLError):
                return False
            return True

        for number in range(60):
            if number in (20, 40):
                stack.kill("clickhouse")
            wait_until(lambda number=number: insert(number), what=f"insert {number} is acknowledged")  # type: ignore[misc]
        counted = client.query("SELECT count(), uniqExact(id) FROM t").result_rows
        assert counted == [(600, 600)]
        assert stack.state.processes["clickhouse"].restarts == 2
