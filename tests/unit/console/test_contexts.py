"""A step's context is put together from what each step added, as its sender had it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.contexts import chain_of, of_chain, restore
from console.trajectory import find_step

PLACE = {"run_id": "r", "prompt_uid": "p"}
IDS = st.lists(st.integers(0, 9), max_size=6)


def a_step(step: str, parent: str | None = None, prefix: int = 0, kept: int = 0, **over: Any) -> dict[str, Any]:
    return {**PLACE, "step_id": step, "parent_step_id": parent, "prefix_len": prefix, "messages_kept": kept, **over}


def what_it_added(step: str, new: list[int], said: list[int], **over: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"new_prompt_ids": new, "response_ids": said, "rollout_log_probs": [-0.5] * len(said)}
    return {**PLACE, "step_id": step, "new_messages": "", "reply": "", **given, **over}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@given(st.lists(st.tuples(IDS, IDS, st.integers(0, 12)), min_size=1, max_size=8), st.data())
def test_every_step_has_the_tokens_that_its_sender_sent(
    turns: list[tuple[list[int], list[int], int]], data: Any
) -> None:
    """Each goes on from any of those before it, or begins anew."""
    steps: list[dict[str, Any]] = []
    added: list[dict[str, Any]] = []
    sent: dict[str, tuple[list[int], list[int]]] = {}
    for at, (new, said, most) in enumerate(turns):
        parent = data.draw(st.sampled_from([None, *sent]))
        above = [token for part in sent[parent] for token in part] if parent else []
        prefix = min(most, len(above))
        steps.append(a_step(f"s{at}", parent, prefix))
        added.append(what_it_added(f"s{at}", new, said))
        sent[f"s{at}"] = ([*above[:prefix], *new], said)
    for step in steps:
        chain = chain_of(step, steps)
        assert chain is not None
        asked = of_chain(chain)["chain"]
        context = restore(chain, [row for row in added if row["step_id"] in asked])
        assert context is not None
        assert (context["prompt_ids"], context["response_ids"]) == sent[step["step_id"]]


def test_messages_are_those_that_were_kept_then_the_new_ones_then_the_reply() -> None:
    steps = [a_step("a"), a_step("b", "a", kept=2), a_step("c", "b", kept=1)]
    added = [
        what_it_added("a", [1], [2], new_messages=json.dumps([message("user", "one")]), reply='{"role": "assistant"}'),
        what_it_added("b", [3], [4], new_messages=json.dumps([message("user", "two")])),
        what_it_added("c", [5], [6], new_messages=json.dumps([message("user", "other"), 7]), reply="<no JSON>"),
    ]
    chain = chain_of(steps[2], steps)
    assert chain == steps
    whole, before = restore(chain, added), restore(chain[:2], added)
    assert before is not None
    assert before["messages"] == [message("user", "one"), {"role": "assistant"}, message("user", "two")]
    assert whole is not None
    assert whole["messages"] == [
        message("user", "one"),
        message("user", "other"),
        {"role": "unknown", "content": 7},
        {"role": "unknown", "content": "<no JSON>"},
    ]
    assert whole["rollout_log_probs"] == [-0.5]


def test_a_step_whose_ancestor_is_missing_has_no_context() -> None:
    steps = [a_step("a"), a_step("b", "gone"), a_step("c", "b")]
    assert chain_of(steps[2], steps) is None
    assert restore([a_step("a"), a_step("b", "a")], [what_it_added("a", [1], [2])]) is None
    elsewhere = a_step("gone", run_id="another")
    assert chain_of(steps[1], [*steps, elsewhere]) is None, "steps of another run are no ancestors"


def test_steps_that_go_on_from_each_other_end() -> None:
    steps = [a_step("a", "b"), a_step("b", "a")]
    assert chain_of(steps[0], steps) is None


@pytest.mark.parametrize(
    ("steps", "asked", "found"),
    [(["a", "b"], "last", "b"), (["a", "last", "b"], "last", "last"), (["a"], "b", None), ([], "last", None)],
)
def test_the_last_step_is_found_without_its_id(steps: list[str], asked: str, found: str | None) -> None:
    step = find_step(asked, [a_step(name) for name in steps])
    assert (step and step["step_id"]) == found
