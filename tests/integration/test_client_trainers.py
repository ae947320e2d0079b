"""What trainers sample goes to a real gateway, in the forms of TRL and verl (tests/trainers has these libraries themselves)."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from claw_r1.client.sync import Client
from claw_r1.client.trl import PooledRollouts
from claw_r1.client.verl import publish_output, publish_scores
from claw_r1.codec import restore_prompt, unpack_floats, unpack_ids
from claw_r1.errors import UserError
from claw_r1.events import GroupOpen, Reward, Step, TrajectoryEnd, TrajectoryOpen
from claw_r1.ids import new_id
from tests.conftest import Stack
from tests.integration.gateway_stand import Stand, a_gateway
from tests.integration.test_gateway_rollout import only

pytestmark = pytest.mark.stack

ROWS: dict[str, Any] = {
    "prompt_ids": [[1, 2]] * 4,
    "completion_ids": [[3, 4, 5], [3, 6, 5], [7, 4, 5], [8, 4, 5]],
    "env_mask": [[1, 0, 1]] * 4,
    "logprobs": [[-0.5, 0.0, -0.25], [-0.5, 0.0, None], [-1.0, 0.0, -2.0], [-1.5, 0.0, -2.5]],
}


def with_gateway(stack: Stack, body: Callable[[Stand, str], Awaitable[None]]) -> None:
    async def run() -> None:
        name = new_id()
        async with a_gateway(stack.kafka, run=name) as stand:
            await body(stand, name)

    asyncio.run(run())


def a_trainer(*, training: bool = True, step: int = 3) -> Any:
    model, state = SimpleNamespace(training=training), SimpleNamespace(global_step=step)
    return SimpleNamespace(model=model, num_generations=2, num_generations_eval=4, state=state)


def roll_out(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    return ROWS


def graded(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [float(ids[0]) if ids[0] != 8 else None for ids in completion_ids]


def test_trl_rollouts_and_rewards_are_recorded(stack: Stack) -> None:
    def train(url: str, run: str) -> dict[str, Any]:
        with Client(url) as client:
            pooled = PooledRollouts(client, run_id=run)
            rows = pooled.rollout(roll_out)(["p", "p", [{"role": "user", "content": "q"}], "q"], a_trainer())
            extra = {name: rows[name] for name in ("completion_ids", "claw_prompt", "claw_trajectory")}
            assert pooled.reward(graded)(**extra) == [3.0, 3.0, 7.0, None]
            return rows

    async def body(stand: Stand, run: str) -> None:
        rows = await asyncio.to_thread(train, stand.url, run)
        assert {name: rows[name] for name in ROWS} == ROWS, "the trainer gets what it got without"
        one, other, third, fourth = rows["claw_trajectory"]
        assert rows["claw_prompt"][0] == rows["claw_prompt"][1] != rows["claw_prompt"][2] == rows["claw_prompt"][3]
        facts = await stand.facts(run)
        assert [fact.size for fact in facts if isinstance(fact, GroupOpen)] == [2, 2]
        steps = [fact for fact in facts if isinstance(fact, Step)]
        assert len(steps) == 8
        assert {step.policy_version for step in steps} == {3}
        first, second = (step for step in steps if step.trajectory_uid == one)
        context = unpack_ids(restore_prompt(second, first.new_prompt_ids + first.response_ids))
        assert (context.tolist(), unpack_ids(second.response_ids).tolist()) == ([1, 2, 3, 4], [5])
        assert unpack_floats(second.rollout_log_probs or b"").tolist() == [-0.25]
        unknown = [step.rollout_log_probs is None for step in steps if step.trajectory_uid == other]
        assert unknown == [False, True]
        said = {uid: [step.new_messages for step in steps if step.trajectory_uid == uid] for uid in (one, third)}
        assert said == {one: [None, None], third: [b'[{"role":"user","content":"q"}]', None]}, "the first turn's prompt"
        rewards = {fact.trajectory_uid: (fact.source, fact.value) for fact in facts if isinstance(fact, Reward)}
        assert rewards == {one: ("graded", 3.0), other: ("graded", 3.0), third: ("graded", 7.0)}
        assert {fact.status for fact in facts if isinstance(fact, TrajectoryEnd)} == {"completed"}
        assert fourth in {fact.trajectory_uid for fact in facts if isinstance(fact, TrajectoryEnd)}
        assert {fact.channel for fact in facts if isinstance(fact, TrajectoryOpen)} == {"train"}

    with_gateway(stack, body)


def test_trl_evaluations_are_of_another_channel(stack: Stack) -> None:
    def evaluate(url: str, run: str) -> None:
        with Client(url) as client:
            PooledRollouts(client, run_id=run).rollout(roll_out)(["p"] * 4, a_trainer(training=False))

    async def body(stand: Stand, run: str) -> None:
        await asyncio.to_thread(evaluate, stand.url, run)
        facts = await stand.facts(run)
        assert (only(facts, GroupOpen).size, only(facts, GroupOpen).channel) == (4, "val")
        assert {fact.channel for fact in facts if isinstance(fact, TrajectoryOpen)} == {"val"}

    with_gateway(stack, body)


def test_what_cannot_be_recorded_is_refused_at_once() -> None:
    pooled = PooledRollouts(Client("http://127.0.0.1:9"))
    with pytest.raises(UserError, match="3 rows, which are not groups of 2"):
        pooled.rollout(roll_out)(["p"] * 3, a_trainer())

    async def slow(**_: Any) -> list[float | None]:
        return []

    with pytest.raises(UserError, match="coroutine"):
        pooled.reward(slow)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("versions", "known", "score"), [((4, 4), 4, 0.5), ((4, 5), None, None), ((None, None), None, 0.0)]
)
def test_verl_outputs_are_recorded(
    stack: Stack, versions: tuple[int | None, int | None], known: int | None, score: float | None
) -> None:
    output = SimpleNamespace(
        prompt_ids=[1, 2],
        response_ids=[3, 4, 5],
        response_mask=[1, 0, 1],
        response_logprobs=[-0.5, 0.0, -0.25],
        reward_score=score,
        num_turns=4,
        extra_fields=dict(zip(("min_global_steps", "max_global_steps"), versions, strict=True)),
    )

    def publish(url: str, run: str) -> str:
        with Client(url) as client:
            uid = publish_output(client, output, prompt_uid=f"{run}-p", run_id=run)
            if score is None:
                names = {name: np.array([output.extra_fields[name]]) for name in ("claw_prompt", "claw_trajectory")}
                data = SimpleNamespace(batch={"rm_scores": np.array([[0.0, 0.0, 0.75]])}, non_tensor_batch=names)
                publish_scores(client, data, run_id=run)
            return uid

    async def body(stand: Stand, run: str) -> None:
        uid = await asyncio.to_thread(publish, stand.url, run)
        facts = await stand.facts(run)
        steps = [fact for fact in facts if isinstance(fact, Step)]
        assert [unpack_ids(step.response_ids).tolist() for step in steps] == [[3], [5]]
        assert [step.policy_version for step in steps] == [known, known]
        assert only(facts, Reward).value == (0.75 if score is None else score)
        end = only(facts, TrajectoryEnd)
        assert (end.trajectory_uid, end.prompt_uid, end.status) == (uid, f"{run}-p", "completed")
        assert (output.extra_fields["claw_prompt"], output.extra_fields["claw_trajectory"]) == (f"{run}-p", uid)

    with_gateway(stack, body)
