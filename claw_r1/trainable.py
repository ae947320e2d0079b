"""Whether the tokens of a step may be trained: the one rule that the merge masks by and the gateway warns by.

Pure. Design: a token that did not come from the behaviour policy as recorded is masked, with a reason.
"""

from collections.abc import Collection, Iterator
from typing import Final

from claw_r1.codec import all_finite
from claw_r1.events import Sampling, Step

MENDS: Final = {
    "guided": "a grammar may have forced tokens: leave tool_choice, response_format and strict tools open where you train",
    "temperature_zero": "temperature 0 explores nothing: sample at temperature 1, as a run's sampling can say for its agents",
    "raw_log_probs": "log-probs before temperature, top_p and top_k are not of what sampled: start vLLM with --logprobs-mode "
    "processed_logprobs and set CLAW_GATEWAY_LOG_PROBS_MODE=processed, or sample at temperature 1 without top_p and top_k",
    "unknown_version": "nobody said which policy sampled: POST /policy after each weight update, or use vLLM 0.33 with "
    "POST /update_weight_version",
}
"""Reason → what mends it, for those that a setting mends."""


ALLOWABLE: Final = frozenset(
    {
        "frozen_model",
        "guided",
        "raw_log_probs",
        "superseded_retry",
        "temperature_zero",
        "unknown_version",
        "unresolved_retry",
    }
)
"""Reasons that a recipe may allow. With any other there is nothing whole to train on, or it is trained elsewhere."""


def why_masked(step: Step, allow: Collection[str] = frozenset()) -> str | None:
    """Why a step's tokens must not be trained, leaving out what is allowed; None if they may."""
    for reason in _step_faults(step):
        if reason not in allow or reason not in ALLOWABLE:
            return reason
    return None


def _step_faults(step: Step) -> Iterator[str]:
    sampling = step.sampling
    if step.role == "frozen":
        yield "frozen_model"
    if step.finish_reason == "abort":
        yield "aborted"
    if not step.capture.ok:
        yield "capture_failed"
    log_probs = step.rollout_log_probs
    if log_probs is None or len(log_probs) != len(step.response_ids) or not all_finite(log_probs):
        yield "no_log_probs"
    if sampling.temperature == 0:
        yield "temperature_zero"
    if sampling.guided:
        yield "guided"
    if sampling.log_probs_mode != "processed" and not _is_plain(sampling):
        yield "raw_log_probs"


def _is_plain(sampling: Sampling) -> bool:
    """Whether log-probs are the same before and after temperature, top_p and top_k."""
    return sampling.temperature in (None, 1.0) and sampling.top_p in (None, 1.0) and sampling.top_k in (None, 0, -1)


def unknown_versions(step: Step) -> list[tuple[int, int]]:
    """Tokens [start, end) of the response of which nobody said which weights sampled them."""
    length = step.response_len
    if not step.version_spans:
        return [(0, length)] if step.policy_version is None and length else []
    gaps = []
    known = 0
    for span in sorted(step.version_spans, key=lambda span: span.start):
        if span.version is None or span.end <= span.start:
            continue
        if known < min(span.start, length):
            gaps.append((known, min(span.start, length)))
        known = max(known, span.end)
    return [*gaps, (known, length)] if known < length else gaps
