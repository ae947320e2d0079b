"""An Arrow table, a row for each sample: for Parquet, data frames and datasets; checked with pyarrow 26."""

import json
from typing import Any

import numpy as np

from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import Array, advantages_of, name_groups, need

_STEP = ("step_id", "step_index", "start", "end", "reward")
_VERSION = ("version", "start", "end")
_BLOB = ("sha256", "bytes", "kind")


def to_arrow(batch: TrainingBatch) -> Any:
    """A `pyarrow.Table` of n rows.

    - Lists with an entry for each token (large_list): `token_ids` int32, `loss_mask` uint8, `rollout_log_probs` float32 (nats),
      `token_rewards` float32, `policy_version` int64 (null where it is not known), `advantages` float32 where the algorithm has
      them, and each annotation under `annotations.NAME`, float32. The tokens are those of the batch, not copied.
    - `sample_id`, `trajectory_uid`, `prompt_uid`, `group_id`, `task_id`, `label` string; `tags` list of string; `quality`,
      `reward`, `loss_weight` float32; `trajectory_index`, `sample_index`, `n_samples` int32.
    - `spans`, `version_spans`, `multi_modal_data`: lists of structs; `reward_components`, `metadata`: JSON.

    The schema's metadata name the batch: batch_id, recipe, recipe_version, algorithm, run_id, sequence, trained_version and
    digest.
    """
    pa = need("pyarrow", "to_arrow")

    def tokens(column: Array, missing: Array | None = None) -> Any:
        return pa.LargeListArray.from_arrays(pa.array(batch.offsets), pa.array(column, mask=missing))

    integer, text = pa.int64(), pa.string()
    kinds = {"step_id": text, "step_index": integer, "start": integer, "end": integer, "reward": pa.float64()}
    kinds |= {"version": integer, "sha256": text, "bytes": integer, "kind": text}

    def parts(values: tuple[tuple[Any, ...], ...], names: tuple[str, ...]) -> Any:
        rows = [[part.model_dump(include=set(names)) for part in row] for row in values]
        return pa.array(rows, pa.list_(pa.struct([(name, kinds[name]) for name in names])))

    advantages = advantages_of(batch)
    columns = {
        "sample_id": pa.array(batch.sample_ids, text),
        "trajectory_uid": pa.array(batch.trajectory_uids, text),
        "prompt_uid": pa.array(batch.prompt_uids, text),
        "group_id": pa.array(name_groups(batch), text),
        "task_id": pa.array(batch.task_ids, text),
        "label": pa.array(batch.labels, text),
        "tags": pa.array(batch.tags, pa.list_(text)),
        "quality": pa.array(batch.quality, pa.float32()),
        **{name: pa.array(getattr(batch, name)) for name in ("reward", "loss_weight", "trajectory_index")},
        **{name: pa.array(getattr(batch, name)) for name in ("sample_index", "n_samples")},
        "token_ids": tokens(batch.token_ids),
        "loss_mask": tokens(batch.loss_mask),
        "rollout_log_probs": tokens(batch.rollout_log_probs),
        "token_rewards": tokens(batch.token_rewards),
        "policy_version": tokens(batch.policy_version, np.logical_not(batch.policy_version_known)),
        **({} if advantages is None else {"advantages": tokens(advantages)}),
        **{f"annotations.{name}": tokens(column) for name, column in batch.annotations.items()},
        "spans": parts(batch.spans, _STEP),
        "version_spans": parts(batch.version_spans, _VERSION),
        "multi_modal_data": parts(batch.multi_modal_data, _BLOB),
        "reward_components": pa.array([json.dumps(one, sort_keys=True) for one in batch.reward_components], text),
        "metadata": pa.array([json.dumps(one, sort_keys=True) for one in batch.metadata], text),
    }
    named = ("batch_id", "recipe", "recipe_version", "algorithm", "run_id", "sequence", "trained_version", "digest")
    metadata = {name: str(value) for name in named if (value := getattr(batch, name)) is not None}
    return pa.table(columns).replace_schema_metadata(metadata)
