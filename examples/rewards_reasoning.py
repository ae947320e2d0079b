"""Rewards by rule for tasks that a program made and can check, as the tasks of reasoning-gym are: an entry and a score.

    PYTHONPATH=. CLAW_WORKERS_REWARDS=examples.rewards_reasoning:reasoning claw up

The trajectory's metadata say the task and hold the entry that the question was made from:

    {"task": "chain_sum", "entry": {"question": "4 + 3 = ?", "answer": "7"}}

With reasoning-gym installed, `TASKS[name] = reasoning_gym.get_score_answer_fn(name)` adds any of its tasks: the arguments
are the same.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from claw_r1.rewards.function import Missing, Rollout, reward

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
WORTH_OF_FORM = 0.01
"""Of an answer that is wrong, in the form that was asked for."""


def extract_answer(text: str) -> str | None:
    """What stands in the last <answer> of a reply, None without one."""
    found = ANSWER.findall(text)
    return found[-1].strip() if found else None


def score_chain_sum(answer: str | None, entry: Mapping[str, Any]) -> float:
    """1 for the right number, else what the form is worth."""
    if answer is None:
        return 0.0
    try:
        return 1.0 if float(answer) == float(entry["answer"]) else WORTH_OF_FORM
    except ValueError:
        return WORTH_OF_FORM


def score_sorting(answer: str | None, entry: Mapping[str, Any]) -> float:
    """The share of words at their place; 0 if words were added or lost."""
    if answer is None:
        return 0.0
    wanted, given = str(entry["answer"]).split(), answer.replace(",", " ").split()
    if sorted(wanted) != sorted(given):
        return WORTH_OF_FORM
    return sum(one == other for one, other in zip(wanted, given, strict=True)) / len(wanted)


TASKS: dict[str, Callable[[str | None, Mapping[str, Any]], float]] = {
    "chain_sum": score_chain_sum,
    "word_sorting": score_sorting,
}


@reward("reasoning")
def reasoning(rollout: Rollout) -> float:
    """What the task's own check says of the last answer. A task that nobody can check has no reward; a wrong answer has 0."""
    check = TASKS.get(rollout.metadata.get("task", ""))
    if check is None:
        raise Missing("none_given", f"the task {rollout.metadata.get('task')!r} is not one of {', '.join(TASKS)}")
    return check(extract_answer(rollout.answer), rollout.metadata["entry"])
