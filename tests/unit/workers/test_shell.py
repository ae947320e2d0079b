"""Where a worker begins, and how long it waits for the pool."""

import asyncio
from typing import Any

import pytest
from aiokafka import TopicPartition
from prometheus_client import REGISTRY

from claw_r1 import membership
from claw_r1.cli.config import config
from claw_r1.errors import RetryableError, WrongUse
from claw_r1.membership import Standing
from claw_r1.metrics import WORKERS_BACKLOG
from claw_r1.rewards.rollout import Missing, StepView
from claw_r1.settings import WorkersSettings
from streams.workers import pool
from streams.workers.app import make_sources
from streams.workers.consumer import Held, LostTrajectories, TrajectoryConsumer
from streams.workers.pool import StepStore
from tests.factories import a_finished, a_step
from tests.unit.workers.test_pure import a_row

STEP = a_step((1, 2), (3,))
ENDED = a_finished(step_ids=(STEP.step_id,))


def begin(committed: int | None, first: int, end: int, **over: Any) -> tuple[int, int | None]:
    consumer = TrajectoryConsumer(WorkersSettings(**over), asyncio.Event(), lambda record: asyncio.sleep(0))
    standing = Standing(None if committed is None else (committed, ""), first, end)
    held = consumer._begin(TopicPartition("t", 0), standing)
    return held.prefix.next, held.committed


def test_a_worker_begins_where_the_group_stood() -> None:
    assert begin(7, 0, 9) == (7, 7)
    assert begin(0, 0, 9) == (0, 0)
    assert begin(None, 3, 9) == (3, None)
    assert begin(None, 3, 9, begin="latest") == (9, None)
    assert begin(2, 5, 9, skip_lost=True) == (5, 2)


@pytest.mark.parametrize(("committed", "why"), [(2, "retention"), (12, "made anew")])
def test_a_log_that_lost_what_is_next_stops_the_worker(committed: int, why: str) -> None:
    with pytest.raises(LostTrajectories, match=why):
        begin(committed, 5, 9)


def test_the_backlog_of_a_partition_that_went_to_another_worker_is_not_told_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stays, goes = TopicPartition("t", 90), TopicPartition("t", 91)

    async def play() -> None:
        consumer = TrajectoryConsumer(WorkersSettings(), asyncio.Event(), lambda record: asyncio.sleep(0))
        monkeypatch.setattr(consumer, "_consumer", None, raising=False)
        monkeypatch.setattr(membership, "seek", lambda *_: None)
        monkeypatch.setattr(membership, "read_standings", standings)
        for assigned in ({stays, goes}, {stays}):
            consumer._joined = assigned
            await consumer._resume(assigned)
            for tp in assigned:
                WORKERS_BACKLOG.labels(str(tp.partition)).set(7)

    async def standings(_: Any, assigned: set[TopicPartition]) -> dict[TopicPartition, Standing]:
        return dict.fromkeys(assigned, Standing(None, 0, 9))

    asyncio.run(play())
    told = [REGISTRY.get_sample_value("claw_workers_backlog_records", {"partition": n}) for n in ("90", "91")]
    assert told == [7, None]


def test_work_that_fails_unexpectedly_is_not_done_and_ends_the_worker() -> None:
    async def play() -> None:
        async def boom(record: Any) -> None:
            raise RuntimeError("a bug")

        consumer = TrajectoryConsumer(WorkersSettings(), asyncio.Event(), boom)
        held = Held(0, None)
        held.prefix.take(0)
        await consumer._guard(consumer._one(held, None))
        assert held.prefix.committable == 0
        assert isinstance(consumer._failed, RuntimeError)

    asyncio.run(play())


def test_a_worker_without_a_source_has_nothing_to_do() -> None:
    with pytest.raises(WrongUse, match="nothing to do"):
        make_sources(WorkersSettings())


def read(
    answers: list[Any], monkeypatch: pytest.MonkeyPatch, timeout: float
) -> tuple[list[StepView], list[str | None]]:
    told: list[str | None] = []
    store = StepStore("http://nowhere:1", "claw", timeout, told.append)

    async def rows(trajectory: Any) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(store, "_rows", rows)
    monkeypatch.setattr(pool, "SHORTEST_WAIT", 0.001)
    return asyncio.run(store.steps_of(ENDED)), told


def test_a_pool_that_is_away_is_waited_for_and_one_that_is_behind_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    away = RetryableError("away")
    steps, told = read([away, away, [], [a_row(STEP)]], monkeypatch, timeout=5.0)
    assert [step.step_id for step in steps] == [STEP.step_id]
    assert told == ["the pool is away: away"] * 2 + [None, None]


def test_steps_that_the_pool_does_not_get_in_time_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing) as missing:
        read([[]], monkeypatch, timeout=0.01)
    assert missing.value.reason == "steps_not_stored"


def test_settings_are_shown_as_they_are_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLAW_WORKERS_ANNOTATIONS", '[{"name": "ref_log_probs", "engine": "http://e:1"}]')
    monkeypatch.setenv("CLAW_WORKERS_RUNS", "a,b")
    config("workers")
    said = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("CLAW_"))
    shown = WorkersSettings.read({"CLAW_WORKERS_ANNOTATIONS": said["CLAW_WORKERS_ANNOTATIONS"]})
    assert [(one.name, one.engine) for one in shown.annotations] == [("ref_log_probs", "http://e:1")]
    assert said["CLAW_WORKERS_RUNS"] == "a,b"
