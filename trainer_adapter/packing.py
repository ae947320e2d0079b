"""Samples are put behind each other: every token column is filled in place, one sample after the other.

Pure. Invariants: a sample is looked at once and nothing of its tokens is kept, so that whoever hands samples in may let go of
each as it goes; the same samples in the same order give the same bytes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer_adapter.advantages import Advantages
from trainer_adapter.records import Row

_ROW: Final = {
    "sample_ids": "sample_id",
    "trajectory_uids": "trajectory_uid",
    "prompt_uids": "prompt_uid",
    "task_ids": "task_id",
    "spans": "spans",
    "version_spans": "version_spans",
    "reward_components": "reward_components",
    "labels": "label",
    "tags": "tags",
    "quality": "quality",
    "metadata": "metadata",
    "routed_experts": "routed_experts",
    "multi_modal_data": "multi_modal_data",
}
"""Column of a batch → what of each sample it holds as it is."""
_row_of: Final = attrgetter(*_ROW.values())


class Packing:
    """The columns of a batch while they are filled."""

    def __init__(self, tokens: int, advantages_of: Advantages | None) -> None:
        """Of at most so many tokens; `advantages_of` gives a group's advantages by trajectory, None: there are none."""
        self._token_ids = np.empty(tokens, "<i4")
        self._loss_mask = np.empty(tokens, np.uint8)
        self._log_probs = np.empty(tokens, "<f4")
        self._into = [_bytes_of(column) for column in (self._token_ids, self._loss_mask, self._log_probs)]
        self._advantages_of = advantages_of
        self._groups = 0
        self._trajectories = 0
        self._ends = [0]
        self._trained: list[int] = []
        self._numbers: list[tuple[float, int, int, int, int, float]] = []
        """Reward, number of the group, of the trajectory, of the sample, samples of the trajectory, advantage; by sample."""
        self._rows: list[tuple[Any, ...]] = []
        self._annotations = _Annotations(tokens)

    def __len__(self) -> int:
        """Samples so far."""
        return len(self._trained)

    def put(self, rewards: Mapping[str, float], samples: Iterable[Row]) -> None:
        """The next group: the effective reward of every rewarded trajectory, and the samples.

        Raises ValueError for a sample whose trajectory has no reward.
        """
        advantages = {} if self._advantages_of is None else self._advantages_of(rewards)
        token_ids, loss_mask, log_probs = self._into
        numbers: dict[str, int] = {}
        last = self._ends[-1]
        for sample in samples:
            uid, mask = sample.trajectory_uid, sample.loss_mask
            number = numbers.get(uid)
            if number is None:
                if uid not in rewards:
                    raise ValueError(f"trajectory {uid} has a sample and no reward")
                number = numbers[uid] = self._trajectories + len(numbers)
            about = (
                sample.reward,
                self._groups,
                number,
                sample.sample_index,
                sample.n_samples,
                advantages.get(uid, 0.0),
            )
            self._numbers.append(about)
            self._rows.append(_row_of(sample))
            first, last = last, last + len(mask)
            token_ids[4 * first : 4 * last] = sample.token_ids
            loss_mask[first:last] = mask
            log_probs[4 * first : 4 * last] = sample.rollout_log_probs
            trained = mask.count(1)
            self._trained.append(trained)
            self._ends.append(last)
            if sample.annotations or sample.annotations_missing:
                self._annotations.put(sample, first, last, trained)
        self._groups += 1
        self._trajectories += len(numbers)

    def finish(self) -> dict[str, Any]:
        """The columns, read-only: those of a TrainingBatch without what follows from groups, and from values of tokens."""
        tokens = self._ends[-1]
        rewards, *indices, advantages = list(zip(*self._numbers, strict=True)) or [()] * 6
        groups, trajectories, of_trajectory, n_samples = (np.array(index, np.int32) for index in indices)
        columns = {
            "offsets": np.array(self._ends, np.int64),
            "token_ids": self._token_ids[:tokens],
            "loss_mask": self._loss_mask[:tokens],
            "rollout_log_probs": self._log_probs[:tokens],
            "reward": np.array(rewards, np.float32),
            "loss_weight": _shares(self._trained, trajectories),
            "group_index": groups,
            "trajectory_index": trajectories,
            "sample_index": of_trajectory,
            "n_samples": n_samples,
        }
        by_trajectory = None if self._advantages_of is None else read_only(np.array(advantages, np.float32))
        return (
            {name: read_only(column) for name, column in columns.items()}
            | {"trajectory_advantages": by_trajectory}
            | (dict(zip(_ROW, zip(*self._rows, strict=True), strict=True)) if self._rows else dict.fromkeys(_ROW, ()))
            | self._annotations.finish(tokens, sum(self._trained))
        )


class _Annotations:
    """Arrays by name, of the names that every sample has on all its trained tokens."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._found: dict[str, NDArray[np.float32]] = {}
        self._lacking: Counter[str] = Counter()
        """Trained tokens without a value less all that there are, of names that some sample has or lacks."""

    def put(self, sample: Row, first: int, last: int, trained: int) -> None:
        for name, values in sample.annotations.items():
            column = self._found.setdefault(name, _NOTHING)
            if column is _NOTHING:
                column = self._found[name] = np.zeros(self._tokens, "<f4")
            _bytes_of(column)[4 * first : 4 * last] = values
            self._lacking[name] -= trained
        for name, lacking in sample.annotations_missing.items():
            if name not in sample.annotations:
                self._lacking[name] += lacking - trained

    def finish(self, tokens: int, trained: int) -> dict[str, Any]:
        missing = {name: lacking + trained for name, lacking in sorted(self._lacking.items()) if lacking + trained}
        found = {name: read_only(self._found.get(name, _NOTHING)[:tokens]) for name in sorted(self._lacking)}
        return {
            "annotations": {name: column for name, column in found.items() if name not in missing},
            "annotations_missing": missing,
        }


_NOTHING: Final = np.zeros(0, "<f4")


def read_only(column: NDArray[Any]) -> NDArray[Any]:
    column.flags.writeable = False
    return column


def _bytes_of(column: NDArray[Any]) -> memoryview:
    return column.view(np.uint8).data


def _shares(trained: list[int], numbers: NDArray[np.int32]) -> NDArray[np.float32]:
    if not trained:
        return np.zeros(0, np.float32)
    parts = np.array(trained, np.float64)
    whole = np.bincount(numbers, weights=parts)[numbers]
    return np.divide(parts, whole, out=np.zeros(len(parts)), where=whole > 0).astype(np.float32)
