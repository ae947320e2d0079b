"""verl's `DataProto`: what its padded trainers of PPO and GRPO take; checked with verl 0.9.1."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from claw_r1.blobs import Blobs
from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.media import read_experts
from trainer_adapter.targets.layout import (
    Array,
    advantages_of,
    fit,
    name_groups,
    need,
    pad,
    refuse_media,
    split_points,
    to_tensors,
    version_ranges,
)


def to_verl(
    batch: TrainingBatch,
    *,
    pad_token_id: int,
    prompt_length: int | None = None,
    response_length: int | None = None,
    multi_modal_inputs: Sequence[Mapping[str, Any]] | None = None,
    blobs: Blobs | str | None = None,
) -> dict[str, Any]:
    """The arguments of `DataProto.from_dict`: `DataProto.from_dict(**batch.to_verl(pad_token_id=0))`; see `arrange`."""
    torch = need("torch", "to_verl")
    arranged = arrange(
        batch,
        pad_token_id=pad_token_id,
        prompt_length=prompt_length,
        response_length=response_length,
        multi_modal_inputs=multi_modal_inputs,
        experts=read_experts(batch, blobs),
    )
    return arranged | {"tensors": to_tensors(arranged["tensors"], torch)}


def arrange(
    batch: TrainingBatch,
    *,
    pad_token_id: int,
    prompt_length: int | None = None,
    response_length: int | None = None,
    multi_modal_inputs: Sequence[Mapping[str, Any]] | None = None,
    experts: Sequence[Array] | None = None,
) -> dict[str, Any]:
    """`tensors`, `non_tensors` and `meta_info` of n rows, with P prompt and R response places (`prompt_length`,
    `response_length`, or the longest).

    `tensors`:

    - int64: `prompts` [n, P], padded on the left; `responses` [n, R], padded on the right; `input_ids` [n, P + R], both;
      `attention_mask` and `position_ids` [n, P + R]; `response_mask` [n, R], 1 on trained tokens.
    - float32 [n, R]: `rollout_log_probs`, 0.0 where the mask is 0; `rm_scores`, the batch's `token_rewards`; `advantages`,
      where the algorithm has them.
    - int16 [n, P + R, layers, experts a token]: `routed_experts`, where `experts` has them by row (`media.read_experts`); 0 on
      padding and on a row's last token, which nothing read.

    `non_tensors`, each [n]: `uid` (the group; `_` is written `~`, since verl cuts names at `_`), `data_source` (the recipe),
    `__num_turns__` int32, `multi_modal_inputs`, `min_global_steps` and `max_global_steps` (versions of the trained tokens; None
    where they are not known), `extra_info` (identities, reward components, metadata, loss_weight). `meta_info`:
    `reward_extra_keys`, empty.

    `multi_modal_inputs`: by row what the model's processor makes of the row's pictures. Raises UserError for a row that does
    not fit, and for pictures without these.
    """
    media = list_media(batch, multi_modal_inputs, "to_verl", "multi_modal_inputs")
    ends = split_points(batch)
    p = fit(ends.tolist(), prompt_length, "prompt_length", batch)
    r = fit((batch.lengths - ends).tolist(), response_length, "response_length", batch)

    def responses(column: Array, fill: float, dtype: type[np.generic]) -> Array:
        rows = [row[end:] for row, end in zip(batch.rows(column), ends, strict=True)]
        return pad(rows, r, fill, "right", dtype)

    def prompts(column: Array, fill: float) -> Array:
        return pad([row[:end] for row, end in zip(batch.rows(column), ends, strict=True)], p, fill, "left", np.int64)

    ones = np.ones(batch.tokens, np.int64)
    tensors = {
        "prompts": prompts(batch.token_ids, pad_token_id),
        "responses": responses(batch.token_ids, pad_token_id, np.int64),
        "response_mask": responses(batch.loss_mask, 0, np.int64),
        "rollout_log_probs": responses(batch.rollout_log_probs, 0, np.float32),
        "rm_scores": responses(batch.token_rewards, 0, np.float32),
        "attention_mask": np.concatenate((prompts(ones, 0), responses(ones, 0, np.int64)), axis=1),
    }
    tensors["input_ids"] = np.concatenate((tensors["prompts"], tensors["responses"]), axis=1)
    tensors["position_ids"] = np.maximum(np.cumsum(tensors["attention_mask"], axis=1) - 1, 0)
    if (advantages := advantages_of(batch)) is not None:
        tensors["advantages"] = responses(advantages, 0, np.float32)
    if experts:
        tensors["routed_experts"] = _place_experts(experts, p - ends, p + r)
    versions = version_ranges(batch)
    non_tensors = {
        "uid": _objects(name_uids(batch)),
        "data_source": _objects([batch.recipe] * len(batch)),
        "__num_turns__": np.array([2 * len(spans) for spans in batch.spans], np.int32),
        "multi_modal_inputs": _objects(media),
        "min_global_steps": _objects([None if span is None else span[0] for span in versions]),
        "max_global_steps": _objects([None if span is None else span[1] for span in versions]),
        "extra_info": _objects([_describe(batch, row) for row in range(len(batch))]),
    }
    return {"tensors": tensors, "non_tensors": non_tensors, "meta_info": {"reward_extra_keys": []}}


def name_uids(batch: TrainingBatch) -> list[str]:
    """[n]: the group of each row without `_`, at which verl cuts names."""
    return [name.replace("_", "~") for name in name_groups(batch)]


def list_media(
    batch: TrainingBatch, given: Sequence[Mapping[str, Any]] | None, method: str, argument: str
) -> Sequence[Mapping[str, Any]]:
    """[n]: what is `given` of each row, else {}. Raises UserError for pictures without it, and for another number of rows."""
    if given is None:
        refuse_media(batch, f"{method} without {argument}")
        return [{} for _ in range(len(batch))]
    if len(given) != len(batch):
        raise UserError(f"{argument} has {len(given)} entries, and the batch {len(batch)} rows")
    return given


def _place_experts(experts: Sequence[Array], firsts: Array, length: int) -> Array:
    out = np.zeros((len(experts), length, *experts[0].shape[1:]), np.int16)
    for row, first, known in zip(out, firsts.tolist(), experts, strict=True):
        row[first : first + len(known)] = known
    return out


def _describe(batch: TrainingBatch, row: int) -> dict[str, Any]:
    return {
        "sample_id": batch.sample_ids[row],
        "trajectory_uid": batch.trajectory_uids[row],
        "prompt_uid": batch.prompt_uids[row],
        "task_id": batch.task_ids[row],
        "reward_components": batch.reward_components[row],
        "metadata": batch.metadata[row],
        "loss_weight": float(batch.loss_weight[row]),
    }


def _objects(values: Sequence[Any]) -> Array:
    out = np.empty(len(values), object)
    out[:] = values
    return out
