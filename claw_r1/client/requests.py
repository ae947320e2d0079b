"""The rollout API, a function for each of its deeds: arguments become a call.

Invariants: ids that the caller leaves out are made here, once, so that a call that is sent again says the same; names and
meanings are the API's own (its document is at /openapi.json).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from claw_r1.client.calls import (
    Call,
    Decided,
    Done,
    Floats,
    Generated,
    Group,
    Ids,
    Json,
    Scored,
    Submitted,
    Trajectory,
    call,
    given,
    packed_floats,
    packed_ids,
)
from claw_r1.client.steps import Step, row
from claw_r1.ids import check_id, new_id
from claw_r1.recipes import EndStatus

_NOTHING: Final[Mapping[str, Any]] = {}


def init_trajectory(
    *,
    prompt_uid: str | None = None,
    trajectory_uid: str | None = None,
    run_id: str | None = None,
    channel: str | None = None,
    task_id: str | None = None,
    metadata: Json = _NOTHING,
) -> Call[Trajectory]:
    """Begin a trajectory, of a new prompt if none is named."""
    named = {"trajectory_uid": trajectory_uid or new_id(), "prompt_uid": prompt_uid or new_id()}
    known = given(run_id=run_id, channel=channel, task_id=task_id, metadata=metadata or None)
    return call("/init_trajectory", named | known, Trajectory)


def complete_trajectory(
    trajectory_uid: str,
    *,
    prompt_uid: str | None = None,
    run_id: str | None = None,
    reward: float | None = None,
    status: EndStatus = "completed",
    reason: str | None = None,
) -> Call[Done]:
    """Say that a trajectory is over."""
    said = given(prompt_uid=prompt_uid, run_id=run_id, reward=reward, status=status, reason=reason and reason[:1024])
    return call(f"/complete_trajectory/{check_id('trajectory_uid', trajectory_uid)}", said, Done)


def open_group(
    *,
    size: int | None = None,
    prompt_uid: str | None = None,
    run_id: str | None = None,
    channel: str | None = None,
    task_id: str | None = None,
    metadata: Json = _NOTHING,
) -> Call[Group]:
    """Announce a sampling round of a task, and how many trajectories it will have."""
    known = given(size=size, run_id=run_id, channel=channel, task_id=task_id, metadata=metadata or None)
    return call("/groups", {"prompt_uid": prompt_uid or new_id()} | known, Group)


def cancel_group(prompt_uid: str, *, run_id: str | None = None, reason: str | None = None) -> Call[Done]:
    """Say that a group will not be finished: nothing of it is trained."""
    return call(f"/groups/{check_id('prompt_uid', prompt_uid)}/cancel", given(run_id=run_id, reason=reason), Done)


def reward(
    value: float | None,
    *,
    trajectory_uid: str | None = None,
    step_id: str | None = None,
    prompt_uid: str | None = None,
    run_id: str | None = None,
    source: str = "reward",
    components: Mapping[str, float] = _NOTHING,
    revision: int = 0,
    metadata: Json = _NOTHING,
) -> Call[Done]:
    """Score a step, a trajectory, or a group (prompt_uid alone); None withdraws what the source said.

    A source's revision is said once: raise it to change the value.
    """
    place = given(trajectory_uid=trajectory_uid, step_id=step_id, prompt_uid=prompt_uid, run_id=run_id)
    more = given(components=components or None, metadata=metadata or None)
    return call("/rewards", {**place, "value": value, "source": source, "revision": revision, **more}, Done)


def annotate(
    step_id: str,
    name: str,
    values: Floats,
    *,
    trajectory_uid: str,
    prompt_uid: str | None = None,
    run_id: str | None = None,
    source: str = "annotation",
    revision: int = 0,
) -> Call[Done]:
    """Give a step a named array, a number for each response token."""
    place = given(trajectory_uid=trajectory_uid, prompt_uid=prompt_uid, run_id=run_id, step_id=step_id)
    said = {"name": name, "values": packed_floats(values), "source": source, "revision": revision}
    return call("/annotations", place | said, Done)


def feedback(
    *,
    response_id: str | None = None,
    trajectory_uid: str | None = None,
    step_id: str | None = None,
    value: float | None = None,
    label: str | None = None,
    text: str | None = None,
    source: str = "feedback",
    author: str | None = None,
    feedback_id: str | None = None,
) -> Call[Done]:
    """Say what a person or a program thinks of an answer, by the reply's id or by its trajectory and step."""
    place = given(response_id=response_id, trajectory_uid=trajectory_uid, step_id=step_id)
    said = given(value=value, label=label, text=text, author=author)
    return call("/feedback", {**place, **said, "source": source, "feedback_id": feedback_id or new_id()}, Done)


def decide(
    action: str,
    *,
    prompt_uid: str,
    author: str,
    trajectory_uid: str | None = None,
    step_id: str | None = None,
    run_id: str | None = None,
    value: str | float | None = None,
    undoes: str | None = None,
    reason: str | None = None,
    decision_id: str | None = None,
) -> Call[Decided]:
    """Decide about a group, a trajectory of it, or a step of that.

    `action`: veto, keep, relabel, override_reward, tag, quality, note or undo.
    """
    place = given(trajectory_uid=trajectory_uid, step_id=step_id, run_id=run_id)
    said = given(value=value, undoes=undoes, reason=reason)
    named = {"prompt_uid": prompt_uid, "author": author, "decision_id": decision_id or new_id()}
    return call("/decisions", {"action": action, **named, **place, **said}, Decided)


def submit_steps(
    steps: Sequence[Step],
    *,
    trajectory_uid: str,
    prompt_uid: str | None = None,
    run_id: str | None = None,
    step_ids: Sequence[str] | None = None,
) -> Call[Submitted]:
    """Steps of one trajectory that the agent sampled itself, in their order."""
    place = given(trajectory_uid=trajectory_uid, prompt_uid=prompt_uid, run_id=run_id)
    ids = [new_id() for _ in steps] if step_ids is None else step_ids
    rows = [row(step_id, step, place) for step_id, step in zip(ids, steps, strict=True)]
    return call("/submit_steps", {"steps": rows}, Submitted)


def generate(
    prompt_ids: Ids, sampling_params: Json = _NOTHING, *, trajectory_uid: str | None = None
) -> Call[Generated]:
    """Sample of an engine, tokens in and tokens out. Nothing is recorded. Calls of one trajectory go to one engine."""
    said = {"prompt_ids": packed_ids(prompt_ids), "sampling_params": sampling_params}
    return call("/generate", said | given(trajectory_uid=trajectory_uid), Generated, slow=True)


def compute_reward(
    prompt_ids: Ids,
    response_ids: Ids,
    *,
    num_turns: int = 2,
    dataset_fields: Json = _NOTHING,
    extra_fields: Json = _NOTHING,
) -> Call[Scored]:
    """Ask the gateway's reward function. Nothing is recorded."""
    tokens = {"prompt_ids": packed_ids(prompt_ids), "response_ids": packed_ids(response_ids)}
    about = {"num_turns": num_turns, "dataset_fields": dataset_fields, "extra_fields": extra_fields}
    return call("/compute_reward", tokens | about, Scored, slow=True)
