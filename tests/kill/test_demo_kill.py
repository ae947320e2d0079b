"""Every process of the demo is killed once while agents play: nothing acknowledged is lost, nothing has two fates."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from claw_r1 import topics
from claw_r1.demo.ledger import Entry, read_ledger
from claw_r1.demo.run import RECIPE
from claw_r1.events import BatchCut, BatchTrained, GroupFact, StepStarted, TrajectoryFact
from claw_r1.local.stack import BACKENDS, RunningStack, running_stack
from tests.conftest import wait_until
from tests.e2e.headless import Demo
from tests.log import read, read_emitted
from tests.pool import Pool

VICTIMS = ("engine", "sinks", "gateway", "trainer", "clickhouse", "streams", "kafka")
BETWEEN = 100  # acknowledged calls between two kills
BATCHES = 4


def kill_all(demo: Demo) -> None:
    """Kill each process once, the next one after agents got `BETWEEN` more answers; two may be down at a time."""
    for number, victim in enumerate(VICTIMS, start=1):
        wanted = number * BETWEEN

        def reached(wanted: int = wanted) -> bool:
            demo.check_alive()
            return demo.lines("ledger", "acknowledged") >= wanted

        wait_until(reached, what=f"{wanted} answers, to kill {victim}", timeout=240)
        RunningStack(demo.data).kill(victim)


def check_steps(entries: list[Entry], stored: list[dict[str, Any]], facts: list[Any]) -> None:
    """acknowledged ⊆ stored ⊆ attempted, by step id and by trajectory."""
    acknowledged = [entry.step_id for entry in entries if entry.event == "acknowledged"]
    found = {row["step_id"] for row in stored}
    assert len(acknowledged) == len(set(acknowledged))
    assert set(acknowledged) - found == set()
    announced = {fact.step_id for fact in facts if isinstance(fact, StepStarted)}
    assert found - announced == set()
    sent = Counter(entry.trajectory_uid for entry in entries if entry.event == "sent")
    kept = Counter(row["trajectory_uid"] for row in stored)
    assert {uid: n for uid, n in kept.items() if n > sent[uid]} == {}
    indeterminate = sum(sent.values()) - len(acknowledged)
    assert len(found - set(acknowledged)) <= indeterminate


async def check_fates(kafka: str, begun: set[str], facts: list[Any]) -> None:
    """One fate for every trajectory that the log knows; batches one after the other; no group in two of them."""
    emitted = await read_emitted(kafka, RECIPE.name)
    emitted.check_once()
    known = {fact.trajectory_uid for fact in facts if isinstance(fact, TrajectoryFact)}
    assert known <= begun
    fates = [
        outcome.trajectory_uid
        for outcome in emitted.outcomes
        if outcome.trajectory_uid is not None and outcome.fact_id is None and outcome.recipe is not None
    ]
    assert sorted(fates) == sorted(known)
    cuts = await read(kafka, topics.CUTS)
    trained = [event.sequence for event in cuts if isinstance(event, BatchTrained)]
    assert trained == list(range(1, len(trained) + 1))
    assert len(trained) >= BATCHES
    versions = [event.policy_version for event in cuts if isinstance(event, BatchTrained)]
    assert versions == sorted(set(versions))
    members = [member.group_id for event in cuts if isinstance(event, BatchCut) for member in event.members]
    assert len(members) == len(set(members))


@pytest.mark.kill
@pytest.mark.stack
@pytest.mark.timeout(900)
def test_every_process_is_killed_once(tmp_path: Path) -> None:
    options = ("--headless", "--batches", str(BATCHES), "--seed", "3", "--token-delay", "0.002", "--json")
    with Demo(tmp_path, *options) as demo:
        kill_all(demo)
        result = demo.result(timeout=400)
        restarts = {name: process.restarts for name, process in demo.state.processes.items()}
    assert {name for name in VICTIMS if not restarts[name]} == set()
    assert result["batches"] == BATCHES
    assert result["capture_ok"] is True
    assert result["steps_sent"] == result["steps_acknowledged"] + result["steps_indeterminate"]

    entries = read_ledger(demo.ledger)
    with running_stack(tmp_path, processes=BACKENDS) as stack:
        pool = Pool(stack.clickhouse, "claw")
        stored = pool.rows("SELECT trajectory_uid, step_id FROM steps FINAL WHERE status = 'complete'")
        assert result["steps_stored"] == len(stored)
        pool.check_once()
        facts = [event for event in asyncio.run(read(stack.kafka, topics.EVENTS)) if isinstance(event, GroupFact)]
        check_steps(entries, stored, facts)
        begun = {entry.trajectory_uid for entry in entries if entry.event == "begun" and entry.trajectory_uid}
        asyncio.run(check_fates(stack.kafka, begun, facts))
