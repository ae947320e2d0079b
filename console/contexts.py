"""The whole context of a step is made here from what each step added to the one before it, as the pool keeps it.

Pure. The same as the pool's view `contexts`, which restores every step of a trajectory, for one step alone: the pool is asked
for what its ancestors added, and for nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]

PLACES: Final = (
    "SELECT DISTINCT run_id, prompt_uid FROM ${database}.trajectory_lookup "
    "WHERE trajectory_uid = {uid:String} ORDER BY run_id, prompt_uid LIMIT 100"
)
"""Where a trajectory's facts are; the parameter is `uid`. Other statements take the answer as `places`."""
MINE: Final = "(run_id, prompt_uid) IN {places:Array(Tuple(String, String))} AND trajectory_uid = {uid:String}"
STEPS: Final = (
    "SELECT run_id, prompt_uid, step_id, parent_step_id, channel, status, role, choice, prefix_len, prompt_len, response_len, "
    "messages_kept, has_log_probs, finish_reason, policy_version, version_spans, engine, model, dialect, temperature, top_p, "
    "top_k, max_tokens, seed, n, guided, retry_of, repeats, capture_ok, capture_reasons, length(multi_modal_data) AS pictures, "
    "received, first_byte, done "
    f"FROM ${{database}}.steps FINAL WHERE {MINE} ORDER BY run_id, prompt_uid, partition, offset LIMIT 10000"
)
"""A trajectory's steps in the order of the log; the parameters are `places` and `uid`."""
ADDED: Final = (
    "SELECT run_id, prompt_uid, step_id, new_prompt_ids, response_ids, rollout_log_probs, new_messages, reply "
    f"FROM ${{database}}.step_tokens FINAL WHERE {MINE} AND step_id IN {{chain:Array(String)}} LIMIT 20000"
)
"""What steps added; the parameters are `places`, `uid` and those of `of_chain`."""


def chain_of(step: Row, steps: Sequence[Row]) -> list[Row] | None:
    """The steps that a step's context goes through, the first one first and it last; None: one of them is not there."""
    known = {_key(row, row["step_id"]): row for row in steps}
    chain: list[Row] = []
    at: Row | None = step
    while at is not None:
        chain.append(at)
        if at["parent_step_id"] is None:
            return chain[::-1]
        at = known.get(_key(step, at["parent_step_id"])) if len(chain) <= len(steps) else None
    return None


def of_chain(chain: Sequence[Row]) -> dict[str, Any]:
    """The parameters of questions about the last step of a chain."""
    return {"step": chain[-1]["step_id"], "chain": [row["step_id"] for row in chain]}


def restore(chain: Sequence[Row], added: Sequence[Row]) -> dict[str, Any] | None:
    """The context behind a chain of steps; None: what one of them added is not there.

    `prompt_ids`, `response_ids`, `rollout_log_probs` (one per token of the response, or none), and `messages`, the reply last:
    objects as their senders wrote them.
    """
    by_step = {_key(row, row["step_id"]): row for row in added}
    prompt: list[int] = []
    response: list[int] = []
    log_probs: list[float] = []
    messages: list[dict[str, Any]] = []
    for step in chain:
        own = by_step.get(_key(step, step["step_id"]))
        if own is None:
            return None
        prompt += response
        del prompt[step["prefix_len"] :], messages[step["messages_kept"] :]
        prompt += own["new_prompt_ids"]
        response, log_probs = list(own["response_ids"]), list(own["rollout_log_probs"])
        messages += _messages(own["new_messages"])
        if own["reply"]:
            messages.append(_message(_read(own["reply"])))
    return {"prompt_ids": prompt, "response_ids": response, "rollout_log_probs": log_probs, "messages": messages}


def _key(place: Row, step_id: str) -> tuple[str, str, str]:
    return place["run_id"], place["prompt_uid"], step_id


def _messages(text: str) -> list[dict[str, Any]]:
    found = _read(text) if text else []
    return [_message(one) for one in (found if isinstance(found, list) else [found])]


def _message(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"role": "unknown", "content": value}


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
