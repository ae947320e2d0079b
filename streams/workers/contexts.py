"""A trajectory's rows in the pool become its steps with whole prompts, in the order of the calls.

Invariants: a prefix is the one that the sender hashed, or nothing is given; no clock and no client library here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from claw_r1.codec import pack_ids, restore_messages, restore_prompt, unpack_ids
from claw_r1.errors import InvalidRecord
from claw_r1.event_base import Json, Packed
from claw_r1.events import Step
from claw_r1.rewards.rollout import Missing, StepView


def restore(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[StepView]:
    """The steps named by `order`, parents before their children. Raises Missing("context_lost")."""
    by_id = {str(row["step_id"]): row for row in rows}
    contexts: dict[str, Packed] = {}
    talks: dict[str, list[object]] = {}
    media: dict[str, bool] = {}
    views = []
    for step_id in order:
        row = by_id[step_id]
        step = _step(row)
        parent = step.parent_step_id or ""
        try:
            prompt = restore_prompt(step, contexts.get(parent))
            messages = restore_messages(step, talks.get(parent))
            reply = msgspec.json.decode(step.reply, type=dict) if step.reply else None
        except (InvalidRecord, ValueError, RecursionError) as error:  # of JSON that cannot be read
            raise Missing("context_lost", str(error)) from error
        contexts[step_id] = prompt + step.response_ids
        talks[step_id] = messages + ([reply] if reply is not None else [])
        media[step_id] = bool(row["multi_modal_data"]) or media.get(parent, False)
        views.append(_view(step, row, prompt, messages, reply, media[step_id]))
    return views


def _step(row: Mapping[str, Any]) -> Step:
    """As much of the step as its context needs."""
    return Step(
        fact_id=row["step_id"],
        run_id="",
        prompt_uid="",
        trajectory_uid="",
        at=0.0,
        step_id=row["step_id"],
        parent_step_id=row["parent_step_id"],
        prefix_len=row["prefix_len"],
        prefix_hash=bytes.fromhex(row["prefix_hash"]) or None,
        new_prompt_ids=pack_ids(row["new_prompt_ids"]),
        response_ids=pack_ids(row["response_ids"]),
        messages_kept=row["messages_kept"],
        new_messages=row["new_messages"].encode() or None,
        reply=row["reply"].encode() or None,
    )


def _view(
    step: Step, row: Mapping[str, Any], prompt: Packed, messages: Sequence[object], reply: Json | None, media: bool
) -> StepView:
    return StepView(
        step_id=step.step_id,
        prompt_ids=unpack_ids(prompt),
        response_ids=unpack_ids(step.response_ids),
        messages=[message for message in messages if isinstance(message, dict)],
        reply=reply,
        status=row["status"],
        role=row["role"],
        finish_reason=row["finish_reason"],
        media=media,
    )
