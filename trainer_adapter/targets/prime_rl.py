"""prime-rl's `TrainingSample`s: flat sequences with a mask; by prime-rl's source of summer 2026."""

from typing import Any

import numpy as np

from claw_r1.blobs import Blobs
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.media import read_experts
from trainer_adapter.targets.layout import Array, refuse_media


def to_prime_rl(
    batch: TrainingBatch, *, env_name: str, temperature: float, blobs: Blobs | str | None = None
) -> list[dict[str, Any]]:
    """The keyword arguments of one `TrainingSample` for each of n rows, plain Python; no package is needed.

    Lists with an entry for each token of the row: `token_ids` int; `mask` bool, True on trained tokens; `logprobs` float, nats,
    0.0 where the mask is False; `temperatures` float; `advantages` float, 0.0 where the mask is False; `ref_logprobs` float, of
    the annotation `ref_log_probs`, None where no row has it. And `env_name`, `reward` float, `sample_id`.

    `routed_experts`: None, or with `blobs`, the store that has them, the arguments of a `RoutedExperts`: `shape` [tokens,
    layers, experts a token], `dtype` int16, `data` its bytes; 0 on the last token, which nothing read.

    `temperature` is the one that all rows were sampled with: a batch does not say it. Raises NoColumn where the algorithm has
    no advantages, and where some rows only have `ref_log_probs`; UserError for pictures, and for experts that are not there.
    """
    refuse_media(batch, "to_prime_rl")
    columns = {
        "token_ids": batch.token_ids,
        "mask": batch.loss_mask == 1,
        "logprobs": batch.rollout_log_probs,
        "advantages": batch.advantages,
    }
    if (reference := batch.annotation_if_any("ref_log_probs")) is not None:
        columns["ref_logprobs"] = reference
    rows = {name: batch.rows(column) for name, column in columns.items()}
    experts = read_experts(batch, blobs)
    return [
        {
            "ref_logprobs": None,
            "routed_experts": None if experts is None else _describe_experts(experts[row]),
            **{name: of_all[row].tolist() for name, of_all in rows.items()},
            "temperatures": [temperature] * length,
            "env_name": env_name,
            "reward": float(batch.reward[row]),
            "sample_id": batch.sample_ids[row],
        }
        for row, length in enumerate(batch.lengths.tolist())
    ]


def _describe_experts(known: Array) -> dict[str, Any]:
    whole = np.concatenate((known, np.zeros((1, *known.shape[1:]), np.int16)))
    return {"shape": list(whole.shape), "dtype": "int16", "data": whole.tobytes()}
