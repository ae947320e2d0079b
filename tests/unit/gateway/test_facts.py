"""What a caller says becomes facts whose ids follow from what they say."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from claw_r1.codec import pack_floats, pack_ids, restore_prompt, unpack_floats
from claw_r1.errors import InvalidRecord
from claw_r1.events import Decision, Reward, VersionSpan
from gateway.calls.chains import Chains
from gateway.calls.feedback import Origin, Responses
from gateway.places import Session
from gateway.replies import Refusal
from gateway.rollouts.bodies import (
    AnnotationBody,
    CompleteTrajectory,
    FeedbackBody,
    GroupBody,
    RewardBody,
    SubmittedStep,
)
from gateway.rollouts.facts import (
    LABELS,
    annotation_of,
    completion,
    feedback_of,
    group_cancel,
    group_open,
    reward_of,
    trajectory_open,
)
from gateway.rollouts.submitted import check_submitted, contents, context_of, shortest, submitted_step

PLACE = Session("r", "p", "t", "val")


def a_submitted(**over: Any) -> SubmittedStep:
    return SubmittedStep.model_validate(
        {"prompt_ids": [1, 2], "response_ids": [3, 4], "rollout_log_probs": [-1, -2]} | over
    )


def the_fact(step: SubmittedStep, chains: Chains | None = None, at: float = 1.0, place: Session = PLACE) -> Any:
    check_submitted(0, step)
    context = context_of(0, step)
    delta = shortest(context, chains or Chains(), Chains())
    return submitted_step(0, step, place, delta, (), None, at)


# ------------------------------------------------------------------------------------------------------------------ facts


def test_the_same_statement_is_the_same_fact_at_any_time() -> None:
    reward = RewardBody(trajectory_uid="t", value=1.0)
    array = AnnotationBody.model_validate({"step_id": "s", "name": "values", "values": [1.0]})
    group = GroupBody(size=4)
    for make in (
        lambda at: reward_of(reward, "r", "p", at),
        lambda at: annotation_of(array, PLACE, at),
        lambda at: group_open(group, "r", "p", at),
        lambda at: group_cancel("r", "p", None, at),
        lambda at: trajectory_open(PLACE, "task", {"b": 1, "a": 2}, at),
        lambda at: completion(PLACE, CompleteTrajectory(), at)[-1],
        lambda at: feedback_of(FeedbackBody(value=1), "f", PLACE, "s", at, self_reported=False),
        lambda at: the_fact(a_submitted(), at=at),
    ):
        first, second = make(1.0), make(2.0)
        assert (first.fact_id, first.at) == (second.fact_id, 1.0)


def test_another_statement_is_another_fact() -> None:
    def reward(**over: Any) -> str:
        body = {"trajectory_uid": "t", "value": 1.0} | over
        return reward_of(RewardBody.model_validate(body), "r", "p", 1.0).fact_id

    ids = [reward(), reward(revision=1), reward(source="judge"), reward(step_id="s"), reward(trajectory_uid="u")]
    assert len(set(ids)) == 5
    assert reward(value=2.0) == ids[0], "to change a value, raise the revision"


def test_what_json_cannot_say_is_no_fact() -> None:
    with pytest.raises(InvalidRecord):
        trajectory_open(PLACE, None, {"a": "\ud800"}, 1.0)


def test_an_end_comes_behind_its_reward() -> None:
    reward, end = completion(PLACE, CompleteTrajectory(reward=0.5, status="truncated"), 1.0, self_reported=True)
    assert isinstance(reward, Reward)
    assert (reward.value, reward.self_reported, reward.trajectory_uid) == (0.5, True, "t")
    assert (end.TYPE, getattr(end, "status", None)) == ("trajectory-end", "truncated")


# --------------------------------------------------------------------------------------------------------------- feedback


@pytest.mark.parametrize(("label", "value"), sorted(LABELS.items()))
def test_a_label_that_has_a_value_is_a_reward(label: str, value: float) -> None:
    body = FeedbackBody(label=label, text="because", author="ann", response_id="chatcmpl-1")
    fact = feedback_of(body, "f1", PLACE, "s1", 2.0, self_reported=False)
    assert isinstance(fact, Reward)
    assert (fact.value, fact.source, fact.step_id, fact.revision) == (value, "feedback", "s1", 2_000_000)
    assert fact.metadata == {"label": label, "text": "because", "author": "ann", "response_id": "chatcmpl-1"}


def test_a_given_value_wins_over_the_label_and_a_later_word_over_an_earlier() -> None:
    first = feedback_of(FeedbackBody(value=0.3, label="up"), "f1", PLACE, None, 2.0, self_reported=True)
    second = feedback_of(FeedbackBody(value=0.1), "f2", PLACE, None, 2.001, self_reported=True)
    assert isinstance(first, Reward)
    assert isinstance(second, Reward)
    assert (first.value, first.self_reported) == (0.3, True)
    assert second.revision > first.revision
    assert second.fact_id != first.fact_id


@pytest.mark.parametrize(
    ("said", "action", "value", "reason", "author"),
    [
        ({"text": "odd"}, "note", "odd", None, "feedback"),
        ({"label": "off-topic", "author": "ann"}, "tag", "off-topic", None, "ann"),
        ({"label": "off-topic", "text": "odd", "source": "app"}, "tag", "off-topic", "odd", "app"),
    ],
)
def test_words_without_a_value_are_decisions(
    said: Any, action: str, value: str, reason: str | None, author: str
) -> None:
    fact = feedback_of(FeedbackBody.model_validate(said), "f", PLACE, "s", 1.0, self_reported=False)
    assert isinstance(fact, Decision)
    assert (fact.action, fact.value, fact.reason, fact.author, fact.step_id) == (action, value, reason, author, "s")


def test_replies_are_remembered_up_to_a_bound_newest_first() -> None:
    known = Responses(2)
    for number in range(3):
        known.put(f"chatcmpl-{number}", Origin("r", "p", "t", f"s{number}"))
    known.put("chatcmpl-1", Origin("r", "p", "t", "again"))
    known.put("chatcmpl-3", Origin("r", "p", "t", "s3"))
    assert len(known) == 2
    assert known.get("chatcmpl-1") == Origin("r", "p", "t", "again")
    assert [known.get(f"chatcmpl-{number}") for number in (0, 2)] == [None, None]


# -------------------------------------------------------------------------------------------------------------- submitted


def test_a_submitted_step_keeps_what_its_sender_knows() -> None:
    fact = the_fact(
        a_submitted(
            version_spans=[{"start": 0, "end": 1, "version": 3}, {"start": 1, "end": 2, "version": 4}],
            messages=[{"role": "user", "content": "hi"}],
            reply={"role": "assistant", "content": "ho"},
            sampling={"temperature": 0.7, "guided": True},
            model="m",
            finish_reason="stop",
            step_index=3,
            metadata={"uid": "x"},
        )
    )
    assert fact.version_spans == (VersionSpan(version=3, start=0, end=1), VersionSpan(version=4, start=1, end=2))
    assert fact.policy_version is None
    assert (fact.new_messages, fact.reply) == (
        b'[{"role":"user","content":"hi"}]',
        b'{"role":"assistant","content":"ho"}',
    )
    assert (fact.sampling.temperature, fact.sampling.guided, fact.model, fact.finish_reason) == (0.7, True, "m", "stop")
    assert (fact.dialect, fact.step_index, fact.channel, fact.metadata) == ("submitted", 3, "val", {"uid": "x"})
    assert list(unpack_floats(fact.rollout_log_probs)) == [-1, -2]
    assert fact.capture.ok


def test_one_version_of_all_tokens_is_the_steps_version() -> None:
    whole = [{"start": 0, "end": 1, "version": 3}, {"start": 1, "end": 2, "version": 3}]
    assert the_fact(a_submitted(version_spans=whole)).policy_version == 3
    assert the_fact(a_submitted(version_spans=whole[:1])).policy_version is None
    assert the_fact(a_submitted(policy_version=5)).policy_version == 5
    assert the_fact(a_submitted()).policy_version is None


def test_a_step_without_log_probs_says_that_it_cannot_be_trained() -> None:
    fact = the_fact(a_submitted(rollout_log_probs=None))
    assert (fact.capture.ok, fact.capture.reasons, fact.rollout_log_probs) == (False, ("no_log_probs",), None)
    assert fact.new_messages is None


def test_the_callers_step_id_is_kept_and_the_content_makes_one_else() -> None:
    assert the_fact(a_submitted(step_id="mine")).step_id == "mine"
    other = replace(PLACE, trajectory_uid="t2")
    facts = [
        the_fact(a_submitted(step_id="0"), at=at, place=place) for at, place in ((1, PLACE), (2, PLACE), (1, other))
    ]
    assert facts[0].fact_id == facts[1].fact_id, "sent again"
    assert facts[0].fact_id != facts[2].fact_id, (
        "another trajectory may count alike, and streams know facts by their ids"
    )
    ids = {the_fact(a_submitted(**over)).step_id for over in ({}, {"step_index": 1}, {"response_ids": [3, 5]})}
    assert len(ids) == 3


@given(some.lists(some.lists(some.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6))
def test_steps_of_one_request_are_differences_that_restore(turns: list[list[int]]) -> None:
    together, known = Chains(), Chains()
    contexts: dict[str, bytes] = {}
    prompt: list[int] = []
    for number, turn in enumerate(turns):
        prompt = prompt + turn
        step = a_submitted(prompt_ids=prompt, response_ids=[9], rollout_log_probs=[0.0], step_index=number)
        context = context_of(number, step)
        delta = shortest(context, known, together)
        fact = submitted_step(number, step, PLACE, delta, (), None, 1.0)
        together.add(fact.step_id, context, delta, fact.response_ids, None)
        restored = restore_prompt(fact, contexts.get(fact.parent_step_id or ""))
        assert restored == pack_ids(prompt)
        contexts[fact.step_id] = restored + fact.response_ids
        prompt = [*prompt, 9]
        assert (fact.parent_step_id is None) == (number == 0)


@pytest.mark.parametrize(
    ("over", "place"),
    [
        ({"prompt_ids": []}, "steps.4"),
        ({"response_ids": [], "rollout_log_probs": []}, "steps.4"),
        ({"rollout_log_probs": [1.0]}, "steps.4.rollout_log_probs"),
        ({"rollout_log_probs": pack_floats([float("nan"), 0])}, "steps.4.rollout_log_probs"),
        ({"version_spans": [{"start": 1, "end": 1, "version": 1}]}, "steps.4.version_spans.0"),
        ({"version_spans": [{"start": 0, "end": 3, "version": 1}]}, "steps.4.version_spans.0"),
        ({"version_spans": [{"start": 0, "end": 2}, {"start": 1, "end": 2}]}, "steps.4.version_spans.1"),
        ({"version_spans": [{"start": 0, "end": 2, "version": 1}], "policy_version": 2}, "steps.4.version_spans.0"),
        ({"multi_modal_data": {"images": "http://x"}}, "steps.4.multi_modal_data"),
        ({"routed_experts": [1]}, "steps.4.routed_experts"),
        ({"messages": [{"a": "\ud800"}]}, "steps.4.messages"),
    ],
)
def test_a_step_that_is_not_whole_is_refused_with_its_place(over: Any, place: str) -> None:
    def check(step: SubmittedStep) -> None:
        check_submitted(4, step)
        contents(4, step)
        context_of(4, step)

    step = a_submitted(**over)
    with pytest.raises(Refusal) as refused:
        check(step)
    assert (refused.value.status, refused.value.param) == (400, place)
