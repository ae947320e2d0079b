"""The records of a recipe's topic become ready groups, in ready order, each with its samples.

Pure fold over (offset, event). Invariants:
- samples come before their group's marker; the first marker of a group wins, so does the first sample of an id;
- a group that a cut has taken never comes back; groups and samples seen twice are counted;
- a decision says something of the groups that stand before it: it waits with a ready one until that is cut, and is late for one
  that is in a cut;
- whatever is held has a bound: bodies in bytes (beyond it only what judging needs is kept, and the cut reads them again),
  samples without a marker and remembered groups in number.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from claw_r1.codec import unpack_ids, unpack_mask
from claw_r1.events import BatchCut, CutExclusion, CutMember, Decision, Event, GroupReady, Sample
from claw_r1.ids import derived_id, split_group_id
from claw_r1.recipes import Recipe
from trainer_adapter.batch import rewards_of
from trainer_adapter.decisions import LateDecision, curate_group, is_about

GroupKey = tuple[str, str]
"""(run_id, group_id)"""


class Place(NamedTuple):
    """Where a group went."""

    sequence: int
    """Of the batch whose cut took it."""
    trained: bool
    """False: the cut left it out."""


@dataclass(frozen=True)
class HeldSample:
    """A sample as far as it is judged, with its body while there is room."""

    sample_id: str
    trajectory_uid: str
    offset: int
    trained_tokens: int
    oldest_version: int | None
    """Of the trained tokens whose version is known."""
    newest_version: int | None
    version_unknown: bool
    """Some trained token's version is not known."""
    too_large: bool
    label: str | None
    annotations: frozenset[str]
    """Names of its arrays."""
    body: Sample | None

    def is_left(self, floor: int | None) -> bool:
        """Whether anything is left to train where tokens of versions below `floor` are masked (None: none are)."""
        fresh = floor is None or (self.newest_version is not None and self.newest_version >= floor)
        return fresh or self.version_unknown


@dataclass(frozen=True)
class ReadyGroup:
    """A group whose marker was read."""

    marker: GroupReady
    offset: int
    """Of the marker."""
    samples: tuple[HeldSample, ...]
    """In the marker's order; without those that are missing."""
    ready_at: float
    """When the broker appended the marker, seconds since the epoch."""
    decisions: tuple[LateDecision, ...] = ()
    """Those that came since, in log order."""
    origin: "ReadyGroup | None" = None
    """The group as it was emitted, where this one has the decisions applied."""
    refused: str | None = None
    """Why it is no group any more, by its decisions (a key of claw_r1.reasons.BATCH_EXCLUSIONS)."""

    @property
    def key(self) -> GroupKey:
        return self.marker.run_id, self.marker.group_id

    @cached_property
    def first_offset(self) -> int:
        """Lowest offset that holds a part of the group."""
        return min([self.offset, *(sample.offset for sample in (self.origin or self).samples)])

    @property
    def emitted(self) -> GroupReady:
        """The marker as it is on the topic."""
        return (self.origin or self).marker

    @property
    def left_out(self) -> tuple[str, ...]:
        """Samples that decisions took out, in the marker's order."""
        kept = set(self.marker.sample_ids)
        return tuple(name for name in self.emitted.sample_ids if name not in kept)

    @property
    def lacking(self) -> tuple[HeldSample, ...]:
        """Samples whose bodies are needed before the group's decisions can be applied."""
        if not self.decisions or self.origin is not None or self.fault is not None:
            return ()
        return tuple(sample for sample in self.samples if sample.body is None)

    def decide(self, recipe: Recipe) -> "ReadyGroup":
        """The group with its decisions applied; itself where it has none, or is faulty, or lacks bodies."""
        bodies = [sample.body for sample in self.samples if sample.body is not None]
        if not self.decisions or self.fault is not None or len(bodies) < len(self.samples):
            return self
        curated = curate_group(self.marker, bodies, [late.decision for late in self.decisions], recipe)
        offsets = {sample.sample_id: sample.offset for sample in self.samples}
        samples = tuple(judge_sample(offsets[sample.sample_id], sample) for sample in curated.samples)
        return replace(self, marker=curated.marker, samples=samples, origin=self, refused=curated.reason)

    @cached_property
    def fault(self) -> str | None:
        """Why the group can never be trained, whatever the recipe says."""
        if len(self.samples) != len(self.marker.sample_ids):
            return "samples_missing"
        rewarded = rewards_of(self.marker)
        if any(sample.trajectory_uid not in rewarded for sample in self.samples):
            return "no_reward"
        if any(sample.too_large for sample in self.samples):
            return "token_id_too_large"
        if not any(sample.trained_tokens for sample in self.samples):
            return "no_trained_tokens"
        return None


