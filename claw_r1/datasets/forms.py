"""Rollouts become the rows of a form: steps, sft, preference or tokens; what gives no row has a counted reason.

Pure. What a person vetoed is in no form but `facts` and `steps`, which show everything. Texts are never made of tokens, nor
tokens of texts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import numpy as np

from claw_r1.chats import part_chats
from claw_r1.codec import restore_prompt, unpack_floats, unpack_ids
from claw_r1.datasets.rollouts import Call, Message, Rollout
from claw_r1.errors import InvalidRecord
from claw_r1.events import Packed, VersionSpan
from claw_r1.picking import pick
from claw_r1.recipes import PickRule
from claw_r1.trainable import why_masked
from streams.merge import Row as Chain

Row = dict[str, Any]
Kind = Literal["text", "int", "float", "json", "ids", "ints", "floats", "mask", "texts", "messages"]
"""What a column holds; `json` is an object or array, which an Arrow column has as its text."""
LeftOut = Counter[str]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a form."""

    name: str
    kind: Kind
    doc: str


@dataclass(frozen=True, slots=True)
class Form:
    """Rows of one group at a time."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    rows: Callable[[Sequence[Rollout], LeftOut], Iterator[Row]]


_PLACE: Final = (
    Column("run_id", "text", "training experiment"),
    Column("prompt_uid", "text", "sampling round of a task"),
    Column("group_id", "text", "group: the prompt, with #n from its second round on"),
    Column("trajectory_uid", "text", "rollout of the task by an agent"),
)
_TOLD: Final = (
    Column("channel", "text", "split inside the run"),
    Column("task_id", "text", "item of the task set, null if unknown"),
    Column("status", "text", "how it ended: completed, failed, aborted, truncated"),
    Column("reward", "float", "a person's, else the sum of the sources; null if there is none"),
    Column("rewards", "json", "reward in force by source"),
    Column("label", "text", "label that a decision gave it, else null"),
    Column("tags", "texts", "tags of decisions"),
    Column("quality", "float", "quality of a decision, else null"),
    Column("metadata", "json", "what senders said of it"),
)


def _place(rollout: Rollout) -> Row:
    return dict(zip((column.name for column in _PLACE), rollout.member, strict=True))


def _told(rollout: Rollout) -> Row:
    return {
        "channel": rollout.channel,
        "task_id": rollout.task_id,
        "status": rollout.status,
        "reward": rollout.reward,
        "rewards": rollout.rewards,
        "label": rollout.curation.label,
        "tags": list(rollout.curation.tags),
        "quality": rollout.curation.quality,
        "metadata": rollout.metadata,
    }


# ---------------------------------------------------------------------------------------------------------------- steps


def _steps(group: Sequence[Rollout], left: LeftOut) -> Iterator[Row]:
    for rollout in group:
        told = _place(rollout) | _told(rollout)
        contexts: dict[str, Packed] = {}
        for call in rollout.calls:
            step = call.step
            try:
                prompt = restore_prompt(step, contexts.get(step.parent_step_id or ""))
            except InvalidRecord:
                left["context_lost"] += 1
                continue
            contexts[step.step_id] = prompt + step.response_ids
            log_probs = step.rollout_log_probs
            vetoed = rollout.curation.vetoed or step.step_id in rollout.curation.vetoed_steps
            yield told | {
                "step_id": step.step_id,
                "step_index": call.index,
                "parent_step_id": step.parent_step_id,
                "step_status": step.status,
                "role": step.role,
                "model": step.model,
                "finish_reason": step.finish_reason,
                "masked": "vetoed" if vetoed else why_masked(step),
                "capture_reasons": list(step.capture.reasons),
                "messages": call.messages,
                "reply": call.reply,
                "tools": call.request.get("tools"),
                "prompt_ids": unpack_ids(prompt),
                "response_ids": unpack_ids(step.response_ids),
                "log_probs": None if log_probs is None else unpack_floats(log_probs),
                "policy_versions": _versions(
                    step.version_spans or _one(step.policy_version, step.response_len), step.response_len
                ),
                "step_metadata": step.metadata,
            }


STEPS: Final = Form(
    "steps",
    "every step with its whole context",
    (
        *_PLACE,
        *_TOLD,
        Column("step_id", "text", "id of the step"),
        Column("step_index", "int", "place in the trajectory's order of calls, from 0"),
        Column("parent_step_id", "text", "step that its prompt was stored as a difference to"),
        Column("step_status", "text", "complete, partial or failed"),
        Column("role", "text", "policy, or frozen: never trained"),
        Column("model", "text", "model that answered"),
        Column("finish_reason", "text", "why the model stopped"),
        Column("masked", "text", "why its tokens must not be trained, null if they may"),
        Column("capture_reasons", "texts", "what was not captured"),
        Column("messages", "json", "the prompt as messages, as the agent sent them; null if unknown"),
        Column("reply", "json", "the assistant's message, null if unknown"),
        Column("tools", "json", "tools of the request, null if none"),
        Column("prompt_ids", "ids", "token ids of the prompt"),
        Column("response_ids", "ids", "sampled token ids"),
        Column("log_probs", "floats", "one for each response token, null if unknown"),
        Column("policy_versions", "ints", "one for each response token, null where unknown"),
        Column("step_metadata", "json", "what the sender said of the step"),
    ),
    _steps,
)


def _one(version: int | None, length: int) -> tuple[VersionSpan, ...]:
    return () if version is None else (VersionSpan(version=version, start=0, end=length),)


def _versions(spans: Sequence[VersionSpan], length: int, start: int = 0) -> list[int | None]:
    """The version of each of `length` tokens from `start` on."""
    found: list[int | None] = [None] * length
    for span in spans:
        first, last = max(0, span.start - start), min(length, span.end - start)
        if last > first:
            found[first:last] = [span.version] * (last - first)
    return found


# ------------------------------------------------------------------------------------------------------------------ sft


def plain(messages: Sequence[Message]) -> list[Message] | None:
    """Messages with texts for contents, of the fields that chat templates read; None where one holds more than text."""
    found = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                return None
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str | None):
            return None
        made: Message = {"role": str(message.get("role")), "content": content or ""}
        for name in ("reasoning_content", "name", "tool_call_id"):
            if isinstance(message.get(name), str) and message[name]:
                made[name] = message[name]
        if calls := message.get("tool_calls"):
            if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
                return None
            made["tool_calls"] = [_tool_call(call) for call in calls]
        found.append(made)
    return found


def _tool_call(call: Mapping[str, Any]) -> Row:
    given = call.get("function")
    function = given if isinstance(given, dict) else {}
    named = {name: _as_text(function.get(name)) for name in ("name", "arguments")}
    return {"id": _as_text(call.get("id")), "type": "function", "function": named}


def _as_text(value: Any) -> str | None:
    """Foreign logs have objects where OpenAI's API has JSON in a text."""
    return value if isinstance(value, str | None) else msgspec.json.encode(value).decode()


