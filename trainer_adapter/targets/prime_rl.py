"""prime-rl's `TrainingSample`s: flat sequences with a mask; by prime-rl's source of summer 2026."""

from typing import Any

from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import refuse_media


def to_prime_rl(batch: TrainingBatch, *, env_name: str, temperature: float) -> list[dict[str, Any]]:
    """The keyword arguments of one `TrainingSample` for each of n rows, plain Python; no package is needed.

    Lists with an entry for each token of the row: `token_ids` int; `mask` bool, True on trained tokens; `logprobs` float, nats,
    0.0 where the mask is False; `temperatures` float; `advantages` float, 0.0 where the mask is False; `ref_logprobs` float, of
    the annotation `ref_log_probs`, None where some row lacks it. And `env_name`, `reward` float, `sample_id`.

    `temperature` is the one that all rows were sampled with: a batch does not say it. Raises NoColumn where the algorithm has
    no advantages; UserError for pictures.
    """
    refuse_media(batch, "to_prime_rl")
    columns = {
        "token_ids": batch.token_ids,
        "mask": batch.loss_mask == 1,
        "logprobs": batch.rollout_log_probs,
        "advantages": batch.advantages,
    }
    if "ref_log_probs" in batch.annotations:
        columns["ref_logprobs"] = batch.annotations["ref_log_probs"]
    rows = {name: batch.rows(column) for name, column in columns.items()}
    return [
        {
            "ref_logprobs": None,
            **{name: of_all[row].tolist() for name, of_all in rows.items()},
            "temperatures": [temperature] * length,
            "env_name": env_name,
            "reward": float(batch.reward[row]),
            "sample_id": batch.sample_ids[row],
        }
        for row, length in enumerate(batch.lengths.tolist())
    ]
