"""A reward worker is killed in the middle of its calls, again and again: each trajectory has its reward, once in effect.

`CLAW_KILL_SEED=n` repeats a run, `CLAW_KILL_LONG=1` plays the long form.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from claw_r1 import bus, topics
from claw_r1.codec import decode
from claw_r1.events import Reward, Trajectory
from tests.conftest import Stack, wait_until
from tests.factories import a_finished
from tests.log import facts_of
from tests.pool import write
from tests.waiting import wait_for_facts
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.kill]

# Taken away: every process of the project refuses a CLAW_* variable that is no setting.
LONG = bool(os.environ.pop("CLAW_KILL_LONG", ""))
SEED = int(os.environ.pop("CLAW_KILL_SEED", random.randrange(2**31)))
RUN, GROUP, PARTITIONS = "killed-rewards", "workers-killed", topics.DEFAULT_EVENTS_PARTITIONS


def rewards(kafka: str, run: str = RUN) -> list[Reward]:
    return [fact for fact in asyncio.run(facts_of(kafka, run)) if isinstance(fact, Reward)]


def check_commits(kafka: str) -> None:
    """Whatever lies below a committed offset has its reward on the log."""
    places = [TopicPartition(topics.TRAJECTORIES, number) for number in range(PARTITIONS)]
    committed = asyncio.run(bus.committed_offsets(kafka, GROUP, places))
    done = {reward.trajectory_uid for reward in rewards(kafka)}
    for record in asyncio.run(bus.read_topic(kafka, topics.TRAJECTORIES, client_id="test")):
        place = TopicPartition(record.topic, record.partition)
        if not (record.key or b"").startswith(RUN.encode()) or record.offset >= (committed[place] or 0):
            continue
        event = decode(record.headers, record.value)
        assert isinstance(event, Trajectory)
        assert event.trajectory_uid in done, f"{place} is committed up to {committed[place]}"


@pytest.mark.timeout(900 if LONG else 300)
def test_a_worker_that_is_killed_in_the_middle_rewards_each_trajectory_once(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, kills = (3000, 12) if LONG else (200, 2)
    print(f"CLAW_KILL_SEED={SEED}")
    chance = random.Random(SEED)
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("TEST_WORKERS_CALLS", str(calls))
    monkeypatch.setenv("TEST_WORKERS_GATE", str(calls))
    asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
    # Its partitions come back to a member of this name at once.
    worker = a_worker(stack.kafka, tmp_path / "log", RUN, GROUP, member="killed-0")
    ended = trajectories(RUN, many)
    with workers(worker):
        write(stack.kafka, [(topics.TRAJECTORIES, one) for one in ended])
        for number in range(kills):
            point = (number + chance.random()) * many / kills
            wait_until(lambda at=point: len(calls.read_text().split()) > at, what=f"call {point:.0f}")  # type: ignore[misc]
            worker.kill()
            check_commits(stack.kafka)
            worker.start()
        wait_for_facts(stack.kafka, RUN, many, Reward)
        assert worker.end() == 0
    check_once(stack.kafka, RUN, many)


def a_worker(kafka: str, log: Path, run: str, group: str, **over: object) -> Worker:
    fields = {"rewards": "tests.integration.plugins:counted", "runs": run, "group": group, "port": 0, "calls": 3}
    return Worker("streams.workers", log, kafka=kafka, **{f"workers_{k}": v for k, v in (fields | over).items()})


def trajectories(run: str, many: int) -> list[Trajectory]:
    """Their prompts begin with the run's name: by these are the records of a test told."""
    return [a_finished(n, run_id=run, partition=n % PARTITIONS, prompt_uid=f"{run}/p{n}") for n in range(many)]


def check_once(kafka: str, run: str, many: int) -> None:
    """Each trajectory has one reward, its own; what was written twice says the same."""
    found = rewards(kafka, run)
    by_id = {reward.fact_id: (reward.trajectory_uid, reward.source, reward.value) for reward in found}
    assert Counter(by_id.values()) == Counter((f"{run}-t{n}", "counted", float(n)) for n in range(many))
    assert all(by_id[reward.fact_id][2] == reward.value for reward in found)


@pytest.mark.slow
def test_the_broker_goes_away_and_a_worker_sleeps_past_its_session_and_nothing_is_lost(
    spare: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is killed while calls are in flight; later one worker of two stands still until the other has its share."""
    run, many = "broker-away", 240
    calls = tmp_path / "calls"
    calls.touch()
    monkeypatch.setenv("TEST_WORKERS_CALLS", str(calls))
    monkeypatch.setenv("TEST_WORKERS_GATE", str(calls))

    def called(number: int) -> None:
        wait_until(lambda: len(calls.read_text().split()) >= number, what=f"{number} calls")

    kafka = spare.kafka
    asyncio.run(bus.apply_topics(kafka, topics.all_topics()))
    first, second = (a_worker(kafka, tmp_path / n, run, run, session_timeout=6) for n in ("w0", "w1"))
    ended = trajectories(run, many)
    with workers(first, second):
        write(kafka, [(topics.TRAJECTORIES, one) for one in ended[: many // 2]])
        called(many // 8)
        killed = spare.kill("kafka")
        spare.wait_restarted("kafka", killed)
        write(kafka, [(topics.TRAJECTORIES, one) for one in ended[many // 2 :]])
        called(many // 2 + many // 8)
        first.signal(signal.SIGSTOP)
        wait_for_facts(kafka, run, many, Reward)
        first.signal(signal.SIGCONT)
        assert (first.alive, second.alive) == (True, True), first.logged() + second.logged()
        assert (first.end(), second.end()) == (0, 0)
    check_once(kafka, run, many)