def _usable(rollout: Rollout, left: LeftOut) -> list[Call]:
    """The leaves of a trajectory that texts are made of."""
    if rollout.curation.vetoed:
        left["vetoed"] += 1
        return []
    found = []
    for call in rollout.leaves():
        if call.step.role == "frozen":
            left["frozen_model"] += 1
        elif call.step.step_id in rollout.curation.vetoed_steps:
            left["vetoed"] += 1
        else:
            found.append(call)
    if not found:
        left["no_messages"] += 1
    return found


def _sft(group: Sequence[Rollout], left: LeftOut) -> Iterator[Row]:
    for rollout in group:
        for call in _usable(rollout, left):
            messages = plain(call.conversation or [])
            if messages is None:
                left["not_text"] += 1
                continue
            yield (
                _place(rollout)
                | _told(rollout)
                | {
                    "step_id": call.step.step_id,
                    "messages": messages,
                    "tools": call.request.get("tools"),
                }
            )


SFT: Final = Form(
    "sft",
    "every conversation that ended, with its last reply",
    (
        Column(
            "messages",
            "messages",
            "role, content and, where there are some, reasoning_content, tool_calls, tool_call_id, name",
        ),
        Column("tools", "json", "tools of the last request, null if none"),
        *_PLACE,
        Column("step_id", "text", "the last step"),
        *_TOLD,
    ),
    _sft,
)


# ----------------------------------------------------------------------------------------------------------- preference


