"""Which tokens may be trained, and what a recipe may allow."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import pack_floats
from claw_r1.events import Capture, Sampling, VersionSpan
from claw_r1.reasons import MASKS
from claw_r1.trainable import ALLOWABLE, MENDS, unknown_versions, why_masked
from tests.factories import a_step

NEVER: dict[str, dict[str, Any]] = {
    "aborted": {"finish_reason": "abort"},
    "capture_failed": {"capture": Capture(ok=False)},
    "no_log_probs": {"rollout_log_probs": None},
}
MAY: dict[str, dict[str, Any]] = {
    "frozen_model": {"role": "frozen"},
    "guided": {"sampling": Sampling(temperature=1.0, guided=True)},
    "temperature_zero": {"sampling": Sampling(temperature=0.0, log_probs_mode="processed")},
    "raw_log_probs": {"sampling": Sampling(temperature=0.5)},
}


@pytest.mark.parametrize("reason", sorted(MAY))
def test_what_a_recipe_allows_is_trained(reason: str) -> None:
    step = a_step(**MAY[reason])
    assert why_masked(step) == reason
    assert why_masked(step, ALLOWABLE - {reason}) == reason
    assert why_masked(step, {reason}) is None


@pytest.mark.parametrize("reason", sorted(NEVER))
def test_what_is_not_whole_nobody_can_allow(reason: str) -> None:
    assert why_masked(a_step(**NEVER[reason]), ALLOWABLE | {reason}) == reason


def test_what_is_allowed_hides_no_other_reason() -> None:
    step = a_step(role="frozen", sampling=Sampling(temperature=0.0, guided=True))
    assert why_masked(step) == "frozen_model"
    assert why_masked(step, {"frozen_model"}) == "temperature_zero"
    assert why_masked(step, {"frozen_model", "temperature_zero"}) == "guided"
    assert why_masked(step, {"frozen_model", "temperature_zero", "guided"}) == "raw_log_probs"


def test_every_reason_is_explained() -> None:
    assert set(MASKS) >= ALLOWABLE | set(NEVER) | set(MENDS)


def test_a_step_of_one_version_has_no_unknown_token() -> None:
    assert unknown_versions(a_step(response=(4, 5, 6), policy_version=3)) == []
    assert unknown_versions(a_step(response=(4, 5, 6), policy_version=None)) == [(0, 3)]
    assert unknown_versions(a_step(response=(), policy_version=None)) == []


spans = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.one_of(st.none(), st.integers(0, 3))), max_size=5)


@settings(deadline=None)
@given(spans, st.integers(0, 6))
def test_tokens_that_no_span_with_a_version_covers_are_unknown(
    drawn: list[tuple[int, int, int | None]], n: int
) -> None:
    parts = tuple(VersionSpan(version=v, start=min(a, b), end=max(a, b)) for a, b, v in drawn)
    response = tuple(range(n))
    step = a_step(response=response, version_spans=parts, rollout_log_probs=pack_floats(response), policy_version=1)
    unknown = {at for start, end in unknown_versions(step) for at in range(start, end)}
    known = {at for part in parts if part.version is not None for at in range(part.start, part.end)}
    assert unknown == (set(range(n)) - known if parts else set())
    assert all(start < end <= n for start, end in unknown_versions(step))
