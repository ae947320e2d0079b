"""`claw trajectories`, `claw show` and `claw tail` as a person or a script runs them."""

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from claw_r1 import bus, topics
from claw_r1.cli.entry import app
from claw_r1.errors import UserError
from tests.conftest import Stack
from tests.integration.test_sink import a_pool, a_sink
from tests.pool import Pool, every_event, write
from tests.workers import workers

pytestmark = pytest.mark.stack


def claw(name: str, *arguments: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, [name, *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def told(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """A pool that has one event of every type, of the run `told` and, of the same trajectory, of the run `other`."""
    pool = a_pool(stack, "sink_told")
    for run in ("told", "other"):
        asyncio.run(bus.ensure_topic(stack.kafka, topics.batch_topic_spec(run)))
        write(stack.kafka, every_event(run, run))
    with workers(a_sink(stack, tmp_path_factory.mktemp("told"), pool.database)):
        for table, column in (("trajectories", "run_id"), ("trained", "run_id"), ("cut_members", "group_run_id")):
            for run in ("told", "other"):
                pool.wait_for(f"SELECT count() > 0 FROM {table} WHERE {column} = '{run}'", 1)
        for table in ("steps", "step_tokens"):
            pool.wait_for(f"SELECT count() FROM {table} FINAL WHERE run_id IN ('told', 'other')", 4)
        for table in ("samples", "decisions", "rewards"):
            pool.wait_for(f"SELECT uniqExact(run_id) FROM {table} WHERE run_id IN ('told', 'other')", 2)
        pool.wait_for("SELECT uniqExact(run_id, topic) FROM outcomes WHERE run_id IN ('told', 'other')", 4)
    return pool


def where(pool: Pool) -> tuple[str, ...]:
    return ("--clickhouse", pool.url, "--database", pool.database)


def test_the_newest_trajectories_are_listed_with_rewards_and_fates(told: Pool) -> None:
    (found,) = json.loads(claw("trajectories", "--run", "told", "--json", *where(told)))
    assert (found["trajectory_uid"], found["status"], found["steps"]) == ("p1-t0", "completed", 2)
    assert found["rewards"][0] == {"source": "reward", "value": 1.0, "revision": 0, "self_reported": False}
    assert found["fates"] == [["told", "emitted", "size"]]
    line = claw("trajectories", "--run", "told", *where(told))
    assert "p1-t0  completed  2 steps  reward=1  told: emitted (size)" in line
    assert len(json.loads(claw("trajectories", "--limit", "1", "--json", *where(told)))) == 1
    for nobody in (("--run", "nobody"), ("--run", "told", "--task", "none"), ("--run", "told", "--status", "failed")):
        assert json.loads(claw("trajectories", *nobody, "--json", *where(told))) == []


def test_one_trajectory_is_told_from_its_calls_to_its_batch(told: Pool) -> None:
    story = json.loads(claw("show", "p1-t0", "--run", "told", "--json", "--tokens", *where(told)))
    first, second = story["steps"]
    assert (first["new_prompt_ids"], first["response_ids"]) == ([1, 2, 3], [4, 5])
    assert (second["parent_step_id"], second["prefix_len"], second["new_prompt_ids"]) == (first["step_id"], 5, [6])
    assert story["ended"]["status"] == "completed"
    assert {(reward["source"], reward["step_id"]) for reward in story["rewards"]} == {
        ("reward", None),
        ("format", first["step_id"]),
    }
    assert [decision["action"] for decision in story["decisions"]] == ["quality"]
    assert [(o["recipe"], o["outcome"]) for o in story["outcomes"]] == [("told", "emitted")]
    assert [(b["recipe"], b["sequence"], b["step_ids"]) for b in story["batches"]] == [("told", 1, [first["step_id"]])]
    text = claw("show", "p1-t0", "--run", "told", *where(told))
    assert f"step {first['step_id']}: 3 + 2 tokens, complete" in text
    assert "user:       hello" in text
    assert "assistant:  world" in text
    assert "batch: told 1, 1 of its steps, trained to version 2" in text
    assert "decision: quality 0.5 by ada, too late for batch told/1 (decision)" in text
    assert (
        "new_prompt_ids" not in json.loads(claw("show", "p1-t0", "--run", "told", "--json", *where(told)))["steps"][0]
    )


def test_what_is_not_there_or_not_clear_is_said(told: Pool) -> None:
    with pytest.raises(UserError, match="say which with --run") as refused:
        claw("show", "p1-t0", *where(told))
    assert "other" in str(refused.value)
    assert "told" in str(refused.value)
    with pytest.raises(UserError, match="has no trajectory nobody"):
        claw("show", "nobody", *where(told))
    with pytest.raises(UserError, match="claw migrate"):
        claw("trajectories", "--clickhouse", told.url, "--database", "nowhere")


def test_facts_are_followed(stack: Stack, told: Pool) -> None:
    facts = [event for topic, event in every_event("told") if topic == topics.EVENTS]
    mine = [fact for fact in facts if getattr(fact, "run_id", None) == "told"]
    asked = ("--run", "told", "--last", "1000", "--limit", str(len(mine)), "--kafka", stack.kafka)
    documents: list[dict[str, Any]] = [json.loads(line) for line in claw("tail", *asked, "--json").splitlines()]
    assert sorted(document["type"] for document in documents) == sorted(event.TYPE for event in mine)
    assert {document["event"]["run_id"] for document in documents} == {"told"}
    lines = claw("tail", *asked).splitlines()
    assert len(lines) == len(mine)
    assert any("step " in line and "3 + 2 tokens  complete" in line for line in lines)
    with pytest.raises(UserError, match=r"no topic claw\.nothing"):
        claw("tail", "--topic", "claw.nothing", "--kafka", stack.kafka)


def test_what_cannot_be_read_is_a_line_too(stack: Stack) -> None:
    asyncio.run(bus.ensure_topic(stack.kafka, topics.batch_topic_spec("unread")))
    topic = topics.batch_topic("unread")

    async def send() -> None:
        producer = await bus.start_producer(stack.kafka, client_id="test")
        try:
            await producer.send_and_wait(topic, b"nonsense", headers=[("ce_type", b"claw.step.v1")])
        finally:
            await bus.stop_producer(producer)

    asyncio.run(send())
    asked = ("--topic", topic, "--last", "1", "--limit", "1", "--kafka", stack.kafka)
    assert "unreadable: " in claw("tail", *asked)
    assert json.loads(claw("tail", *asked, "--json"))["unreadable"]
