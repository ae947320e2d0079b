"""A step that an agent sampled itself becomes a request's row.

Invariants: pure; arrays are packed, never lists of numbers; what is not known is left out.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from claw_r1.client.calls import Floats, Ids, Json, VersionSpan, given, packed_floats, packed_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the agent knows of it."""

    prompt_ids: Ids
    """The full context, token ids."""
    response_ids: Ids
    """The sampled tokens."""
    log_probs: Floats | None = None
    """Of the sampled tokens, under the policy that sampled them; without them the step is stored and never trained."""
    policy_version: int | None = None
    version_spans: Sequence[VersionSpan] = ()
    """Where the weights changed within the response."""
    step_index: int | None = None
    reward: float | None = None
    messages: Sequence[Json] | None = None
    """The prompt as messages, for people who read."""
    reply: Json | None = None
    """The response as an assistant's message."""
    model: str | None = None
    finish_reason: str | None = None
    sampling: Json | None = None
    """temperature, top_p, top_k, max_tokens, seed, log_probs_mode (raw or processed), guided."""
    multi_modal_data: Json | None = None
    """Modality → items: bytes, data: URLs, or JSON."""
    routed_experts: bytes | NDArray[np.integer[Any]] | None = None
    """tokens × layers × experts: an array, or the bytes of a .npy file."""
    metadata: Json = field(default_factory=dict)


class StepFields(TypedDict, total=False):
    """The fields of Step beside its tokens, as keywords."""

    policy_version: int | None
    version_spans: Sequence[VersionSpan]
    step_index: int | None
    reward: float | None
    messages: Sequence[Json] | None
    reply: Json | None
    model: str | None
    finish_reason: str | None
    sampling: Json | None
    multi_modal_data: Json | None
    routed_experts: bytes | NDArray[np.integer[Any]] | None
    metadata: Json


def row(step_id: str, step: Step, place: Mapping[str, str]) -> dict[str, Any]:
    """The step as /submit_steps takes it; `place` names trajectory_uid, prompt_uid and run_id. Raises UserError."""
    spans = [{"start": span.start, "end": span.end, "version": span.version} for span in step.version_spans]
    return {
        **place,
        "step_id": step_id,
        "prompt_ids": packed_ids(step.prompt_ids),
        "response_ids": packed_ids(step.response_ids),
        **given(
            rollout_log_probs=None if step.log_probs is None else packed_floats(step.log_probs),
            policy_version=step.policy_version,
            version_spans=spans or None,
            step_index=step.step_index,
            reward=step.reward,
            messages=None if step.messages is None else list(step.messages),
            reply=step.reply,
            model=step.model,
            finish_reason=step.finish_reason,
            sampling=step.sampling,
            multi_modal_data=step.multi_modal_data,
            routed_experts=_npy(step.routed_experts),
            metadata=step.metadata or None,
        ),
    }


def _npy(experts: bytes | NDArray[np.integer[Any]] | None) -> bytes | None:
    if experts is None or isinstance(experts, bytes):
        return experts
    file = io.BytesIO()
    np.save(file, experts, allow_pickle=False)
    return file.getvalue()
