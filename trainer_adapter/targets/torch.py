"""Plain tensors, for a training loop of one's own; checked with torch 2.13."""

from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import Array, Side, advantages_of, fit, need, pad, to_tensors

Layout = Literal["padded", "packed"]
IGNORED = -100
"""The label that torch's cross entropy passes over."""


def to_torch(
    batch: TrainingBatch,
    *,
    pad_token_id: int | None = None,
    layout: Layout = "padded",
    side: Side = "right",
    length: int | None = None,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """CPU tensors of all columns; see `arrange`."""
    torch = need("torch", "to_torch")
    arranged = arrange(batch, pad_token_id=pad_token_id, layout=layout, side=side, length=length, rows=rows)
    return to_tensors(arranged, torch)


def arrange(
    batch: TrainingBatch,
    *,
    pad_token_id: int | None = None,
    layout: Layout = "padded",
    side: Side = "right",
    length: int | None = None,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Array]:
    """The columns under their own names, n rows with T tokens: all of the batch, or `rows` (int64 row numbers, in that order),
    such as `batch.pack` gives them.

    Token columns are [n, L] with the layout `padded` (L: `length`, or the longest row; padding on `side`), and [T] with
    `packed`, one row behind the other:

    - `input_ids` int64: token ids; padding is `pad_token_id`.
    - `position_ids` int64: from 0 in each row; 0 on padding.
    - `labels` int64: the token where it is trained, -100 elsewhere.
    - `loss_mask` bool: True on trained tokens.
    - `rollout_log_probs` float32, nats; `advantages` float32, where the algorithm has them; `token_rewards` float32;
      `policy_version` int64, -1 where it is not known; each annotation as `annotations.NAME`, float32. 0 on padding (the
      version: -1).
    - `attention_mask` int64, padded only: 1 on tokens. `cu_seqlens` int32 [n + 1] and `max_seqlen` int32 [], packed only.

    All are aligned with `input_ids`: entry t is of token t, which the logits at t - 1 predict. Row columns are [n]: `reward`,
    `loss_weight` float32; `group_index`, `trajectory_index` int64; of dpo `chosen` bool and `pair_index` int64; of kto
    `desirable` bool. Raises UserError without a `pad_token_id` where rows are padded, and for a row longer than `length`.
    """
    if layout not in ("padded", "packed") or side not in ("left", "right"):
        raise UserError(f"there is no layout {layout!r} on the side {side!r}: padded or packed; left or right")
    if layout == "padded" and pad_token_id is None:
        raise UserError("the padded layout needs pad_token_id, the tokenizer's; or write layout='packed'")
    trained = batch.loss_mask == 1
    advantages = advantages_of(batch)
    rows = np.arange(len(batch)) if rows is None else rows
    lengths = batch.lengths[rows]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    places = np.repeat(batch.offsets[rows], lengths) + positions
    columns: dict[str, tuple[Array, float, type[np.generic]]] = {
        "input_ids": (batch.token_ids, pad_token_id or 0, np.int64),
        "labels": (np.where(trained, batch.token_ids, IGNORED), IGNORED, np.int64),
        "loss_mask": (trained, 0, np.bool_),
        "rollout_log_probs": (batch.rollout_log_probs, 0, np.float32),
        "token_rewards": (batch.token_rewards, 0, np.float32),
        "policy_version": (batch.policy_version, -1, np.int64),
        **({} if advantages is None else {"advantages": (advantages, 0, np.float32)}),
        **{f"annotations.{name}": (column, 0, np.float32) for name, column in batch.annotations.items()},
    }
    if layout == "packed":
        out = {name: column[places].astype(dtype) for name, (column, _, dtype) in columns.items()}
        out["position_ids"] = positions
        out["cu_seqlens"] = offsets.astype(np.int32)
        out["max_seqlen"] = np.array(lengths.max(initial=0), np.int32)
    else:
        longest = fit(lengths.tolist(), length, "length", batch)

        def padded(column: Array, fill: float, dtype: type[np.generic]) -> Array:
            return pad([column[a:b] for a, b in pairwise(offsets)], longest, fill, side, dtype)

        out = {name: padded(column[places], fill, dtype) for name, (column, fill, dtype) in columns.items()}
        out["position_ids"] = padded(positions, 0, np.int64)
        out["attention_mask"] = padded(np.ones(len(positions)), 0, np.int64)
    return out | {name: column[rows] for name, column in _row_columns(batch).items()}


def _row_columns(batch: TrainingBatch) -> dict[str, Array]:
    columns = {name: getattr(batch, name) for name in ("reward", "loss_weight")}
    columns |= {name: getattr(batch, name).astype(np.int64) for name in ("group_index", "trajectory_index")}
    if batch.algorithm == "dpo":
        columns |= {"chosen": batch.chosen, "pair_index": batch.pair_index.astype(np.int64)}
    if batch.algorithm == "kto":
        columns["desirable"] = batch.desirable
    return columns
