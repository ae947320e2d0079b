"""A batch becomes the parts of data-parallel ranks: each row on one rank, equally many rows on all.

Pure. Every rank that has the whole batch computes the same parts without asking another one. What is missing to equal numbers
are padding rows: copies of the batch's shortest row that nothing is trained of, with the weight 0, in a group of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from claw_r1.errors import UserError
from trainer_adapter.batch import Group, TrainingBatch, held_of
from trainer_adapter.packing import read_only

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
    rank_lengths: tuple[NDArray[np.int64], ...]
    """By rank int64 [n], tokens of its rows: all ranks have equally many micro-batches."""
    whole_token_rewards: NDArray[np.float32]
    """What `token_rewards` gives: a trajectory's rewards are placed over all its samples, wherever they are."""

    whole_index_in_group: NDArray[np.int32]
    """What `index_in_group` gives: a group's trajectories may be on several ranks."""

    @cached_property
    def index_in_group(self) -> NDArray[np.int32]:
        """int32 [n], as of the whole batch; -1 of padding rows."""
        return self.whole_index_in_group

    @cached_property
    def token_rewards(self) -> NDArray[np.float32]:
        """float32 [T], as of the whole batch."""
        return self.whole_token_rewards

    def pack(self, max_tokens: int) -> list[Rows]:
        """As `TrainingBatch.pack`, with as many micro-batches as the rank that needs most."""
        return pack_rows(self.lengths, max_tokens, max(len(pack_rows(n, max_tokens)) for n in self.rank_lengths))

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


def pack_rows(lengths: NDArray[np.int64], max_tokens: int, at_least: int = 0) -> list[Rows]:
    """Rows as micro-batches of at most `max_tokens` tokens, `at_least` so many where there are as many rows; rows rise in each.

    First-fit decreasing (Johnson, Near-optimal bin packing algorithms, 1973): the longest row first, each into the first
    micro-batch with room, so that their number is at most 11/9 of the smallest possible one and 1. Of equal rows the lower goes
    first. To come to `at_least`, the micro-batch with the most tokens gives its last row to a new one. Raises UserError for a
    row that is longer.
    """
    if len(lengths) and int(lengths.max()) > max_tokens:
        row = int(lengths.argmax())
        raise UserError(
            f"row {row} has {int(lengths[row])} tokens and a micro-batch at most {max_tokens}: raise max_tokens, or keep such "
            "rows out with a filter of the recipe, `{field: tokens, op: le, value: …}`"
        )
    packed: list[list[int]] = []
    held: list[int] = []
    for row in np.lexsort((np.arange(len(lengths)), -lengths)).tolist():
        size = int(lengths[row])
        place = next((place for place, tokens in enumerate(held) if tokens + size <= max_tokens), len(packed))
        if place == len(packed):
            packed.append([])
            held.append(0)
        packed[place].append(row)
        held[place] += size
    while len(packed) < min(at_least, len(lengths)):
        place = max((p for p, rows in enumerate(packed) if len(rows) > 1), key=lambda p: (held[p], -p))
        row = packed[place].pop()
        held[place] -= int(lengths[row])
        packed.append([row])
        held.append(int(lengths[row]))
    return [np.array(sorted(rows), np.int64) for rows in packed]


def take_shard(batch: TrainingBatch, rank: int, world: int, balance: Balance, keep_groups: bool | None) -> Shard:
    """What `TrainingBatch.shard` gives."""
    if world < 1 or not 0 <= rank < world:
        raise UserError(f"there is no rank {rank} of {world}: ranks count from 0 to world - 1")
    if balance not in ("tokens", "count"):
        raise UserError(f"balance is {balance!r}: write tokens or count")
    keep = batch.algorithm == "dpo" if keep_groups is None else keep_groups
    parts = assign_rows(batch.lengths, batch.group_index, world, balance, keep)
    return _take(batch, parts, rank)


def _take(batch: TrainingBatch, parts: Sequence[Rows], rank: int) -> Shard:
    rows, n_rows = parts[rank], max(map(len, parts))
    part = _Part(batch, rows, n_rows - len(rows), rank)
    all_lengths = (
        batch.lengths[_Part(batch, one, n_rows - len(one), number).sources] for number, one in enumerate(parts)
    )
    return Shard(
        **held_of(batch) | part.token_columns() | part.row_columns() | part.row_values(),
        rank=rank,
        world=len(parts),
        rank_lengths=tuple(map(read_only, all_lengths)),
        row_index=read_only(np.concatenate((rows, np.full(part.n_padding, -1))).astype(np.int64)),
        whole_token_rewards=part.tokens(batch.token_rewards),
        whole_index_in_group=part.numbers(batch.index_in_group, padding=-1),
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
        return read_only(np.concatenate(parts) if parts else column[:0].copy())

    @property
    def _pairs(self) -> list[tuple[int, bool]]:
        return list(zip(self.sources, self.is_real.tolist(), strict=True))

    def token_columns(self) -> dict[str, Any]:
        batch = self.batch
        offsets = np.concatenate(([0], np.cumsum(batch.lengths[self.sources]))).astype(np.int64)
        return {
            "offsets": read_only(offsets),
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
            "group_index": read_only(np.concatenate((groups, np.full(self.n_padding, -1))).astype(np.int32)),
            "trajectory_index": read_only(np.concatenate((trajectories, further)).astype(np.int32)),
            "trajectory_advantages": None if by_trajectory is None else self.numbers(by_trajectory),
            "n_samples": self.numbers(batch.n_samples, padding=1),
            **{name: self.numbers(getattr(batch, name)) for name in ("reward", "loss_weight", "sample_index")},
        }

    def numbers(self, column: NDArray[Any], padding: int = 0) -> NDArray[Any]:
        """Of a row column; `padding` in padding rows."""
        return read_only(np.where(self.is_real, column[self.sources], padding).astype(column.dtype))

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
