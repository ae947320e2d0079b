"""What workers decide without a broker: what may be committed, which call tells which step, what a context is."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_ids
from claw_r1.events import Reward, Step, Trajectory
from claw_r1.rewards.function import Score, reward
from claw_r1.rewards.rollout import Missing
from claw_r1.rewards.running import Runner
from gateway.rollouts.bodies import RewardBody
from gateway.rollouts.facts import reward_of
from streams.workers.contexts import restore
from streams.workers.leaves import leaves_of
from streams.workers.prefix import Prefix
from streams.workers.sources import RewardSource, log_probs_of
from tests.factories import a_child, a_finished, a_step

GOLDEN = Path(__file__).parents[2] / "golden/vllm"
IDS = st.lists(st.integers(0, 2), max_size=6)


@given(st.lists(st.integers(0, 60), max_size=40, unique=True), st.data())
def test_nothing_is_committed_that_is_not_done(offsets: list[int], data: Any) -> None:
    prefix = Prefix(5)
    taken = [offset for offset in sorted(offsets) if prefix.take(offset)]
    assert taken == sorted(offset for offset in offsets if offset >= 5)
    open_offsets = set(taken)
    for offset in data.draw(st.permutations(taken)):
        assert prefix.committable == min(open_offsets)
        assert prefix.span == prefix.next - min(open_offsets)
        assert not prefix.take(offset)
        prefix.done(offset)
        open_offsets.remove(offset)
        assert len(prefix) == len(open_offsets)
    assert prefix.committable == prefix.next == max([5, *(offset + 1 for offset in taken)])


@given(st.lists(IDS, min_size=1, max_size=12))
def test_each_sequence_has_a_leaf_that_begins_with_it_and_no_leaf_is_contained_in_another(
    many: list[list[int]],
) -> None:
    sequences = [pack_ids(ids) for ids in many]
    leaves = leaves_of(sequences)
    assert all(sequences[leaf].startswith(mine) for mine, leaf in zip(sequences, leaves, strict=True))
    chosen = set(leaves)
    for one in chosen:
        assert leaves[one] == one
        assert not any(other != one and sequences[other].startswith(sequences[one]) for other in chosen)


def a_row(step: Step) -> dict[str, Any]:
    """As the pool gives it."""
    return {
        "step_id": step.step_id,
        "parent_step_id": step.parent_step_id,
        "prefix_len": step.prefix_len,
        "status": step.status,
        "role": step.role,
        "finish_reason": step.finish_reason,
        "messages_kept": step.messages_kept,
        "multi_modal_data": [],
        "new_prompt_ids": memoryview(step.new_prompt_ids).cast("I").tolist(),
        "response_ids": memoryview(step.response_ids).cast("I").tolist(),
        "prefix_hash": (step.prefix_hash or b"").hex(),
        "new_messages": (step.new_messages or b"").decode(),
        "reply": (step.reply or b"").decode(),
    }


def test_steps_get_their_whole_prompts_and_messages_back() -> None:
    root = a_step((1, 2, 3), (4, 5))
    child = a_child(root, (1, 2, 3), (6,), (7, 8))
    rows = [a_row(child), a_row(root) | {"multi_modal_data": [("ab", 3, "image")]}]
    first, second = restore(rows, [root.step_id, child.step_id])
    assert (first.prompt_ids.tolist(), first.response_ids.tolist()) == ([1, 2, 3], [4, 5])
    assert (second.prompt_ids.tolist(), second.response_ids.tolist()) == ([1, 2, 3, 4, 5, 6], [7, 8])
    assert [message["content"] for message in second.messages] == ["hello", "world", "go on"]
    assert (first.text, first.media, second.media) == ("world", True, True)


@pytest.mark.parametrize("over", [{"new_messages": "[" * 5000}, {"reply": "[" * 5000 + "]" * 5000}, {"reply": "7"}])
def test_a_conversation_that_cannot_be_read_is_not_given(over: dict[str, Any]) -> None:
    step = a_step((1, 2, 3), (4, 5))
    with pytest.raises(Missing) as missing:
        restore([a_row(step) | over], [step.step_id])
    assert missing.value.reason == "context_lost"


def test_a_prefix_that_is_not_the_senders_is_not_given() -> None:
    root = a_step((1, 2, 3), (4, 5))
    child = a_child(root, (1, 2, 3), (6,), (7, 8))
    other = a_row(root) | {"response_ids": [4, 6]}
    with pytest.raises(Missing) as missing:
        restore([other, a_row(child)], [root.step_id, child.step_id])
    assert missing.value.reason == "context_lost"


def told(*entries: dict[int, float | None] | None) -> list[Any]:
    return [
        entry and {str(token): {"logprob": value, "rank": 1} for token, value in entry.items()} for entry in entries
    ]


def test_the_log_prob_of_the_token_that_stands_there_is_taken() -> None:
    assert log_probs_of(told(None, {7: -0.1, 9: -0.5}, {3: -1.0}), [5, 9, 3]) == [-0.5, -1.0]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (None, "bad_reply"),
        (told(None), "bad_reply"),
        (told(None, {8: -1.0}), "bad_reply"),
        (told(None, None), "bad_reply"),
        (told(None, {9: None}), "bad_reply"),
        (told(None, {9: float("-inf")}), "not_finite"),
    ],
)
def test_log_probs_with_holes_are_none(entries: Any, reason: str) -> None:
    with pytest.raises(Missing) as missing:
        log_probs_of(entries, [5, 9])
    assert missing.value.reason == reason


def test_log_probs_as_a_real_engine_said_them() -> None:
    body = json.loads((GOLDEN / "chat_prompt_logprobs.json").read_text("utf-8"))["response"]["body"]
    ids = body["prompt_token_ids"]
    found = log_probs_of(body["prompt_logprobs"], ids)
    assert len(found) == len(ids) - 1
    assert found[:2] == [-11.609580993652344, -13.056831359863281]
    with pytest.raises(Missing):
        log_probs_of(body["prompt_logprobs"], [*ids[:-1], 5])


def test_a_workers_reward_has_the_id_that_the_gateway_would_give_it() -> None:
    function = reward("s", revision=2)(lambda rollout: Score(1.0, {"a": 1.0}, {"step-1": 0.5}))
    ended = a_finished(step_ids=("step-1",))

    async def score(ended: Trajectory) -> Sequence[Reward]:
        source = RewardSource(Runner(function, timeout=5, attempts=1, calls=1))
        return await source.facts(ended, lambda: pytest.fail("no steps are needed"))

    with pytest.raises(Missing, match="no step of the trajectory"):
        asyncio.run(score(a_finished(step_ids=("step-2",))))
    found = asyncio.run(score(ended))
    for fact, step_id, value in zip(found, (None, "step-1"), (1.0, 0.5), strict=True):
        body = RewardBody(trajectory_uid=ended.trajectory_uid, step_id=step_id, source="s", value=value, revision=2)
        assert fact.fact_id == reward_of(body, ended.run_id, ended.prompt_uid, 1.0).fact_id
        assert (fact.value, fact.revision, fact.self_reported) == (value, 2, False)
