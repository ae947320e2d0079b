"""What generated rollouts are known to be is what the merge finds, and any order of their facts gives the same samples."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, unpack_floats, unpack_ids
from claw_r1.events import Event, Fact, GroupReady, Sample
from claw_r1.reasons import MASKS
from streams.merge import Merged, merge_steps
from streams.state import PartitionState
from tests.factories import a_recipe, a_reward, an_annotation, an_end
from tests.unit.streams.partition_log import START, set_recipe
from tests.unit.streams.rollouts import Call, a_rollout

rollouts = st.builds(a_rollout, st.integers(0, 2**32))


def merged_of(calls: list[Call]) -> tuple[Merged, dict[str, Call]]:
    return merge_steps(call.step for call in calls), {call.step.step_id: call for call in calls}


@settings(max_examples=300, deadline=None)
@given(rollouts)
def test_every_link_is_of_its_kind_and_says_where_the_tokens_part(calls: list[Call]) -> None:
    merged, known = merged_of(calls)
    for node in merged.nodes:
        call = known[node.step.step_id]
        to = None if node.link.to is None else known[node.link.to.step.step_id]
        assert (node.link.kind, to, node.link.differs_at) == (call.kind, call.to, call.differs_at)
        if node.link.differs_at is not None:
            assert to is not None
            sequence = (*call.prompt, None)
            assert call.prompt[: node.link.differs_at] == to.context[: node.link.differs_at]
            assert sequence[node.link.differs_at] != to.context[node.link.differs_at]


@settings(max_examples=300, deadline=None)
@given(rollouts)
def test_of_the_tries_of_a_call_the_one_that_was_gone_on_from_is_trained(calls: list[Call]) -> None:
    merged, known = merged_of(calls)
    assert merged.retried == {step_id: call.reason for step_id, call in known.items() if call.reason is not None}
    assert set(merged.retried.values()) <= set(MASKS)


@settings(max_examples=300, deadline=None)
@given(rollouts)
def test_replies_that_nobody_captured_are_counted(calls: list[Call]) -> None:
    merged, known = merged_of(calls)
    for row in merged.rows():
        assert row.holes == known[row.nodes[-1].step.step_id].holes


@settings(max_examples=300, deadline=None)
@given(rollouts)
def test_a_row_is_what_the_engine_saw_and_trains_each_sampled_token_once(calls: list[Call]) -> None:
    merged, known = merged_of(calls)
    trained: dict[str, tuple[int, ...]] = {}
    for row in merged.rows():
        leaf = known[row.nodes[-1].step.step_id]
        ids = tuple(unpack_ids(row.token_ids).tolist())
        assert (ids, row.media) == (leaf.context, leaf.media)
        inside = bytearray(len(ids))
        for node in row.nodes:
            call = known[node.step.step_id]
            assert ids[: node.end] == call.context
            bits = row.loss_mask[node.start : node.end]
            inside[node.start : node.end] = bits
            if any(bits):
                assert node.step.step_id not in trained
                assert all(bits)
                trained[node.step.step_id] = ids[node.start : node.end]
                assert bytes(row.log_probs[4 * node.start : 4 * node.end]) == node.step.rollout_log_probs
        assert inside == row.loss_mask, "what no captured step sampled is never trained"
    assert trained == {step_id: call.response for step_id, call in known.items() if call.reason is None}


@settings(max_examples=100, deadline=None)
@given(rollouts)
def test_routed_experts_are_those_of_the_step_that_first_read_the_token(calls: list[Call]) -> None:
    merged, known = merged_of(calls)
    for row in merged.rows():
        covered: dict[int, str] = {}
        for span in row.experts:
            assert span.blob == known[span.step_id].step.routed_experts
            for at in range(span.start, span.end):
                assert covered.setdefault(at, span.step_id) == span.step_id
        reader = {}
        for node in reversed(row.nodes):
            reader.update(dict.fromkeys(range(node.end - 1), node.step))
        assert covered == {at: step.step_id for at, step in reader.items() if step.routed_experts is not None}


def outputs(facts: list[Fact]) -> list[Event]:
    """Samples and marker of the group that the facts are, which end with its size."""
    state = PartitionState(0)
    written = []
    for fact in [set_recipe(a_recipe(group={"size": 1, "end_grace": 5})), *facts]:
        written += state.apply(fact, state.position, START)
    written += state.tick(START + 3600)
    ignored = {"pos": 0, "at": 0.0}
    return [o.event.model_copy(update=ignored) for o in written if isinstance(o.event, Sample | GroupReady)]


@settings(max_examples=100, deadline=None)
@given(rollouts, st.randoms())
def test_any_order_and_repetition_of_the_facts_gives_equal_samples(calls: list[Call], rng: random.Random) -> None:
    facts: list[Fact] = [call.step for call in calls]
    for call in calls:
        for name in ("values", "ref_log_probs"):
            for revision in range(rng.randint(0, 2)):
                length = len(call.response) if rng.random() < 0.8 else rng.choice((0, 1))
                values = pack_floats(rng.random() for _ in range(length))
                facts.append(an_annotation(call.step, name, values, revision=revision))
        if rng.random() < 0.3:
            facts.append(a_reward(rng.random(), step_id=call.step.step_id, source="shape", revision=rng.randint(0, 1)))
    facts += [a_reward(None, source="judge", revision=1), a_reward(9.0, source="judge")]
    last: list[Fact] = [an_end(), a_reward(1.0)]
    expected = outputs([*facts, *last])
    shuffled = [*facts, *rng.sample(facts, len(facts) // 2)]
    rng.shuffle(shuffled)
    rng.shuffle(last)
    assert outputs([*shuffled, *last]) == expected


@settings(max_examples=100, deadline=None)
@given(rollouts)
def test_what_a_group_says_of_its_members_adds_up(calls: list[Call]) -> None:
    events = outputs([*(call.step for call in calls), a_reward(1.0), an_end()])
    samples = [e for e in events if isinstance(e, Sample)]
    if not samples:
        assert all(call.reason is not None for call in calls)
        return
    (ready,) = [e for e in events if isinstance(e, GroupReady)]
    (member,) = ready.members
    assert sum(member.links.values()) == len(calls)
    assert member.step_tokens == sum(len(call.context) for call in calls)
    assert ready.trained_tokens == sum(len(call.response) for call in calls if call.reason is None)
    assert member.step_tokens >= ready.tokens
    for sample in samples:
        assert sum(sample.links.values()) == len(sample.spans)
        assert sample.holes is not None
        log_probs = unpack_floats(sample.rollout_log_probs)
        assert all(p == 0 for p, bit in zip(log_probs, sample.loss_mask, strict=True) if not bit)
