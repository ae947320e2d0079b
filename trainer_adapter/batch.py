"""The samples of a cut's groups become one batch: ragged numpy columns, values and offsets.

Pure. The same groups in the same order give the same bytes in every column, and so the same digest, on any machine: a
replay is compared by it. Nothing is padded here.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from claw_r1.codec import unpack_floats, unpack_ids, unpack_mask
from claw_r1.events import BlobRef, ExpertsSpan, GroupReady, Sample, StepSpan, VersionSpan
from trainer_adapter import advantages

Json = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """A group of a batch, with its samples at `first` to `last` (exclusive)."""

    group_id: str
    run_id: str
    prompt_uid: str
    task_id: str | None
    first: int
    last: int
    rewards: dict[str, float]
    """Effective reward by trajectory, of every rewarded trajectory of the group, with or without a sample."""
    ready_at: float
    """Stream time at which the group was decided, seconds since the epoch."""
    decided_at: float | None
    """The stream worker's clock at that moment, seconds since the epoch; for latency only."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingBatch:
    """What one optimiser step gets: n samples with T tokens in all, as ragged columns.

    Sample i owns the tokens `offsets[i]` to `offsets[i + 1]` of every token column. Samples of a trajectory stand side by
    side, so do trajectories of a group; groups are in ready order.
    """

    batch_id: str
    recipe: str
    recipe_version: int
    run_id: str
    sequence: int
    """Batches of a recipe count from 1; a sequence keeps its batch for ever."""
    trained_version: int | None
    """The newest trained policy version when the cut was made; None if there was none."""
    groups: tuple[Group, ...]

    offsets: NDArray[np.int64]
    """int64 [n + 1], tokens; offsets[0] is 0, offsets[n] is T."""
    token_ids: NDArray[np.int32]
    """int32 [T]: prompts, responses and what came between, exactly as the engine saw and gave them."""
    loss_mask: NDArray[np.uint8]
    """uint8 [T]: 1 on the tokens to train, which the policy sampled; 0 elsewhere."""
    rollout_log_probs: NDArray[np.float32]
    """float32 [T], nats: the behaviour policy's log-probability of the token; 0.0 where the mask is 0."""

    reward: NDArray[np.float32]
    """float32 [n]: the trajectory's effective reward under the recipe's weights."""
    advantage: NDArray[np.float32]
    """float32 [n]: the trajectory's advantage within its group, by the recipe's algorithm."""
    loss_weight: NDArray[np.float32]
    """float32 [n]: the sample's share of its trajectory's trained tokens; the shares of a trajectory add up to 1.

    A loss that averages over each sequence is weighted with it, so that a trajectory in several samples counts once. A loss
    that sums over tokens needs no weight: every sampled token is trained in one sample only.
    """
    group_index: NDArray[np.int32]
    """int32 [n]: index into `groups`."""
    trajectory_index: NDArray[np.int32]
    """int32 [n]: number of the trajectory within the batch, from 0, rising."""
    sample_index: NDArray[np.int32]
    """int32 [n]: number of the sample within its trajectory, from 0."""
    n_samples: NDArray[np.int32]
    """int32 [n]: samples of the trajectory."""

    sample_ids: tuple[str, ...]
    trajectory_uids: tuple[str, ...]
    """[n], one per sample."""
    prompt_uids: tuple[str, ...]
    """[n], one per sample."""
    task_ids: tuple[str | None, ...]
    spans: tuple[tuple[StepSpan, ...], ...]
    """[n]: which tokens of the sample are which step's response, positions counted within the sample."""
    version_spans: tuple[tuple[VersionSpan, ...], ...]
    """[n]: which weights sampled which tokens, positions counted within the sample."""
    reward_components: tuple[dict[str, float], ...]
    metadata: tuple[Json, ...]
    annotations: dict[str, NDArray[np.float32]]
    """By name float32 [T]: arrays such as `ref_log_probs` and `values` of the names that every sample has on all its trained
    tokens; 0.0 on tokens of steps without one, and on those that nothing sampled."""
    annotations_missing: dict[str, int]
    """Names that some samples have and others lack, and how many trained tokens have no value of it."""
    routed_experts: tuple[tuple[ExpertsSpan, ...], ...]
    """[n]: which blob holds the routed experts of which tokens, positions counted within the sample."""
    multi_modal_data: tuple[tuple[BlobRef, ...], ...]
    """[n]: the media of the sample's prompts, in the order of their places."""

    def __len__(self) -> int:
        """Samples."""
        return len(self.sample_ids)

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [n], tokens of each sample."""
        return np.diff(self.offsets)

    def rows(self, column: NDArray[Any]) -> list[NDArray[Any]]:
        """A token column as n views, one per sample."""
        return [column[self.offsets[i] : self.offsets[i + 1]] for i in range(len(self))]

    def per_token(self, column: NDArray[Any]) -> NDArray[Any]:
        """A sample column [n] repeated over each sample's tokens, [T]."""
        return np.repeat(column, self.lengths)

    @cached_property
    def advantages(self) -> NDArray[np.float32]:
        """float32 [T]: the sample's advantage on trained tokens, 0.0 elsewhere. Made when first asked for."""
        out = self.per_token(self.advantage)
        out *= self.loss_mask
        return _read_only(out)

    @cached_property
    def policy_version(self) -> NDArray[np.int64]:
        """int64 [T]: the weights that sampled the token; -1 where `policy_version_known` is False."""
        out = np.full(self.tokens, -1, np.int64)
        for base, spans in zip(self.offsets, self.version_spans, strict=False):
            for span in spans:
                if span.version is not None:
                    out[base + span.start : base + span.end] = span.version
        return _read_only(out)

    @cached_property
    def policy_version_known(self) -> NDArray[np.bool_]:
        """bool [T]: False on tokens that nothing sampled (prompts) and on sampled tokens of unknown weights."""
        return _read_only(self.policy_version >= 0)

    def padded(self, column: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """A token column as [n, longest sample], filled up on the right with `fill`."""
        out = np.full((len(self), int(self.lengths.max(initial=0))), fill, column.dtype)
        for row, values in zip(out, self.rows(column), strict=True):
            row[: len(values)] = values
        return out

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the columns and the samples' identities in a fixed order; equal digests, equal batches."""
        digest = hashlib.sha256()
        for name in _DIGESTED:
            column = getattr(self, name)
            digest.update(f"{name} {column.dtype.str} {column.shape}\n".encode())
            digest.update(np.ascontiguousarray(column).data)
        digest.update(_encode([self.sample_ids, self.trajectory_uids, self.prompt_uids, self.task_ids]))
        digest.update(_encode([[s.model_dump(include=_DIGESTED_SPAN) for s in spans] for spans in self.spans]))
        digest.update(_encode([[s.model_dump() for s in spans] for spans in self.version_spans]))
        digest.update(_encode([self.reward_components, self.metadata]))
        for name, column in self.annotations.items():
            digest.update(f"annotation {name} {column.shape}\n".encode())
            digest.update(np.ascontiguousarray(column).data)
        for references in (self.routed_experts, self.multi_modal_data):
            if any(references):
                digest.update(_encode([[r.model_dump() for r in of_sample] for of_sample in references]))
        return digest.hexdigest()


_DIGESTED = (
    "offsets",
    "token_ids",
    "loss_mask",
    "rollout_log_probs",
    "reward",
    "advantage",
    "loss_weight",
    "group_index",
    "trajectory_index",
    "sample_index",
    "n_samples",
)
_DIGESTED_SPAN = {"step_id", "step_index", "start", "end", "reward"}
"""A span's labels of drift are not trained on. What came later than the first release is digested only where it is there:
an older batch keeps its digest."""
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def _read_only(column: NDArray[Any]) -> NDArray[Any]:
    column.flags.writeable = False
    return column


def build_columns(groups: Sequence[tuple[GroupReady, Sequence[Sample]]], algorithm: str = "grpo") -> Json:
    """The fields of a TrainingBatch that follow from its groups: every column, `groups`, and the identities.

    Each group comes with its samples in the marker's order. Raises ValueError for an algorithm that is not known, and for
    a sample whose trajectory has no reward among the group's members.
    """
    advantages_of = advantages.BY_ALGORITHM.get(algorithm)
    if advantages_of is None:
        raise ValueError(f"no advantages are known for the algorithm {algorithm!r}")
    samples = [sample for _, group in groups for sample in group]
    lengths = [len(sample.loss_mask) for sample in samples]
    loss_mask = _join((unpack_mask(s.loss_mask) for s in samples), np.uint8)
    offsets = np.zeros(len(samples) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    trajectories = [(group_number, s.trajectory_uid) for group_number, (_, group) in enumerate(groups) for s in group]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(trajectories))}
    by_trajectory = {
        (group_number, uid): advantage
        for group_number, (marker, _) in enumerate(groups)
        for uid, advantage in advantages_of(rewards_of(marker)).items()
    }
    if unrewarded := [uid for number, uid in trajectories if (number, uid) not in by_trajectory]:
        raise ValueError(f"trajectory {unrewarded[0]} has a sample and no reward")
    columns: Json = {
        "offsets": offsets,
        "token_ids": _join((unpack_ids(s.token_ids).view("<i4") for s in samples), np.int32),
        "loss_mask": loss_mask,
        "rollout_log_probs": _join((unpack_floats(s.rollout_log_probs) for s in samples), np.float32),
        "reward": np.array([s.reward for s in samples], np.float32),
        "advantage": np.array([by_trajectory[key] for key in trajectories], np.float32),
        "loss_weight": _shares(offsets, loss_mask, [numbers[key] for key in trajectories]),
        "group_index": np.array([group_number for group_number, _ in trajectories], np.int32),
        "trajectory_index": np.array([numbers[key] for key in trajectories], np.int32),
        "sample_index": np.array([s.sample_index for s in samples], np.int32),
        "n_samples": np.array([s.n_samples for s in samples], np.int32),
    }
    return (
        {name: _read_only(column) for name, column in columns.items()}
        | {
            "groups": tuple(_describe_groups(groups)),
            "sample_ids": tuple(s.sample_id for s in samples),
            "trajectory_uids": tuple(s.trajectory_uid for s in samples),
            "prompt_uids": tuple(s.prompt_uid for s in samples),
            "task_ids": tuple(s.task_id for s in samples),
            "spans": tuple(s.spans for s in samples),
            "version_spans": tuple(s.version_spans for s in samples),
            "reward_components": tuple(s.reward_components for s in samples),
            "metadata": tuple(s.metadata for s in samples),
            "routed_experts": tuple(s.routed_experts for s in samples),
            "multi_modal_data": tuple(s.multi_modal_data for s in samples),
        }
        | _annotations(samples)
    )


