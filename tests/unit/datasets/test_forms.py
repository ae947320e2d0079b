"""Rollouts become rows as the streams see them; what gives no row is counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.datasets.forms import FORMS, jsonable
from claw_r1.datasets.logs import Naming
from claw_r1.datasets.openai_logs import read_openai
from claw_r1.datasets.pool import Listed, _made
from claw_r1.datasets.rollouts import Rollout, gather
from claw_r1.datasets.selection import Member
from claw_r1.errors import UserError
from claw_r1.events import GroupFact, GroupReady, Outcome, Sample, StepSpan
from streams.backfill.rounds import Logged
from streams.merge import rows_of
from tests.factories import (
    PROMPT,
    RUN,
    a_child,
    a_group,
    a_group_open,
    a_ready_group,
    a_recipe,
    a_reward,
    a_step,
    an_end,
)
from tests.unit.streams.partition_log import START, Entry, play, set_recipe
from tests.unit.trainer_adapter.test_batch import a_batch
from trainer_adapter.targets.hf import list_sft

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def members(*trajectories: str) -> list[Member]:
    return [Member(RUN, PROMPT, PROMPT, uid) for uid in trajectories]


def rows(form: str, group: list[Rollout]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    left: Counter[str] = Counter()
    found = [jsonable(row) for row in FORMS[form].rows(group, left)]
    names = [column.name for column in FORMS[form].columns]
    assert all(sorted(row) == sorted(names) for row in found)
    json.dumps(found, allow_nan=False)
    return found, dict(left)


def talk(*messages: dict[str, Any], **over: Any) -> GroupFact:
    """A step of these messages; the last is its reply."""
    *before, reply = messages
    ids = {"new_prompt_ids": b"", "response_ids": b"", "rollout_log_probs": None}
    said = {"new_messages": json.dumps(before).encode(), "reply": json.dumps(reply).encode()}
    return a_step(**(ids | said | {"step_id": f"s{len(messages)}", "fact_id": f"s{len(messages)}"} | over))


@settings(max_examples=30, deadline=None)
@given(st.permutations(a_group((1.0, 0.5), steps=2)))
def test_rows_are_the_same_in_any_order_of_the_facts(facts: list[GroupFact]) -> None:
    group = gather(facts, members(f"{PROMPT}-t0", f"{PROMPT}-t1"))
    found, left = rows("tokens", group)
    assert [row["reward"] for row in found] == [1.0, 0.5]
    assert left == {}
    assert found[0]["loss_mask"] == [1, 1, 0, 0, 1, 1]


def test_token_rows_are_what_the_streams_merge() -> None:
    first = a_step((1, 2), (3, 4))
    child = a_child(first, (1, 2), (5,), (6,))
    facts: list[GroupFact] = [first, child, a_reward(2.0), an_end()]
    (rollout,) = gather(facts, members(first.trajectory_uid))
    (row,), _ = rows("tokens", [rollout])
    merged = rows_of([first, child])
    assert merged is not None
    assert [*row["prompt_ids"], *row["response_ids"]] == np.frombuffer(merged[0].token_ids, "<u4").tolist()
    assert [0, 0, *row["loss_mask"]] == list(merged[0].loss_mask)
    steps, _ = rows("steps", [rollout])
    assert [step["prompt_ids"] for step in steps] == [[1, 2], [1, 2, 3, 4, 5]]
    assert [step["masked"] for step in steps] == [None, None]


def test_conversations_that_go_on_are_one_row() -> None:
    facts = [
        talk(USER, ASSISTANT),
        talk(USER, {**ASSISTANT, "refusal": None}, USER, ASSISTANT),
        talk({"role": "user", "content": "another"}, ASSISTANT, step_id="other", fact_id="other"),
        an_end(),
    ]
    (rollout,) = gather(facts, members("trajectory-1"))
    found, left = rows("sft", [rollout])
    assert sorted(len(row["messages"]) for row in found) == [2, 4]
    assert left == {}


def test_what_is_not_text_or_not_known_is_left_out_by_name() -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    silent = a_step(new_messages=None, reply=None)
    for facts, left in (
        ([talk(picture, ASSISTANT)], {"not_text": 1}),
        ([silent], {"no_messages": 1}),
        ([talk(USER, ASSISTANT, role="frozen")], {"frozen_model": 1, "no_messages": 1}),
    ):
        (rollout,) = gather(facts, members("trajectory-1"))
        assert rows("sft", [rollout]) == ([], left)
    (rollout,) = gather([talk(parts, ASSISTANT)], members("trajectory-1"))
    (row,), _ = rows("sft", [rollout])
    assert row["messages"][0]["content"] == "ab"


def test_pairs_begin_with_the_same_messages() -> None:
    def one(uid: str, value: float, text: str, system: str = "s") -> list[GroupFact]:
        head = {"role": "system", "content": system}
        said = talk(head, USER, {"role": "assistant", "content": text}, trajectory_uid=uid, step_id=uid, fact_id=uid)
        return [said, a_reward(value, trajectory_uid=uid), an_end(trajectory_uid=uid)]

    facts = [*one("good", 1.0, "yes"), *one("bad", 0.0, "no"), *one("middle", 0.5, "well")]
    (pair,), left = rows("preference", gather(facts, members("bad", "good", "middle")))
    assert (pair["chosen"], pair["rejected"]) == (
        [{"role": "assistant", "content": "yes"}],
        [{"role": "assistant", "content": "no"}],
    )
    assert [message["role"] for message in pair["prompt"]] == ["system", "user"]
    assert left == {}
    other = [*one("good", 1.0, "yes"), *one("bad", 0.0, "no", system="t")]
    assert rows("preference", gather(other, members("bad", "good"))) == ([], {"prompts_differ": 1})
    same = [*one("good", 1.0, "yes"), *one("bad", 1.0, "no")]
    assert rows("preference", gather(same, members("bad", "good"))) == ([], {"no_pair": 1})


def test_steps_without_tokens_are_never_trained() -> None:
    line = {"messages": [USER, ASSISTANT, USER, ASSISTANT], "tools": [{"type": "function"}]}
    facts = read_openai(line, Naming("r"), 1.0).facts
    (member,) = {
        Member(f.run_id, f.prompt_uid, f.prompt_uid, f.trajectory_uid) for f in facts if hasattr(f, "trajectory_uid")
    }
    (rollout,) = gather([a_group_open(prompt_uid=member.prompt_uid), *facts], [member])
    assert rollout.steps == 2
    assert rows("tokens", [rollout]) == ([], {"nothing_to_train": 1})
    (row,), _ = rows("sft", [rollout])
    assert (len(row["messages"]), row["tools"]) == (4, [{"type": "function"}])


def test_no_recipe_trains_steps_without_tokens() -> None:
    lines = [
        {"messages": [USER, {**ASSISTANT, "content": text}, USER, ASSISTANT], "score": len(text)}
        for text in ("a", "bb")
    ]
    facts = [fact for line in lines for fact in read_openai(line, Naming("r", reward="score"), 1.0).facts]
    recipe = set_recipe(a_recipe(run_id="r"))
    worker = play([Entry(START, recipe), *(Entry(START + 1, fact) for fact in facts)])
    assert not any(isinstance(event, Sample | GroupReady) for event in worker.durable)
    outcomes = [event for event in worker.durable if isinstance(event, Outcome) and event.recipe is not None]
    of_trajectories = [(o.outcome, o.reason) for o in outcomes if o.trajectory_uid is not None]
    assert of_trajectories == [("discarded", "nothing_to_train")] * 2


def test_every_column_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/datasets.md").read_text("utf-8")
    for form in FORMS.values():
        section = page.split(f"### {form.name}\n")[1].split("\n### ")[0]
        told = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
        assert [(row[0].strip("| `"), row[2].removesuffix(" |")) for row in told] == [
            (c.name, c.doc) for c in form.columns
        ]


def test_a_snapshot_whose_facts_are_gone_is_refused() -> None:
    member = Member(RUN, PROMPT, PROMPT, f"{PROMPT}-t0")
    logged = [Logged(offset, 1.0, fact) for offset, fact in enumerate(a_group((1.0,)))]
    (whole,) = _made([Listed(member)], logged)
    assert _made([Listed(member, whole.digest)], logged[::-1])[0].digest == whole.digest
    with pytest.raises(UserError, match="has other facts of trajectory"):
        _made([Listed(member, whole.digest)], logged[:-1])
    with pytest.raises(UserError, match="select without it"):
        _made([Listed(member)], None)


def test_a_batch_finds_its_conversations_among_the_rows() -> None:
    """What `to_sft` is given as chats: by the step that ends each row of the streams."""
    first = a_step((1, 2), (3, 4), new_messages=json.dumps([USER]).encode(), reply=json.dumps(ASSISTANT).encode())
    said = {"new_messages": json.dumps([USER]).encode(), "reply": json.dumps(ASSISTANT).encode()}
    child = a_child(first, (1, 2), (5,), (6,), **said)
    (rollout,) = gather([first, child, a_reward(2.0), an_end()], members(first.trajectory_uid))
    chats, _ = rows("sft", [rollout])
    merged = rows_of([first, child])
    assert merged is not None
    spans = tuple(
        StepSpan(step_id=node.step.step_id, step_index=n, start=node.start, end=node.end)
        for n, node in enumerate(merged[0].nodes)
    )
    samples, marker = a_ready_group(rewards=(1.0,), ids=(1, 2, 3, 4, 5, 6), mask=(0, 0, 1, 1, 0, 1), spans=spans)
    (row,) = list_sft(a_batch((marker, samples), algorithm="sft"), chats=chats)
    assert row["messages"] == [USER, ASSISTANT, USER, ASSISTANT]
