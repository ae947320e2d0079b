"""A trainer's row becomes steps, from which the row can be put together again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.client.rows import steps_of_row
from claw_r1.errors import UserError


def test_each_run_of_sampled_tokens_is_a_step() -> None:
    first, second = steps_of_row([1, 2], [3, 4, 5, 6, 7], [1, 1, 0, 1, 0], [-1, -2, 0, -3, 0], policy_version=4)
    assert (first.prompt_ids, first.response_ids, first.log_probs) == ([1, 2], [3, 4], [-1, -2])
    assert (second.prompt_ids, second.response_ids, second.log_probs) == ([1, 2, 3, 4, 5], [6], [-3])
    assert (first.policy_version, second.policy_version) == (4, 4)


def test_a_log_prob_that_is_not_known_takes_those_of_its_step() -> None:
    first, second = steps_of_row([1], [2, 3, 4], [1, 0, 1], [None, None, -1.0])
    assert first.log_probs is None
    assert second.log_probs == [-1.0]
    assert [step.log_probs for step in steps_of_row([1], [2], [1])] == [None]


def test_nothing_sampled_is_no_step() -> None:
    assert steps_of_row([1, 2], [3], [0], [0.0]) == []
    assert steps_of_row([1, 2], [], [], []) == []


@pytest.mark.parametrize(("mask", "log_probs"), [([1], [-1.0, -1.0]), ([1, 1], [-1.0])])
def test_lengths_that_differ_are_refused(mask: list[int], log_probs: list[float]) -> None:
    with pytest.raises(UserError, match="2 response tokens"):
        steps_of_row([1], [2, 3], mask, log_probs)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12),
)
def test_steps_hold_the_whole_row_up_to_its_last_sampled_token(prompt: list[int], row: list[tuple[int, bool]]) -> None:
    ids, mask = [one for one, _ in row], [int(sampled) for _, sampled in row]
    known = [-float(place + 1) for place in range(len(row))]
    steps = steps_of_row(prompt, ids, mask, known)
    found: dict[int, float] = {}
    for step in steps:
        start = len(step.prompt_ids) - len(prompt)
        assert [*step.prompt_ids, *step.response_ids] == prompt + ids[: start + len(step.response_ids)]
        assert step.log_probs is not None
        found |= {start + place: one for place, one in enumerate(step.log_probs)}
    assert found == {place: known[place] for place, sampled in enumerate(mask) if sampled}
