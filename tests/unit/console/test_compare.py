"""Contexts beside each other, calls on an axis of time, and steps as a forest of runs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import diffs, forest, groups, timeline

IDS = st.lists(st.integers(0, 3), max_size=30)


@given(IDS, IDS)
def test_hunks_say_all_of_both_sides_in_order(left: list[int], right: list[int]) -> None:
    found = diffs.compare(left, right)
    shared, at = found["shared"], [found["shared"]] * 2
    assert left[:shared] == right[:shared]
    assert not (left[shared : shared + 1] and left[shared : shared + 1] == right[shared : shared + 1])
    for hunk in found["hunks"]:
        (a, b), (c, d) = hunk["left"], hunk["right"]
        assert [a, c] == at
        at = [b, d]
        assert (hunk["kind"] == "same") == (left[a:b] == right[c:d])
    assert at == [len(left), len(right)]


def test_contexts_too_long_to_compare_differ_as_a_whole() -> None:
    left, right = [0, *range(1, diffs.WHOLE + 2), 9], [0, *range(2, diffs.WHOLE + 5), 9]
    found = diffs.compare(left, right)
    assert [(h["kind"], h["left"]) for h in found["hunks"]] == [
        ("differs", [1, len(left) - 1]),
        ("same", [len(left) - 1, len(left)]),
    ]


@pytest.mark.parametrize(
    ("prompt", "kind", "differs"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], "exact", None),
        ([1, 2, 3, 4, 5, 6, 7, 99], "boundary", 7),
        ([1, 2, 3, 4, 5], "boundary", 5),
        ([1, 2, 3, 99, 5], "drift", 3),
        ([1, 2, 99], "drift", 2),
        ([1, 99, 3], "root", 1),
    ],
)
def test_how_a_prompt_goes_on_is_judged_as_the_merge_does(prompt: list[int], kind: str, differs: int | None) -> None:
    found = diffs.judge(2, [1, 2, 3, 4, 5, 6, 7, 8], prompt)
    assert (found["kind"], found["differs_at"], found["by"]) == (kind, differs, "tokens")


def test_what_the_merge_recorded_goes_before() -> None:
    sample = {
        "spans": [("a", 0, 1, 2, None), ("b", 1, 3, 4, None)],
        "span_links": [("root", None, None), ("drift", "a", None)],
    }
    assert diffs.recorded([sample], "a", "b") == {
        "kind": "drift",
        "differs_at": None,
        "by": "merge",
        "means": diffs.KINDS["drift"],
    }
    assert diffs.recorded([sample], "b", "a") is None


def a_call(name: str, received: float | None, done: float | None, **over: Any) -> dict[str, Any]:
    call = {"id": name, "index": 0, "lane": 0, "finish_reason": "tool_calls", "policy_version": 1, "received": received}
    return call | {"done": done, "first_byte": None if received is None else received + 0.25} | over


def test_calls_at_once_stand_on_rows_and_what_lies_between_is_told() -> None:
    found = timeline.draw(
        [
            a_call("a", 100.0, 101.0),
            a_call("b", 103.0, 106.0, finish_reason="stop"),
            a_call("sub", 104.0, 105.0, lane=1),
            a_call("c", 108.0, 109.0, policy_version=2),
            a_call("lost", None, None),
        ]
    )
    assert [(b["step"], b["row"], b["received"], b["new_version"]) for b in found["bars"]] == [
        ("a", 0, 0.0, False),
        ("b", 0, 3.0, False),
        ("sub", 1, 4.0, False),
        ("c", 0, 8.0, True),
    ]
    assert [(g["kind"], g["from"], g["to"], g["after"]) for g in found["gaps"]] == [
        ("tools", 1.0, 3.0, "a"),
        ("agent", 6.0, 8.0, "b"),
    ]
    assert (found["model_seconds"], found["tools_seconds"], found["agent_seconds"]) == (5.0, 2.0, 2.0)
    assert (found["rows"], found["untimed"], found["seconds"]) == (2, 1, 9.0)


def test_without_times_there_is_no_axis() -> None:
    found = timeline.draw([a_call("a", None, None)])
    assert (found["bars"], found["untimed"], found["seconds"]) == ([], 1, None)


def a_step(uid: str, name: str, parent: str | None, kept: int, new: list[int], said: list[int]) -> dict[str, Any]:
    return {
        "trajectory_uid": uid,
        "step_id": name,
        "parent_step_id": parent,
        "prefix_len": kept,
        "prompt_len": kept + len(new),
        "new_prompt_ids": new,
        "response_ids": said,
    }


STEPS = [
    a_step("a", "2", "1", 5, [6], [7, 8]),
    a_step("a", "1", None, 0, [1, 2, 3], [4, 5]),
    a_step("b", "1", None, 0, [1, 2, 3], [9]),
    a_step("a", "drifted", "1", 4, [10], [11]),
    a_step("b", "orphan", "gone", 1, [1], [2]),
]


def test_what_several_steps_share_is_one_run() -> None:
    found = forest.draw(STEPS, {"a": 1.0, "b": 0.0})
    runs = [(r["start"], r["tokens"], r["sampled"], r["trajectories"], r["top"], r["rows"]) for r in found["runs"]]
    assert runs == [
        (0, 3, False, 2, 0, 3),
        (3, 1, True, 1, 0, 2),
        (4, 1, True, 1, 0, 1),
        (5, 1, False, 1, 0, 1),
        (6, 2, True, 1, 0, 1),
        (4, 1, False, 1, 1, 1),
        (5, 1, True, 1, 1, 1),
        (3, 1, True, 1, 2, 1),
    ]
    assert [r["parent"] for r in found["runs"]] == [None, 0, 1, 2, 3, 1, 5, 0]
    assert found["runs"][0]["reward"] == 0.5
    assert [r["step"] for r in found["runs"]][4:7] == ["2", None, "drifted"]


def test_savings_are_tokens_of_steps_of_trajectories_and_of_the_forest() -> None:
    found = forest.draw(STEPS, {})
    assert (found["step_tokens"], found["apart_tokens"], found["tokens"]) == (8 + 5 + 4 + 6, 10 + 4, 11)
    assert (found["steps"], found["lost"], found["trajectories"], found["leaves"]) == (4, 1, 2, 3)


def test_a_group_without_deviation_is_flat_and_one_reward_is_not() -> None:
    assert groups.spread([0.1, 0.1, None, 0.1]) == {"mean": pytest.approx(0.1), "deviation": 0.0, "flat": True}
    assert groups.spread([1.0, None])["flat"] is False
    assert groups.spread([None]) == {"mean": None, "deviation": None, "flat": False}
    assert groups.spread([0.0, 1.0])["deviation"] == 0.5


def test_a_later_rounds_prompt_is_its_id_without_the_number() -> None:
    assert groups.place("r", "p#2")["prompts"] == ["p", "p#2"]
    assert groups.place("r", "p")["prompts"] == ["p"]
