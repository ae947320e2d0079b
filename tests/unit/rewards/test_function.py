"""What a function gives becomes a score, or is missing for a reason; never 0."""

import math
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import unpack_ids
from claw_r1.errors import UserError, WrongUse
from claw_r1.rewards import finding
from claw_r1.rewards.finding import load_functions
from claw_r1.rewards.function import Missing, Rollout, Score, reward, score_of
from claw_r1.rewards.rollout import StepView, rollout_of, text_of
from tests.factories import a_finished


@pytest.mark.parametrize(
    ("found", "value", "components"),
    [
        (1, 1.0, {}),
        (True, 1.0, {}),
        (0, 0.0, {}),
        ({"a": 1.0, "b": 2.0}, 2.0, {"a": 1.0, "b": 2.0}),
        ({"a": 0.0}, 0.0, {"a": 0.0}),
        (Score(0.5, {"c": 1}), 0.5, {"c": 1.0}),
        (Score(steps={"s": 1}), None, {}),
    ],
)
def test_every_form_of_a_score(found: Any, value: float | None, components: dict[str, float]) -> None:
    score = score_of(found, {"b": 0.5})
    assert (score.value, score.components) == (value, components)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "none_given"),
        ({}, "none_given"),
        (Score(), "none_given"),
        ("good", "bad_value"),
        ([1.0], "bad_value"),
        ({"a": None}, "bad_value"),
        (Score("x"), "bad_value"),  # type: ignore[arg-type]
        (math.nan, "not_finite"),
        (-1.7e308, "not_finite"),
        ({"a": math.inf}, "not_finite"),
        (Score(steps={"s": -math.inf}), "not_finite"),
        (10**400, "bad_value"),
        (Score(1.0, metadata={"x": object()}), "bad_value"),
        (Score(1.0, metadata={"x": "\ud800"}), "bad_value"),
    ],
)
def test_what_is_no_score_is_missing(found: Any, reason: str) -> None:
    with pytest.raises(Missing) as missing:
        score_of(found, {})
    assert missing.value.reason == reason


@given(st.dictionaries(st.text(max_size=5), st.floats(-1e6, 1e6)), st.floats(-3, 3))
def test_components_add_up_by_their_weights(components: dict[str, float], weight: float) -> None:
    if not components:
        return
    weights = dict.fromkeys(components, weight)
    value = score_of(components, weights).value
    assert value == pytest.approx(weight * sum(components.values()), rel=1e-6, abs=1e-3)


def test_where_a_function_runs_follows_from_what_it_is() -> None:
    @reward("waits")
    async def waits(rollout: Rollout) -> float:
        return 1.0

    @reward("heavy", process=True)
    def heavy(rollout: Rollout) -> float:
        return 1.0

    assert [f.place for f in (waits, heavy, reward("plain")(lambda rollout: 1.0))] == ["loop", "process", "thread"]
    assert heavy(Rollout()) == 1.0
    with pytest.raises(WrongUse, match="coroutine"):
        reward("both", process=True)(waits.call)
    with pytest.raises(UserError):
        reward("no id")


# ------------------------------------------------------------------------------------------------------------- the rollout


def test_a_rollout_shows_the_conversation() -> None:
    said = b'[{"role":"user","content":[{"type":"text","text":"2+2"}]},{"role":"assistant","content":"4"}]'
    rollout = rollout_of(a_finished(messages=said, task_id="t1"))
    assert (rollout.question, rollout.answer, rollout.task_id) == ("2+2", "4", "t1")
    assert rollout.transcript == "user: 2+2\n\nassistant: 4"
    assert text_of({"role": "assistant", "content": None, "tool_calls": []}) == ""


def test_a_conversation_that_is_not_known_is_missing_and_no_empty_answer() -> None:
    rollout = rollout_of(a_finished(messages=None))
    for name in ("answer", "question", "transcript"):
        with pytest.raises(Missing) as missing:
            getattr(rollout, name)
        assert missing.value.reason == "context_lost"


def test_a_conversation_too_large_for_its_record_comes_from_the_last_step() -> None:
    ids = unpack_ids(b"")
    step = StepView("s", ids, ids, [{"role": "user", "content": "q"}], {"role": "assistant", "content": "a"})
    assert rollout_of(a_finished(messages=None), [step]).answer == "a"


# ----------------------------------------------------------------------------------------------------------------- finding


def test_functions_are_found_by_entry_point_and_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("mine", "tests.integration.plugins:length", finding.GROUP)])
    monkeypatch.setattr(finding, "entry_points", lambda group: points)
    found = load_functions(("mine", "tests.integration.plugins:parts"), setting="CLAW_WORKERS_REWARDS")
    assert [f.name for f in found] == ["length", "parts"]
    assert finding.offered() == {"mine": "tests.integration.plugins:length"}
    assert finding.resolve(found[0].reference) is found[0]
    with pytest.raises(WrongUse, match="length"):
        load_functions(("mine", "tests.integration.plugins:length"), setting="CLAW_WORKERS_REWARDS")


@pytest.mark.parametrize("name", ["nobody", "math:sqrt", "no.such:thing", "math:pi"])
def test_what_is_no_reward_function_stops_the_start(name: str) -> None:
    with pytest.raises(WrongUse, match=r"CLAW_WORKERS_REWARDS|must be a function"):
        load_functions((name,), setting="CLAW_WORKERS_REWARDS")
