"""The samples of a cut's groups become one batch: ragged numpy columns, values and offsets.

Pure. The same groups in the same order give the same bytes in every column, and so the same digest, on any machine: a
replay is compared by it. Nothing is padded here.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from claw_r1.algorithms import PRESETS
from claw_r1.errors import UserError
from claw_r1.events import BlobRef, ExpertsSpan, GroupReady, StepSpan, VersionSpan
from trainer_adapter import advantages
from trainer_adapter.credit import Course, Gae, estimate, list_courses, place_rewards, subtract_rollout
from trainer_adapter.formats import Formats
from trainer_adapter.packing import Packing, read_only
from trainer_adapter.records import Mark, Row, make_part, mark_of

if TYPE_CHECKING:
    from trainer_adapter.shard import Balance, Shard

Json = dict[str, Any]
P = TypeVar("P", bound=BaseModel)


class NoColumn(UserError, AttributeError):
    """The batch's algorithm has no such column, or the recipe does not ask for what it is made of."""


class Parts(Generic[P]):
    """A column of parts of events, [n]: held as they were read, and made when they are asked for."""

    def __init__(self, model: type[P]) -> None:
        self._model = model

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, batch: object, owner: type | None = None) -> tuple[tuple[P, ...], ...]:
        if batch is None:
            raise AttributeError(self._name)  # a dataclass asks for a default: there is none
        held = vars(batch)
        if (made := held.get(self._name)) is None:
            parts = held[_AS_READ + self._name]
            made = held[self._name] = tuple(tuple(make_part(self._model, part) for part in row) for row in parts)
        return made

    def __set__(self, batch: object, parts: tuple[tuple[Any, ...], ...]) -> None:
        vars(batch)[_AS_READ + self._name] = parts


_AS_READ: Final = "as read: "


