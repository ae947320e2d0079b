"""Advantages against numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.algorithms import PRESETS
from claw_r1.curation import MAX_NUMBER
from trainer_adapter.advantages import BY_ALGORITHM, grpo, reinforce, rloo, sft

rewards = st.dictionaries(st.text(min_size=1, max_size=4), st.floats(-100, 100), min_size=1, max_size=16)


def test_two_trajectories() -> None:
    # mean 0.5, sample std sqrt(0.5) = 0.70711: (1 - 0.5) / 0.70711 = 0.70711
    assert grpo({"a": 1.0, "b": 0.0}) == pytest.approx({"a": 0.7071058, "b": -0.7071058}, abs=1e-7)


def test_four_trajectories() -> None:
    # mean 2.5, sample std sqrt(5 / 3) = 1.290994: 1.5 / 1.290995 = 1.161894, 0.5 / 1.290995 = 0.387298
    expected = {"a": -1.1618941, "b": -0.3872980, "c": 0.3872980, "d": 1.1618941}
    assert grpo({"a": 1, "b": 2, "c": 3, "d": 4}) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("values", [[3.0], [0.1] * 3, [0.0, 0.0], []])
def test_a_singleton_and_a_flat_group_have_none(values: list[float]) -> None:
    assert set(grpo({str(number): value for number, value in enumerate(values)}).values()) <= {0.0}


@given(
    st.dictionaries(st.text(max_size=4), st.sampled_from((-MAX_NUMBER, 0.0, 1.0, MAX_NUMBER)), min_size=1, max_size=8)
)
def test_of_the_largest_rewards_they_fit_into_a_trainers_32_bits(group: dict[str, float]) -> None:
    for of_algorithm in BY_ALGORITHM.values():
        assert np.isfinite(np.array(list(of_algorithm(group).values()), np.float32)).all()


@given(rewards)
def test_they_are_centred_ordered_and_bounded(group: dict[str, float]) -> None:
    out = grpo(group)
    assert out.keys() == group.keys()
    assert math.fsum(out.values()) == pytest.approx(0, abs=1e-6)
    assert all(abs(value) <= math.sqrt(len(group)) for value in out.values())
    by_reward = sorted(group, key=group.__getitem__)
    assert all(out[a] <= out[b] for a, b in itertools.pairwise(by_reward))


@given(rewards, st.randoms())
def test_order_does_not_matter_to_the_last_bit(group: dict[str, float], random: object) -> None:
    names = list(group)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert grpo({name: group[name] for name in names}) == grpo(group)


def test_rloo_compares_with_the_others() -> None:
    # the others' means: (0 + 0) / 2 = 0, (3 + 0) / 2 = 1.5
    assert rloo({"a": 3.0, "b": 0.0, "c": 0.0}) == {"a": 3.0, "b": -1.5, "c": -1.5}
    assert rloo({"a": 3.0}) == {"a": 0.0}
    assert rloo({"a": 0.1, "b": 0.1, "c": 0.1}) == {"a": 0.0, "b": 0.0, "c": 0.0}


@given(rewards)
def test_rloo_is_grpo_without_the_scale(group: dict[str, float]) -> None:
    out = rloo(group)
    assert math.fsum(out.values()) == pytest.approx(0, abs=1e-6)
    mean = math.fsum(group.values()) / len(group)
    share = len(group) / max(1, len(group) - 1)
    assert out == pytest.approx({name: share * (value - mean) for name, value in group.items()}, abs=1e-9)


def test_reinforce_and_sft() -> None:
    assert reinforce({"a": 3.0, "b": -1.0}) == {"a": 3.0, "b": -1.0}
    assert sft({"a": 3.0, "b": -1.0}) == {"a": 1.0, "b": 1.0}


def test_other_algorithms_have_none_by_trajectory() -> None:
    assert set(PRESETS) - set(BY_ALGORITHM) == {"ppo", "dpo", "kto", "distill"}
