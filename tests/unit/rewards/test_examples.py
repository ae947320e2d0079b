"""The example rewards say of answers what their texts promise."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from claw_r1.cli.rewards import app
from claw_r1.errors import WrongUse
from claw_r1.ids import derived_id
from claw_r1.rewards.function import Missing, RewardFunction, Rollout, Score
from claw_r1.rewards.running import Runner
from examples import rewards_models, rewards_reasoning, rewards_rubric
from examples.soft_signals import Watcher, label_of
from tests.factories import a_child, a_step, an_end


def ask(function: RewardFunction, answer: str, **over: Any) -> Score:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]

    async def play() -> Score:
        return await Runner(function, timeout=5, attempts=1, calls=1).score(Rollout(messages=said, **over))

    return asyncio.run(play())


@pytest.mark.parametrize(
    ("task", "truth", "answer", "wanted"),
    [
        ("chain_sum", "7", "It is <answer> 7.0 </answer>", 1.0),
        ("chain_sum", "7", "<answer>8</answer>", 0.01),
        ("chain_sum", "7", "<answer>seven</answer>", 0.01),
        ("chain_sum", "7", "7", 0.0),
        ("word_sorting", "a b c", "<answer>a, c, b</answer>", 1 / 3),
        ("word_sorting", "a b c", "<answer>a b</answer>", 0.01),
    ],
)
def test_reasoning(task: str, truth: str, answer: str, wanted: float) -> None:
    metadata = {"task": task, "entry": {"question": "q", "answer": truth}}
    assert ask(rewards_reasoning.reasoning, answer, metadata=metadata).value == pytest.approx(wanted)


def test_a_task_that_nobody_can_check_has_no_reward() -> None:
    with pytest.raises(Missing):
        ask(rewards_reasoning.reasoning, "x", metadata={"task": "unknown"})


def test_a_rubric_shows_its_parts() -> None:
    score = ask(rewards_rubric.rubric, "it is 7", metadata={"answer": "7"}, step_ids=("a", "b"))
    assert score.components == {"right": 1.0, "short": 1.0, "few_turns": 0.5}
    assert score.value == pytest.approx(1.15)
    assert ask(rewards_rubric.rubric, "x" * 2000, metadata={"answer": "7"}).components["short"] == 0.0


def test_the_models_are_reward_functions() -> None:
    assert [rewards_models.helpful.name, rewards_models.verdict.name] == ["helpful", "verdict"]
    assert rewards_models.verdict.timeout == 120.0


# -------------------------------------------------------------------------------------------------------------- claw rewards


def test_a_function_is_tried_on_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<answer>7</answer>"}]
    rows = [
        {"trajectory_uid": "t1", "messages": said, "metadata": {"task": "chain_sum", "entry": {"answer": "7"}}},
        {"trajectory_uid": "t2", "messages": said, "metadata": {}},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    done = CliRunner().invoke(app, ["try", "examples.rewards_reasoning:reasoning", str(file)])
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.exit_code, first) == (1, {"trajectory_uid": "t1", "source": "reasoning", "value": 1.0})
    assert (second["trajectory_uid"], second["missing"]) == ("t2", "none_given")
    wrong = CliRunner().invoke(app, ["try", "examples.rewards_reasoning:TASKS", str(file)])
    assert isinstance(wrong.exception, WrongUse)
    assert json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout) == []


# -------------------------------------------------------------------------------------------------------------- soft signals


def test_words_are_told_apart() -> None:
    assert [label_of(text) for text in ("Thanks a lot!", "No, that's wrong", "And how about B?")] == [
        "thanks",
        "correction",
        "follow-up",
    ]


def test_a_reaction_is_about_the_answer_before_it() -> None:
    root = a_step((1,), (2,))
    tool = a_child(root, (1,), (3,), (4,), new_messages=b'[{"role":"tool","content":"42"}]')
    thanks = a_child(tool, (1, 2, 3), (5,), (6,), new_messages=b'[{"role":"user","content":"thanks, and B?"}]')
    watcher = Watcher(silence=10.0)
    assert watcher.take(root, 3, 100.0) == []
    assert watcher.take(tool, 4, 101.0) == [], "a tool is nobody's reaction"
    (signal,) = watcher.take(thanks, 9, 102.0)
    assert (signal.step_id, signal.label) == (tool.step_id, "thanks")
    assert signal.body()["feedback_id"] == derived_id("soft", tool.step_id)
    assert watcher.committable == 9, "the last answer waits for its reaction"
    assert watcher.expire(105.0) == []
    (silence,) = watcher.expire(112.5)
    assert (silence.step_id, silence.label, watcher.committable) == (thanks.step_id, "silence", 10)
    watcher.take(root, 11, 200.0)
    watcher.take(an_end(), 12, 201.0)
    assert (watcher.expire(999.0), watcher.committable) == ([], 13), "an end is no silence"
