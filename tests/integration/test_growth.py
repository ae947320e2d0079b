"""The events topic grows on a real broker: no fact is lost, no group is judged twice, what was closed stays closed."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from claw_r1 import bus, registry, topics
from claw_r1.cli.entry import app
from claw_r1.codec import MOVED, decode, header
from claw_r1.errors import UserError
from claw_r1.events import GroupFact
from claw_r1.growth import NotQuiet
from claw_r1.ids import event_key
from claw_r1.local.stack import running_stack
from tests.conftest import wait_until
from tests.factories import RUN, a_group, a_recipe, a_reward, a_step
from tests.log import Emitted, read_emitted, send, wait_for_groups
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.slow]

BEFORE = [f"g{n}" for n in range(20)]
AFTER = [f"h{n}" for n in range(20)]
OPEN = "open"
PATIENCE = 240.0


def grow(kafka: str, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["topics", "grow", "--partitions", "8", "--kafka", kafka, "--json", *options])
    if done.exception is not None:
        raise done.exception
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def facts(prompts: Sequence[str]) -> list[GroupFact]:
    return [fact for prompt in prompts for fact in a_group(prompt_uid=prompt)]


def moved(prompt: str) -> bool:
    key = event_key(RUN, prompt)
    return bus.partition_of(key, 4) != bus.partition_of(key, 8)


async def play_before(kafka: str) -> None:
    await registry.apply_recipe(kafka, a_recipe(), deadline=PATIENCE)
    await send(kafka, facts(BEFORE))
    await send(kafka, a_group(prompt_uid=OPEN)[:-1])  # its last trajectory has no end
    await wait_for_groups(kafka, "test", len(BEFORE), timeout=PATIENCE)


async def play_after(kafka: str, late: str) -> Emitted:
    """Late facts for groups of the old generation, and new groups."""
    await send(kafka, [a_reward(0.5, prompt_uid=late, trajectory_uid=f"{late}-t0", revision=1)])
    await send(kafka, [a_step(prompt_uid=late, trajectory_uid=f"{late}-t0", step_id="late", fact_id="late")])
    await send(kafka, facts(AFTER))
    await wait_for_groups(kafka, "test", len(BEFORE) + 1 + len(AFTER), timeout=PATIENCE)
    return await read_emitted(kafka, "test")


async def where_facts_are(kafka: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for record in await bus.read_topic(kafka, topics.EVENTS, client_id="test"):
        event = decode(record.headers, record.value)
        if isinstance(event, GroupFact):
            found[event.prompt_uid].add(record.partition)
    return found


@pytest.mark.timeout(600)
def test_grown_events_keep_every_group_whole(tmp_path: Path) -> None:
    with running_stack(tmp_path / "stack", processes=("kafka",)) as stack:
        kafka = stack.kafka
        asyncio.run(bus.apply_topics(kafka, topics.all_topics()))
        settings = {"streams_port": 0, "streams_worker": "w0", "streams_session_timeout": "6s"}
        worker = Worker("streams", tmp_path / "w0.log", kafka=kafka, **settings)
        with workers(worker):
            asyncio.run(play_before(kafka))
            with pytest.raises(NotQuiet, match="groups are open"):
                grow(kafka, "--wait", "0")
            asyncio.run(send(kafka, a_group(prompt_uid=OPEN)[-1:]))
            asyncio.run(wait_for_groups(kafka, "test", len(BEFORE) + 1, timeout=PATIENCE))
            with pytest.raises(NotQuiet, match="at work"):
                grow(kafka, "--wait", "3")
            assert worker.end() == 0
            going = [prompt for prompt in [*BEFORE, OPEN] if moved(prompt)]
            would = grow(kafka, "--dry-run")
            assert would["moved"] >= 2 * len(going) > 0
            assert asyncio.run(bus.count_partitions(kafka, topics.EVENTS)) == 4
            done = grow(kafka)
            assert (done["before"], done["after"], done["recipes"]) == (4, 8, 1)
            worker.start()
            emitted = asyncio.run(play_after(kafka, going[0]))
            wait_until(lambda: asyncio.run(where_facts_are(kafka)).keys() >= {*AFTER}, what="all facts are there")
            known = asyncio.run(registry.known_recipes(kafka))
            again = a_recipe(group={"size": 2, "idle": "1h"})
            assert asyncio.run(registry.apply_recipe(kafka, again, deadline=PATIENCE)) == 2
        places = asyncio.run(where_facts_are(kafka))
        ledger = asyncio.run(bus.read_topic(kafka, topics.OUTCOMES, client_id="test"))
    assert {active.partition for active in known} == set(range(8))
    ready = [group.group_id for group in emitted.ready]
    assert sorted(ready) == sorted([*BEFORE, OPEN, *AFTER])
    emitted_once = {group.group_id for group in emitted.ready}
    assert len(ready) == len(emitted_once)
    assert [o.reason for o in emitted.outcomes if o.outcome == "late" and o.group_id == going[0]] == ["reward", "step"]
    assert all(places[prompt] == {bus.partition_of(event_key(RUN, prompt), 8)} for prompt in AFTER)
    assert any(partition >= 4 for prompt in AFTER for partition in places[prompt])
    repeated = [record for record in ledger if header(record.headers, MOVED) is not None]
    assert len(repeated) == done["moved"]


def test_a_topic_never_gets_fewer_partitions(stack: Any) -> None:
    asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
    with pytest.raises(UserError, match="never gets fewer"):
        CliRunner().invoke(app, ["topics", "grow", "--partitions", "1", "--kafka", stack.kafka], catch_exceptions=False)
