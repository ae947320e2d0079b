"""From `claw recipes apply` to a batch in hand, on a real broker with real stream workers: every kind of columns and rows."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from claw_r1 import bus, topics
from claw_r1.codec import pack_floats
from claw_r1.events import GroupFact, Step
from tests.conftest import Stack
from tests.factories import a_group, a_reward, an_annotation
from tests.log import send, wait_for_groups
from tests.warm import claw
from tests.workers import Worker, workers
from trainer_adapter import AsyncBatchStream, NoColumn, TrainingBatch

pytestmark = pytest.mark.stack

RECIPES = {
    "pairs": "{name: pairs, algorithm: dpo, batch: {groups: 1}}",
    "labels": "{name: labels, algorithm: kto, group: {size: 2}, pick: {how: label, threshold: 0.5}, batch: {groups: 1}}",
    "taught": "{name: taught, algorithm: distill, group: {size: 2}, batch: {groups: 1}}",
    "critic": "{name: critic, algorithm: ppo, group: {size: 2}, annotations: {required: [values]}, gamma: 0.5, lam: 0.0, "
    "batch: {groups: 1}}",
    "turns": "{name: turns, rows: step, group: {size: 2}, batch: {groups: 1}}",
    "bare": "{name: bare, algorithm: ppo, group: {size: 2}, batch: {groups: 1}}",
}


@pytest.fixture
def kafka(spare: Stack) -> str:
    asyncio.run(bus.apply_topics(spare.kafka, topics.all_topics()))
    return spare.kafka


def apply(kafka: str, path: Path, text: str) -> None:
    path.write_text(text)
    done = claw("recipes", "apply", str(path), "--kafka", kafka)
    assert done.returncode == 0, done.stderr


def some_facts() -> list[GroupFact]:
    """A group of two trajectories of two steps of two tokens, each with a teacher and a critic; the first step of the first
    trajectory has a reward of its own."""
    facts = a_group((1.0, 0.0), steps=2, prompt_uid="g")
    steps = [fact for fact in facts if isinstance(fact, Step)]
    said: list[GroupFact] = [
        an_annotation(step, name, pack_floats(values))
        for step in steps
        for name, values in (("teacher_log_probs", (-0.25, -1.0)), ("values", (0.5, 0.25)))
    ]
    own = {"prompt_uid": "g", "trajectory_uid": "g-t0", "step_id": steps[0].step_id, "source": "progress"}
    return [*said, a_reward(0.125, **own), *facts]


async def play(kafka: str) -> dict[str, TrainingBatch]:
    await send(kafka, some_facts())
    batches: dict[str, TrainingBatch] = {}
    for name in RECIPES:
        await wait_for_groups(kafka, name, 1)
        async with AsyncBatchStream(name, kafka=kafka, timeout=60) as stream:
            batch = await anext(aiter(stream))
        async with AsyncBatchStream(name, kafka=kafka, timeout=60) as stream:
            assert (await anext(aiter(stream))).digest == batch.digest
        batches[name] = batch
    return batches


def test_every_algorithm_comes_from_its_recipe_to_its_batch(kafka: str, tmp_path: Path) -> None:
    with workers(Worker("streams", tmp_path / "w0.log", kafka=kafka, streams_port=0, streams_worker="w0")):
        for name, text in RECIPES.items():
            apply(kafka, tmp_path / f"{name}.yaml", text)
        batches = asyncio.run(play(kafka))

    pairs = batches["pairs"]
    ((chosen, rejected),) = pairs.pairs
    assert [pairs.trajectory_uids[row] for row in (*chosen, *rejected)] == ["g-t0", "g-t1"]
    assert pairs.chosen.tolist() == [True, False]

    labels = batches["labels"]
    assert dict(zip(labels.trajectory_uids, labels.desirable.tolist(), strict=True)) == {"g-t0": True, "g-t1": False}

    taught = batches["taught"]
    assert taught.advantages[taught.loss_mask == 1].tolist() == [0.25, -0.5] * 4  # the rollout's are -0.5

    critic = batches["critic"]
    trained = critic.loss_mask == 1
    assert critic.reward.tolist() == [1.125, 0.0]
    assert critic.token_rewards[trained].tolist() == [0, 0.125, 0, 1.0, 0, 0, 0, 0]
    # gamma 0.5, lambda 0: r + 0.5 V' - V
    assert critic.advantages[trained].tolist() == [-0.375, 0.125, -0.375, 0.75, -0.375, 0.0, -0.375, -0.25]

    turns = batches["turns"]
    assert (turns.lengths.tolist(), turns.n_samples.tolist()) == ([5, 9, 5, 9], [2, 2, 2, 2])
    assert [np.flatnonzero(row).tolist() for row in turns.rows(turns.loss_mask)] == [[3, 4], [7, 8]] * 2
    assert turns.token_rewards[turns.loss_mask == 1].tolist() == critic.token_rewards[trained].tolist()
    assert turns.loss_weight.tolist() == [0.5, 0.5, 0.5, 0.5]

    bare = batches["bare"]
    assert bare.token_rewards.tolist() == critic.token_rewards.tolist()
    with pytest.raises(NoColumn, match=r"required: \[values\]"):
        bare.advantages  # noqa: B018