class Remembered:
    """The newest `bound` groups that cuts have taken, where they went, and the decisions that were applied to them."""

    def __init__(self, bound: int = 1_000_000) -> None:
        self._bound = bound
        self._places: OrderedDict[bytes, Place] = OrderedDict()
        self._further: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        """Groups of a prompt other than the one that has its name."""
        self._applied: OrderedDict[bytes, None] = OrderedDict()

    def take(self, cut: BatchCut) -> None:
        """The groups of a cut, and the decisions that it applied; what is there already stays as it is."""
        for key, place in places_of(cut).items():
            self._places.setdefault(_short(key), place)
            run_id, group_id = key
            prompt_uid = split_group_id(group_id)[0]
            if group_id != prompt_uid:
                prompt = _short((run_id, prompt_uid))
                known = self._further.get(prompt, ())
                self._further[prompt] = known if group_id in known else (*known, group_id)
        groups: tuple[CutMember | CutExclusion, ...] = (*cut.members, *cut.excluded)
        for group in groups:
            self._applied.update(dict.fromkeys(_short((d.fact_id, group.group_id)) for d in group.decisions))
        for remembered in (self._places, self._further, self._applied):
            while len(remembered) > self._bound:
                remembered.popitem(last=False)

    def applied(self, fact_id: str, group_id: str) -> bool:
        """Whether a cut applied the decision to the group."""
        return _short((fact_id, group_id)) in self._applied

    def __contains__(self, key: GroupKey) -> bool:
        return _short(key) in self._places

    def of_prompt(self, run_id: str, prompt_uid: str) -> list[tuple[str, Place]]:
        """The groups of a prompt that cuts have taken."""
        names = (prompt_uid, *self._further.get(_short((run_id, prompt_uid)), ()))
        found = [(name, self._places.get(_short((run_id, name)))) for name in names]
        return [(name, place) for name, place in found if place is not None]


def places_of(cut: BatchCut) -> dict[GroupKey, Place]:
    """Where the cut puts the groups that it takes."""
    into, out = Place(cut.sequence, trained=True), Place(cut.sequence, trained=False)
    members = {(member.run_id, member.group_id): into for member in cut.members}
    return members | {(exclusion.run_id, exclusion.group_id): out for exclusion in cut.excluded}


def _short(key: GroupKey) -> bytes:
    return bytes.fromhex(derived_id(*key))


class TooLate(NamedTuple):
    """A decision about a group that a cut has taken."""

    late: LateDecision
    group_id: str
    place: Place


