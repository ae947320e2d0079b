"""The records of a recipe's topic become ready groups, in ready order, each with its samples.

Pure fold over (offset, event). Invariants:
- samples come before their group's marker; the first marker of a group wins, so does the first sample of an id;
- a group that a cut has taken never comes back; groups and samples seen twice are counted;
- a decision says something of the groups that stand before it: it waits with a ready one until that is cut, and is late for one
  that is in a cut;
- whatever is held has a bound: bodies in bytes (beyond it only what judging needs is kept, and the cut reads them again),
  samples without a marker and remembered groups in number.
"""

import heapq
import itertools
import mmap
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from claw_r1.codec import encode_body
from claw_r1.events import BatchCut, CutExclusion, CutMember, Decision, Event, GroupReady, RunPurged, Sample
from claw_r1.ids import group_id as name_group
from claw_r1.ids import split_group_id
from claw_r1.recipes import Recipe
from trainer_adapter.decisions import LateDecision, curate_group, is_about
from trainer_adapter.held import HeldSample, judge_sample, set_apart
from trainer_adapter.records import Head, Mark, Row, mark_of

GroupKey = tuple[str, str]
"""(run_id, group_id)"""
_NO_NAMES: Final[frozenset[str]] = frozenset()
_MORE: Final = 2048
"""Entries of a heap beyond those that are in force."""
_LARGE: Final = 128 * 1024
MAX_APART: Final = 16_384
"""Bodies in mappings of their own: a system allows a process some 65,000 mappings."""


MAX_APPLIED: Final = 1024
"""Decisions on one group that a cut applies; those that came behind them are late."""
MAX_FURTHER: Final = 1024
"""Groups of one prompt, the newest, of which a decision is late that names none: a prompt may be used for ever."""
_NAMED: Final = 120
"""What a group takes in a cut beside the names, bytes, at most; a decision takes a quarter of it."""


class Place(NamedTuple):
    """Where a group went."""

    sequence: int
    """Of the batch whose cut took it."""
    trained: bool
    """False: the cut left it out."""