def _annotations(samples: Sequence[Sample]) -> Json:
    found: dict[str, NDArray[np.float32]] = {}
    missing: dict[str, int] = {}
    for name in sorted({name for s in samples for name in (*s.annotations, *s.annotations_missing)}):
        lacking = sum(
            s.annotations_missing.get(name, s.loss_mask.count(1)) for s in samples if name not in s.annotations
        )
        if lacking:
            missing[name] = lacking
        else:
            arrays = [s.annotations.get(name, bytes(4 * len(s.loss_mask))) for s in samples]
            found[name] = _read_only(_join(map(unpack_floats, arrays), np.float32))
    return {"annotations": found, "annotations_missing": missing}


def rewards_of(marker: GroupReady) -> dict[str, float]:
    """Trajectory → effective reward, of every rewarded member of the group."""
    return {member.trajectory_uid: member.reward for member in marker.members if member.reward is not None}


def _join(parts: Iterable[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    arrays = list(parts)
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def _shares(offsets: NDArray[np.int64], loss_mask: NDArray[np.uint8], numbers: list[int]) -> NDArray[np.float32]:
    trained = np.diff(np.concatenate(([0], np.cumsum(loss_mask, dtype=np.int64)))[offsets])
    whole = np.bincount(numbers, weights=trained)[numbers] if numbers else np.zeros(0)
    return np.divide(trained, whole, out=np.zeros(len(numbers)), where=whole > 0).astype(np.float32)


def _describe_groups(groups: Sequence[tuple[GroupReady, Sequence[Sample]]]) -> Iterable[Group]:
    first = 0
    for marker, samples in groups:
        last = first + len(samples)
        yield Group(
            marker.group_id,
            marker.run_id,
            marker.prompt_uid,
            marker.task_id,
            first,
            last,
            rewards_of(marker),
            marker.at,
            marker.decided_at,
        )
        first = last
