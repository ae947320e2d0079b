"""Stream workers where the broker is away, frozen, empty or not what it was: they wait and say so, or end; none hangs."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from claw_r1 import bus, registry, topics
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack
from claw_r1.settings import StreamsSettings
from streams import app, outbox, partition
from streams.partition import LogTruncated, PartitionWorker
from tests.conftest import wait_until
from tests.factories import a_group, a_recipe, a_step
from tests.log import forget_all, read_emitted, send, wait_for_groups
from tests.unit.streams.partition_log import set_recipe
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


@pytest.fixture
def stack(spare: RunningStack) -> RunningStack:
    """A broker as if it were new, without topics."""
    forget_all(spare.kafka)
    return spare


def a_worker(kafka: str, tmp_path: Path) -> Worker:
    return Worker("streams", tmp_path / "w0.log", kafka=kafka, streams_port=0, streams_worker="w0")


def test_a_worker_without_a_broker_says_so_and_ends(tmp_path: Path) -> None:
    worker = a_worker(f"127.0.0.1:{find_port()}", tmp_path)
    with workers(worker):
        wait_until(lambda: not worker.alive, what="the worker ended")
        assert worker.end() == 3
    assert "no Kafka broker answers" in worker.logged()


def test_a_worker_that_is_there_before_the_topics_works_once_they_are(stack: RunningStack, tmp_path: Path) -> None:
    worker = a_worker(stack.kafka, tmp_path)

    async def play() -> None:
        await bus.apply_topics(stack.kafka, topics.all_topics())
        await registry.apply_recipe(stack.kafka, a_recipe(), deadline=60)
        await send(stack.kafka, a_group())
        await wait_for_groups(stack.kafka, "test", 1)

    with workers(worker):
        wait_until(lambda: "waiting for topics" in worker.logged(), what="the worker misses the topics")
        asyncio.run(play())
        assert worker.end() == 0


def test_a_worker_goes_on_after_its_broker_was_killed(stack: RunningStack, tmp_path: Path) -> None:
    worker = a_worker(stack.kafka, tmp_path)

    async def play() -> None:
        await bus.apply_topics(stack.kafka, topics.all_topics())
        await registry.apply_recipe(stack.kafka, a_recipe(), deadline=60)
        half = a_group(prompt_uid="half")
        await send(stack.kafka, [*a_group(prompt_uid="before"), *half[:3]])
        await wait_for_groups(stack.kafka, "test", 1)
        await asyncio.to_thread(stack.wait_restarted, "kafka", stack.kill("kafka"), 120)
        await send(stack.kafka, [*half[3:], *a_group(prompt_uid="after")])
        await wait_for_groups(stack.kafka, "test", 3)
        emitted = await read_emitted(stack.kafka, "test")
        emitted.check_once()
        assert {r.group_id for r in emitted.ready} == {"before", "half", "after"}

    with workers(worker):
        asyncio.run(play())
        assert worker.end() == 0


def test_a_log_that_ends_before_what_was_decided_is_refused(stack: RunningStack) -> None:
    """A topic made anew under the old offsets: reading on would pass over all that is written to it."""

    async def play() -> None:
        await bus.apply_topics(stack.kafka, topics.all_topics())
        await send(stack.kafka, [a_step()], partition=0)
        worker = PartitionWorker(StreamsSettings(kafka=stack.kafka, worker="w0"), 0)
        try:
            with pytest.raises(LogTruncated, match="ends at 1, but was decided up to 5"):
                await worker.rebuild(5)
        finally:
            await worker.stop()

    asyncio.run(play())


def test_a_long_backlog_is_written_piece_by_piece(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one transaction would pass its time-out, again at each restart; all in memory might not fit."""
    monkeypatch.setattr(partition, "MAX_PENDING", 40)
    monkeypatch.setattr(outbox, "TRANSACTION_RECORDS", 10)
    monkeypatch.setattr(bus, "FETCH_BYTES", 16_384)
    written: list[list[bytes | None]] = []

    class Watched(PartitionWorker):
        async def _write(self, records: list[outbox.Sending]) -> None:  # type: ignore[override]
            written.append([record.key for _, _, record in records])
            await super()._write(records)

    async def play() -> None:
        await bus.apply_topics(stack.kafka, topics.all_topics())
        groups = [f"g{n}" for n in range(100)]
        await bus.ensure_topic(stack.kafka, topics.batch_topic_spec("test"))
        facts = [f for g in groups for f in a_group(prompt_uid=g)]
        await send(stack.kafka, [set_recipe(a_recipe()), *facts], partition=0)
        worker = Watched(StreamsSettings(kafka=stack.kafka, worker="w0"), 0)
        emitting = None
        try:
            await worker.rebuild(None)
            assert len(written) > 1, "decisions were durable before the replay ended"
            emitting = asyncio.create_task(worker.emit())
            await asyncio.wait_for(worker.settle(), 60)
        finally:
            if emitting is not None:
                emitting.cancel()
            await worker.stop()
        emitted = await read_emitted(stack.kafka, "test")
        emitted.check_once()
        assert [r.group_id for r in emitted.ready] == groups

    asyncio.run(play())
    assert max(map(len, written)) < 20
    ends = [(before[-1], after[0]) for before, after in pairwise(written)]
    assert all(last != first for last, first in ends), "a group's decision was cut in two"


def test_a_first_rebuild_may_take_longer_than_joining_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust's start waits for it; ended there, the worker would begin it anew for ever."""
    monkeypatch.setattr(app, "START_DEADLINE", 0.05)

    class Faust:
        def __init__(self, joined: asyncio.Event | None) -> None:
            self.joined = joined

        async def start(self) -> None:
            if self.joined is not None:
                self.joined.set()
            rebuilt = asyncio.Event()
            asyncio.get_running_loop().call_later(0.3, rebuilt.set)
            await rebuilt.wait()

    class Starting(app.StreamWorker):
        async def await_topics(self) -> None:
            return None

        def _faust_app(self) -> Faust:
            return Faust(self._joined)

    async def play() -> None:
        await Starting(StreamsSettings(worker="w0")).start()
        worker = Starting(StreamsSettings(worker="w0"))
        worker.app = Faust(None)
        with pytest.raises(TimeoutError):
            await worker.start()

    asyncio.run(play())


def test_records_that_wait_for_room_are_let_go_when_the_partition_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        worker = PartitionWorker(StreamsSettings(worker="w0"), 0)
        worker._room.clear()
        taking = asyncio.create_task(worker.take([]))
        await asyncio.sleep(0)
        assert not taking.done()
        await worker.stop()
        await asyncio.wait_for(taking, 10)

    asyncio.run(play())