class ReadyGroup(msgspec.Struct, gc=False):
    """A group whose marker was read. It is not changed: a group of which more becomes known is another."""

    mark: Mark
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
    """Why it is no group any more, by its decisions or since its run was purged (a key of claw_r1.reasons.BATCH_EXCLUSIONS)."""

    # What follows from the fields above, for it is asked of each group at each look at what is ready.
    key: GroupKey = ("", "")
    first_offset: int = 0
    """Lowest offset that holds a part of the group."""
    tokens: int = 0
    """Of all samples."""
    oldest_version: int | None = None
    """Of the trained tokens whose version is known."""
    version_unknown: bool = False
    """Some trained token's version is not known."""
    annotations: frozenset[str] = frozenset()
    """Names of the arrays that every sample has."""
    labels: frozenset[str | None] = frozenset()
    fault: str | None = None
    """Why the group can never be trained, whatever the recipe says."""
    excluded_bytes: int = 0
    """What the group takes in a cut that leaves it out, bytes, at most."""
    member_bytes: int = 0
    """What it takes in a cut that has it as a member, bytes, at most."""

    def __post_init__(self) -> None:
        mark, samples, origin = self.mark, self.samples, self.origin
        rewards, first, tokens, trained = mark.rewards, self.offset, 0, 0
        oldest: int | None = None
        unknown = is_large = is_unrewarded = False
        for sample in samples:
            tokens += sample.tokens
            trained += sample.trained_tokens
            version = sample.oldest_version
            if version is not None and (oldest is None or version < oldest):
                oldest = version
            if sample.offset < first:
                first = sample.offset
            if sample.version_unknown:
                unknown = True
            if sample.too_large:
                is_large = True
            if sample.trajectory_uid not in rewards:
                is_unrewarded = True
        self.key = mark.run_id, mark.group_id
        self.first_offset = first if origin is None else origin.first_offset
        self.tokens, self.oldest_version, self.version_unknown = tokens, oldest, unknown
        self.annotations = frozenset.intersection(*[sample.annotations for sample in samples]) if samples else _NO_NAMES
        self.labels = frozenset([sample.label for sample in samples])
        if len(samples) != len(mark.sample_ids):
            self.fault = "samples_missing"
        elif is_unrewarded:
            self.fault = "no_reward"
        elif is_large:
            self.fault = "token_id_too_large"
        else:
            self.fault = None if trained else "no_trained_tokens"
        decided = (
            sum(_NAMED // 4 + len(late.decision.fact_id.encode()) for late in self.applied) if self.decisions else 0
        )
        names = mark.sample_ids if origin is None else origin.mark.sample_ids
        self.excluded_bytes = _NAMED + len(mark.group_id.encode()) + len(mark.run_id.encode()) + decided
        self.member_bytes = self.excluded_bytes + 5 * len(names) + len("".join(names).encode())

    @property
    def marker(self) -> GroupReady:
        """Made anew each time."""
        return self.mark.marker

    def tokens_left(self, floor: int | None) -> int:
        """Tokens of the samples of which something is left to train, prompts and masked ones too."""
        if floor is None:
            return self.tokens
        return sum(sample.tokens for sample in self.samples if sample.is_left(floor))

    def value_of(self, field: str) -> str | None:
        """The group's value of a field that batches are mixed by; of metadata its first trajectory's, as it was emitted."""
        if field == "task_id":
            return self.mark.task_id
        first = (self.origin or self).samples[:1]
        return first[0].facets.get(field.removeprefix("metadata.")) if first else None

    @property
    def emitted(self) -> Mark:
        """The marker as it is on the topic."""
        return (self.origin or self).mark

    @property
    def left_out(self) -> tuple[str, ...]:
        """Samples that decisions took out, in the marker's order."""
        if self.origin is None:
            return ()
        kept = set(self.mark.sample_ids)
        return tuple(name for name in self.emitted.sample_ids if name not in kept)

    @property
    def applied(self) -> tuple[LateDecision, ...]:
        """Of the decisions those that a cut applies and names."""
        return self.decisions[:MAX_APPLIED]

    @property
    def lacking(self) -> tuple[HeldSample, ...]:
        """Samples whose bodies are needed before the group's decisions can be applied."""
        if not self.decisions or self.origin is not None or self.fault is not None or self.refused is not None:
            return ()
        return tuple(sample for sample in self.samples if sample.wire is None)

    def decide(self, recipe: Recipe) -> "ReadyGroup":
        """The group with its decisions applied; itself where it has none, or is faulty or refused, or lacks bodies."""
        if not self.decisions or self.fault or self.refused or self.lacking:
            return self
        bodies = [body for sample in self.samples if (body := sample.body) is not None]
        curated = curate_group(self.marker, bodies, [late.decision for late in self.applied], recipe)
        offsets = {sample.sample_id: sample.offset for sample in self.samples}
        samples = tuple(
            judge_sample(offsets[sample.sample_id], sample, encode_body(sample)) for sample in curated.samples
        )
        mark = mark_of(curated.marker, curated.marker)
        return replace(self, mark=mark, samples=samples, origin=self, refused=curated.reason)


class Remembered:
    """The newest `bound` groups that cuts have taken, where they went, and the decisions that were applied to them."""

    def __init__(self, bound: int = 1_000_000) -> None:
        self._bound = bound
        self._places: OrderedDict[bytes, Place] = OrderedDict()
        self._further: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()
        """Groups of a prompt other than the one that has its name, the newest last."""
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
                self._further[prompt] = known if group_id in known else (*known[1 - MAX_FURTHER :], group_id)
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

    def place_of(self, key: GroupKey) -> Place | None:
        """Where a cut put the group; None: none has it, or it is forgotten."""
        return self._places.get(_short(key))

    def of_prompt(self, run_id: str, prompt_uid: str, named: str | None = None) -> list[tuple[str, Place]]:
        """The groups of a prompt that cuts have taken; of the round that `named` is of, if it is not None."""
        if named is None:
            names = [prompt_uid, *self._further.get(_short((run_id, prompt_uid)), ())]
        else:
            prompt, round_, _ = split_group_id(named)
            names = [name_group(prompt_uid, round_, part) for part in (1, 2)] if prompt == prompt_uid else []
        found = [(name, self._places.get(_short((run_id, name)))) for name in names]
        return [(name, place) for name, place in found if place is not None]


def places_of(cut: BatchCut) -> dict[GroupKey, Place]:
    """Where the cut puts the groups that it takes."""
    into, out = Place(cut.sequence, trained=True), Place(cut.sequence, trained=False)
    members = {(member.run_id, member.group_id): into for member in cut.members}
    return members | {(exclusion.run_id, exclusion.group_id): out for exclusion in cut.excluded}


def _short(key: tuple[str, str]) -> bytes:
    first, second = key
    return blake2b(f"{len(first)} {first}{second}".encode(), digest_size=16).digest()


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
        read_below: int = 0,
        max_bytes: int = 512 * 2**20,
        max_strays: int = 100_000,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """What was not taken in, by reason: duplicate_group, duplicate_sample, duplicate_decision, unnamed_sample,
        stray_sample, groupless_decision, other_event."""
        self.floor = floor
        """Markers below are in a cut."""
        self._read_below = read_below
        """What cuts have taken below was read before, and is no duplicate."""
        self.too_late: dict[tuple[str, str], TooLate] = {}
        """(fact_id, group_id) → a decision whose fate is to be said."""
        self.changes = 0
        """Rises with whatever becomes of the ready groups, except that further ones come."""
        self.purged: set[str] = set()
        """Runs that are to be forgotten: none of their groups is trained any more."""
        self._taken = taken
        self._max_bytes = max_bytes
        self._max_strays = max_strays
        self._bytes = 0
        self._apart = 0
        """Of the bodies those in mappings of their own."""
        self._strays: OrderedDict[GroupKey, dict[str, HeldSample]] = OrderedDict()
        self._n_strays = 0
        self._ready: dict[GroupKey, ReadyGroup] = {}
        self._firsts: list[tuple[int, GroupKey]] = []
        """A heap of the ready groups' first offsets, and of some that are gone."""
        self._of_prompt: dict[tuple[str, str], dict[GroupKey, None]] = {}
        self._decided: dict[GroupKey, tuple[ReadyGroup, Recipe, ReadyGroup] | None] = {}
        """Groups with decisions: as they stand on the shelf, the recipe, and with the decisions applied; None: not yet."""

    @property
    def ready(self) -> list[ReadyGroup]:
        """In ready order, as they were emitted."""
        return list(self._ready.values())

    def decide(self, recipe_of: Callable[[int], Recipe], start: int = 0) -> Iterator[ReadyGroup]:
        """In ready order and from the `start`-th on, with their decisions applied by the recipe of the version that emitted
        them; to be read before the shelf changes."""
        for key, known in self._decided.items():
            group = self._ready[key]
            recipe = recipe_of(group.mark.recipe_version)
            if known is None or known[0] is not group or known[1] is not recipe:
                self._decided[key] = (group, recipe, group.decide(recipe))
        groups = itertools.islice(self._ready.items(), start, None)
        if not self._decided:
            return (group for _, group in groups)
        return (known[2] if (known := self._decided.get(key)) else group for key, group in groups)

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

    def put(self, offset: int, event: Event | Head | Mark, at: float, wire: bytes = b"") -> None:
        """Take in the record at `offset`, appended at `at` seconds since the epoch; offsets must rise. A Head comes with the
        `wire` that it is of."""
        if isinstance(event, Head):
            self._put_sample(offset, event, wire)
        elif isinstance(event, Mark):
            self._put_marker(offset, event, at)
        elif isinstance(event, Sample):
            self._put_sample(offset, event, encode_body(event))
        elif isinstance(event, GroupReady):
            self._put_marker(offset, mark_of(event, event), at)
        elif isinstance(event, Decision):
            self._put_decision(LateDecision(offset, event))
        elif isinstance(event, RunPurged):
            self._purge(event.run_id)
        else:
            self.counts["other_event"] += 1

    def _purge(self, run_id: str) -> None:
        self.purged.add(run_id)
        self.changes += 1
        for key, group in self._ready.items():
            if group.mark.run_id == run_id:
                self._ready[key] = replace(group, refused="run_purged")

    def _put_decision(self, late: LateDecision) -> None:
        decision = late.decision
        keys = self._of_prompt.get((decision.run_id, decision.prompt_uid), ())
        about = [key for key in keys if is_about(decision, self._ready[key].marker)]
        for key in about:
            self._attach(self._ready[key], late)
        gone = self._taken.of_prompt(decision.run_id, decision.prompt_uid, decision.group_id)
        if about and decision.trajectory_uid is not None:
            gone = []  # a trajectory is in one group
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
        self.changes += 1

    def fill(self, bodies: Mapping[str, Sample]) -> None:
        """Keep these bodies, by sample, of groups with decisions: beyond the bound, until the next cut takes the groups."""
        self.changes += 1
        for key in self._decided:
            group = self._ready[key]
            for sample in group.samples:
                if sample.wire is None and (body := bodies.get(sample.sample_id)) is not None:
                    sample.wire = encode_body(body)
                    self._bytes += sample.held_bytes
                    self._decided[key] = None

    def _put_sample(self, offset: int, sample: Sample | Head, wire: bytes) -> None:
        key, sample_id = (sample.run_id, sample.group_id), sample.sample_id
        waiting = self._strays.get(key)
        if waiting is None:
            if key in self._ready or key in self._taken:
                self.counts["duplicate_sample"] += offset >= max(self.floor, self._read_below)
                return
            waiting = self._strays[key] = {}
        elif sample_id in waiting:
            self.counts["duplicate_sample"] += 1
            return
        held = judge_sample(offset, sample, wire)
        size = held.held_bytes
        if self._bytes + size > self._max_bytes:
            held.wire, size = None, 0
        elif len(wire) >= _LARGE and self._apart < MAX_APART:
            held.wire = set_apart(wire)
            self._apart += 1
        waiting[sample_id] = held
        self._bytes += size
        self._n_strays += 1
        while self._n_strays > self._max_strays:
            self._drop_strays(next(iter(self._strays)), "stray_sample")

    def _put_marker(self, offset: int, mark: Mark, at: float) -> None:
        key = (mark.run_id, mark.group_id)
        if offset < self.floor:
            return
        if key in self._ready or key in self._taken:
            self.counts["duplicate_group"] += offset >= self._read_below
            return
        waiting = self._strays.pop(key, {})
        named = [waiting.pop(sample_id) for sample_id in dict.fromkeys(mark.sample_ids) if sample_id in waiting]
        self._n_strays -= len(named)
        if waiting:
            self._strays[key] = waiting
            self._drop_strays(key, "unnamed_sample")
        refused = "run_purged" if mark.run_id in self.purged else None
        group = ReadyGroup(mark, offset, tuple(named), at, refused=refused)
        self._ready[group.key] = group
        if len(self._firsts) > 2 * len(self._ready) + _MORE:
            self._firsts = [(one.first_offset, name) for name, one in self._ready.items()]
            heapq.heapify(self._firsts)
        else:
            heapq.heappush(self._firsts, (group.first_offset, group.key))
        prompt = (mark.run_id, mark.prompt_uid)
        self._of_prompt.setdefault(prompt, {})[group.key] = None

    def _drop_strays(self, key: GroupKey, reason: str) -> None:
        dropped = self._strays.pop(key, {})
        self._n_strays -= len(dropped)
        self.counts[reason] += len(dropped)
        self._release(dropped.values())

    def _release(self, samples: Iterable[HeldSample]) -> None:
        for sample in samples:
            if sample.wire is not None:
                self._let_go_of(sample)

    def _let_go_of(self, sample: HeldSample) -> None:
        self._bytes -= sample.held_bytes
        self._apart -= isinstance(sample.wire, mmap.mmap)

    def take(self, sample: HeldSample) -> Row | None:
        """The row of a ready group's sample; its body is let go of, so that a batch and the bodies that it is made of are
        never in memory together. None where it is not there (any more)."""
        row = sample.row
        if row is not None:
            self._let_go_of(sample)
            sample.wire = None
        return row

    def settle(self, cursor: int, gone: Iterable[GroupKey] | None = None) -> None:
        """Let go of what cuts have taken; the last of them ends at `cursor`. `gone` are the groups that were taken since the
        last call; None: it is not known which."""
        self.floor = cursor
        if gone is None:
            below = [key for key, group in self._ready.items() if group.offset < cursor or key in self._taken]
            gone = [*below, *(key for key in self._strays if key in self._taken)]
        for key in gone:
            if key in self._ready:
                self._let_go(self._ready[key])
            if key in self._strays:
                self._drop_strays(key, "duplicate_sample")

    def _let_go(self, group: ReadyGroup) -> None:
        self.changes += 1
        del self._ready[group.key]
        self._decided.pop(group.key, None)
        self._release(group.samples)
        self._call_late(group)
        prompt = (group.mark.run_id, group.mark.prompt_uid)
        del self._of_prompt[prompt][group.key]
        if not self._of_prompt[prompt]:
            del self._of_prompt[prompt]

    def _call_late(self, group: ReadyGroup) -> None:
        """Of a group that is gone: what its cut did not apply, as what came while the cut was written, is late."""
        place = self._taken.place_of(group.key)
        for late in group.decisions:
            fact_id, group_id = late.decision.fact_id, group.mark.group_id
            if place is None:
                self.counts["groupless_decision"] += 1
            elif not self._taken.applied(fact_id, group_id):
                self.too_late.setdefault((fact_id, group_id), TooLate(late, group_id, place))

    def resume_at(self, cursor: int, leaving: Iterable[ReadyGroup] = ()) -> int:
        """Where to read on after a cut that ends at `cursor` and takes the groups `leaving`: no sample of a later group
        lies below."""
        taken = {group.key for group in leaving}
        waiting = [sample.offset for group in self._strays.values() for sample in group.values()]
        return min([cursor, self._first_but(taken), *waiting])

    def _first_but(self, taken: Collection[GroupKey]) -> int:
        """The lowest offset of a ready group that is not among these."""
        passed = []
        while self._firsts and ((key := self._firsts[0][1]) in taken or key not in self._ready):
            first = heapq.heappop(self._firsts)
            if key in self._ready:  # until the cut is durable
                passed.append(first)
        lowest = self._firsts[0][0] if self._firsts else sys.maxsize
        for first in passed:
            heapq.heappush(self._firsts, first)
        return lowest
