"""Facts and outputs for tests: whole and valid by default, any field overridden by name."""

from collections.abc import Iterable, Sequence
from typing import Any

from claw_r1.codec import pack_floats, pack_ids, prefix_hash
from claw_r1.events import (
    Annotation,
    Capture,
    Demand,
    GroupFact,
    GroupOpen,
    GroupReady,
    Member,
    Reward,
    Sample,
    Sampling,
    Step,
    StepStarted,
    Trajectory,
    TrajectoryEnd,
    TrajectoryOpen,
    VersionSpan,
)
from claw_r1.ids import derived_id
from claw_r1.recipes import Recipe

RUN = "default"
PROMPT = "prompt-1"
TRAJECTORY = "trajectory-1"


def a_recipe(**over: Any) -> Recipe:
    """A GRPO recipe of two trajectories a group and one group a batch."""
    fields: dict[str, Any] = {"name": "test", "run_id": RUN, "group": {"size": 2}, "batch": {"groups": 1}}
    return Recipe.model_validate(fields | over)


def a_demand(**over: Any) -> Demand:
    """Of the only trainer of `a_recipe`, which wants two groups."""
    fields: dict[str, Any] = {
        "recipe": "test",
        "recipe_version": 1,
        "run_id": RUN,
        "channel": "train",
        "batch_groups": 2,
        "group_size": 2,
        "max_versions": 0,
        "max_age": 3600.0,
        "ready": 0,
        "cut": 0,
        "ttl": 10.0,
        "holder": "trainer",
        "since": 0.0,
        "at": 0.0,
    }
    return Demand.model_validate(fields | over)


def a_step(prompt: Sequence[int] = (1, 2, 3), response: Sequence[int] = (4, 5), **over: Any) -> Step:
    """A complete step with a full context; its id follows from trajectory, prompt and response unless given."""
    trajectory = over.get("trajectory_uid", TRAJECTORY)
    step_id = over.get("step_id", derived_id("step", trajectory, tuple(prompt), tuple(response)))
    fields: dict[str, Any] = {
        "fact_id": step_id,
        "step_id": step_id,
        "run_id": RUN,
        "prompt_uid": PROMPT,
        "trajectory_uid": trajectory,
        "at": 1.0,
        "new_prompt_ids": pack_ids(prompt),
        "response_ids": pack_ids(response),
        "rollout_log_probs": pack_floats(-0.5 for _ in response),
        "policy_version": 1,
        "finish_reason": "stop",
        "model": "policy",
        "sampling": Sampling(temperature=1.0),
        "capture": Capture(ok=True),
        "new_messages": b'[{"role":"user","content":"hello"}]',
        "reply": b'{"role":"assistant","content":"world"}',
    }
    return Step.model_validate(fields | over)


def a_child(
    parent: Step, parent_prompt: Sequence[int], tail: Sequence[int], response: Sequence[int], **over: Any
) -> Step:
    """A step whose prompt is the parent's prompt + response + `tail`, delta-encoded against the parent."""
    prefix = pack_ids(parent_prompt) + parent.response_ids
    delta = {
        "trajectory_uid": parent.trajectory_uid,
        "prompt_uid": parent.prompt_uid,
        "run_id": parent.run_id,
        "parent_step_id": parent.step_id,
        "prefix_len": len(prefix) // 4,
        "prefix_hash": prefix_hash(prefix),
        "depth": parent.depth + 1,
        "step_id": derived_id("step", parent.step_id, tuple(tail), tuple(response)),
        "messages_kept": 2,
        "new_messages": b'[{"role":"user","content":"go on"}]',
    }
    return a_step(tail, response, **(delta | over))


def a_started(step: Step, **over: Any) -> StepStarted:
    """The StepStarted of a step."""
    fields: dict[str, Any] = {
        "fact_id": derived_id("started", step.step_id),
        "step_id": step.step_id,
        "run_id": step.run_id,
        "prompt_uid": step.prompt_uid,
        "trajectory_uid": step.trajectory_uid,
        "at": step.at,
    }
    return StepStarted.model_validate(fields | over)


def a_reward(value: float | None = 1.0, **over: Any) -> Reward:
    """A trajectory reward of the source `reward`."""
    fields: dict[str, Any] = {
        "run_id": RUN,
        "prompt_uid": PROMPT,
        "trajectory_uid": TRAJECTORY,
        "at": 1.0,
        "source": "reward",
        "value": value,
    } | over
    identity = (fields["trajectory_uid"], fields.get("step_id"), fields["source"], fields.get("revision", 0))
    return Reward.model_validate({"fact_id": derived_id("reward", *identity)} | fields)


def an_annotation(step: Step, name: str, values: bytes, **over: Any) -> Annotation:
    """A named array on a step's response."""
    place = {"run_id": step.run_id, "prompt_uid": step.prompt_uid, "trajectory_uid": step.trajectory_uid}
    fields: dict[str, Any] = place | {"step_id": step.step_id, "name": name, "source": "test", "at": 1.0} | over
    identity = (step.step_id, name, fields["source"], fields.get("revision", 0), values)
    return Annotation.model_validate(
        {"fact_id": derived_id("annotation", *map(repr, identity)), "values": values} | fields
    )


def an_end(**over: Any) -> TrajectoryEnd:
    fields: dict[str, Any] = {"run_id": RUN, "prompt_uid": PROMPT, "trajectory_uid": TRAJECTORY, "at": 1.0} | over
    return TrajectoryEnd.model_validate({"fact_id": derived_id("end", fields["trajectory_uid"])} | fields)


