"""What a verl agent loop hands to its trainer goes to the gateway too: so what is sampled in the trainer is pooled; checked
with verl 0.9.1.

Invariants: verl's own objects are read by their names, nothing of verl is imported; the output gets the ids of its trajectory
among its extra fields and is else unchanged.
"""

from typing import Any, Final

from claw_r1.client.rows import steps_of_row
from claw_r1.client.sync import Client

PROMPT: Final = "claw_prompt"
TRAJECTORY: Final = "claw_trajectory"
"""Names of an output's extra fields, and of the columns that verl makes of them in `non_tensor_batch`."""


def publish_output(
    client: Client,
    output: Any,
    *,
    prompt_uid: str,
    run_id: str | None = None,
    channel: str | None = None,
    task_id: str | None = None,
    source: str = "reward",
) -> str:
    """Record an `AgentLoopOutput` as a trajectory that has ended; returns its id.

    `prompt_uid`: the sample's `uid`, which the rows of its group share. A run of ones in `response_mask` is a step; its
    policy version is `min_global_steps` if that is `max_global_steps` too, else unknown. A `reward_score` that is known is
    the reward of `source`; for scores that verl computes later see `publish_scores`. verl does not tell an agent loop
    whether it validates: `channel` is yours to say (examples/verl_agent_loop.py). Raises what the client raises.
    """
    first, last = (output.extra_fields.get(name) for name in ("min_global_steps", "max_global_steps"))
    steps = steps_of_row(
        output.prompt_ids,
        output.response_ids,
        output.response_mask,
        output.response_logprobs,
        policy_version=int(first) if first is not None and first == last else None,
    )
    place = {"prompt_uid": prompt_uid, "run_id": run_id, "channel": channel, "task_id": task_id}
    with client.trajectory(**place, metadata={"trainer": "verl", "num_turns": output.num_turns}) as trajectory:
        if steps:
            trajectory.submit_steps(steps)
        if output.reward_score is not None:
            trajectory.reward(float(output.reward_score), source=source)
    output.extra_fields |= {PROMPT: trajectory.prompt_uid, TRAJECTORY: trajectory.trajectory_uid}
    return trajectory.trajectory_uid


def publish_scores(client: Client, data: Any, *, run_id: str | None = None, source: str = "reward") -> None:
    """Record the scores of a `DataProto` whose rows were published: the sum of a row's `rm_scores` ([n, R] float32).

    For the trainer, where a reward model or a reward function scored the rows after their agent loops were over.
    """
    scores = data.batch["rm_scores"].sum(-1).tolist()
    names = data.non_tensor_batch
    for prompt, trajectory, score in zip(names[PROMPT], names[TRAJECTORY], scores, strict=True):
        client.reward(score, trajectory_uid=trajectory, prompt_uid=prompt, run_id=run_id, source=source)
