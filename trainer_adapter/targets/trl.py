"""What a `rollout_func` of TRL's `GRPOTrainer` returns, the reward function that hands our rewards on, and collators that
keep the masks of `to_dpo` and `to_kto`; checked with TRL 1.16."""

from collections.abc import Mapping, Sequence
from typing import Any

from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import name_groups, need, refuse_media, split_points


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


Example = Mapping[str, Any]


def collate_pairs(examples: Sequence[Example], *, pad_token_id: int) -> dict[str, Any]:
    """A data collator for `DPOTrainer` and rows of `to_dpo`: `partial(collate_pairs, pad_token_id=…)`.

    int64 [2 n, L], the chosen ones first, padded on the right: `input_ids`, `attention_mask`, `completion_mask`, 1 on trained
    tokens only. float32 [n]: `ref_chosen_logps`, `ref_rejected_logps`, where the rows have them.
    """
    torch = need("torch", "collate_pairs")
    sides = [(one, side) for side in ("chosen", "rejected") for one in examples]
    rows = [(one["prompt_ids"], one[f"{side}_ids"], one[f"{side}_mask"]) for one, side in sides]
    known = {name for name in ("ref_chosen_logps", "ref_rejected_logps") if name in examples[0]}
    return _pad(rows, pad_token_id, torch) | {name: torch.tensor([one[name] for one in examples]) for name in known}


def collate_labelled(examples: Sequence[Example], *, pad_token_id: int, kl: bool = True) -> dict[str, Any]:
    """A data collator for `KTOTrainer` and rows of `to_kto`: `partial(collate_labelled, pad_token_id=…)`.

    int64 [n, L], padded on the right: `input_ids`, `attention_mask`, `completion_mask`, 1 on trained tokens only; and with
    `kl`, which all losses but `apo_zero_unpaired` need, the same as `KL_…` of each prompt with the completion of the row
    before it. bool [n]: `label`.
    """
    torch = need("torch", "collate_labelled")
    rows = [(one["prompt_ids"], one["completion_ids"], one["completion_mask"]) for one in examples]
    out = _pad(rows, pad_token_id, torch) | {"label": torch.tensor([one["label"] for one in examples])}
    if kl:
        others = [(prompt, *other) for (prompt, *_), (_, *other) in zip(rows, rows[-1:] + rows[:-1], strict=True)]
        out |= {f"KL_{name}": tensor for name, tensor in _pad(others, pad_token_id, torch).items()}
    return out


def _pad(rows: Sequence[Sequence[list[int]]], pad_token_id: int, torch: Any) -> dict[str, Any]:
    """Of (prompt, completion, the completion's mask)."""
    columns = {
        "input_ids": ([[*prompt, *ids] for prompt, ids, _ in rows], pad_token_id),
        "attention_mask": ([[1] * (len(prompt) + len(ids)) for prompt, ids, _ in rows], 0),
        "completion_mask": ([[0] * len(prompt) + mask for prompt, _, mask in rows], 0),
    }
    length = max(len(prompt) + len(ids) for prompt, ids, _ in rows)
    return {
        name: torch.tensor([[*values, *[fill] * (length - len(values))] for values in of_all])
        for name, (of_all, fill) in columns.items()
    }
