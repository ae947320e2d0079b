"""Rows of the pool become the facts that they were made of, and what the ledger said.

Pure; the inverse of what the sink does, of what a fold looks at. Times of senders come back in whole microseconds, a stop
reason as text, and of an empty text nobody knows whether it was there.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.curation import read_value
from claw_r1.events import (
    Annotation,
    BlobRef,
    Decision,
    GroupCancel,
    GroupFact,
    GroupOpen,
    Outcome,
    Reward,
    Step,
    StepStarted,
    TrajectoryEnd,
    TrajectoryOpen,
)
from streams.backfill.rounds import Closing, Logged

Row = Mapping[str, Any]


def read_fact(table: str, row: Row) -> Logged:
    """The fact of a row; of `steps`, joined with its row of `step_tokens`. Raises KeyError for a table without facts."""
    return Logged(row["offset"], round(_seconds(row["append_time"]), 3), READERS[table](row))


def read_closing(row: Row) -> Closing:
    return Closing(row["round"], row["pos"], _seconds(row["at"]))


def read_outcome(row: Row) -> Outcome:
    return Outcome.model_validate(_fields(row) | {"partition": row["input_partition"]})


def _fields(row: Row) -> dict[str, Any]:
    """What has the same name and form in the pool and in the fact. What sent it when is not always known: `at` is 0 then."""
    fields = {name: value for name, value in row.items() if value is not None}
    fields["at"] = 0.0 if row["at"] is None else _seconds(row["at"])
    if "metadata" in row:
        fields["metadata"] = json.loads(row["metadata"] or "{}")
    return fields


def _seconds(time: datetime) -> float:
    """Since the epoch. Columns in UTC come without a time zone, which Python would take for the machine's."""
    return time.replace(tzinfo=UTC).timestamp()


def _step(row: Row) -> Step:
    fields = _fields(row) | {
        "prefix_hash": bytes.fromhex(row["prefix_hash"]) or None,
        "new_prompt_ids": pack_ids(row["new_prompt_ids"]),
        "response_ids": pack_ids(row["response_ids"]),
        "rollout_log_probs": pack_floats(row["rollout_log_probs"]) if row["has_log_probs"] else None,
        "sampling": row,
        "usage": json.loads(row["usage"]) if row["usage"] else None,
        "timings": {name: _seconds(row[name]) for name in ("received", "first_byte", "done") if row[name] is not None},
        "capture": {"ok": row["capture_ok"], "reasons": row["capture_reasons"]},
        "routed_experts": _experts(row),
    }
    for name in ("new_messages", "reply", "request"):
        fields[name] = row[name].encode() or None
    return Step.model_validate(fields)


def _experts(row: Row) -> BlobRef | None:
    sha256 = row["routed_experts"]
    if sha256 is None:
        return None
    return BlobRef(sha256=sha256, bytes=row["routed_experts_bytes"], kind=row["routed_experts_kind"] or "")


def is_whole(row: Row) -> bool:
    """Whether a step's row says all of the step: an older version of the pool kept less of its routed experts."""
    return row["routed_experts"] is None or row.get("routed_experts_bytes") is not None


def _annotation(row: Row) -> Annotation:
    return Annotation.model_validate(_fields(row) | {"values": pack_floats(row["values"])})


def _decision(row: Row) -> Decision:
    value = read_value(row["action"], row["value"], row["value_is_number"])
    return Decision.model_validate(_fields(row) | {"value": value})


def _trajectory(row: Row) -> TrajectoryOpen | TrajectoryEnd:
    model = TrajectoryEnd if row["kind"] == "end" else TrajectoryOpen
    return model.model_validate(_fields(row))


def _group(row: Row) -> GroupOpen | GroupCancel:
    model = GroupCancel if row["kind"] == "cancel" else GroupOpen
    return model.model_validate(_fields(row))


READERS: Final[dict[str, Callable[[Row], GroupFact]]] = {
    "calls": lambda row: StepStarted.model_validate(_fields(row)),
    "steps": _step,
    "rewards": lambda row: Reward.model_validate(_fields(row)),
    "annotations": _annotation,
    "decisions": _decision,
    "trajectory_events": _trajectory,
    "group_events": _group,
}
"""Of every table with facts of groups; a step's tokens are in `step_tokens`."""


def join_tokens(steps: Iterable[Row], tokens: Iterable[Row]) -> list[Row]:
    """The rows of steps with their tokens; a step without them comes without."""
    found = {(row["prompt_uid"], row["trajectory_uid"], row["step_id"]): row for row in tokens}
    return [{**found.get((row["prompt_uid"], row["trajectory_uid"], row["step_id"]), {}), **row} for row in steps]
