"""A batch becomes the parts of data-parallel ranks: each row on one rank, equally many rows on all.

Pure. Every rank that has the whole batch computes the same parts without asking another one. What is missing to equal numbers
are padding rows: copies of the batch's shortest row that nothing is trained of, with the weight 0, in a group of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from claw_r1.errors import UserError
from trainer_adapter.batch import Group, TrainingBatch

T = TypeVar("T")
Balance = Literal["tokens", "count"]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Shard(TrainingBatch):
    """One rank's rows of a batch, in the batch's order, and padding rows behind them.

    `groups`, `group_index` and `trajectory_index` count within the shard; a padding row has the group -1, the reward, weight
    and advantage 0, and no trained token.
    """

    rank: int
    world: int
    row_index: Rows
    """int64 [n]: the row of the whole batch; -1 of padding rows."""
    whole_token_rewards: NDArray[np.float32]
    """What `token_rewards` gives: a trajectory's rewards are placed over all its samples, wherever they are."""

    @cached_property
    def token_rewards(self) -> NDArray[np.float32]:
        """float32 [T], as of the whole batch."""
        return self.whole_token_rewards

    @property
    def n_padding(self) -> int:
        """Padding rows; they are the last ones."""
        return int(np.count_nonzero(self.row_index < 0))


def assign_rows(
    lengths: NDArray[np.int64], group_index: NDArray[np.int32], world: int, balance: Balance, keep_groups: bool
) -> list[Rows]:
    """The rows of each rank, rising. The heaviest row or group first, each to the rank with the least so far.

    Weights are tokens, or rows with `count`. Single rows are spread as evenly as their number can be, whatever their weights;
    whole groups are not, so that more padding may be needed. Ties go to the lower row and to the lower rank.
    """
    units = [np.array([row]) for row in range(len(lengths))]
    limit = -(-len(units) // world)
    if keep_groups:
        units = [np.flatnonzero(group_index == group) for group in dict.fromkeys(group_index.tolist())]
        limit = len(units)
    weights = [int(lengths[unit].sum()) if balance == "tokens" else len(unit) for unit in units]
    parts: list[list[int]] = [[] for _ in range(world)]
    loads, numbers = [0] * world, [0] * world
    for number in sorted(range(len(units)), key=lambda number: (-weights[number], number)):
        rank = min((rank for rank in range(world) if numbers[rank] < limit), key=lambda rank: (loads[rank], rank))
        parts[rank] += units[number].tolist()
        loads[rank] += weights[number]
        numbers[rank] += 1
    return [np.array(sorted(part), np.int64) for part in parts]


def take_shard(batch: TrainingBatch, rank: int, world: int, balance: Balance, keep_groups: bool | None) -> Shard:
    """What `TrainingBatch.shard` gives."""
    if world < 1 or not 0 <= rank < world:
        raise UserError(f"there is no rank {rank} of {world}: ranks count from 0 to world - 1")
    if balance not in ("tokens", "count"):
        raise UserError(f"balance is {balance!r}: write tokens or count")
    keep = batch.algorithm == "dpo" if keep_groups is None else keep_groups
    parts = assign_rows(batch.lengths, batch.group_index, world, balance, keep)
    return _take(batch, parts[rank], max(map(len, parts)), rank, world)


def _take(batch: TrainingBatch, rows: Rows, n_rows: int, rank: int, world: int) -> Shard:
    n_padding = n_rows - len(rows)
    shortest = int(np.argmin(batch.lengths)) if len(batch) else 0
    sources = [*rows.tolist(), *[shortest] * n_padding]
    real = np.arange(n_rows) < len(rows)
    offsets = np.concatenate(([0], np.cumsum(batch.lengths[sources]))).astype(np.int64)
    trained = np.repeat(real, np.diff(offsets))

    def tokens(column: NDArray[Any], masked: bool = True) -> NDArray[Any]:
        views = batch.rows(column)
        out = np.concatenate([views[row] for row in sources]) if sources else column[:0].copy()
        if masked:
            out[~trained] = 0
        return _read_only(out)

    def numbers(column: NDArray[Any], padding: int = 0) -> NDArray[Any]:
        return _read_only(np.where(real, column[sources], padding).astype(column.dtype))

    def each(values: Sequence[T], padding: Callable[[int], T]) -> tuple[T, ...]:
        return (*(values[row] for row in rows), *(padding(number) for number in range(n_padding)))

    def name(number: int) -> str:
        return f"padding-{rank}-{number}"

    def always(value: Any) -> Callable[[int], Any]:
        return lambda _: value

    names = {"sample_ids", "trajectory_uids", "prompt_uids"}
    empty: dict[str, Any] = {"spans": (), "version_spans": (), "reward_components": {}, "tags": (), "metadata": {}}
    empty |= dict.fromkeys(("task_ids", "labels", "quality"))
    group_index = _renumber(batch.group_index[rows])
    padded_groups = np.concatenate((group_index, np.full(n_padding, -1))).astype(np.int32)
    trajectories = _renumber(batch.trajectory_index[rows])
    further = np.arange(n_padding) + trajectories.max(initial=-1) + 1
    columns: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(TrainingBatch)}
    columns |= {
        "groups": tuple(_place_groups(batch.groups, batch.group_index[rows], group_index)),
        "offsets": _read_only(offsets),
        "token_ids": tokens(batch.token_ids, masked=False),
        "loss_mask": tokens(batch.loss_mask),
        "rollout_log_probs": tokens(batch.rollout_log_probs),
        "token_advantages": None if batch.token_advantages is None else tokens(batch.token_advantages),
        "annotations": {key: tokens(column) for key, column in batch.annotations.items()},
        "trajectory_advantages": None if batch.trajectory_advantages is None else numbers(batch.trajectory_advantages),
        "group_index": _read_only(padded_groups),
        "trajectory_index": _read_only(np.concatenate((trajectories, further)).astype(np.int32)),
        "n_samples": numbers(batch.n_samples, padding=1),
        **{key: numbers(getattr(batch, key)) for key in ("reward", "loss_weight", "sample_index")},
        **{key: each(getattr(batch, key), name) for key in names},
        **{key: each(getattr(batch, key), always(value)) for key, value in empty.items()},
        **{
            key: each(getattr(batch, key), always(getattr(batch, key)[shortest] if n_padding else None))
            for key in ("routed_experts", "multi_modal_data")
        },
    }
    return Shard(
        **columns,
        rank=rank,
        world=world,
        row_index=_read_only(np.concatenate((rows, np.full(n_padding, -1))).astype(np.int64)),
        whole_token_rewards=tokens(batch.token_rewards),
    )


def _renumber(numbers: NDArray[np.int32]) -> NDArray[np.int64]:
    """Rising numbers, counted from 0 without gaps."""
    return np.cumsum(np.diff(numbers, prepend=numbers[:1]) != 0)


def _place_groups(groups: Sequence[Group], before: NDArray[np.int32], after: NDArray[np.int64]) -> list[Group]:
    """The groups that have rows here, at the places of these."""
    bounds = [*np.flatnonzero(np.diff(after, prepend=-1)).tolist(), len(after)]
    return [replace(groups[before[first]], first=first, last=last) for first, last in pairwise(bounds)]


def _read_only(column: NDArray[Any]) -> NDArray[Any]:
    column.flags.writeable = False
    return column
