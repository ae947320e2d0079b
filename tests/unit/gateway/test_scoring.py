"""A reward function answers in every form, and one that fails, is late or is missing is its caller's to know."""

import asyncio
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from claw_r1.errors import WrongUse
from claw_r1.rewards import finding
from claw_r1.rewards.function import Rollout, Score, reward
from gateway.replies import Refusal
from gateway.rollouts import scoring
from gateway.rollouts.bodies import RewardQuestion
from gateway.rollouts.scoring import Scoring, answer_of, find_reward

QUESTION = RewardQuestion.model_validate(
    {"prompt_ids": [1, 2], "response_ids": [3], "dataset_fields": {"ground_truth": "4"}}
)


def length(prompt_ids: list[int], response_ids: list[int], **rest: Any) -> float:
    return float(len(prompt_ids) + len(response_ids))


async def later(**fields: Any) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"score": 0.5, "truth": fields["dataset_fields"]["ground_truth"], "turns": fields["num_turns"]}


def score(function: Any, timeout: float = 5.0) -> Any:
    return asyncio.run(Scoring(function, timeout).score(QUESTION))


def test_functions_that_block_and_functions_that_await() -> None:
    assert score(length).reward_score == 3.0
    answer = score(later)
    assert (answer.reward_score, answer.reward_extra_info) == (0.5, {"truth": "4", "turns": 2})
    assert score(lambda **fields: later(**fields)).reward_score == 0.5


@pytest.mark.parametrize(
    ("found", "score", "extra"),
    [
        (1, 1.0, {}),
        (True, 1.0, {}),
        ((0.5, {"a": 1}), 0.5, {"a": 1}),
        ((0.5, "why"), 0.5, {"extra": "why"}),
        ({"reward_score": 2, "reward_extra_info": {"a": 1}}, 2.0, {"a": 1}),
        ({"score": 2, "a": 1}, 2.0, {"a": 1}),
    ],
)
def test_every_form_of_an_answer(found: Any, score: float, extra: Any) -> None:
    answer = answer_of(found)
    assert (answer.reward_score, answer.reward_extra_info) == (score, extra)


@pytest.mark.parametrize("found", [None, "x", {}, {"a": 1}, float("nan"), float("inf"), (1, 2, 3)])
def test_what_is_no_score_is_a_failure(found: Any) -> None:
    with pytest.raises(Refusal) as failed:
        answer_of(found)
    assert (failed.value.status, failed.value.code) == (502, "reward_failed")


def test_without_a_function_the_answer_says_how_to_have_one() -> None:
    with pytest.raises(Refusal, match=r"claw_r1\.rewards") as refused:
        score(None)
    assert (refused.value.status, refused.value.code) == (501, "no_reward_function")


def test_a_function_that_raises_is_a_failure() -> None:
    def broken(**fields: Any) -> float:
        raise KeyError("ground_truth")

    with pytest.raises(Refusal, match="KeyError") as failed:
        score(broken)
    assert failed.value.code == "reward_failed"


def test_a_function_that_is_late_is_given_up_and_many_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WAITING", 2)
    release = threading.Event()

    async def run() -> list[str | None]:
        judge = Scoring(lambda **fields: release.wait(30), 0.05)
        codes = []
        for _ in range(3):
            with pytest.raises(Refusal) as refused:
                await judge.score(QUESTION)
            codes.append(refused.value.code)
        release.set()
        while judge._waiting:  # noqa: ASYNC110 - threads count down, and no one tells when
            await asyncio.sleep(0.005)
        judge._timeout = 30.0
        assert (await judge.score(QUESTION)).reward_score == 1.0
        return codes

    assert asyncio.run(run()) == ["reward_timeout", "reward_timeout", "too_many_scores"]


# ------------------------------------------------------------------------------------------- the functions of reward workers


def ask(function: Any, timeout: float = 5.0, **fields: Any) -> Any:
    question = RewardQuestion.model_validate({"prompt_ids": [1, 2], "response_ids": [3]} | fields)
    return asyncio.run(Scoring(function, timeout).score(question))


@reward("right")
def right(rollout: Rollout) -> dict[str, float]:
    (step,) = rollout.steps
    return {"answer": float(rollout.answer == rollout.metadata["truth"]), "length": float(len(step.response_ids))}


def test_a_workers_function_gets_the_question_as_a_rollout() -> None:
    said = [{"role": "user", "content": "2+2"}]
    answer = ask(right, extra_fields={"response": "4"}, dataset_fields={"prompt": said, "truth": "4"})
    assert (answer.reward_score, answer.reward_extra_info) == (2.0, {"components": {"answer": 1.0, "length": 1.0}})
    whole = [*said, {"role": "assistant", "content": "5"}]
    assert ask(right, extra_fields={"messages": whole}, dataset_fields={"truth": "4"}).reward_score == 1.0


def test_a_workers_function_that_gives_nothing_is_a_failure_and_never_0() -> None:
    @reward("waits")
    async def waits(rollout: Rollout) -> float:
        await asyncio.Event().wait()
        return 0.0

    cases: list[tuple[Any, str]] = [
        (right, "reward_failed"),
        (reward("none")(lambda rollout: None), "reward_failed"),
        (reward("steps")(lambda rollout: Score(steps={"s": 1.0})), "reward_failed"),
        (waits, "reward_timeout"),
    ]
    for function, code in cases:
        with pytest.raises(Refusal) as failed:
            ask(function, 0.05)
        assert failed.value.code == code


# ----------------------------------------------------------------------------------------------------------------- finding


def offering(*points: tuple[str, str]) -> Callable[..., EntryPoints]:
    return lambda group: EntryPoints(EntryPoint(name, value, group) for name, value in points)


def test_a_function_is_named_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_reward("math:sqrt") is not None
    monkeypatch.setattr(finding, "entry_points", offering())
    assert find_reward("") is None


def test_the_only_function_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "entry_points", offering(("root", "math:sqrt")))
    found = find_reward("")
    assert found is not None
    assert found(4) == 2.0
    monkeypatch.setattr(finding, "entry_points", offering(("root", "math:sqrt"), ("floor", "math:floor")))
    assert find_reward("") is None, "with several, the setting chooses"
    assert find_reward("floor") is not None


@pytest.mark.parametrize("name", ["nobody", "no.such.module:f", "math:nothing", "math:pi"])
def test_a_function_that_cannot_be_loaded_stops_the_start(name: str) -> None:
    with pytest.raises(WrongUse):
        find_reward(name)


def test_a_package_whose_function_cannot_be_loaded_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "entry_points", offering(("bad", "no.such:thing")))
    with pytest.raises(WrongUse, match="bad"):
        find_reward("bad")
