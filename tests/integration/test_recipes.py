"""Filters, people's decisions and a changed recipe, on a real broker, from `claw` to the trainer's batch."""

import asyncio
from pathlib import Path

import pytest

from claw_r1 import bus, topics
from claw_r1.events import Decision, Outcome
from tests import warm
from tests.conftest import Stack
from tests.factories import a_group
from tests.log import Emitted, read, read_emitted, send, wait_for_groups
from tests.workers import Worker, workers
from trainer_adapter import AsyncBatchStream

pytestmark = pytest.mark.stack

RECIPE = """
name: curated
algorithm: rloo
group: {size: 2, min_size: 1}
filters: [{field: reward_std, op: gt, value: 0}]
batch: {groups: 2}
"""


@pytest.fixture
def kafka(spare: Stack) -> str:
    asyncio.run(bus.apply_topics(spare.kafka, topics.all_topics()))
    return spare.kafka


def claw(kafka: str, *arguments: str) -> str:
    done = warm.claw(*arguments, "--kafka", kafka)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def play(kafka: str, first: Path, second: Path) -> tuple[Emitted, list[Decision], list[float]]:
    """(what was emitted, the decisions on the recipe's topic, the batch's advantages)."""
    claw(kafka, "recipes", "apply", str(first))
    claw(kafka, "decide", "veto", "--prompt", "a", "--trajectory", "a-t1", "--author", "ada")
    await send(kafka, a_group((1.0, 0.0), prompt_uid="a"))
    await send(kafka, a_group((0.5, 0.5), prompt_uid="flat"))
    await wait_for_groups(kafka, "curated", 1)
    claw(kafka, "decide", "tag", "--prompt", "a", "--value", "seen", "--author", "ada")  # behind it
    claw(kafka, "recipes", "apply", str(second))
    await send(kafka, a_group((0.5, 0.5), prompt_uid="flat-again"))
    await wait_for_groups(kafka, "curated", 2)
    async with AsyncBatchStream("curated", kafka=kafka, timeout=60) as stream:
        batch = await anext(aiter(stream))
    forwarded = [e for e in await read(kafka, topics.batch_topic("curated")) if isinstance(e, Decision)]
    assert [[d.fact_id for d in member.decisions] for member in batch.cut.members] == [[forwarded[0].fact_id], []]
    return await read_emitted(kafka, "curated"), forwarded, batch.advantage.tolist()


def test_a_recipe_is_obeyed_from_the_command_line_to_the_batch(kafka: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(RECIPE)
    second.write_text(RECIPE.replace("filters: [{field: reward_std, op: gt, value: 0}]", ""))
    with workers(Worker("streams", tmp_path / "w0.log", kafka=kafka, streams_port=0, streams_worker="w0")):
        emitted, forwarded, advantages = asyncio.run(play(kafka, first, second))
    emitted.check_once()
    assert [(r.group_id, r.recipe_version) for r in emitted.ready] == [("a", 1), ("flat-again", 2)]
    fates = {(o.group_id, o.trajectory_uid): o.reason for o in emitted.outcomes if o.outcome == "discarded"}
    assert fates == {("a", "a-t1"): "vetoed"} | {
        ("flat", uid): "filtered_reward_std" for uid in ("flat-t0", "flat-t1", None)
    }
    assert [(d.action, d.group_id) for d in forwarded] == [("tag", "a")]
    late = [o.reason for o in emitted.outcomes if isinstance(o, Outcome) and o.outcome == "late"]
    assert late == ["decision"]
    assert advantages == [1.0, 0.0, 0.0]
