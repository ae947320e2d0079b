"""Steps become rows: exact prefixes only, every sampled token trained once, log-probs as captured."""

import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, pack_ids, prefix_hash, unpack_floats, unpack_ids, unpack_mask
from claw_r1.errors import InvalidRecord
from claw_r1.events import BlobRef, ExpertsSpan, Sampling, Step, VersionSpan
from claw_r1.trainable import ALLOWABLE, why_masked
from streams.forest import build_forest
from streams.merge import Row, merge_steps, rows_of
from tests.factories import a_child, a_step, a_trajectory
from tests.unit.streams.conversations import UNTRAINABLE, Call, a_conversation

ANY_VERSION = frozenset({"unknown_version"})


def rows(*steps: Step, allow: frozenset[str] = ANY_VERSION) -> list[Row]:
    return merge_steps(steps).rows(allow)


def ids(row: Row) -> list[int]:
    return [int(token) for token in unpack_ids(row.token_ids)]


def mask(row: Row) -> list[int]:
    return [int(bit) for bit in unpack_mask(bytes(row.loss_mask))]


def test_a_linear_chain_is_one_row() -> None:
    steps = [fact for fact in a_trajectory(steps=3) if isinstance(fact, Step)]
    (row,) = rows(*steps)
    assert ids(row) == [1, 2, 3, 10, 11, 21, 22, 11, 12, 22, 23, 12, 13]
    assert mask(row) == [0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    assert [node.index for node in row.nodes] == [0, 1, 2]
    assert row.mask_reasons == {}


def test_a_chain_of_full_contexts_is_one_row_whatever_the_clocks_say() -> None:
    first = a_step((1, 2), (3,), step_id="b", timings={"received": 20.0})
    second = a_step((1, 2, 3, 4), (5,), step_id="a", timings={"received": 10.0})
    (row,) = rows(second, first)
    assert ids(row) == [1, 2, 3, 4, 5]
    assert [node.step.step_id for node in row.nodes] == ["b", "a"]


def test_a_sub_agent_is_a_row_of_its_own() -> None:
    main = a_step((1, 2), (3,), step_index=0)
    sub = a_step((7, 8), (9,), step_index=1)
    back = a_step((1, 2, 3, 4), (5,), step_index=2)
    found = rows(main, sub, back)
    assert [ids(row) for row in found] == [[7, 8, 9], [1, 2, 3, 4, 5]]
    assert [mask(row) for row in found] == [[0, 0, 1], [0, 0, 1, 0, 1]]


def test_branches_train_a_shared_response_once() -> None:
    trunk = a_step((1, 2), (3, 4), step_index=0)
    left = a_step((1, 2, 3, 4, 5), (6,), step_index=1)
    right = a_step((1, 2, 3, 4, 7), (8,), step_index=2)
    one, two = rows(trunk, left, right)
    assert mask(one) == [0, 0, 1, 1, 0, 1]
    assert mask(two) == [0, 0, 0, 0, 0, 1]
    assert two.mask_reasons == {"shared": 2}


def test_each_step_is_a_row_where_that_is_asked() -> None:
    steps = [fact for fact in a_trajectory(steps=3) if isinstance(fact, Step)]
    found = merge_steps(steps).rows(ANY_VERSION, by_step=True)
    assert [ids(row) for row in found] == [
        [1, 2, 3, 10, 11],
        [1, 2, 3, 10, 11, 21, 22, 11, 12],
        [1, 2, 3, 10, 11, 21, 22, 11, 12, 22, 23, 12, 13],
    ]
    assert [mask(row) for row in found] == [[0] * 3 + [1] * 2, [0] * 7 + [1] * 2, [0] * 11 + [1] * 2]
    assert [[node.index for node in row.nodes] for row in found] == [[0], [1], [2]]


def test_a_prompt_that_is_no_exact_extension_begins_a_new_chain() -> None:
    first = a_step((1, 2), (3, 4), step_index=0)
    drifted = a_step((1, 2, 3, 9, 5), (6,), step_index=1)
    shortened = a_step((1, 2, 3), (6,), step_index=2)
    assert [ids(row) for row in rows(first, drifted, shortened)] == [[1, 2, 3, 4], [1, 2, 3, 9, 5, 6], [1, 2, 3, 6]]


def test_the_same_call_twice_is_two_rows_and_its_continuation_follows_the_first() -> None:
    once = a_step((1,), (2,), step_id="a", step_index=0)
    again = a_step((1,), (2,), step_id="b", step_index=1)
    more = a_step((1, 2, 3), (4,), step_id="c", step_index=2)
    assert [[node.step.step_id for node in row.nodes] for row in rows(once, again, more)] == [["b"], ["a", "c"]]


def test_a_response_without_tokens_is_nobodys_parent() -> None:
    silent = a_step((1, 2), (), step_index=0)
    spoken = a_step((1, 2, 3), (4,), step_index=1)
    silent_row, row = rows(silent, spoken)
    assert silent_row.trained_tokens == 0
    assert [node.step.step_id for node in row.nodes] == [spoken.step_id]


@pytest.mark.parametrize("reason", sorted(UNTRAINABLE))
def test_what_must_not_be_trained_is_masked_with_its_reason(reason: str) -> None:
    first = a_step((1, 2), (3, 4), step_id="first", **UNTRAINABLE[reason])
    second = a_child(first, (1, 2), (5,), (6,))
    (row,) = rows(first, second)
    assert why_masked(first) == reason
    assert mask(row) == [0, 0, 0, 0, 0, 1]
    assert row.mask_reasons == {reason: 2}
    assert unpack_floats(bytes(row.log_probs)).tolist() == [0, 0, 0, 0, 0, -0.5]


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"temperature": 0.7, "log_probs_mode": "processed"}, None),
        ({"temperature": 1.0, "log_probs_mode": "raw"}, None),
        ({"temperature": 1.0, "top_p": 0.9}, "raw_log_probs"),
        ({"temperature": 1.0, "top_k": 20}, "raw_log_probs"),
        ({"temperature": 1.0, "top_k": -1, "top_p": 1.0}, None),
        ({"temperature": 0.0, "log_probs_mode": "processed"}, "temperature_zero"),
        ({}, None),
    ],
)
def test_log_probs_must_be_those_of_the_distribution_that_sampled(over: dict[str, Any], reason: str | None) -> None:
    assert why_masked(a_step(sampling=Sampling(**over))) == reason


