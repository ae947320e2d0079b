"""A trajectory's facts become one state, in whatever order and however often they come."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.events import Reward, Step
from streams.join import TrajectoryState, add_reward, effective_rewards, is_number, order_steps, total
from tests.factories import a_child, a_reward, a_started, a_step, a_trajectory, an_end, an_open
from tests.unit.streams.conversations import Call, a_conversation


def rewarded(*facts: Reward) -> dict[tuple[str | None, str], Reward]:
    rewards: dict[tuple[str | None, str], Reward] = {}
    for fact in facts:
        add_reward(rewards, fact)
    return rewards


def values(own: list[Reward], group: list[Reward] | None = None) -> dict[str, float]:
    return {r.source: r.value for r in effective_rewards(rewarded(*own), rewarded(*(group or [])))}


def test_the_latest_revision_wins_in_any_order() -> None:
    old, new = a_reward(1.0), a_reward(0.25, revision=1)
    assert values([old, new]) == values([new, old]) == {"reward": 0.25}


def test_equal_revisions_are_resolved_alike_in_any_order() -> None:
    one, two = a_reward(1.0, fact_id="a"), a_reward(2.0, fact_id="b")
    assert values([one, two]) == values([two, one]) == {"reward": 1.0}


def test_a_withdrawn_reward_is_missing_and_not_zero() -> None:
    assert values([a_reward(1.0), a_reward(None, revision=1)]) == {}
    assert values([a_reward(1.0), a_reward(None, revision=1), a_reward(0.5, revision=2)]) == {"reward": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_missing_and_no_coarser_one_replaces_it(value: float) -> None:
    group = [a_reward(1.0, trajectory_uid=None)]
    assert values([a_reward(value)]) == {}
    assert values([a_reward(value)], group) == {}
    assert values([a_reward(value, step_id="s0"), a_reward(1.0, step_id="s1")], group) == {}


def test_a_trajectorys_reward_hides_its_steps_and_these_the_groups() -> None:
    group = [a_reward(5.0, trajectory_uid=None), a_reward(6.0, trajectory_uid=None, source="style")]
    steps = [a_reward(0.5, step_id="s0"), a_reward(0.25, step_id="s1")]
    assert values([], group) == {"reward": 5.0, "style": 6.0}
    assert values(steps, group) == {"reward": 0.75, "style": 6.0}
    assert values([*steps, a_reward(3.0)], group) == {"reward": 3.0, "style": 6.0}


def test_a_steps_withdrawn_reward_leaves_the_sum_to_the_others() -> None:
    steps = [a_reward(0.5, step_id="s0"), a_reward(0.25, step_id="s1"), a_reward(None, step_id="s0", revision=1)]
    assert values(steps) == {"reward": 0.25}


def test_sources_are_apart_and_in_order() -> None:
    found = effective_rewards(rewarded(a_reward(1.0, source="b"), a_reward(2.0, source="a")), {})
    assert [(r.source, r.value) for r in found] == [("a", 2.0), ("b", 1.0)]


def test_one_self_reported_step_marks_the_sum() -> None:
    (found,) = effective_rewards(
        rewarded(a_reward(1.0, step_id="a", self_reported=True), a_reward(1.0, step_id="b")), {}
    )
    assert found.self_reported


@given(st.lists(st.floats(), max_size=6), st.randoms())
def test_a_sum_is_the_same_in_any_order_and_never_raises(numbers: list[float], rng: random.Random) -> None:
    before = total(numbers)
    rng.shuffle(numbers)
    assert total(numbers) == before or (math.isnan(total(numbers)) and math.isnan(before))


def test_rewards_that_overflow_are_missing() -> None:
    assert math.isnan(total([1e308, 1e308]))
    assert math.isnan(total([math.inf, -math.inf]))
    assert values([a_reward(1.7e308, step_id="a"), a_reward(1.7e308, step_id="b")]) == {}
    assert not is_number(None)


def test_parents_come_before_their_children_whatever_their_clocks_say() -> None:
    parent = a_step((1,), (2,), step_id="z", timings={"received": 20.0})
    child = a_child(parent, (1,), (3,), (4,), timings={"received": 10.0})
    assert [s.step_id for s in order_steps([child, parent])] == [parent.step_id, child.step_id]


def test_the_senders_index_goes_before_its_clock() -> None:
    steps = [
        a_step((1,), step_id="c"),
        a_step((1,), step_id="b", timings={"received": 1.0}),
        a_step((1,), step_id="a", timings={"received": 2.0}),
        a_step((1,), step_id="d", step_index=0),
    ]
    assert [s.step_id for s in order_steps(steps)] == ["d", "b", "a", "c"]


@given(st.builds(a_conversation, st.integers(0, 2**32)), st.randoms())
def test_order_does_not_depend_on_arrival(calls: list[Call], rng: random.Random) -> None:
    steps = [call.step for call in calls]
    expected = order_steps(steps)
    rng.shuffle(steps)
    found = order_steps([*steps, *steps])
    assert found == expected
    place = {step.step_id: n for n, step in enumerate(found)}
    assert all(place[s.parent_step_id] < place[s.step_id] for s in found if s.parent_step_id is not None)


@given(st.randoms(), st.integers(1, 4))
def test_any_order_of_a_trajectorys_facts_gives_one_state(rng: random.Random, steps: int) -> None:
    facts = [
        *a_trajectory(steps=steps),
        an_open(channel="val", metadata={"a": 1}),
        an_open(fact_id="other", channel="train", task_id="task", metadata={"a": 2}),
        a_reward(2.0, revision=1),
        a_reward(3.0, source="style"),
        an_end(fact_id="0", status="truncated"),
    ]

    def fold() -> TrajectoryState:
        state = TrajectoryState("trajectory-1")
        for fact in facts:
            state.add(fact, 5.0)  # type: ignore[arg-type]
        return state

    expected = fold()
    rng.shuffle(facts)
    found = fold()
    for name in ("opens", "started", "steps", "rewards", "end", "ended_at", "channel", "task_id", "metadata"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.end is not None
    assert (found.channel, found.end.status, found.missing_steps) == ("train", "truncated", set())


def test_the_first_end_signal_sets_the_time() -> None:
    state = TrajectoryState("t")
    state.add(an_end(fact_id="b"), 5.0)
    state.add(an_end(fact_id="a", status="failed"), 9.0)
    assert state.ended_at == 5.0
    assert state.end is not None
    assert state.end.status == "failed"


def test_what_opens_a_trajectory_and_what_does_not() -> None:
    state = TrajectoryState("t")
    state.add(a_reward(), 1.0)
    state.add(an_end(), 1.0)
    assert not state.opened
    assert state.orphans == [a_reward().fact_id, an_end().fact_id]
    state.add(a_started(a_step()), 1.0)
    assert state.opened
    assert state.missing_steps == {a_step().step_id}


def test_another_payload_under_a_known_step_id_changes_nothing() -> None:
    state = TrajectoryState("t")
    first = a_step(step_id="s", channel="train")
    state.add(first, 1.0)
    state.add(Step.model_validate(first.model_dump() | {"fact_id": "f2", "channel": "a"}), 1.0)
    assert state.steps == {"s": first}
    assert state.channel == "train"


# ------------------------------------------------------------------------------------- rewards of all levels, in any order

levels = st.sampled_from([(None, None), ("trajectory-1", None), ("trajectory-1", "s0"), ("trajectory-1", "s1")])
reward_values = st.one_of(st.none(), st.integers(-3, 3).map(float), st.just(math.nan))
said = st.lists(st.tuples(levels, st.sampled_from(["a", "b"]), st.integers(0, 2), reward_values), max_size=12)


def expected_rewards(facts: list[Reward]) -> dict[str, float]:
    """By level the highest revision; of the levels the finest that has one, and no coarser one where that is missing."""
    latest: dict[tuple[str | None, str | None, str], Reward] = {}
    for fact in sorted(facts, key=lambda r: (r.revision, [-ord(c) for c in r.fact_id])):
        latest[fact.trajectory_uid, fact.step_id, fact.source] = fact
    found: dict[str, float] = {}
    for source in ("a", "b"):
        own = latest.get(("trajectory-1", None, source))
        steps = [f.value for (t, s, o), f in latest.items() if s is not None and o == source and f.value is not None]
        group = latest.get((None, None, source))
        value = (
            own.value if own is not None else math.fsum(steps) if steps else group.value if group is not None else None
        )
        if value is not None and math.isfinite(value):
            found[source] = value
    return found


@settings(deadline=None)
@given(said, st.randoms())
def test_any_order_and_repetition_of_rewards_gives_what_the_rules_say(
    drawn: list[tuple[tuple[str | None, str | None], str, int, float | None]], rng: random.Random
) -> None:
    facts = [
        a_reward(value, trajectory_uid=uid, step_id=step_id, source=source, revision=revision, fact_id=f"f{n:02}")
        for n, ((uid, step_id), source, revision, value) in enumerate(drawn)
    ]
    shuffled = [*facts, *rng.sample(facts, len(facts) // 2)]
    rng.shuffle(shuffled)
    mine = [fact for fact in shuffled if fact.trajectory_uid is not None]
    assert values(mine, [fact for fact in shuffled if fact.trajectory_uid is None]) == expected_rewards(facts)


def test_components_of_steps_add_up_by_name() -> None:
    steps = [
        a_reward(0.5, step_id="s0", components={"style": 0.25, "length": 1.0}),
        a_reward(0.25, step_id="s1", components={"style": 0.5, "broken": math.inf}),
        a_reward(None, step_id="s2", components={"style": 9.0}),
    ]
    (found,) = effective_rewards(rewarded(*steps), {})
    assert (found.value, found.components) == (0.75, {"length": 1.0, "style": 0.75})
