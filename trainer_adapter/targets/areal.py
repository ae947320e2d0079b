"""AReaL's trajectory batch, as its rollout workflows return it; by AReaL 1.0."""

from typing import Any

import numpy as np

from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import Array, fit, need, pad, refuse_media, to_tensors


def to_areal(batch: TrainingBatch, *, pad_token_id: int, length: int | None = None) -> dict[str, Any]:
    """CPU tensors of n rows; see `arrange`."""
    torch = need("torch", "to_areal")
    return to_tensors(arrange(batch, pad_token_id=pad_token_id, length=length), torch)


def arrange(batch: TrainingBatch, *, pad_token_id: int, length: int | None = None) -> dict[str, Array]:
    """Padded on the right to L (`length`, or the longest row), entry t of token t: AReaL shifts them itself.

    [n, L]: `input_ids` int32; `loss_mask` int32, 1 on trained tokens; `logprobs` float32, nats; `versions` int32, -1 where
    nothing was sampled or it is not known; `attention_mask` bool. [n]: `rewards` float32. Advantages are AReaL's to make.
    Raises UserError for a row longer than `length`, and for pictures.
    """
    refuse_media(batch, "to_areal")
    longest = fit(batch.lengths.tolist(), length, "length", batch)
    columns: dict[str, tuple[Array, float, type[np.generic]]] = {
        "input_ids": (batch.token_ids, pad_token_id, np.int32),
        "loss_mask": (batch.loss_mask, 0, np.int32),
        "logprobs": (batch.rollout_log_probs, 0, np.float32),
        "versions": (batch.policy_version, -1, np.int32),
        "attention_mask": (np.ones(batch.tokens), 0, np.bool_),
    }
    padded = {name: pad(batch.rows(c), longest, fill, "right", dtype) for name, (c, fill, dtype) in columns.items()}
    return padded | {"rewards": batch.reward.copy()}