def test_log_probs_of_another_length_are_no_log_probs() -> None:
    assert why_masked(a_step(response=(4, 5), rollout_log_probs=pack_floats([-0.5]))) == "no_log_probs"


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_log_probs_that_are_no_numbers_are_no_log_probs(value: float) -> None:
    assert why_masked(a_step(response=(4, 5), rollout_log_probs=pack_floats([-0.5, value]))) == "no_log_probs"


def test_a_partial_step_has_no_row_but_its_context_restores_others() -> None:
    partial = a_step((1, 2), (3,), step_id="partial", status="partial")
    after = a_child(partial, (1, 2), (4,), (5,))
    (row,) = rows(partial, after)
    assert ids(row) == [1, 2, 3, 4, 5]
    assert mask(row) == [0, 0, 0, 0, 1]


def test_failed_steps_have_no_row() -> None:
    assert rows(a_step(status="failed", response=())) == []


def test_a_context_that_cannot_be_restored_is_refused() -> None:
    parent = a_step((1, 2), (3,))
    child = a_child(parent, (1, 2), (4,), (5,))
    other = child.model_copy(update={"prefix_hash": b"another"})
    assert rows_of([child]) is None
    assert rows_of([parent, other]) is None
    with pytest.raises(InvalidRecord) as lost:
        build_forest([child])
    assert lost.value.reason == "no_parent"


def test_steps_that_name_each_other_are_refused() -> None:
    one = a_step(step_id="one", parent_step_id="two", prefix_len=1, prefix_hash=b"")
    two = a_step(step_id="two", parent_step_id="one", prefix_len=1, prefix_hash=b"")
    with pytest.raises(InvalidRecord) as cycle:
        build_forest([one, two])
    assert cycle.value.reason == "cycle"


# ------------------------------------------------------------------------------------------------------------ properties

conversations = st.builds(a_conversation, st.integers(0, 2**32))


def by_id(calls: list[Call]) -> dict[str, Call]:
    return {call.step.step_id: call for call in calls}


@settings(max_examples=150, deadline=None)
@given(conversations)
def test_every_row_is_a_sequence_that_the_engine_saw(calls: list[Call]) -> None:
    known = by_id(calls)
    for row in rows(*(call.step for call in calls)):
        leaf = known[row.nodes[-1].step.step_id]
        assert tuple(ids(row)) == leaf.context
        for node in row.nodes:
            call = known[node.step.step_id]
            assert (node.start, node.end) == (len(call.prompt), len(call.context))
            assert leaf.context[: node.end] == call.context


@settings(max_examples=150, deadline=None)
@given(conversations)
def test_every_step_is_in_a_row_and_its_parent_is_the_longest_exact_prefix(calls: list[Call]) -> None:
    merged = merge_steps(call.step for call in calls)
    known = by_id(calls)
    assert {node.step.step_id for row in merged.rows() for node in row.nodes} == known.keys()
    for node in merged.nodes:
        prompt = known[node.step.step_id].prompt
        fits = [len(c.context) for c in calls if c.response and prompt[: len(c.context)] == c.context]
        parent = node.parent
        assert (None if parent is None else parent.end) == max(fits, default=None)


