"""OpenRLHF's `Experience`; by OpenRLHF 0.11."""

from typing import Any

import numpy as np

from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import (
    Array,
    advantages_of,
    fit,
    name_groups,
    need,
    pad,
    refuse_media,
    to_tensors,
)


def to_openrlhf(batch: TrainingBatch, *, pad_token_id: int, length: int | None = None) -> dict[str, Any]:
    """The keyword arguments of one `Experience` of n rows: `Experience(**batch.to_openrlhf(pad_token_id=0))`; see `arrange`."""
    torch = need("torch", "to_openrlhf")
    tensors = to_tensors(arrange(batch, pad_token_id=pad_token_id, length=length), torch)
    return tensors | {
        "index": list(range(len(batch))),
        "prompts": name_groups(batch),
        "labels": ["" if label is None else label for label in batch.labels],
        "info": {"reward": tensors["rewards"].clone()},
    }


def arrange(batch: TrainingBatch, *, pad_token_id: int, length: int | None = None) -> dict[str, Array]:
    """Its tensors, padded on the right to L (`length`, or the longest row).

    - int64 [n, L]: `sequences`, `attention_mask`.
    - [n, L - 1], entry t is of token t + 1, as OpenRLHF has them: `action_mask` int64, 1 on trained tokens; float32
      `rollout_log_probs`, nats; `base_action_log_probs`, where every row has `ref_log_probs`; `values`, where every row has
      them; `advantages`, where the algorithm has them.
    - float32 [n]: `rewards`. int64 [n]: `total_length`, tokens; `response_length`, from the first to the last trained one.

    `truncated` and `scores` are not there, since a batch does not say them; `prompts` names the groups, since it has no texts.
    Raises UserError for a row longer than `length`, and for pictures; NoColumn where some rows only have `ref_log_probs` or
    `values`.
    """
    refuse_media(batch, "to_openrlhf")
    longest = fit(batch.lengths.tolist(), length, "length", batch)

    def tokens(column: Array, fill: float, dtype: type[np.generic]) -> Array:
        return pad(batch.rows(column), longest, fill, "right", dtype)

    actions: dict[str, tuple[Array, type[np.generic]]] = {
        "action_mask": (batch.loss_mask, np.int64),
        "rollout_log_probs": (batch.rollout_log_probs, np.float32),
    }
    if (advantages := advantages_of(batch)) is not None:
        actions["advantages"] = (advantages, np.float32)
    for theirs, ours in (("base_action_log_probs", "ref_log_probs"), ("values", "values")):
        if (column := batch.annotation_if_any(ours)) is not None:
            actions[theirs] = (column, np.float32)
    trained = [np.flatnonzero(mask) for mask in batch.rows(batch.loss_mask)]
    return {
        "sequences": tokens(batch.token_ids, pad_token_id, np.int64),
        "attention_mask": tokens(np.ones(batch.tokens), 0, np.int64),
        **{name: np.ascontiguousarray(tokens(column, 0, dtype)[:, 1:]) for name, (column, dtype) in actions.items()},
        "rewards": batch.reward.copy(),
        "total_length": batch.lengths.copy(),
        "response_length": np.array([int(at[-1] - at[0]) + 1 if len(at) else 0 for at in trained], np.int64),
    }
