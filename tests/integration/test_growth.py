"""The events topic grows on a real broker: no fact is lost, no group is judged twice, what was closed stays closed."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from claw_r1 import bus, registry, topics
from claw_r1.cli.entry import app
from claw_r1.codec import MOVED, decode, header
from claw_r1.errors import RetryableError, UserError
from claw_r1.events import GroupCarried, GroupFact
from claw_r1.ids import event_key
from claw_r1.local.stack import running_stack
from streams.carry import CARRIED
from streams.growth import NotQuiet
from streams.partition import PartitionWorker
from tests.factories import RUN, a_group, a_recipe, a_reward, a_step
from tests.log import Emitted, read_emitted, send, wait_for_groups
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.slow]

BEFORE = [f"g{n}" for n in range(20)]
AFTER = [f"h{n}" for n in range(20)]
OPEN = [f"open{n}" for n in range(12)]
STILL = [f"still{n}" for n in range(8)]
PATIENCE = 240.0


def grow(kafka: str, partitions: int, *options: str) -> dict[str, Any]:
    words = ["topics", "grow", "--partitions", str(partitions), "--kafka", kafka, "--json", *options]
    done = CliRunner().invoke(app, words)
    if done.exception is not None:
        raise done.exception
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def facts(prompts: Sequence[str]) -> list[GroupFact]:
    return [fact for prompt in prompts for fact in a_group(prompt_uid=prompt)]


def begun(prompts: Sequence[str]) -> list[GroupFact]:
    """Groups whose last trajectory has no end."""
    return [fact for prompt in prompts for fact in a_group(prompt_uid=prompt)[:-1]]


def ends(prompts: Sequence[str]) -> list[GroupFact]:
    return [a_group(prompt_uid=prompt)[-1] for prompt in prompts]


def moving(prompts: Sequence[str], before: int, after: int) -> list[str]:
    keys = {prompt: event_key(RUN, prompt) for prompt in prompts}
    return [p for p, key in keys.items() if bus.partition_of(key, before) != bus.partition_of(key, after)]


async def play_before(kafka: str) -> None:
    """Closed groups, and open ones under a recipe of which there is a newer version."""
    await registry.apply_recipe(kafka, a_recipe(), deadline=PATIENCE)
    await send(kafka, facts(BEFORE))
    await send(kafka, begun(OPEN))
    await wait_for_groups(kafka, "test", len(BEFORE), timeout=PATIENCE)
    await registry.apply_recipe(kafka, a_recipe(group={"size": 2, "idle": "50m"}), deadline=PATIENCE)


async def play_after(kafka: str, late: str) -> None:
    """The ends of open groups, late facts for groups of the old generation, new groups, and such as stay open."""
    await send(kafka, ends(OPEN))
    await send(kafka, [a_reward(0.5, prompt_uid=late, trajectory_uid=f"{late}-t0", revision=1)])
    await send(kafka, [a_step(prompt_uid=late, trajectory_uid=f"{late}-t0", step_id="late", fact_id="late")])
    await send(kafka, facts(AFTER))
    await send(kafka, begun(STILL))
    await wait_for_groups(kafka, "test", len(BEFORE) + len(OPEN) + len(AFTER), timeout=PATIENCE)


async def play_on(kafka: str) -> Emitted:
    """The last ends, after another growth; an outcome that was written again counts once."""
    await send(kafka, ends(STILL))
    await wait_for_groups(kafka, "test", len(BEFORE) + len(OPEN) + len(AFTER) + len(STILL), timeout=PATIENCE)
    emitted = await read_emitted(kafka, "test")
    return replace(emitted, outcomes=list({one.outcome_id: one for one in emitted.outcomes}.values()))


async def where_facts_are(kafka: str) -> dict[str, set[int]]:
    """Partitions by prompt, without copies."""
    found: dict[str, set[int]] = defaultdict(set)
    for record in await bus.read_topic(kafka, topics.EVENTS, client_id="test"):
        event = decode(record.headers, record.value)
        if isinstance(event, GroupFact) and header(record.headers, CARRIED) is None:
            found[event.prompt_uid].add(record.partition)
    return found


async def told_twice(kafka: str) -> int:
    ledger = await bus.read_topic(kafka, topics.OUTCOMES, client_id="test")
    return sum(header(record.headers, MOVED) is not None for record in ledger)


@pytest.mark.timeout(600)
def test_grown_events_keep_every_group_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_stack(tmp_path / "stack", processes=("kafka",)) as stack:
        kafka = stack.kafka
        asyncio.run(bus.apply_topics(kafka, topics.all_topics()))
        settings = {"streams_port": 0, "streams_worker": "w0", "streams_session_timeout": "6s"}
        worker = Worker("streams", tmp_path / "w0.log", kafka=kafka, **settings)
        with workers(worker):
            asyncio.run(play_before(kafka))
            with pytest.raises(NotQuiet, match="at work"):
                grow(kafka, 8, "--wait", "0")
            assert worker.end() == 0
            would = grow(kafka, 8, "--dry-run")
            assert (would["carried"], would["recipes"]) == (None, 1)
            with pytest.raises(UserError, match="take a multiple of that, such as 8"):
                grow(kafka, 6)
            assert would["moved"] >= 2 * len(moving(BEFORE, 4, 8)) > 0
            assert asyncio.run(bus.count_partitions(kafka, topics.EVENTS)) == 4
            assert asyncio.run(told_twice(kafka)) == 0
            done = grow(kafka, 8)
            assert (done["before"], done["after"], done["recipes"]) == (4, 8, 1)
            assert done["carried"] == len(moving(OPEN, 4, 8)) > 0
            assert asyncio.run(told_twice(kafka)) == done["moved"]
            worker.start()
            late = moving(BEFORE, 4, 8)[0]
            asyncio.run(play_after(kafka, late))
            assert worker.end() == 0
            break_off(kafka, monkeypatch)
            assert grow(kafka, 16)["carried"] == len(moving(STILL, 8, 16)) > 0
            worker.start()
            emitted = asyncio.run(play_on(kafka))
            known = asyncio.run(registry.known_recipes(kafka))
            again = a_recipe(group={"size": 2, "idle": "1h"})
            assert asyncio.run(registry.apply_recipe(kafka, again, deadline=PATIENCE)) == 3
        places = asyncio.run(where_facts_are(kafka))
    assert {active.partition for active in known} == set(range(16))
    emitted.check_once()
    assert sorted(group.group_id for group in emitted.ready) == sorted([*BEFORE, *OPEN, *AFTER, *STILL])
    versions = {group.group_id: group.recipe_version for group in emitted.ready}
    assert {versions[prompt] for prompt in [*BEFORE, *OPEN]} == {1}
    assert {versions[prompt] for prompt in [*AFTER, *STILL]} == {2}
    whole = {group.group_id: group.trained_tokens for group in emitted.ready}
    assert len(set(whole.values())) == 1, "no group lost a step on its way"
    told = [(o.group_id, o.reason) for o in emitted.outcomes if o.outcome == "late"]
    assert told == [(late, "reward"), (late, "step")]
    assert all(places[prompt] == {bus.partition_of(event_key(RUN, prompt), 8)} for prompt in AFTER)
    assert {4, 5, 6, 7} & {partition for prompt in AFTER for partition in places[prompt]}


def break_off(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker is away as open groups are carried: the topic has grown, and the command says what to do."""

    async def away(*_: Any, **__: Any) -> list[GroupCarried]:
        raise RetryableError("the broker is away")

    with monkeypatch.context() as patch:
        patch.setattr(PartitionWorker, "move", away)
        with pytest.raises(RetryableError, match="call `claw topics grow` again"):
            grow(kafka, 16)
    assert asyncio.run(bus.count_partitions(kafka, topics.EVENTS)) == 16


def test_a_topic_never_gets_fewer_partitions(stack: Any) -> None:
    asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
    with pytest.raises(UserError, match="never gets fewer"):
        CliRunner().invoke(app, ["topics", "grow", "--partitions", "1", "--kafka", stack.kafka], catch_exceptions=False)
