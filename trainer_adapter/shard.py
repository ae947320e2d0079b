"""A batch becomes the parts of data-parallel ranks: each row on one rank, equally many rows on all.

Pure. Every rank that has the whole batch computes the same parts without asking another one. What is missing to equal numbers
are padding rows: copies of the batch's shortest row that nothing is trained of, with the weight 0, in a group of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from claw_r1.errors import UserError
from trainer_adapter.batch import Group, TrainingBatch

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
    part = _Part(batch, rows, n_rows - len(rows), rank)
    columns: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(TrainingBatch)}
    return Shard(
        **columns | part.token_columns() | part.row_columns() | part.row_values(),
        rank=rank,
        world=world,
        row_index=_read_only(np.concatenate((rows, np.full(part.n_padding, -1))).astype(np.int64)),
        whole_token_rewards=part.tokens(batch.token_rewards),
    )


@dataclass(frozen=True)
class _Part:
    """Rows of a batch with padding rows behind them."""

    batch: TrainingBatch
    rows: Rows
    n_padding: int
    rank: int

    @cached_property
    def sources(self) -> list[int]:
        """The row of which each row is a copy."""
        shortest = int(np.argmin(self.batch.lengths)) if len(self.batch) else 0
        return [*self.rows.tolist(), *[shortest] * self.n_padding]

    @cached_property
    def is_real(self) -> NDArray[np.bool_]:
        return np.arange(len(self.sources)) < len(self.rows)

    def tokens(self, column: NDArray[Any], *, masked: bool = True) -> NDArray[Any]:
        """Of a token column; 0 in padding rows if `masked`."""
        views = self.batch.rows(column)
        parts = [views[row] if real or not masked else np.zeros_like(views[row]) for row, real in self._pairs]
        return _read_only(np.concatenate(parts) if parts else column[:0].copy())

    @property
    def _pairs(self) -> list[tuple[int, bool]]:
        return list(zip(self.sources, self.is_real.tolist(), strict=True))

    def token_columns(self) -> dict[str, Any]:
        batch = self.batch
        offsets = np.concatenate(([0], np.cumsum(batch.lengths[self.sources]))).astype(np.int64)
        return {
            "offsets": _read_only(offsets),
            "token_ids": self.tokens(batch.token_ids, masked=False),
            "loss_mask": self.tokens(batch.loss_mask),
            "rollout_log_probs": self.tokens(batch.rollout_log_probs),
            "token_advantages": None if batch.token_advantages is None else self.tokens(batch.token_advantages),
            "annotations": {name: self.tokens(column) for name, column in batch.annotations.items()},
        }

    def row_columns(self) -> dict[str, Any]:
        batch = self.batch
        groups, trajectories = _renumber(batch.group_index[self.rows]), _renumber(batch.trajectory_index[self.rows])
        further = np.arange(self.n_padding) + trajectories.max(initial=-1) + 1
        by_trajectory = batch.trajectory_advantages
        return {
            "groups": tuple(_place_groups(batch.groups, batch.group_index[self.rows], groups)),
            "group_index": _read_only(np.concatenate((groups, np.full(self.n_padding, -1))).astype(np.int32)),
            "trajectory_index": _read_only(np.concatenate((trajectories, further)).astype(np.int32)),
            "trajectory_advantages": None if by_trajectory is None else self._numbers(by_trajectory),
            "n_samples": self._numbers(batch.n_samples, padding=1),
            **{name: self._numbers(getattr(batch, name)) for name in ("reward", "loss_weight", "sample_index")},
        }

    def _numbers(self, column: NDArray[Any], padding: int = 0) -> NDArray[Any]:
        return _read_only(np.where(self.is_real, column[self.sources], padding).astype(column.dtype))

    def row_values(self) -> dict[str, Any]:
        named = [f"padding-{self.rank}-{number}" for number in range(self.n_padding)]
        kept = ("routed_experts", "multi_modal_data")  # what the copied tokens stand for
        return {
            **{name: self._each(name, named) for name in ("sample_ids", "trajectory_uids", "prompt_uids")},
            **{name: self._each(name, [value] * self.n_padding) for name, value in _OF_PADDING.items()},
            **{name: tuple(getattr(self.batch, name)[row] for row in self.sources) for name in kept},
        }

    def _each(self, name: str, padding: Sequence[Any]) -> tuple[Any, ...]:
        values = getattr(self.batch, name)
        return (*(values[row] for row in self.rows), *padding)


_OF_PADDING: Final[dict[str, Any]] = {
    "spans": (),
    "version_spans": (),
    "reward_components": {},
    "tags": (),
    "metadata": {},
    "task_ids": None,
    "labels": None,
    "quality": None,
}


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
