"""What a `rollout_func` of TRL's `GRPOTrainer` returns, and the reward function that hands our rewards on; checked with TRL
1.16."""

from typing import Any

from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import name_groups, refuse_media, split_points


def to_trl(batch: TrainingBatch, *, num_generations: int | None = None) -> dict[str, list[Any]]:
    """Lists with an entry for each of n rows, plain Python; no package is needed.

    - `prompt_ids`, `completion_ids`: lists of int. The prompt is all before the first trained token.
    - `logprobs`: lists of float, nats, one for each completion token; 0.0 where `env_mask` is 0.
    - `env_mask`: lists of 0 and 1, one for each completion token: 1 on trained tokens.
    - `claw_reward`, `claw_group`, `claw_trajectory`, `claw_task`: what reward functions get by name.

    TRL takes rows in runs of its `num_generations`, each run a group, and makes the advantages itself from the rewards. So each
    group needs that many rows (given here, it is checked; else all groups must be of one size). Raises UserError where they
    have others, as forked trajectories, `rows: step` and padding rows make them; and for pictures.
    """
    refuse_media(batch, "to_trl")
    sizes = {group.group_id: group.last - group.first for group in batch.groups}
    if (batch.group_index < 0).any():
        raise UserError("TRL makes advantages by groups, and padding rows are in none: give it the whole batch")
    wanted = num_generations if num_generations is not None else next(iter(sizes.values()), 0)
    for name, size in sizes.items():
        if size != wanted:
            raise UserError(
                f"group {name} has {size} rows, and TRL takes {wanted} a group: write `group: {{size: {wanted}}}` and `rows: "
                "sample` in the recipe, and drop the groups of which a trajectory forked (`filters: [{field: chains, op: eq, "
                "value: 1}]`)"
            )
    ends = split_points(batch).tolist()
    ids, masks, log_probs = (batch.rows(c) for c in (batch.token_ids, batch.loss_mask, batch.rollout_log_probs))
    return {
        "prompt_ids": [row[:end].tolist() for row, end in zip(ids, ends, strict=True)],
        "completion_ids": [row[end:].tolist() for row, end in zip(ids, ends, strict=True)],
        "logprobs": [row[end:].tolist() for row, end in zip(log_probs, ends, strict=True)],
        "env_mask": [row[end:].tolist() for row, end in zip(masks, ends, strict=True)],
        "claw_reward": batch.reward.tolist(),
        "claw_group": name_groups(batch),
        "claw_trajectory": list(batch.trajectory_uids),
        "claw_task": list(batch.task_ids),
    }


def claw_reward(completions: Any, claw_reward: list[float], **_: Any) -> list[float]:
    """A reward function for `GRPOTrainer(reward_funcs=claw_reward)`: the batch's rewards, as they came."""
    return claw_reward
