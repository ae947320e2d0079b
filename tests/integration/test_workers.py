"""Workers on the real broker: what functions and engines say of trajectories comes back to the log as facts, once in effect."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from claw_r1 import bus, topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import unpack_floats
from claw_r1.events import Annotation, Reward, Trajectory
from claw_r1.local.ports import find_port
from claw_r1.rewards.engines import Engine
from claw_r1.rewards.function import Missing
from sinks import migrations
from streams.join import order_steps
from tests.conftest import Stack, wait_until
from tests.factories import a_child, a_finished, a_step
from tests.integration.scorer import Scorer
from tests.log import facts_of, send
from tests.pool import write
from tests.waiting import wait_for_facts
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


@pytest.fixture
def kafka(stack: Stack) -> str:
    asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
    return stack.kafka


def a_worker(
    kafka: str, log: Path, run: str, *functions: str, pool: dict[str, str] | None = None, **over: Any
) -> Worker:
    """A worker of one run alone, in a group of its own."""
    names = ",".join(f"tests.integration.plugins:{name}" for name in functions)
    settings = {"rewards": names, "port": 0, "runs": run, "group": f"workers-{run}", "session_timeout": 6}
    named = {f"workers_{name}": value for name, value in (settings | over).items()}
    return Worker("streams.workers", log, kafka=kafka, **(pool or {}), **named)


def announce(kafka: str, *trajectories: Trajectory) -> None:
    write(kafka, [(topics.TRAJECTORIES, trajectory) for trajectory in trajectories])


def rewards_of(kafka: str, run: str) -> list[Reward]:
    return [fact for fact in asyncio.run(facts_of(kafka, run)) if isinstance(fact, Reward)]


def wait_for_rewards(kafka: str, run: str, many: int, worker: Worker) -> None:
    def lives() -> None:
        assert worker.alive, worker.logged()

    wait_for_facts(kafka, run, many, Reward, check=lives)


def committed(kafka: str, run: str) -> dict[TopicPartition, int | None]:
    places = [TopicPartition(topics.TRAJECTORIES, number) for number in range(topics.DEFAULT_EVENTS_PARTITIONS)]
    return asyncio.run(bus.committed_offsets(kafka, f"workers-{run}", places))


def test_functions_of_every_kind_score_what_ended(kafka: str, tmp_path: Path) -> None:
    run = "kinds"
    functions = ("length", "parts", "heavy", "broken", "nothing")
    worker = a_worker(kafka, tmp_path / "log", run, *functions, attempts=1, port=(port := find_port()))
    announce(kafka, a_finished(1, run_id=run), a_finished(2, run_id="another"), a_finished(3, run_id=run, partition=2))
    with workers(worker):
        wait_for_rewards(kafka, run, 6, worker)
        wait_until(lambda: worker.logged().count("nothing could be said") >= 4, what="what is missing is told")
        wait_until(lambda: backlog(port) == 0, what="nothing is left to do")
        counted = metrics_of(port)
        assert worker.end() == 0
    found = rewards_of(kafka, run)
    assert {(r.trajectory_uid, r.source, r.value) for r in found} == {
        (f"{run}-t{n}", source, value)
        for n in (1, 3)
        for source, value in (("length", 1.0), ("parts", 1.5), ("heavy", 1.0))
    }
    assert next(r.components for r in found if r.source == "parts") == {"answer": 1.0, "format": 1.0}
    assert {(line["source"], line["reason"]) for line in warnings(worker)} == {
        ("broken", "failed"),
        ("nothing", "none_given"),
    }

    for source, reason in (("broken", "failed"), ("nothing", "none_given")):
        assert counted[f'claw_workers_missing_total{{reason="{reason}",source="{source}"}}'] == 2
    for source in functions:
        assert counted[f'claw_workers_call_seconds_count{{source="{source}"}}'] == 2
    assert counted['claw_workers_facts_total{source="parts"}'] == 2
    assert counted["claw_workers_in_flight"] == 0
    assert committed(kafka, run) == ends(kafka)


def test_a_purged_run_is_scored_no_more(stack: Stack, kafka: str, database: str, tmp_path: Path) -> None:
    async def forget() -> None:
        async with await ClickHouse.connect(stack.clickhouse, database) as pool:
            await pool.command("INSERT INTO purges (fact_id, run_id) VALUES ('p', 'forgotten')")

    asyncio.run(forget())
    pool = {"clickhouse": stack.clickhouse, "database": database}
    worker = a_worker(kafka, tmp_path / "log", "forgotten,kept", "length", pool=pool, port=(port := find_port()))
    announce(kafka, a_finished(1, run_id="forgotten"), a_finished(2, run_id="kept"))
    with workers(worker):
        wait_for_rewards(kafka, "kept", 1, worker)
        wait_until(lambda: backlog(port) == 0, what="nothing is left to do")
        assert metrics_of(port)['claw_workers_dropped_total{reason="run_purged"}'] == 1
        assert worker.end() == 0
    assert rewards_of(kafka, "forgotten") == []


def metrics_of(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def backlog(port: int) -> float:
    return sum(value for name, value in metrics_of(port).items() if name.startswith("claw_workers_backlog_records"))


def ends(kafka: str) -> dict[TopicPartition, int]:
    async def ask() -> dict[TopicPartition, int]:
        consumer = await bus.start_consumer(kafka, client_id="test")
        places = [TopicPartition(topics.TRAJECTORIES, number) for number in range(topics.DEFAULT_EVENTS_PARTITIONS)]
        consumer.assign(places)
        found = await bus.end_offsets(consumer, places)
        await consumer.stop()
        return found

    return asyncio.run(ask())


def warnings(worker: Worker) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in worker.logged().splitlines() if line.startswith("{")]
    return [line for line in lines if line["message"] == "nothing could be said"]


def test_a_record_that_cannot_be_read_is_a_dead_letter_and_holds_nothing_back(kafka: str, tmp_path: Path) -> None:
    run = "unreadable"

    async def spoil() -> None:
        producer = await bus.start_producer(kafka, client_id="test")
        headers = [("ce_type", b"claw.trajectory.v1")]
        await producer.send_and_wait(topics.TRAJECTORIES, b"\xc1", key=run.encode(), headers=headers, partition=0)
        await producer.stop()

    def letters() -> list[Any]:
        read = asyncio.run(bus.read_topic(kafka, topics.dlq_topic(topics.TRAJECTORIES), client_id="test"))
        return [record for record in read if record.key == run.encode()]

    asyncio.run(bus.ensure_topic(kafka, topics.dlq_topic_spec(topics.TRAJECTORIES)))
    asyncio.run(spoil())
    announce(kafka, a_finished(1, run_id=run))
    worker = a_worker(kafka, tmp_path / "log", run, "length")
    with workers(worker):
        wait_for_rewards(kafka, run, 1, worker)
        wait_until(lambda: bool(letters()), what="the letter, which is of another partition")
        assert worker.end() == 0
    (letter,) = letters()
    said = dict(letter.headers)
    assert (letter.value, said["claw-dlq-reason"], said["claw-dlq-stage"]) == (b"\xc1", b"undecodable", b"workers")
    offset = committed(kafka, run)[TopicPartition(topics.TRAJECTORIES, 0)]
    assert offset is not None
    assert offset > int(said["claw-dlq-offset"])


def test_a_worker_that_comes_in_the_middle_of_calls_takes_its_share_and_nothing_is_lost(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, many, at_once = "shared", 60, 16
    calls, gate = tmp_path / "calls", tmp_path / "gate"
    monkeypatch.setenv("TEST_WORKERS_CALLS", str(calls))
    monkeypatch.setenv("TEST_WORKERS_GATE", str(gate))
    first, second = (
        a_worker(kafka, tmp_path / name, run, "counted", concurrency=at_once, calls=at_once) for name in ("w0", "w1")
    )
    announce(kafka, *(a_finished(number, run_id=run) for number in range(many)))
    with workers(first):
        wait_until(lambda: "partitions assigned" in first.logged(), what="the first has all partitions")
        with workers(second):
            wait_until(lambda: "partitions assigned" in second.logged(), what="the second has its share")
            wait_until(lambda: first.logged().count("partitions assigned") >= 2, what="the first has the rest")
            gate.touch()
            wait_for_rewards(kafka, run, many, first)
            assert (first.end(), second.end()) == (0, 0)
    check_once(rewards_of(kafka, run), run, many)
    assert len(calls.read_text().split()) <= many + at_once, "only what was in flight may be asked again"


def check_once(found: list[Reward], run: str, many: int) -> None:
    """Each trajectory has one reward, and it is its own; what was written twice is the same fact."""
    by_id = {reward.fact_id: reward for reward in found}
    assert {r.trajectory_uid: r.value for r in by_id.values()} == {f"{run}-t{n}": float(n) for n in range(many)}
    assert len(by_id) == many


# ------------------------------------------------------------------------------------------------------------- annotations


@pytest.fixture
def database(stack: Stack, kafka: str, tmp_path: Path) -> Iterator[str]:
    """A pool that a sink fills."""
    name = "workers_pool"
    asyncio.run(migrations.apply(stack.clickhouse, name))
    sink = Worker(
        "sinks",
        tmp_path / "sink.log",
        kafka=kafka,
        clickhouse=stack.clickhouse,
        database=name,
        sinks_port=find_port(),
        sinks_group=name,
    )
    with workers(sink):
        yield name


def test_a_reference_tells_its_log_probs_of_the_tokens_that_were_sampled(
    stack: Stack, database: str, tmp_path: Path
) -> None:
    """Three steps, two of them on one chain: two calls, and an array for each step; the pool may be behind."""
    run = "annotated"
    mine: dict[str, Any] = {"run_id": run, "prompt_uid": "p", "trajectory_uid": "t"}
    root = a_step((1, 2, 3), (10, 11), **mine)
    child = a_child(root, (1, 2, 3), (20, 21), (12, 13, 14), **mine)
    other = a_step((7, 8), (9,), **mine)
    frozen = a_step((5, 5), (6,), role="frozen", **mine)
    steps = order_steps([root, child, other, frozen])
    ended = a_finished(run_id=run, prompt_uid="p", trajectory_uid="t", step_ids=tuple(s.step_id for s in steps))

    async def play() -> Scorer:
        async with Scorer() as engine:
            spec = json.dumps([{"name": "ref_log_probs", "engine": engine.url, "model": "ref/model"}])
            pool = {"clickhouse": stack.clickhouse, "database": database}
            worker = a_worker(stack.kafka, tmp_path / "log", run, "turns", pool=pool, annotations=spec)
            with workers(worker):
                await asyncio.to_thread(announce, stack.kafka, ended)
                await send(stack.kafka, [root, child, other, frozen])
                await asyncio.to_thread(wait_for_facts, stack.kafka, run, 4 + 3 + 4)
            return engine

    engine = asyncio.run(play())
    facts = asyncio.run(facts_of(stack.kafka, run))
    told = {fact.step_id: fact for fact in facts if isinstance(fact, Annotation)}
    assert sorted(body["prompt"] for body in engine.asked) == [[1, 2, 3, 10, 11, 20, 21, 12, 13, 14], [7, 8, 9]]
    assert {body["model"] for body in engine.asked} == {"ref/model"}
    assert set(told) == {root.step_id, child.step_id, other.step_id}
    for step, ids, start in ((root, (10, 11), 3), (child, (12, 13, 14), 7), (other, (9,), 2)):
        fact = told[step.step_id]
        wanted = [Scorer.log_prob(token, start + n) for n, token in enumerate(ids)]
        assert unpack_floats(fact.values).tolist() == pytest.approx(wanted, abs=1e-6)
        assert (fact.name, fact.source, fact.trajectory_uid) == ("ref_log_probs", "ref-model", "t")
    scored = {fact.step_id: fact.value for fact in facts if isinstance(fact, Reward)}
    assert scored == {root.step_id: 3.0, child.step_id: 7.0, other.step_id: 2.0, frozen.step_id: 2.0}


def test_an_engine_that_is_away_is_tried_again(kafka: str) -> None:
    """Against a port on which nobody listens: the error says so, and that another try may help."""

    async def ask() -> None:
        engine = Engine(f"http://127.0.0.1:{find_port()}")
        try:
            await engine.post("/score", {})
        finally:
            await engine.close()

    with pytest.raises(Missing) as missing:
        asyncio.run(ask())
    assert (missing.value.reason, missing.value.retry) == ("engine_unavailable", True)