@settings(max_examples=150, deadline=None)
@given(conversations)
def test_every_sampled_token_is_trained_exactly_once_with_its_own_log_prob(calls: list[Call]) -> None:
    known = by_id(calls)
    trained: dict[str, tuple[list[int], list[float]]] = {}
    masked: dict[str, int] = {}
    for row in rows(*(call.step for call in calls)):
        bits, log_probs = mask(row), unpack_floats(bytes(row.log_probs)).tolist()
        inside = 0
        for node in row.nodes:
            span = slice(node.start, node.end)
            if any(bits[span]):
                assert all(bits[span])
                assert node.step.step_id not in trained
                trained[node.step.step_id] = (ids(row)[span], log_probs[span])
                inside += node.end - node.start
        assert sum(bits) == inside == row.trained_tokens
        assert all(value == 0.0 for bit, value in zip(bits, log_probs, strict=True) if not bit)
        responses = sum(node.end - node.start for node in row.nodes)
        assert responses == inside + sum(row.mask_reasons.values())
        for reason, count in row.mask_reasons.items():
            masked[reason] = masked.get(reason, 0) + count
    assert {step_id: (tuple(t), tuple(p)) for step_id, (t, p) in trained.items()} == {
        step_id: (call.response, call.log_probs)
        for step_id, call in known.items()
        if call.reason is None and call.response
    }
    assert {reason for reason, count in masked.items() if count} - {"shared"} <= {c.reason for c in calls}


@settings(max_examples=100, deadline=None)
@given(conversations)
def test_rows_of_steps_train_what_merged_rows_train(calls: list[Call]) -> None:
    merged = merge_steps([call.step for call in calls])

    def trained(found: list[Row]) -> list[tuple[str, list[int], bytes]]:
        return sorted(
            (node.step.step_id, ids(row)[: node.end], bytes(row.log_probs[4 * node.start : 4 * node.end]))
            for row in found
            for node in row.nodes
            if 1 in row.loss_mask[node.start : node.end]
        )

    by_step = merged.rows(ANY_VERSION, by_step=True)
    assert trained(by_step) == trained(merged.rows(ANY_VERSION))
    assert [len(row.loss_mask) for row in by_step] == [node.end for node in merged.nodes]
    assert sum(row.mask_reasons["shared"] for row in by_step) == 0


@settings(max_examples=100, deadline=None)
@given(conversations)
def test_version_spans_cover_the_responses_of_a_row(calls: list[Call]) -> None:
    for row in rows(*(call.step for call in calls)):
        expected: list[VersionSpan] = []
        for node in row.nodes:
            step = node.step
            own = step.version_spans or [VersionSpan(version=step.policy_version, start=0, end=step.response_len)]
            expected += [
                VersionSpan(version=v.version, start=node.start + v.start, end=node.start + v.end)
                for v in own
                if v.end > v.start
            ]
        assert row.versions == expected


@settings(max_examples=100, deadline=None)
@given(conversations, st.integers(0, 1000))
def test_the_order_in_which_steps_arrive_changes_nothing(calls: list[Call], seed: int) -> None:
    steps = [call.step for call in calls]
    expected = rows(*steps)
    random.Random(seed).shuffle(steps)
    found = rows(*steps)
    assert [(r.token_ids, r.loss_mask, r.log_probs, r.versions, r.mask_reasons) for r in found] == [
        (r.token_ids, r.loss_mask, r.log_probs, r.versions, r.mask_reasons) for r in expected
    ]


# -------------------------------------------------------------------------------------------- versions, media, long ones


def test_tokens_of_unknown_weights_are_masked_unless_they_are_allowed() -> None:
    spans = (VersionSpan(version=3, start=0, end=1), VersionSpan(version=None, start=1, end=3))
    step = a_step((1, 2), (3, 4, 5, 6), version_spans=(*spans, VersionSpan(version=4, start=3, end=4)))
    (row,) = rows(step, allow=frozenset())
    assert mask(row) == [0, 0, 1, 0, 0, 1]
    assert row.mask_reasons == {"unknown_version": 2}
    assert unpack_floats(bytes(row.log_probs)).tolist() == [0, 0, -0.5, 0, 0, -0.5]
    assert mask(rows(step)[0]) == [0, 0, 1, 1, 1, 1]


def test_branches_share_a_response_of_which_some_tokens_are_of_unknown_weights() -> None:
    spans = (VersionSpan(version=3, start=0, end=1),)
    trunk = a_step((1, 2), (3, 4), version_spans=spans, step_index=0)
    branches = [a_step((1, 2, 3, 4, 5 + n), (8,), step_index=1 + n) for n in range(2)]
    one, two = rows(trunk, *branches, allow=frozenset())
    assert (mask(one), one.mask_reasons) == ([0, 0, 1, 0, 0, 1], {"unknown_version": 1})
    assert (mask(two), two.mask_reasons) == ([0, 0, 0, 0, 0, 1], {"shared": 1, "unknown_version": 1})


