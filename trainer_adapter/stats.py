"""What a trainer computed for the tokens of a batch becomes records of its samples.

Pure. Lengths are checked before anything is recorded; the records go in the transaction of the commit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from claw_r1.codec import pack_floats
from claw_r1.errors import UserError
from claw_r1.events import BatchTrained, TokenStats
from claw_r1.ids import check_id
from trainer_adapter.batch import TrainingBatch

MAX_BYTES: Final = 128 * 2**20
"""Of all arrays of a batch: what one transaction takes in good time."""

Columns = Mapping[str, NDArray[np.float32]]


def read_stats(batch: TrainingBatch, stats: Mapping[str, Any]) -> Columns:
    """float32 [T] by name, of arrays that are [T], or n arrays of the samples' lengths.

    Raises UserError for a name that is none, for values that are no numbers, for another length, and for too much.
    """
    columns = {check_id("the name in token_stats", name): _column(batch, name, value) for name, value in stats.items()}
    size = sum(column.nbytes for column in columns.values())
    if size > MAX_BYTES:
        raise UserError(
            f"token_stats hold {size} bytes; a commit takes {MAX_BYTES}: send fewer arrays, or smaller batches"
        )
    return columns


def _column(batch: TrainingBatch, name: str, value: Any) -> NDArray[np.float32]:
    try:
        rows = [np.asarray(row) for row in value] if isinstance(value, Sequence) else []
        if rows and all(row.ndim == 1 for row in rows):
            return _joined(batch, name, rows)
        column = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"token_stats[{name!r}] holds no numbers: {error}") from error
    if column.shape == (batch.tokens,):
        return column
    hint = "one per token, as batch.token_ids has them"
    if column.ndim == 2:
        hint += "; of padded rows give [row[:length] for row, length in zip(values, batch.lengths)]"
    raise UserError(f"token_stats[{name!r}] has the shape {column.shape} and not ({batch.tokens},): {hint}")


def _joined(batch: TrainingBatch, name: str, rows: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    if len(rows) != len(batch):
        raise UserError(
            f"token_stats[{name!r}] has {len(rows)} rows, and the batch {len(batch)} samples: give one for each"
        )
    for index, (row, length) in enumerate(zip(rows, batch.lengths.tolist(), strict=True)):
        if len(row) != length:
            raise UserError(
                f"token_stats[{name!r}][{index}] has {len(row)} values, and sample {batch.sample_ids[index]} has {length} "
                "tokens: give one for each, prompts too (NaN where there is none)"
            )
    return np.concatenate(rows).astype(np.float32)


def list_stats(batch: TrainingBatch, columns: Columns, trained: BatchTrained) -> Iterator[TokenStats]:
    """A record for each sample and name, of the batch's commit."""
    for name, column in columns.items():
        for index, values in enumerate(batch.rows(column)):
            group = batch.groups[batch.group_index[index]]
            yield TokenStats(
                batch_id=batch.batch_id,
                recipe=batch.recipe,
                sequence=trained.sequence,
                policy_version=trained.policy_version,
                run_id=group.run_id,
                prompt_uid=group.prompt_uid,
                group_id=group.group_id,
                trajectory_uid=batch.trajectory_uids[index],
                sample_id=batch.sample_ids[index],
                name=name,
                values=pack_floats(values),
                holder=trained.holder,
                at=trained.at,
            )