class Shelf:
    """Ready groups that no cut has taken, with what was decided about them, and samples that wait for their marker."""

    def __init__(
        self,
        taken: Remembered,
        *,
        floor: int = 0,
        max_bytes: int = 512 * 2**20,
        max_strays: int = 100_000,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """What was not taken in, by reason: duplicate_group, duplicate_sample, duplicate_decision, unnamed_sample,
        stray_sample, groupless_decision, other_event."""
        self.floor = floor
        """Markers below are in a cut."""
        self.too_late: dict[tuple[str, str], TooLate] = {}
        """(fact_id, group_id) → a decision whose fate is to be said."""
        self._taken = taken
        self._max_bytes = max_bytes
        self._max_strays = max_strays
        self._bytes = 0
        self._strays: OrderedDict[GroupKey, dict[str, HeldSample]] = OrderedDict()
        self._n_strays = 0
        self._ready: dict[GroupKey, ReadyGroup] = {}
        self._of_prompt: dict[tuple[str, str], list[GroupKey]] = {}
        self._decided: dict[GroupKey, tuple[ReadyGroup, Recipe, ReadyGroup] | None] = {}
        """Groups with decisions: as they stand on the shelf, the recipe, and with the decisions applied; None: not yet."""

    @property
    def ready(self) -> list[ReadyGroup]:
        """In ready order, as they were emitted."""
        return list(self._ready.values())

    def decide(self, recipe_of: Callable[[int], Recipe]) -> list[ReadyGroup]:
        """In ready order, with their decisions applied by the recipe of the version that emitted them."""
        for key, known in self._decided.items():
            group = self._ready[key]
            recipe = recipe_of(group.marker.recipe_version)
            if known is None or known[0] is not group or known[1] is not recipe:
                self._decided[key] = (group, recipe, group.decide(recipe))
        return [known[2] if (known := self._decided.get(key)) else group for key, group in self._ready.items()]

    @property
    def n_ready(self) -> int:
        """Ready groups."""
        return len(self._ready)

    @property
    def strays(self) -> int:
        """Samples that wait for their group's marker."""
        return self._n_strays

    @property
    def held_bytes(self) -> int:
        """Bytes of the bodies in memory."""
        return self._bytes

    def put(self, offset: int, event: Event, at: float) -> None:
        """Take in the record at `offset`, appended at `at` seconds since the epoch; offsets must rise."""
        if isinstance(event, Sample):
            self._put_sample(offset, event)
        elif isinstance(event, GroupReady):
            self._put_marker(offset, event, at)
        elif isinstance(event, Decision):
            self._put_decision(LateDecision(offset, event))
        else:
            self.counts["other_event"] += 1

    def _put_decision(self, late: LateDecision) -> None:
        decision = late.decision
        keys = self._of_prompt.get((decision.run_id, decision.prompt_uid), ())
        about = [key for key in keys if is_about(decision, self._ready[key].marker)]
        for key in about:
            self._attach(self._ready[key], late)
        gone = self._taken.of_prompt(decision.run_id, decision.prompt_uid)
        if about and decision.trajectory_uid is not None:
            gone = []  # a trajectory is in one group
        gone = [one for one in gone if _same_round(decision.group_id, one[0])]
        for group_id, place in gone:
            if not self._taken.applied(decision.fact_id, group_id):
                self.too_late.setdefault((decision.fact_id, group_id), TooLate(late, group_id, place))
        self.counts["groupless_decision"] += not about and not gone

    def _attach(self, group: ReadyGroup, late: LateDecision) -> None:
        if any(known.decision.fact_id == late.decision.fact_id for known in group.decisions):
            self.counts["duplicate_decision"] += 1
            return
        self._ready[group.key] = replace(group, decisions=(*group.decisions, late))
        self._decided.setdefault(group.key)

    def fill(self, bodies: Mapping[str, Sample]) -> None:
        """Keep these bodies, by sample, of groups with decisions: beyond the bound, until the next cut takes the groups."""
        for key in self._decided:
            group = self._ready[key]
            filled = tuple(replace(s, body=s.body or bodies.get(s.sample_id)) for s in group.samples)
            added = [s.body for s, before in zip(filled, group.samples, strict=True) if s.body and not before.body]
            if added:
                self._bytes += sum(map(_size, added))
                self._ready[key] = replace(group, samples=filled)

    def _put_sample(self, offset: int, sample: Sample) -> None:
        key = (sample.run_id, sample.group_id)
        if key in self._ready or key in self._taken:
            self.counts["duplicate_sample"] += offset >= self.floor
            return
        waiting = self._strays.setdefault(key, {})
        if sample.sample_id in waiting:
            self.counts["duplicate_sample"] += 1
            return
        fits = self._bytes + _size(sample) <= self._max_bytes
        waiting[sample.sample_id] = judge_sample(offset, sample, keep=fits)
        self._bytes += _size(sample) if fits else 0
        self._n_strays += 1
        while self._n_strays > self._max_strays:
            self._drop_strays(next(iter(self._strays)), "stray_sample")

    def _put_marker(self, offset: int, marker: GroupReady, at: float) -> None:
        key = (marker.run_id, marker.group_id)
        if offset < self.floor:
            return
        if key in self._ready or key in self._taken:
            self.counts["duplicate_group"] += 1
            return
        waiting = self._strays.get(key, {})
        named = [waiting.pop(sample_id) for sample_id in dict.fromkeys(marker.sample_ids) if sample_id in waiting]
        self._n_strays -= len(named)
        self._drop_strays(key, "unnamed_sample")
        self._ready[key] = ReadyGroup(marker, offset, tuple(named), at)
        self._of_prompt.setdefault((marker.run_id, marker.prompt_uid), []).append(key)

    def _drop_strays(self, key: GroupKey, reason: str) -> None:
        dropped = self._strays.pop(key, {})
        self._n_strays -= len(dropped)
        self.counts[reason] += len(dropped)
        self._release(dropped.values())

    def _release(self, samples: Iterable[HeldSample]) -> None:
        self._bytes -= sum(_size(sample.body) for sample in samples if sample.body is not None)

    def settle(self, cursor: int) -> None:
        """Let go of what cuts have taken; the last of them ends at `cursor`."""
        self.floor = cursor
        for key, group in [*self._ready.items()]:
            if group.offset < cursor or key in self._taken:
                self._let_go(group)
        for key in [key for key in self._strays if key in self._taken]:
            self._drop_strays(key, "duplicate_sample")

    def _let_go(self, group: ReadyGroup) -> None:
        del self._ready[group.key]
        self._decided.pop(group.key, None)
        self._release(group.samples)
        prompt = (group.marker.run_id, group.marker.prompt_uid)
        others = [key for key in self._of_prompt[prompt] if key != group.key]
        if others:
            self._of_prompt[prompt] = others
        else:
            del self._of_prompt[prompt]

    def resume_at(self, cursor: int, leaving: Iterable[ReadyGroup] = ()) -> int:
        """Where to read on after a cut that ends at `cursor` and takes the groups `leaving`: no sample of a later group
        lies below."""
        taken = {group.key for group in leaving}
        later = [group.first_offset for key, group in self._ready.items() if key not in taken]
        waiting = [sample.offset for group in self._strays.values() for sample in group.values()]
        return min([cursor, *later, *waiting])


def _same_round(named: str | None, group_id: str) -> bool:
    return named is None or split_group_id(named)[:2] == split_group_id(group_id)[:2]


def judge_sample(offset: int, sample: Sample, *, keep: bool = True) -> HeldSample:
    """What a cut needs to know of a sample; its body stays if `keep`."""
    mask = unpack_mask(sample.loss_mask)
    trained = int(np.count_nonzero(mask))
    known = 0
    versions: list[int] = []
    for span in sample.version_spans:
        inside = int(np.count_nonzero(mask[span.start : span.end]))
        if inside and span.version is not None:
            known += inside
            versions.append(span.version)
    return HeldSample(
        sample.sample_id,
        sample.trajectory_uid,
        offset,
        trained,
        min(versions, default=None),
        max(versions, default=None),
        known < trained,
        bool(unpack_ids(sample.token_ids).max(initial=0) >= 2**31),
        sample.label,
        frozenset(sample.annotations),
        sample if keep else None,
    )


def _size(sample: Sample) -> int:
    return 9 * len(sample.loss_mask) + 2048  # three columns, and about what the objects around them take
