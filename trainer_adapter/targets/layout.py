"""What the formats share: where a prompt ends, how ragged rows are padded, and what is refused rather than lost.

Pure.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch

Array = NDArray[Any]
Side = Literal["left", "right"]


def need(package: str, method: str) -> Any:
    """The module of an optional package. Raises UserError that names the package if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(f"{method} needs the package {package}: `pip install {package}`") from error


def split_points(batch: TrainingBatch) -> NDArray[np.int64]:
    """int64 [n]: how many tokens of each row are its prompt: all before the first trained one; all but the last where none is.

    What comes behind is the response, with tool results and masked turns in it.
    """
    firsts = [np.flatnonzero(mask) for mask in batch.rows(batch.loss_mask)]
    return np.array(
        [int(at[0]) if len(at) else max(int(n) - 1, 0) for at, n in zip(firsts, batch.lengths, strict=True)], np.int64
    )


def pad(rows: Sequence[Array], length: int, fill: float, side: Side, dtype: type[np.generic]) -> Array:
    """[n, length] of rows that are no longer, filled up on `side` with `fill`."""
    out = np.full((len(rows), length), fill, dtype)
    for padded, row in zip(out, rows, strict=True):
        if len(row):
            padded[: len(row)] = row
        if side == "left":
            padded[:] = np.roll(padded, length - len(row))
    return out


def fit(lengths: Iterable[int], limit: int | None, name: str, batch: TrainingBatch) -> int:
    """The length to pad to: `limit`, or the longest. Raises UserError for a row that is longer than `limit`."""
    known = list(lengths)
    longest = max(known, default=0)
    if limit is not None and longest > limit:
        raise UserError(
            f"sample {batch.sample_ids[known.index(longest)]} has {longest} tokens, and {name} is {limit}: raise it, or write "
            "`filters: [{field: tokens, op: le, value: …}]` in the recipe. Nothing is cut off."
        )
    return longest if limit is None else limit


def refuse_media(batch: TrainingBatch, method: str) -> None:
    """Raises UserError for a batch with pictures, which the format does not carry."""
    if any(batch.multi_modal_data):
        raise UserError(
            f"{method} carries no pictures, and rows of this batch have some: tokens without them are another context. "
            "batch.multi_modal_data names them by row"
        )


def name_groups(batch: TrainingBatch) -> list[str]:
    """[n]: the group of each row; a padding row is a group of its own."""
    return [
        batch.groups[group].group_id if group >= 0 else uid
        for group, uid in zip(batch.group_index.tolist(), batch.prompt_uids, strict=True)
    ]


def version_ranges(batch: TrainingBatch) -> list[tuple[int, int] | None]:
    """[n]: the oldest and the newest known version of a row's trained tokens."""
    versions = batch.policy_version
    known = (batch.loss_mask == 1) & batch.policy_version_known
    rows = [versions[a:b][known[a:b]] for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]
    return [(int(row.min()), int(row.max())) if len(row) else None for row in rows]


def advantages_of(batch: TrainingBatch) -> NDArray[np.float32] | None:
    """`batch.advantages`; None where the trainer's own critic or loss makes them."""
    has = batch.trajectory_advantages is not None or batch.token_advantages is not None
    return batch.advantages if has else None


def to_tensors(arrays: Mapping[str, Array], torch: Any) -> dict[str, Any]:
    """The same on torch's CPU; the arrays are not shared with a batch."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