def _preference(group: Sequence[Rollout], left: LeftOut) -> Iterator[Row]:
    """One row of a group: its best and its worst rewarded trajectory, by their last conversations."""
    usable: dict[str, tuple[Rollout, list[Message], Call]] = {}
    for rollout in group:
        calls = _usable(rollout, left)
        if not calls:
            continue
        messages = plain(calls[-1].conversation or [])
        if messages is None:
            left["not_text"] += 1
        elif rollout.reward is None:
            left["no_reward"] += 1
        else:
            usable[rollout.member.trajectory_uid] = (rollout, messages, calls[-1])
    labels = pick(PickRule(how="pair"), {uid: one.reward or 0.0 for uid, (one, _, _) in usable.items()}).labels
    by_label = {label: usable[uid] for uid, label in labels.items()}
    if len(by_label) < 2:
        left["no_pair"] += 1
        return
    (best, chosen, call), (worst, rejected, _) = by_label["chosen"], by_label["rejected"]
    common = part_chats(chosen, rejected)
    if common == 0:
        left["prompts_differ"] += 1
        return
    yield dict(zip(("run_id", "prompt_uid", "group_id"), best.member, strict=False)) | {
        "prompt": chosen[:common],
        "chosen": chosen[common:],
        "rejected": rejected[common:],
        "tools": call.request.get("tools"),
        "chosen_reward": best.reward,
        "rejected_reward": worst.reward,
        "chosen_trajectory_uid": best.member.trajectory_uid,
        "rejected_trajectory_uid": worst.member.trajectory_uid,
        "task_id": best.task_id,
    }


PREFERENCE: Final = Form(
    "preference",
    "of every group the best and the worst trajectory",
    (
        Column("prompt", "messages", "the messages that both begin with, up to the first reply"),
        Column("chosen", "messages", "how the better one goes on"),
        Column("rejected", "messages", "how the worse one goes on"),
        Column("tools", "json", "tools of the chosen one's last request, null if none"),
        Column("chosen_reward", "float", "its reward"),
        Column("rejected_reward", "float", "its reward"),
        *_PLACE[:3],
        Column("chosen_trajectory_uid", "text", "the better trajectory"),
        Column("rejected_trajectory_uid", "text", "the worse trajectory"),
        Column("task_id", "text", "item of the task set, null if unknown"),
    ),
    _preference,
)


# --------------------------------------------------------------------------------------------------------------- tokens


def _tokens(group: Sequence[Rollout], left: LeftOut) -> Iterator[Row]:
    for rollout in group:
        if rollout.curation.vetoed:
            left["vetoed"] += 1
            continue
        merged = rollout.merge()
        if merged is None:
            left["context_lost"] += 1
            continue
        chains = [(chain, _mask(chain, rollout)) for chain in merged.rows()]
        trained = [(chain, mask) for chain, mask in chains if mask.any()]
        if not trained:
            left["nothing_to_train"] += 1
        told = _place(rollout) | _told(rollout)
        for index, (chain, mask) in enumerate(trained):
            yield told | _sequence(chain, mask) | {"sample_index": index, "n_samples": len(trained)}


def _mask(chain: Chain, rollout: Rollout) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    mask = np.frombuffer(bytes(chain.loss_mask), "u1").copy()
    for node in chain.nodes:
        if node.step.step_id in rollout.curation.vetoed_steps:
            mask[node.start : node.end] = 0
    return mask


def _sequence(chain: Chain, mask: "np.ndarray[Any, np.dtype[np.uint8]]") -> Row:
    """The chain's tokens, cut where the first response begins."""
    ids = unpack_ids(chain.token_ids)
    start = chain.nodes[0].start
    log_probs = np.where(mask, np.frombuffer(bytes(chain.log_probs), "<f4"), np.float32(0))
    return {
        "prompt_ids": ids[:start],
        "response_ids": ids[start:],
        "loss_mask": mask[start:],
        "log_probs": log_probs[start:],
        "policy_versions": _versions(chain.versions, len(ids) - start, start),
        "step_ids": [node.step.step_id for node in chain.nodes],
    }


TOKENS: Final = Form(
    "tokens",
    "training rows: a trajectory's steps merged on exact prefixes, as the streams merge them",
    (
        Column("prompt_ids", "ids", "token ids before the first response"),
        Column("response_ids", "ids", "all that follows: responses, and what came between them"),
        Column("loss_mask", "mask", "1 where the token is to be trained; one for each of response_ids"),
        Column("log_probs", "floats", "of the sampled tokens, as captured; 0 where the mask is 0"),
        Column("policy_versions", "ints", "version that sampled the token; null where unknown or not sampled"),
        *_PLACE,
        *_TOLD,
        Column("step_ids", "texts", "the steps, in order"),
        Column("sample_index", "int", "among the trajectory's rows, from 0"),
        Column("n_samples", "int", "rows of the trajectory"),
    ),
    _tokens,
)

FORMS: Final = {form.name: form for form in (STEPS, SFT, PREFERENCE, TOKENS)}


def jsonable(row: Row) -> Row:
    """The row as JSON says it; a number that is not finite is null."""
    return {name: _plain_value(value) for name, value in row.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list) and value and isinstance(value[0], float):
        return [one if math.isfinite(one) else None for one in value]
    return value
