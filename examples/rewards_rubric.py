"""A rubric as verifiers has it: several small functions, each with a weight, whose weighted sum is the reward.

    PYTHONPATH=. CLAW_WORKERS_REWARDS=examples.rewards_rubric:rubric claw up

A function asks for what it needs by the names of its arguments: prompt, completion, answer (the truth), info, state, task.
Every function's number is a component of the reward, so that the pool shows which one made it.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from claw_r1.rewards.function import RewardFunction, Rollout, Score, reward

RewardPart = Callable[..., Any]


def arguments_of(rollout: Rollout) -> dict[str, Any]:
    """What functions may ask for, as verifiers names it."""
    turns = list(rollout.messages)
    first = next((n for n, message in enumerate(turns) if message.get("role") == "assistant"), len(turns))
    return {
        "prompt": turns[:first],
        "completion": turns[first:],
        "answer": rollout.metadata.get("answer"),
        "info": rollout.metadata.get("info") or {},
        "state": {"steps": len(rollout.step_ids), "status": rollout.status},
        "task": rollout.task_id or rollout.metadata.get("task"),
    }


def make_rubric(name: str, functions: Sequence[RewardPart], weights: Sequence[float]) -> RewardFunction:
    """The reward function of a rubric; its functions may be coroutine functions."""
    wanted = {function: inspect.signature(function).parameters for function in functions}

    @reward(name)
    async def score(rollout: Rollout) -> Score:
        said = arguments_of(rollout)
        parts: dict[str, float] = {}
        for function, parameters in wanted.items():
            found = function(**{key: value for key, value in said.items() if key in parameters})
            parts[function.__name__] = float(await found if inspect.isawaitable(found) else found)
        return Score(sum(w * part for w, part in zip(weights, parts.values(), strict=True)), parts)

    return score


def right(completion: Sequence[dict[str, Any]], answer: str | None) -> float:
    """Whether the last reply holds the truth."""
    return float(bool(answer) and str(answer) in str(completion[-1].get("content") if completion else ""))


def short(completion: Sequence[dict[str, Any]]) -> float:
    """1 for replies up to 200 characters, down to 0 at 2000."""
    size = sum(len(str(message.get("content") or "")) for message in completion if message.get("role") == "assistant")
    return min(1.0, max(0.0, (2000 - size) / 1800))


async def few_turns(state: dict[str, Any]) -> float:
    """1 for one call, 1/2 for two, …"""
    return 1.0 / max(1, int(state["steps"]))


rubric = make_rubric("rubric", [right, short, few_turns], [1.0, 0.1, 0.1])