@pytest.mark.parametrize("reason", sorted(UNTRAINABLE))
def test_what_is_allowed_is_trained(reason: str) -> None:
    step = a_step((1, 2), (3, 4), **UNTRAINABLE[reason])
    (row,) = rows(step, allow=frozenset({reason, "raw_log_probs"}))
    assert row.trained_tokens == (2 if reason in ALLOWABLE else 0)


def picture(name: str) -> tuple[BlobRef, ...]:
    return (BlobRef(sha256=name, bytes=1, kind="image/png"),)


def test_the_same_tokens_over_another_picture_are_no_prefix() -> None:
    first = a_step((1, 2), (3,), multi_modal_data=picture("a"), step_index=0)
    same = a_step((1, 2, 3, 4), (5,), multi_modal_data=picture("a") + picture("b"), step_index=1)
    other = a_step((1, 2, 3, 4), (6,), multi_modal_data=picture("b"), step_index=2)
    found = rows(first, same, other)
    assert [(ids(row), row.media) for row in found] == [
        ([1, 2, 3, 4, 5], picture("a") + picture("b")),
        ([1, 2, 3, 4, 6], picture("b")),
    ]
    assert [row.links for row in found] == [{"exact": 1, "root": 1}, {"root": 1}]


def test_experts_of_a_step_that_has_none_are_not_known() -> None:
    first = a_step((1, 2), (3, 4), step_id="a", step_index=0)
    blob = picture("experts")[0]
    second = a_step((1, 2, 3, 4, 5), (6, 7), step_id="b", routed_experts=blob, step_index=1)
    (row,) = rows(first, second)
    assert row.experts == (ExpertsSpan(step_id="b", blob=blob, start=3, end=6),)


@pytest.mark.parametrize(
    ("prompt", "kind", "differs_at"),
    [
        ((1, 2, 3, 4, 5, 6, 9), "exact", None),
        ((1, 2, 3, 4, 5, 7, 9), "boundary", 5),
        ((1, 2, 3, 4, 5), "boundary", 5),
        ((1, 2, 3, 7), "boundary", 3),
        ((1, 2, 7, 7), "drift", 2),
        ((1, 2), "root", None),
        ((1, 7, 3, 4, 5, 6, 9), "root", None),
        ((7,), "root", None),
    ],
)
def test_links_are_told_apart_by_tokens(prompt: tuple[int, ...], kind: str, differs_at: int | None) -> None:
    first = a_step((1, 2), (3, 4, 5, 6), step_id="a", step_index=0, new_messages=None)
    second = a_step(prompt, (8,), step_id="b", step_index=1, new_messages=None)
    _, node = merge_steps([first, second]).nodes
    assert (node.link.kind, node.link.differs_at) == (kind, differs_at)
    assert (node.link.to is None) == (kind == "root")


def test_a_history_that_differs_before_the_response_is_drift_where_the_messages_go_on() -> None:
    first = a_step((1, 2), (3,), step_id="a", step_index=0)
    goes_on = b'[{"role":"user","content":"hello!"},{"role":"assistant","content":"world"},{"role":"user"}]'
    second = a_step((9, 2, 3, 4), (5,), step_id="b", step_index=1, new_messages=goes_on)
    summary = (
        b'[{"role":"user","content":"so far"},{"role":"user"},{"role":"assistant","content":"world"},{"role":"user"}]'
    )
    third = a_step((8, 3, 4), (5,), step_id="c", step_index=2, new_messages=summary)
    merged = merge_steps([first, second, third])
    assert [(n.link.kind, n.link.differs_at) for n in merged.nodes] == [("root", None), ("drift", 0), ("root", None)]
    assert merged.links == {"drift": 1, "root": 2}


def test_what_a_long_trajectory_holds_grows_with_its_tokens() -> None:
    """A thousand steps, each with all before it: a copy of each context would be 200 MB."""
    steps = []
    context = b""
    for index in range(1000):
        new = pack_ids(range(index * 100, index * 100 + 50))
        response = range(index * 100 + 50, index * 100 + 100)
        delta = {
            "parent_step_id": f"s{index - 1:04}" if index else None,
            "prefix_len": len(context) // 4,
            "prefix_hash": prefix_hash(context) if index else None,
            "messages_kept": 2 * index,
        }
        step = a_step((), tuple(response), step_id=f"s{index:04}", new_prompt_ids=new, **delta)
        steps.append(step)
        context += new + step.response_ids
    tracemalloc.start()
    try:
        (row,) = rows(*steps)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert row.token_ids == context
    assert row.trained_tokens == 50_000
    assert peak < 20e6
    assert held < 10e6
