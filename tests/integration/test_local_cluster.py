"""Three brokers of a local stack: made, told of as they are, restarted with their data, and ended."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka.errors import KafkaError

from claw_r1 import bus, topics
from claw_r1.checks.broker import check_broker, read_copies
from claw_r1.checks.copies import Copies
from claw_r1.checks.finding import Finding
from claw_r1.codec import Record
from claw_r1.errors import ClawError
from claw_r1.local.stack import RunningStack
from claw_r1.local.state import read_state
from tests.conftest import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]

CLAW = [sys.executable, "-P", "-m", "claw_r1.cli.entry"]
NAMES = ["kafka-1", "kafka-2", "kafka-3"]
RECORDS = 30
LONGEST = 180.0
"""Seconds for what takes some on a machine that has nothing else to do."""


def claw(*arguments: str, data: Path) -> subprocess.CompletedProcess[str]:
    command = [*CLAW, *arguments, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def up(data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return claw("up", "--only", "kafka", "--only", "clickhouse", "--detach", "--json", *more, data=data)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def cluster(data: Path) -> Iterator[RunningStack]:
    """Three brokers, with the project's topics and some records; it may be stopped and started."""
    try:
        done = up(data, "--brokers", "3")
        assert done.returncode == 0, done.stderr
        assert list(json.loads(done.stdout)["processes"]) == [*NAMES, "clickhouse"]
        stack = RunningStack(data)
        asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
        asyncio.run(write(stack.kafka))
        yield stack
    finally:
        assert claw("down", data=data).returncode == 0


async def write(kafka: str) -> None:
    producer = await bus.start_producer(kafka, client_id="test")
    try:
        for number in range(RECORDS):
            record = Record(b"k%d" % number, b"v", [])
            await bus.publish(producer, topics.dlq_topic(topics.EVENTS), record, deadline=60)
    finally:
        await bus.stop_producer(producer)


async def written(kafka: str) -> int:
    return len(await bus.read_topic(kafka, topics.dlq_topic(topics.EVENTS), client_id="test"))


def copies(stack: RunningStack) -> Copies:
    async def ask() -> Copies:
        async with bus.admin(stack.kafka, request_timeout=5.0) as client:  # the first that is asked may hang
            return await read_copies(client)

    return asyncio.run(ask())


def wait_whole(stack: RunningStack, when: str) -> None:
    def is_whole() -> bool:
        try:
            found = copies(stack)
        except (KafkaError, ClawError):  # it was asked of one that is away
            return False
        return len(found.answering) == 3 and not (found.behind or found.leaderless)

    wait_until(is_whole, what=f"every copy is in sync {when}", timeout=LONGEST)


def finding_of(stack: RunningStack) -> Finding:
    (found,) = [finding for finding in asyncio.run(check_broker(stack.kafka)) if finding.check == "copies"]
    return found


def status(data: Path) -> tuple[int, dict[str, Any], str]:
    with ThreadPoolExecutor(2) as both:
        done, shown = both.map(lambda options: claw("status", *options, data=data), (["--json"], []))
    return done.returncode, json.loads(done.stdout), shown.stdout


def test_three_brokers_keep_three_copies_of_every_topic(cluster: RunningStack) -> None:
    assert len(cluster.kafka.split(",")) == 3
    found = copies(cluster)
    assert (found.answering, found.away, found.single, found.behind) == ([1, 2, 3], [], [], [])

    async def settings() -> dict[str, dict[str, str]]:
        async with bus.admin(cluster.kafka) as client:
            return await bus.read_configs(client, [topic.name for topic in topics.all_topics()])

    assert {found["min.insync.replicas"] for found in asyncio.run(settings()).values()} == {"2"}
    assert finding_of(cluster).state == "ok"


def test_a_topic_that_comes_later_has_as_many_copies_as_the_events(cluster: RunningStack) -> None:
    spec = topics.batch_topic_spec("later")
    asyncio.run(bus.ensure_topic(cluster.kafka, spec))
    assert copies(cluster).single == []


def test_another_up_says_what_is_there(cluster: RunningStack, data: Path) -> None:
    again = up(data, "--brokers", "3")
    assert (again.returncode, "already up" in again.stderr) == (0, True)
    assert list(json.loads(again.stdout)["processes"]) == [*NAMES, "clickhouse"]
    other = up(data, "--brokers", "1")
    assert other.returncode == 1
    assert "has 3 brokers, not 1" in other.stderr
    assert "Leave --brokers out" in other.stderr
    assert set(cluster.pids) == {*NAMES, "clickhouse"}


def test_a_broker_that_hangs_is_told_and_one_that_dies_comes_back(cluster: RunningStack, data: Path) -> None:
    wait_whole(cluster, "before")
    frozen = cluster.freeze("kafka-2")
    try:
        others = RunningStack(data)
        wait_until(lambda: _away(others) == [2], what="the others know that it is away", timeout=LONGEST)
        finding = finding_of(cluster)
        assert (finding.state, finding.remedy) == ("warn", "start what is down: broker 2")
        code, said, text = status(data)
        assert code == 1
        assert [name for name, row in said["processes"].items() if not row["ready"]] == ["kafka-2"]
        told = said["system"]["brokers"]
        assert (told["answering"], told["away"], told["below"], told["leaderless"]) == ([1, 3], [2], [], [])
        assert told["partitions"] == len(told["behind"]) > 10
        assert "brokers: 2 answer, 2 away" in text
    finally:
        os.kill(frozen, signal.SIGKILL)
    cluster.wait_restarted("kafka-2", frozen, LONGEST)
    wait_whole(cluster, "again")
    assert asyncio.run(written(cluster.kafka)) == RECORDS
    code, said, text = status(data)
    assert said["processes"]["kafka-2"]["restarts"] == 1
    assert "every copy of" in text


def _away(stack: RunningStack) -> list[int]:
    try:
        return copies(stack).away
    except Exception:  # noqa: BLE001 - it was asked of the one that hangs
        return []


def test_a_broker_that_lost_its_disk_gets_its_copies_back_and_down_ends_all(cluster: RunningStack, data: Path) -> None:
    frozen = cluster.freeze("kafka-3")  # so that it is not the last that leads: what only a lost disk had is lost
    wait_until(lambda: _away(cluster) == [3], what="the others know that it is away", timeout=LONGEST)
    down_without(frozen, data)
    shutil.rmtree(data / "kafka-3")
    assert up(data).returncode == 0
    wait_whole(cluster, "after another start, of one on a new disk")
    for name in ("kafka-1", "kafka-2"):  # the third leads then, and has what it got from them
        cluster.wait_restarted(name, cluster.kill(name), LONGEST)
        wait_whole(cluster, f"after {name}")
    assert asyncio.run(written(cluster.kafka)) == RECORDS
    pids = dict(cluster.pids)
    assert claw("down", data=data).returncode == 0
    assert [name for name, pid in pids.items() if psutil.pid_exists(pid)] == []
    log = (data / "logs" / "supervisor.log").read_text()
    assert "killed" not in log.rpartition("restart in")[2]


def down_without(frozen: int, data: Path) -> None:
    """`claw down`; what is frozen would hear of it once it goes on, and is killed while it is told."""
    with subprocess.Popen([*CLAW, "down", "--data", str(data)]) as down:
        wait_until(lambda: read_state(data).phase == "stopping", what="the stack stops")
        os.kill(frozen, signal.SIGKILL)
    assert down.returncode == 0