def held_of(batch: "TrainingBatch") -> Json:
    """The fields of a TrainingBatch as they are held, to make another of."""
    held = vars(batch)
    return {name: held[_AS_READ + name if name in _PARTS else name] for name in TrainingBatch.__dataclass_fields__}


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
class TrainingBatch(Formats):
    """What one optimiser step gets: n samples with T tokens in all, as ragged columns.

    Sample i owns the tokens `offsets[i]` to `offsets[i + 1]` of every token column. Samples of a trajectory stand side by
    side, so do trajectories of a group; groups are in ready order.
    """

    batch_id: str
    recipe: str
    recipe_version: int
    algorithm: str
    """The recipe's; it says which of the columns below there are."""
    run_id: str
    sequence: int | None
    """Batches of a recipe count from 1; a sequence keeps its batch for ever. None: a one-shot batch, which no cut has."""
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
    trajectory_advantages: NDArray[np.float32] | None
    """What `advantage` gives; None where the algorithm has none by trajectory."""
    token_advantages: NDArray[np.float32] | None
    """float32 [T]: what `advantages` gives of ppo with values, and of distill; None elsewhere."""
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
    spans: Parts[StepSpan] = Parts(StepSpan)
    """[n]: which tokens of the sample are which step's response, positions counted within the sample."""
    version_spans: Parts[VersionSpan] = Parts(VersionSpan)
    """[n]: which weights sampled which tokens, positions counted within the sample."""
    reward_components: tuple[dict[str, float], ...]
    labels: tuple[str | None, ...]
    """[n]: what the recipe's pick or a decision calls the trajectory: chosen, rejected; desirable, undesirable; any text."""
    tags: tuple[tuple[str, ...], ...]
    """[n]: tags of decisions."""
    quality: tuple[float | None, ...]
    """[n]: what decisions say."""
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
    def index_in_group(self) -> NDArray[np.int32]:
        """int32 [n]: number of the sample's trajectory within its group, from 0; of a shard that of the whole batch, -1 of
        padding rows."""
        firsts = np.searchsorted(self.group_index, self.group_index)  # rows of a group stand side by side
        return read_only(self.trajectory_index - self.trajectory_index[firsts])

    @property
    def advantage(self) -> NDArray[np.float32]:
        """float32 [n]: the trajectory's advantage within its group. Of grpo, dapo, gspo, rloo, reinforce and sft; NoColumn of
        others."""
        if self.trajectory_advantages is None:
            instead = _INSTEAD[self.algorithm] if self.token_advantages is None else "it has `advantages`, by token"
            raise NoColumn(f"a batch of {self.algorithm} has no advantage by trajectory: {instead}")
        return self.trajectory_advantages

    @cached_property
    def advantages(self) -> NDArray[np.float32]:
        """float32 [T]: advantages on trained tokens, 0.0 elsewhere.

        Of ppo by generalised advantage estimation where the recipe requires `values`; of distill the teacher's less the
        rollout's log-prob; of dpo, kto, and ppo without values NoColumn; of others the sample's advantage.
        """
        if self.token_advantages is not None:
            return self.token_advantages
        if self.trajectory_advantages is None:
            raise NoColumn(f"a batch of {self.algorithm} has no advantages: {_INSTEAD[self.algorithm]}")
        out = self.per_token(self.trajectory_advantages)
        out *= self.loss_mask
        return read_only(out)

    @property
    def spans_as_read(self) -> tuple[tuple[StepSpan, ...], ...]:
        """`spans`, or what has the same attributes and costs less."""
        return vars(self)[_AS_READ + "spans"]  # type: ignore[no-any-return]

    @property
    def version_spans_as_read(self) -> tuple[tuple[VersionSpan, ...], ...]:
        """`version_spans`, or what has the same attributes and costs less."""
        return vars(self)[_AS_READ + "version_spans"]  # type: ignore[no-any-return]

    @cached_property
    def _courses(self) -> list[Course]:
        return list_courses(self.offsets, self.loss_mask, self.spans_as_read, self.trajectory_index)

    @cached_property
    def token_rewards(self) -> NDArray[np.float32]:
        """float32 [T]: a step's own reward at its last trained token, and at the trajectory's last one what lacks to the
        trajectory's reward; 0.0 elsewhere. A trajectory's tokens, over all its samples, add up to its reward."""
        rewards = self.reward[np.flatnonzero(np.diff(self.trajectory_index, prepend=-1))].tolist()
        placed = place_rewards(self._courses, rewards, self.offsets, self.loss_mask, self.spans_as_read)
        return read_only(placed.astype(np.float32))

    @property
    def teacher_log_probs(self) -> NDArray[np.float32]:
        """float32 [T], nats: the teacher's log-prob of the token on trained tokens of steps that have it; 0.0 elsewhere."""
        return self._annotation("teacher_log_probs")

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 [T]: a critic's value of the state before the token; 0.0 where nothing was sampled."""
        return self._annotation("values")

    def annotation_if_any(self, name: str) -> NDArray[np.float32] | None:
        """The annotation, float32 [T]; None where no sample has it. Raises NoColumn where some have it and others lack it: a
        trainer that took it from one batch and not from the next would do so by accident."""
        if name in self.annotations_missing:
            raise NoColumn(
                f"{self.annotations_missing[name]} trained tokens have no {name}, others do: {_requires(name)}"
            )
        return self.annotations.get(name)

    def _annotation(self, name: str) -> NDArray[np.float32]:
        if name not in self.annotations:
            raise NoColumn(f"not every sample has {name}: {_requires(name)}")
        return self.annotations[name]

    @cached_property
    def chosen(self) -> NDArray[np.bool_]:
        """bool [n], of dpo: True on the samples of a pair's better trajectory, False on those of its worse one."""
        self._of("dpo", "chosen")
        return read_only(np.array([label == "chosen" for label in self.labels], np.bool_))

    @cached_property
    def pair_index(self) -> NDArray[np.int32]:
        """int32 [n], of dpo: the number of the sample's pair within the batch, from 0. A group is one pair."""
        self._of("dpo", "pair_index")
        return self.group_index

    @cached_property
    def pairs(self) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]:
        """Of dpo: by pair the rows of the chosen and of the rejected trajectory; one of each unless a trajectory forked."""
        numbers, chosen = self.pair_index, self.chosen
        return tuple(
            (np.flatnonzero((numbers == pair) & chosen), np.flatnonzero((numbers == pair) & ~chosen))
            for pair in range(len(self.groups))
        )

    @cached_property
    def desirable(self) -> NDArray[np.bool_]:
        """bool [n], of kto: whether the sample's trajectory is labelled desirable; False is undesirable."""
        self._of("kto", "desirable")
        return read_only(np.array([label == "desirable" for label in self.labels], np.bool_))

    def _of(self, algorithm: str, column: str) -> None:
        if self.algorithm != algorithm:
            raise NoColumn(f"a batch of {self.algorithm} has no {column}: write `algorithm: {algorithm}` in the recipe")

    @cached_property
    def policy_version(self) -> NDArray[np.int64]:
        """int64 [T]: the weights that sampled the token; -1 where `policy_version_known` is False."""
        out = np.full(self.tokens, -1, np.int64)
        for base, spans in zip(self.offsets, self.version_spans_as_read, strict=False):
            for span in spans:
                if span.version is not None:
                    out[base + span.start : base + span.end] = span.version
        return read_only(out)

    @cached_property
    def policy_version_known(self) -> NDArray[np.bool_]:
        """bool [T]: False on tokens that nothing sampled (prompts) and on sampled tokens of unknown weights."""
        return read_only(self.policy_version >= 0)

    def padded(self, column: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """A token column as [n, longest sample], filled up on the right with `fill`."""
        out = np.full((len(self), int(self.lengths.max(initial=0))), fill, column.dtype)
        for row, values in zip(out, self.rows(column), strict=True):
            row[: len(values)] = values
        return out

    def shard(
        self, rank: int, world: int, balance: "Balance" = "tokens", *, keep_groups: bool | None = None
    ) -> "Shard":
        """This batch's rows for one of `world` data-parallel ranks; all ranks together have each row once.

        Every rank gets equally many rows: where they do not come out even, padding rows of which nothing is trained, with the
        weight 0. `balance` evens out `tokens`, or the `count` of rows. `keep_groups` keeps the rows of a group on one rank
        (None: only those of dpo, whose pairs are learnt from together). The same call gives the same rows everywhere. Losses
        that are normalised by the number of tokens or rows take those of the whole batch. Raises UserError for a rank or a
        balance that is none.
        """
        from trainer_adapter.shard import take_shard  # it makes batches itself

        return take_shard(self, rank, world, balance, keep_groups)

    def pack(self, max_tokens: int) -> list[NDArray[np.int64]]:
        """The rows as micro-batches of at most `max_tokens` tokens: int64 row numbers, each row in one of them.

        Of a shard all ranks get equally many. The same call gives the same everywhere. Raises UserError for a longer row.
        """
        from trainer_adapter.shard import pack_rows  # as above

        return pack_rows(self.lengths, max_tokens)

    @property
    def digest(self) -> str:
        """SHA-256 over the columns and the samples' identities in a fixed order; equal digests, equal batches."""
        return self._sums[0]

    @property
    def checksums(self) -> dict[str, int]:
        """CRC-32 of each part of what the digest is of, by name."""
        return self._sums[1]

    @cached_property
    def _sums(self) -> tuple[str, dict[str, int]]:
        digest, checksums = hashlib.sha256(), dict[str, int]()
        for name, part in self._digested():
            digest.update(part)
            checksums[name] = zlib.crc32(part, checksums.get(name, 0))
        return digest.hexdigest(), checksums

    def _digested(self) -> Iterator[tuple[str, bytes | memoryview]]:
        for name, field in _DIGESTED.items():
            column = getattr(self, field)
            if column is not None:
                yield name, f"{name} {column.dtype.str} {column.shape}\n".encode()
                yield name, np.ascontiguousarray(column).data
        yield "identities", _encode([self.sample_ids, self.trajectory_uids, self.prompt_uids, self.task_ids])
        spans = [
            [_DigestedSpan(s.end, s.reward, s.start, s.step_id, s.step_index) for s in row]
            for row in self.spans_as_read
        ]
        yield "spans", _encode(spans)
        versions = [
            [_DigestedVersion(span.end, span.start, span.version) for span in row] for row in self.version_spans_as_read
        ]
        yield "version_spans", _encode(versions)
        yield "reward_components, metadata", _encode([self.reward_components, self.metadata])
        for name, column in self.annotations.items():
            yield f"annotations.{name}", f"annotation {name} {column.shape}\n".encode()
            yield f"annotations.{name}", np.ascontiguousarray(column).data
        for name in ("labels", "tags", "quality"):
            said = getattr(self, name)
            if not _UNSAID.issuperset(said):
                yield name, _encode(said)
        for name in ("routed_experts", "multi_modal_data"):
            references = getattr(self, name)
            if any(references):
                yield name, _encode([[r.model_dump() for r in of_sample] for of_sample in references])


_UNSAID: Final = frozenset((None, ()))
_PARTS: Final = ("spans", "version_spans")
_DIGESTED = {name: name for name in ("offsets", "token_ids", "loss_mask", "rollout_log_probs", "reward")}
_DIGESTED |= {"advantage": "trajectory_advantages", "token_advantages": "token_advantages"}
_DIGESTED |= {name: name for name in ("loss_weight", "group_index", "trajectory_index", "sample_index", "n_samples")}
"""By the name that goes into the digest. What came later than the first release is digested only where it is there: an older
batch keeps its digest."""
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class _DigestedSpan(msgspec.Struct, gc=False):
    """Of a span what is trained on, which its labels of drift are not."""

    end: int
    reward: float | None
    start: int
    step_id: str
    step_index: int


class _DigestedVersion(msgspec.Struct, gc=False):
    end: int
    start: int
    version: int | None


def _requires(name: str) -> str:
    return f"write `annotations: {{required: [{name}]}}` in the recipe, so that only trajectories with it are emitted"


_WITH = "For advantages, write `algorithm: grpo` in the recipe"
_INSTEAD = {
    "ppo": f"the trainer's critic says it. For advantages from a critic's `values`, {_requires('values')}",
    "dpo": f"it learns from `pairs` of samples that are `chosen` and rejected. {_WITH}",
    "kto": f"it learns from samples that are `desirable` or not. {_WITH}",
}


def build_columns(
    groups: Iterable[tuple[GroupReady | Mark, Iterable[Row]]],
    algorithm: str = "grpo",
    gae: Gae | None = None,
    *,
    tokens: int | None = None,
) -> Json:
    """The fields of a TrainingBatch that follow from its groups: every column, `groups`, and the identities.

    Each group comes with its samples in the marker's order; `gae` says how the advantages of ppo follow from `values`, None
    leaves them to the trainer. Where `tokens` says how many tokens there are at most, every sample is looked at once, and then
    let go of. Raises ValueError for an algorithm that is not known, and for a sample whose trajectory has no reward among the
    group's members; NoColumn where a sample lacks the values or the teacher's log-probs.
    """
    if algorithm not in PRESETS:
        raise ValueError(f"no advantages are known for the algorithm {algorithm!r}")
    if tokens is None:
        groups = [(marker, list(samples)) for marker, samples in groups]
        tokens = sum(len(sample.loss_mask) for _, samples in groups for sample in samples)
    packing = Packing(tokens, advantages.BY_ALGORITHM.get(algorithm))
    described: list[Group] = []
    for marker, samples in groups:
        mark = marker if isinstance(marker, Mark) else mark_of(marker, marker)
        first = len(packing)
        packing.put(mark.rewards, samples)
        described.append(_describe(mark, first, len(packing)))
    columns = packing.finish()
    columns["groups"] = tuple(described)
    columns["algorithm"] = algorithm
    columns["token_advantages"] = _by_token(columns, algorithm, gae)
    return columns


def _by_token(columns: Json, algorithm: str, gae: Gae | None) -> NDArray[np.float32] | None:
    annotations, spans = columns["annotations"], columns["spans"]
    needed = "teacher_log_probs" if algorithm == "distill" else "values" if gae is not None else None
    if needed is None:
        return None
    if needed not in annotations and len(columns["reward"]):
        raise NoColumn(f"not every sample has {needed}: {_requires(needed)}")
    array = annotations.get(needed, np.zeros(0, np.float32))
    offsets, mask = columns["offsets"], columns["loss_mask"]
    if gae is None:
        return read_only(subtract_rollout(array, columns["rollout_log_probs"], mask))
    numbers = columns["trajectory_index"]
    courses = list_courses(offsets, mask, spans, numbers)
    rewards = columns["reward"][np.flatnonzero(np.diff(numbers, prepend=-1))].tolist()
    placed = place_rewards(courses, rewards, offsets, mask, spans)
    return read_only(estimate(courses, placed, array, gae).astype(np.float32))


def _describe(mark: Mark, first: int, last: int) -> Group:
    return Group(
        mark.group_id,
        mark.run_id,
        mark.prompt_uid,
        mark.task_id,
        first,
        last,
        mark.rewards,
        mark.at,
        mark.decided_at,
    )
