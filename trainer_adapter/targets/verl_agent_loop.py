"""verl's agent loop: un-padded `AgentLoopOutput`s, and the rows that its V1 trainers take from TransferQueue; by verl 0.9.1.

A key is `{uid}_{session}_{index}`: the group, the trajectory's number in it, the row's number in the trajectory. Every row of a
trajectory has its reward; verl's GRPO reads it from the last one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from claw_r1.blobs import Blobs
from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.media import read_experts
from trainer_adapter.targets.layout import Array, need, split_points, to_tensors, version_ranges
from trainer_adapter.targets.verl import list_media, name_uids


def to_verl_agent_loop(
    batch: TrainingBatch,
    *,
    multi_modal_data: Sequence[Mapping[str, Any]] | None = None,
    blobs: Blobs | str | None = None,
) -> dict[str, dict[str, Any]]:
    """By key the keyword arguments of an `AgentLoopOutput` for each of n rows, plain Python; no package is needed.

    - `prompt_ids`, `response_ids`: lists of int; the prompt is all before the first trained token. `response_mask`: 1 on
      trained tokens; `response_logprobs`: float, nats, 0.0 where the mask is 0; one for each response token.
    - `reward_score`: float, the trajectory's reward. `num_turns`: two for each step. `metrics`: {}, since nothing was timed
      here.
    - `routed_experts`: int16 [tokens - 1, layers, experts a token], where `blobs` is the store that has them.
    - `multi_modal_data`: what is given of the row, such as `{"images": […]}`; `batch.open_media` has the bytes.
    - `extra_fields`: `min_global_steps` and `max_global_steps`, versions of the trained tokens, None where they are not known;
      `reward_extra_info`, the reward's components; `sample_id`, `trajectory_uid`, `task_id`.

    Raises UserError for pictures without `multi_modal_data`, for experts that are not there, and for padding rows, which are
    in no group.
    """
    media = list_media(batch, multi_modal_data, "to_verl_agent_loop", "multi_modal_data")
    ends, versions = split_points(batch).tolist(), version_ranges(batch)
    experts = read_experts(batch, blobs)
    columns: tuple[Array, ...] = (batch.token_ids, batch.loss_mask, batch.rollout_log_probs)
    outputs: dict[str, dict[str, Any]] = {}
    for row, (key, end, ids, mask, log_probs) in enumerate(
        zip(list_keys(batch), ends, *map(batch.rows, columns), strict=True)
    ):
        oldest, newest = versions[row] or (None, None)
        outputs[key] = {
            "prompt_ids": ids[:end].tolist(),
            "response_ids": ids[end:].tolist(),
            "response_mask": mask[end:].tolist(),
            "response_logprobs": log_probs[end:].tolist(),
            "reward_score": float(batch.reward[row]),
            "num_turns": 2 * len(batch.spans[row]),
            "metrics": {},
            "extra_fields": {
                "min_global_steps": oldest,
                "max_global_steps": newest,
                "reward_extra_info": dict(batch.reward_components[row]),
                "sample_id": batch.sample_ids[row],
                "trajectory_uid": batch.trajectory_uids[row],
                "task_id": batch.task_ids[row],
            },
            **({"multi_modal_data": dict(media[row])} if media[row] else {}),
            **({} if experts is None else {"routed_experts": experts[row]}),
        }
    return outputs


def list_keys(batch: TrainingBatch) -> list[str]:
    """[n]: `{uid}_{session}_{index}`, in a shard those of the whole batch. Raises UserError for padding rows."""
    if (batch.group_index < 0).any():
        raise UserError("verl names rows by their groups, and padding rows are in none: give it the whole batch")
    numbers = zip(name_uids(batch), batch.index_in_group.tolist(), batch.sample_index.tolist(), strict=True)
    return [f"{uid}_{session}_{index}" for uid, session, index in numbers]


def to_verl_rows(
    batch: TrainingBatch,
    *,
    global_steps: int,
    multi_modal_inputs: Sequence[Mapping[str, Any]] | None = None,
    blobs: Blobs | str | None = None,
) -> dict[str, Any]:
    """`keys`, `fields` and `tags` of n rows, as `AgentLoopWorkerTQ` puts them: `tq.kv_batch_put(keys=…, tags=…,
    fields=list_of_dict_to_tensordict(…), partition_id="train")`; and `prompts`, the tags of the groups by their uid.

    `fields`: by row tensors, int64 `prompts`, `responses`, `response_mask`, `loss_mask`, `input_ids`, `position_ids`; float32
    `rollout_log_probs` and `rm_scores`, the reward on the last token; int16 `routed_experts` [tokens, layers, experts a
    token], 0 on the last token, where `blobs` has them; and `num_turns`, `metrics`, `extra_fields`, `multi_modal_inputs`,
    `uid`, `session_id`, `global_steps`. Raises as `to_verl_agent_loop`.
    """
    torch = need("torch", "to_verl_rows")
    media = list_media(batch, multi_modal_inputs, "to_verl_rows", "multi_modal_inputs")
    outputs = to_verl_agent_loop(batch, multi_modal_data=media, blobs=blobs)
    rows = [_row(output, given, global_steps, key) for (key, output), given in zip(outputs.items(), media, strict=True)]
    fields = [{**told, **to_tensors(arrays, torch)} for arrays, told in rows]
    return {
        "keys": list(outputs),
        "fields": fields,
        "tags": [_tag(field, global_steps) for field in fields],
        "prompts": {
            uid: {"is_prompt": True, "status": "finished", "global_steps": global_steps} for uid in name_uids(batch)
        },
    }


def _row(
    output: Mapping[str, Any], media: Mapping[str, Any], global_steps: int, key: str
) -> tuple[dict[str, Array], dict[str, Any]]:
    prompts, responses = (np.array(output[name], np.int64) for name in ("prompt_ids", "response_ids"))
    mask, length = np.array(output["response_mask"], np.int64), len(prompts) + len(responses)
    scores = np.zeros(len(responses), np.float32)
    scores[-1:] = output["reward_score"]
    arrays: dict[str, Array] = {
        "prompts": prompts,
        "responses": responses,
        "response_mask": mask,
        "loss_mask": mask.copy(),
        "input_ids": np.concatenate((prompts, responses)),
        "position_ids": np.arange(length),
        "rollout_log_probs": np.array(output["response_logprobs"], np.float32),
        "rm_scores": scores,
    }
    if (experts := output.get("routed_experts")) is not None:
        arrays["routed_experts"] = np.zeros((length, *experts.shape[1:]), np.int16)
        arrays["routed_experts"][: len(experts)] = experts
    uid, session, _ = key.rsplit("_", 2)
    named: dict[str, Any] = {
        "uid": uid,
        "session_id": int(session),
        "global_steps": global_steps,
        "multi_modal_inputs": dict(media),
    }
    return arrays, named | {name: output[name] for name in ("num_turns", "metrics", "extra_fields")}


def _tag(field: Mapping[str, Any], global_steps: int) -> dict[str, Any]:
    prompt, response = len(field["prompts"]), len(field["responses"])
    extra = field["extra_fields"]
    return {
        "status": "success",
        "prompt_len": prompt,
        "response_len": response,
        "seq_len": prompt + response,
        "global_steps": global_steps,
        "min_global_steps": extra["min_global_steps"],
        "max_global_steps": extra["max_global_steps"],
    }
