"""Arrays that annotate steps lie over the samples, token by token; what does not fit is counted and never taken for 0."""

import math
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, unpack_floats
from claw_r1.events import Annotation, GroupReady, Sample, Step
from claw_r1.reasons import ANNOTATIONS
from streams.annotations import Laid, count_unused, lay, row_bytes
from streams.join import TrajectoryState
from streams.merge import merge_steps
from streams.state import PartitionState
from tests.factories import TRAJECTORY, a_child, a_recipe, a_reward, a_step, an_annotation, an_end
from tests.unit.streams.partition_log import START, set_recipe

FIRST = a_step((1, 2), (3, 4), step_id="first")
SECOND = a_child(FIRST, (1, 2), (5,), (6,), step_id="second")


def array(*values: float) -> bytes:
    return pack_floats(values)


def state_of(*facts: Step | Annotation) -> TrajectoryState:
    state = TrajectoryState(TRAJECTORY)
    for fact in facts:
        state.add(fact, 1.0)
    return state


def laid(*facts: Annotation, steps: tuple[Step, ...] = (FIRST, SECOND)) -> Laid:
    state = state_of(*steps, *facts)
    (row,) = merge_steps(steps).rows()
    return lay(row, state.annotations)


def unused(*facts: Annotation) -> dict[str, int]:
    return count_unused(state_of(*facts).annotations, merge_steps([FIRST, SECOND]).nodes)


def test_arrays_of_a_row_have_a_value_for_each_token() -> None:
    found = laid(
        an_annotation(FIRST, "values", array(0.5, 0.25)),
        an_annotation(SECOND, "values", array(1.5)),
        an_annotation(SECOND, "advantages", array(2.0)),
        an_annotation(FIRST, "advantages", array(1.0, 0.0)),
    )
    assert list(found.arrays) == ["advantages", "values"]
    assert unpack_floats(found.arrays["values"]).tolist() == [0, 0, 0.5, 0.25, 0, 1.5]
    assert unpack_floats(found.arrays["advantages"]).tolist() == [0, 0, 1.0, 0.0, 0, 2.0]
    assert found.missing == {}


def test_a_name_that_a_trained_token_lacks_is_left_out_and_said() -> None:
    assert laid(an_annotation(FIRST, "values", array(0.5, 0.25))) == Laid({}, {"values": 1})
    assert laid(an_annotation(SECOND, "values", array(1.5))) == Laid({}, {"values": 2})
    assert laid() == Laid({}, {})


def test_a_name_that_only_masked_tokens_lack_is_there() -> None:
    frozen = FIRST.model_copy(update={"role": "frozen"})
    found = laid(an_annotation(SECOND, "values", array(1.5)), steps=(frozen, SECOND))
    assert unpack_floats(found.arrays["values"]).tolist() == [0, 0, 0, 0, 0, 1.5]


def test_masked_tokens_have_their_values() -> None:
    frozen = FIRST.model_copy(update={"role": "frozen"})
    both = an_annotation(FIRST, "values", array(0.5, 0.25)), an_annotation(SECOND, "values", array(1.5))
    assert unpack_floats(laid(*both, steps=(frozen, SECOND)).arrays["values"]).tolist() == [0, 0, 0.5, 0.25, 0, 1.5]


def test_an_array_of_another_length_is_not_used_and_counted() -> None:
    wrong = an_annotation(FIRST, "values", array(0.5)), an_annotation(SECOND, "values", array(1.5))
    assert laid(*wrong) == Laid({}, {"values": 2})
    assert unused(*wrong) == {"annotation_length": 1}


def test_values_that_are_no_numbers_and_arrays_of_unknown_steps_are_not_used_and_counted() -> None:
    other = a_step(step_id="other")
    wrong = (
        an_annotation(FIRST, "values", array(math.nan, 1.0)),
        an_annotation(SECOND, "values", array(math.inf)),
        an_annotation(other, "values", array(1.0, 1.0)),
    )
    assert laid(*wrong) == Laid({}, {"values": 3})
    assert unused(*wrong) == {"annotation_not_finite": 2, "annotation_without_step": 1}
    assert set(unused(*wrong)) <= set(ANNOTATIONS)


def test_an_empty_array_withdraws() -> None:
    both = an_annotation(FIRST, "values", array(0.5, 0.25)), an_annotation(SECOND, "values", array(1.5))
    gone = an_annotation(FIRST, "values", b"", revision=1)
    assert laid(*both, gone) == Laid({}, {"values": 2})
    assert laid(*both, gone, an_annotation(SECOND, "values", b"", revision=1)) == Laid({}, {})
    assert unused(*both, gone) == {}
    again = an_annotation(FIRST, "values", array(2.0, 3.0), revision=2)
    assert unpack_floats(laid(gone, again, *both).arrays["values"]).tolist() == [0, 0, 2.0, 3.0, 0, 1.5]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.floats(0, 1, width=32)), max_size=8), st.randoms()
)
def test_the_highest_revision_wins_in_any_order(said: list[tuple[int, str, float]], rng: random.Random) -> None:
    facts = [
        an_annotation(FIRST, "values", array(value, 0), revision=revision, source=source)
        for revision, source, value in said
    ]
    expected = state_of(*facts).annotations
    shuffled = [*facts, *facts]
    rng.shuffle(shuffled)
    assert state_of(*shuffled).annotations == expected
    if facts:
        (kept,) = expected.values()
        assert kept.revision == max(fact.revision for fact in facts)


def test_a_row_says_how_many_bytes_its_arrays_take() -> None:
    (row,) = merge_steps([FIRST, SECOND]).rows()
    facts = state_of(an_annotation(FIRST, "values", b""), an_annotation(SECOND, "advantages", b"")).annotations
    assert row_bytes(row, facts) - row_bytes(row, {}) == 2 * 4 * 6


def play(*facts: Any) -> list[Any]:
    state = PartitionState(0)
    written = []
    for fact in (set_recipe(a_recipe(group={"size": 1})), *facts):
        written += state.apply(fact, state.position, START)
    written += state.tick(START + 4000)
    return [output.event for output in written]


def test_a_groups_samples_carry_arrays_and_its_marker_what_was_not_used() -> None:
    facts = (
        an_annotation(SECOND, "values", array(1.5)),
        an_annotation(FIRST, "values", array(0.5, 0.25)),
        an_annotation(FIRST, "ref_log_probs", array(0.5)),
    )
    events = play(facts[0], FIRST, SECOND, *facts[1:], a_reward(1.0), an_end())
    (sample,) = [e for e in events if isinstance(e, Sample)]
    (ready,) = [e for e in events if isinstance(e, GroupReady)]
    assert unpack_floats(sample.annotations["values"]).tolist() == [0, 0, 0.5, 0.25, 0, 1.5]
    assert sample.annotations_missing == {"ref_log_probs": 3}
    assert ready.members[0].unused == {"annotation_length": 1}


def test_annotations_of_a_trajectory_that_nothing_opened_are_late() -> None:
    events = play(an_annotation(FIRST, "values", array(1.0, 1.0)))
    assert [(e.outcome, e.reason) for e in events if e.TYPE == "outcome"] == [("late", "never_opened")]
    other = an_annotation(a_step(trajectory_uid="other"), "values", array(1.0, 1.0))
    events = play(other, FIRST, a_reward(1.0), an_end())
    late = [e.fact_id for e in events if e.TYPE == "outcome" and e.outcome == "late"]
    assert late == [other.fact_id]