def an_open(**over: Any) -> TrajectoryOpen:
    fields: dict[str, Any] = {"run_id": RUN, "prompt_uid": PROMPT, "trajectory_uid": TRAJECTORY, "at": 1.0} | over
    return TrajectoryOpen.model_validate({"fact_id": derived_id("open", fields["trajectory_uid"])} | fields)


def a_group_open(**over: Any) -> GroupOpen:
    fields: dict[str, Any] = {"run_id": RUN, "prompt_uid": PROMPT, "at": 1.0} | over
    return GroupOpen.model_validate({"fact_id": derived_id("group-open", fields["prompt_uid"])} | fields)


def a_trajectory(
    trajectory_uid: str = TRAJECTORY, steps: int = 3, reward: float | None = 1.0, **over: Any
) -> list[GroupFact]:
    """The facts of one trajectory in the order in which a gateway writes them: steps that extend each other, reward, end."""
    facts: list[GroupFact] = []
    prompt: list[int] = [1, 2, 3]
    step = a_step(prompt, (10, 11), trajectory_uid=trajectory_uid, **over)
    for index in range(steps):
        if index:
            tail = (20 + index, 21 + index)
            child = a_child(step, prompt, tail, (10 + index, 11 + index), **over)
            prompt = [*prompt, *(10 + index - 1, 11 + index - 1), *tail]
            step = child
        facts += [a_started(step), step]
    if reward is not None:
        facts.append(a_reward(reward, trajectory_uid=trajectory_uid, **over))
    facts.append(an_end(trajectory_uid=trajectory_uid, **over))
    return facts


def a_group(rewards: Iterable[float | None] = (1.0, 0.0), steps: int = 3, **over: Any) -> list[GroupFact]:
    """The facts of one group, trajectory after trajectory."""
    prompt = over.get("prompt_uid", PROMPT)
    return [
        fact
        for number, reward in enumerate(rewards)
        for fact in a_trajectory(f"{prompt}-t{number}", steps, reward, **over)
    ]


def a_sample(ids: Sequence[int] = (1, 2, 3, 4), mask: Sequence[int] = (0, 0, 1, 1), **over: Any) -> Sample:
    """A training row whose trained tokens were sampled by version 1 with a log-prob of -0.5 each."""
    trajectory = over.get("trajectory_uid", TRAJECTORY)
    fields: dict[str, Any] = {
        "sample_id": derived_id("sample", trajectory, over.get("sample_index", 0)),
        "recipe": "test",
        "recipe_version": 1,
        "run_id": RUN,
        "prompt_uid": PROMPT,
        "group_id": over.get("prompt_uid", PROMPT),
        "trajectory_uid": trajectory,
        "channel": "train",
        "sample_index": 0,
        "n_samples": 1,
        "spans": (),
        "token_ids": pack_ids(ids),
        "loss_mask": bytes(mask),
        "rollout_log_probs": pack_floats(-0.5 * bit for bit in mask),
        "version_spans": (VersionSpan(version=1, start=0, end=len(ids)),),
        "reward": 1.0,
    }
    return Sample.model_validate(fields | over)


def a_ready_group(
    group_id: str = PROMPT, rewards: Sequence[float | None] = (1.0, 0.0), samples: int = 1, **over: Any
) -> tuple[list[Sample], GroupReady]:
    """A ready group: `samples` rows for every rewarded trajectory, and the marker; `over` goes to the rows."""
    rows: list[Sample] = []
    members: list[Member] = []
    for number, reward in enumerate(rewards):
        uid = f"{group_id}-t{number}"
        mine = [
            a_sample(
                **{"ids": (1, 2, 10 + number, 20 + index)}
                | {"prompt_uid": group_id, "group_id": group_id, "trajectory_uid": uid, "reward": reward}
                | {"sample_index": index, "n_samples": samples}
                | over
            )
            for index in range(samples if reward is not None else 0)
        ]
        rows += mine
        emitted = "emitted" if mine else "discarded"
        reason = "complete" if mine else "reward_missing"
        named = tuple(row.sample_id for row in mine)
        members.append(Member(trajectory_uid=uid, outcome=emitted, reason=reason, reward=reward, samples=named))
    marker = GroupReady(
        recipe="test",
        recipe_version=1,
        run_id=over.get("run_id", RUN),
        prompt_uid=group_id,
        group_id=group_id,
        channel="train",
        reason="size",
        members=tuple(members),
        sample_ids=tuple(row.sample_id for row in rows),
        tokens=sum(len(row.loss_mask) for row in rows),
        trained_tokens=sum(sum(row.loss_mask) for row in rows),
        partition=0,
        pos=1,
        at=1.0,
    )
    return rows, marker


def a_finished(number: int = 0, **over: Any) -> Trajectory:
    """A trajectory as the streams announce it, without steps."""
    uid = over.get("trajectory_uid", f"{over.get('run_id', RUN)}-t{number}")
    fields: dict[str, Any] = {
        "run_id": RUN,
        "prompt_uid": f"p{number}",
        "group_id": over.get("prompt_uid", f"p{number}"),
        "trajectory_uid": uid,
        "channel": "train",
        "status": "completed",
        "complete": True,
        "step_ids": (),
        "messages": b'[{"role":"user","content":"2+2"},{"role":"assistant","content":"4"}]',
        "metadata": {"truth": "4", "number": number},
        "partition": 0,
        "pos": 1,
        "at": 1.0,
    }
    return Trajectory.model_validate(fields | over)
