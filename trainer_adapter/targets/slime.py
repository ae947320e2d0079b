"""slime's training data of one rollout, as its rollout manager hands it to the ranks; by slime's source of summer 2026."""

from typing import Any

import numpy as np

from claw_r1.blobs import Blobs
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.media import read_experts
from trainer_adapter.targets.layout import refuse_media, split_points


def to_slime(batch: TrainingBatch, *, blobs: Blobs | str | None = None) -> dict[str, list[Any]]:
    """Lists with an entry for each of n rows, plain Python; no package is needed.

    - `tokens`: lists of int, prompt and response; `response_lengths`: int, tokens behind the prompt, which is all before the
      first trained token.
    - `loss_masks`: lists of 0 and 1; `rollout_log_probs`: lists of float, nats, 0.0 where the mask is 0; `teacher_log_probs`:
      the same, where every row has them. One for each response token.
    - `rewards`: float, the trajectory's advantage where the algorithm has one (slime's rewards are normalised ones), else its
      reward; `raw_reward`: float, its reward.
    - `rollout_routed_experts`: int32 [tokens - 1, layers, experts a token], where `blobs` is the store that has them.
    - `sample_indices`: int, the row; `rollout_ids`: int, the trajectory, which its rows share.

    `truncated` is not there, since a batch does not say it. Raises UserError for pictures, and for experts that are not
    there; NoColumn where some rows only have `teacher_log_probs`.
    """
    refuse_media(batch, "to_slime")
    ends = split_points(batch)

    def responses(column: Any) -> list[list[Any]]:
        return [row[end:].tolist() for row, end in zip(batch.rows(column), ends, strict=True)]

    rewards = batch.reward if batch.trajectory_advantages is None else batch.advantage
    data = {
        "tokens": [row.tolist() for row in batch.rows(batch.token_ids)],
        "response_lengths": (batch.lengths - ends).tolist(),
        "rewards": rewards.tolist(),
        "raw_reward": batch.reward.tolist(),
        "sample_indices": list(range(len(batch))),
        "rollout_ids": batch.trajectory_index.tolist(),
        "loss_masks": responses(batch.loss_mask),
        "rollout_log_probs": responses(batch.rollout_log_probs),
    }
    if (teacher := batch.annotation_if_any("teacher_log_probs")) is not None:
        data["teacher_log_probs"] = responses(teacher)
    if (experts := read_experts(batch, blobs)) is not None:
        data["rollout_routed_experts"] = [array.astype(np.int32) for array in experts]
    return data
