"""A packed array and a list of numbers are the same array, in JSON and in msgpack."""

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import TypeAdapter, ValidationError

from claw_r1.codec import pack_floats, pack_ids
from gateway.rollouts.bodies import (
    DecisionBody,
    Floats,
    GroupBody,
    Ids,
    RewardBodies,
    RewardBody,
    SubmittedStep,
    packed_floats,
    packed_ids,
)

IDS: TypeAdapter[Any] = TypeAdapter(Ids)
FLOATS: TypeAdapter[Any] = TypeAdapter(Floats)


@given(some.lists(some.integers(0, 2**32 - 1)))
def test_every_form_of_ids_is_the_same(ids: list[int]) -> None:
    packed = pack_ids(ids)
    for form in (ids, packed, base64.b64encode(packed).decode()):
        assert packed_ids(IDS.validate_python(form)) == packed


@given(some.lists(some.floats(-(2.0**127), 2.0**127, width=32)))
def test_every_form_of_numbers_is_the_same(values: list[float]) -> None:
    packed = pack_floats(values)
    for form in (values, packed, base64.b64encode(packed).decode()):
        assert packed_floats(FLOATS.validate_python(form)) == packed


@pytest.mark.parametrize(
    "form", ["AAA=", b"123", "not base64!", "é", None, 7, {"a": 1}, [-1], [2**32], ["x"], [1.5], True]
)
def test_what_is_no_array_of_ids_is_refused(form: Any) -> None:
    with pytest.raises(ValidationError):
        IDS.validate_python(form)


@pytest.mark.parametrize("form", [["x"], [float("nan")], [float("inf")], [1e300], "AAA="])
def test_what_is_no_array_of_numbers_is_refused(form: Any) -> None:
    with pytest.raises(ValidationError):
        FLOATS.validate_python(form)


def test_a_body_of_two_forms_is_judged_by_the_form_that_it_has() -> None:
    rewards: TypeAdapter[Any] = TypeAdapter(RewardBodies)
    with pytest.raises(ValidationError) as wrong:
        rewards.validate_python([{"prompt_uid": "p", "value": 1}, {"prompt_uid": "p", "value": "x"}])
    assert [error["loc"][-2:] for error in wrong.value.errors()] == [(1, "value")]


def test_upstreams_fields_are_taken_and_what_only_it_knows_is_left() -> None:
    step = SubmittedStep.model_validate(
        {"prompt_ids": [1], "response_ids": [2], "trajectory_uid": "t", "prompt_uid": "p", "only_upstream": 1}
    )
    assert (step.is_last, step.policy_version, step.metadata) == (False, None, None)


@pytest.mark.parametrize(
    "metadata",
    [
        {"a": 10**30},
        {"a": "\ud800"},
        {"a": msgspec.msgpack.Ext(7, b"x")},
        {"a": object()},
    ],
)
def test_metadata_that_no_record_or_column_can_hold_is_refused(metadata: Any) -> None:
    with pytest.raises(ValidationError, match="cannot be recorded"):
        GroupBody(metadata=metadata)


def test_metadata_of_msgpack_may_hold_bytes_and_numbers_as_names() -> None:
    assert GroupBody(metadata={"a": {1: b"x", b"y": 2}}).metadata == {"a": {1: b"x", b"y": 2}}


@pytest.mark.parametrize("value", [1e39, -1.7e308, float("inf"), float("nan")])
def test_a_reward_that_no_trainer_can_compute_with_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        RewardBody(trajectory_uid="t", value=value)
    with pytest.raises(ValidationError):
        DecisionBody(prompt_uid="p", action="override_reward", value=value, author="a")
    assert RewardBody(trajectory_uid="t", value=-1e38).value == -1e38
