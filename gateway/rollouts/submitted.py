"""A step that a white-box agent submits is checked and becomes a Step, delta-encoded against the trajectory's chains.

Invariants: no clock and no broker here; what would be stored with less than its sender means is refused; the same step sent
again is the same fact.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from claw_r1.events import BlobRef, Capture, Sampling, Step, VersionSpan
from claw_r1.ids import derived_id
from gateway.calls.chains import Chains, Context, Delta
from gateway.calls.parts import Content, experts_content, submitted_media
from gateway.places import Session
from gateway.replies import Refusal
from gateway.rollouts.bodies import SubmittedStep, packed_floats, packed_ids


def check_submitted(number: int, step: SubmittedStep) -> None:
    """Raise Refusal(400) for arrays that are missing or disagree."""
    where = f"steps.{number}"
    if not packed_ids(step.prompt_ids) or not packed_ids(step.response_ids):
        raise _wrong(where, "needs prompt_ids and response_ids that are not empty")
    tokens = len(packed_ids(step.response_ids)) // 4
    if step.rollout_log_probs is not None:
        log_probs = np.frombuffer(packed_floats(step.rollout_log_probs), "<f4")
        if not np.isfinite(log_probs).all():
            raise _wrong(f"{where}.rollout_log_probs", "has a value that is no finite 32-bit number")
        if tokens != len(log_probs):
            raise _wrong(
                f"{where}.rollout_log_probs",
                f"has {len(log_probs)} values for {tokens} response_ids: they must be as many",
            )
    end = 0
    for index, span in enumerate(step.version_spans):
        place = f"{where}.version_spans.{index}"
        if not end <= span.start < span.end <= tokens:
            raise _wrong(place, f"must follow the span before it and lie within the {tokens} response tokens")
        if step.policy_version is not None and span.version != step.policy_version:
            raise _wrong(place, "says another version than policy_version: leave policy_version out where they differ")
        end = span.end


def contents(number: int, step: SubmittedStep) -> tuple[list[Content], Content | None]:
    """The step's media, and its routed experts: what goes to the blob store. Raises Refusal(400)."""
    name = "multi_modal_data"
    try:
        media = submitted_media(step.multi_modal_data or {})
        name = "routed_experts"
        experts = None if step.routed_experts is None else experts_content(step.routed_experts)
    except ValueError as error:
        raise _wrong(f"steps.{number}.{name}", f"cannot be stored: {error}") from error
    return media, experts


def _wrong(place: str, why: str) -> Refusal:
    return Refusal(400, f"{place} {why}", param=place, code="invalid_field")


def context_of(number: int, step: SubmittedStep) -> Context:
    """What the model was given. Raises Refusal(400) for messages that JSON cannot say."""
    messages = tuple(_json(f"steps.{number}.messages", message) for message in step.messages or ())
    return Context(packed_ids(step.prompt_ids), b"", messages, b"{}")


def _json(place: str, value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _wrong(place, f"cannot be recorded: {error}") from error


def shortest(context: Context, known: Chains, together: Chains) -> Delta:
    """The context as a difference to its longest parent: a step that is durable, or one before it in the same request.

    A request's steps are sent in order to one partition, so that none is durable before the ones that it refers to.
    """
    return max(known.delta(context), together.delta(context), key=lambda delta: delta.prefix_len)


def submitted_step(
    number: int,
    step: SubmittedStep,
    session: Session,
    delta: Delta,
    media: Sequence[BlobRef],
    experts: BlobRef | None,
    at: float,
) -> Step:
    """The Step of a white-box agent."""
    prompt, response = packed_ids(step.prompt_ids), packed_ids(step.response_ids)
    place = (session.run_id, session.prompt_uid, session.trajectory_uid)
    step_id = fact_id = derived_id("submitted", *place, step.step_index, prompt.hex(), response.hex())
    if step.step_id is not None:  # a sender may count its steps anew in each trajectory
        step_id, fact_id = step.step_id, derived_id("submitted", *place, step.step_id)
    faults = () if step.rollout_log_probs is not None else ("no_log_probs",)
    spans = tuple(VersionSpan(version=span.version, start=span.start, end=span.end) for span in step.version_spans)
    return Step(
        fact_id=fact_id,
        step_id=step_id,
        run_id=session.run_id,
        prompt_uid=session.prompt_uid,
        trajectory_uid=session.trajectory_uid,
        at=at,
        parent_step_id=delta.parent_step_id,
        prefix_len=delta.prefix_len,
        prefix_hash=delta.prefix_hash,
        depth=delta.depth,
        new_prompt_ids=delta.new_prompt_ids,
        response_ids=response,
        rollout_log_probs=None if step.rollout_log_probs is None else packed_floats(step.rollout_log_probs),
        policy_version=_one_version(step, len(response) // 4),
        version_spans=spans,
        finish_reason=step.finish_reason,
        model=step.model,
        sampling=Sampling.model_validate(step.sampling.model_dump()),
        dialect="submitted",
        messages_kept=delta.messages_kept if step.messages else 0,
        new_messages=delta.new_messages if step.messages else None,
        reply=None if step.reply is None else _json(f"steps.{number}.reply", step.reply),
        channel=session.channel,
        step_index=step.step_index,
        multi_modal_data=tuple(media),
        routed_experts=experts,
        capture=Capture(ok=not faults, reasons=faults),
        metadata=step.metadata or {},
    )


def _one_version(step: SubmittedStep, tokens: int) -> int | None:
    """The version of every token, if one is known of all of them."""
    if step.policy_version is not None or not step.version_spans:
        return step.policy_version
    versions = {span.version for span in step.version_spans}
    covered = sum(span.end - span.start for span in step.version_spans)
    return versions.pop() if len(versions) == 1 and covered == tokens else None
