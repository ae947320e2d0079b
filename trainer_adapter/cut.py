"""Ready groups become a cut: which of them the next optimiser step gets, which are left out, and why.

Pure. Invariants:
- a cut takes a prefix of the ready order: every ready group up to its last member is in it, as a member or as an exclusion
  with a reason, so each ready group is in exactly one cut;
- what people decided about a ready group before the cut is in it: applied, and named; every later decision about a group of a
  cut is said to be late;
- cuts and commits of a recipe are one history in log order; what is durable is never judged again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from claw_r1.events import BatchCut, BatchTrained, CutDecision, CutExclusion, CutMember, Event, Outcome
from claw_r1.ids import derived_id, split_group_id
from claw_r1.recipes import Recipe
from trainer_adapter.credit import name_annotations
from trainer_adapter.decisions import LateDecision, list_futile
from trainer_adapter.groups import HeldSample, Place, ReadyGroup, Remembered, TooLate
from trainer_adapter.staleness import floor_of


@dataclass(frozen=True)
class Selection:
    """The groups of one cut, both lists in ready order."""

    members: tuple[ReadyGroup, ...]
    excluded: tuple[tuple[ReadyGroup, str], ...]
    floor: int | None = None
    """Tokens of versions below are masked; None: none are."""

    @property
    def groups(self) -> tuple[ReadyGroup, ...]:
        """All that the cut takes."""
        return (*self.members, *(group for group, _ in self.excluded))

    @property
    def cursor(self) -> int:
        """Next offset after the last member's marker."""
        return self.members[-1].offset + 1

    @property
    def needs(self) -> int:
        """Lowest offset that a replay reads."""
        return min(group.first_offset for group in self.members)

    @property
    def lacking(self) -> list[HeldSample]:
        """Samples that have to be read again before the decisions about their groups can be applied."""
        return [sample for group in self.groups for sample in group.lacking]


def reason_against(group: ReadyGroup, recipe: Recipe, trained: int | None) -> str | None:
    """Why a group may not be trained now (a key of claw_r1.reasons.BATCH_EXCLUSIONS), or None.

    `trained` is the newest trained policy version; while there is none, nothing is stale.
    """
    if group.refused is not None:
        return group.refused
    if group.fault is not None:
        return group.fault
    staleness, floor = recipe.staleness, floor_of(recipe, trained)
    left = [sample for sample in group.samples if sample.is_left(floor)]
    if not left:
        return "stale"
    if (lack := _lack(left, recipe)) is not None:
        return lack
    if staleness.unknown == "drop" and any(sample.version_unknown for sample in group.samples):
        return "unknown_version"
    if floor is None and staleness.max_versions is not None and trained is not None:
        oldest = min((s.oldest_version for s in group.samples if s.oldest_version is not None), default=trained)
        if trained - oldest > staleness.max_versions:
            return "stale"
    return None


def _lack(samples: Sequence[HeldSample], recipe: Recipe) -> str | None:
    """What the recipe's algorithm needs and the group lacks, as one does that another version emitted."""
    needed = name_annotations(recipe)
    if any(not sample.annotations >= needed for sample in samples):
        return "annotation_missing"
    labels = {sample.label for sample in samples}
    if recipe.algorithm == "dpo" and labels != {"chosen", "rejected"}:
        return "no_pair"
    if recipe.algorithm == "kto" and not labels <= {"desirable", "undesirable"}:
        return "no_label"
    return None


def select(ready: Sequence[ReadyGroup], recipe: Recipe, trained: int | None) -> Selection | None:
    """The next cut of the ready groups, or None while they do not fill a batch."""
    if len(ready) < recipe.batch.groups:
        return None
    members: list[ReadyGroup] = []
    excluded: list[tuple[ReadyGroup, str]] = []
    for group in ready:
        reason = reason_against(group, recipe, trained)
        if reason is not None:
            excluded.append((group, reason))
            continue
        members.append(group)
        if len(members) == recipe.batch.groups:
            return Selection(tuple(members), tuple(excluded), floor_of(recipe, trained))
    return None


def name_members(selection: Selection) -> tuple[CutMember, ...]:
    return tuple(_name_member(group, selection.floor) for group in selection.members)


def _name_member(group: ReadyGroup, floor: int | None) -> CutMember:
    names = tuple(sample.sample_id for sample in group.samples if sample.is_left(floor))
    return CutMember(
        group_id=group.marker.group_id,
        run_id=group.marker.run_id,
        offset=group.offset,
        sample_ids=names,
        left_out=tuple(name for name in group.emitted.sample_ids if name not in set(names)),
        decisions=_name_decisions(group),
    )


def name_exclusions(selection: Selection) -> tuple[CutExclusion, ...]:
    return tuple(
        CutExclusion(
            group_id=group.marker.group_id,
            run_id=group.marker.run_id,
            offset=group.offset,
            reason=reason,
            decisions=_name_decisions(group),
        )
        for group, reason in selection.excluded
    )


def _name_decisions(group: ReadyGroup) -> tuple[CutDecision, ...]:
    return tuple(CutDecision(fact_id=late.decision.fact_id, offset=late.offset) for late in group.decisions)


def call_late(recipe: str, too_late: Iterable[TooLate], at: float) -> list[Outcome]:
    """The fate of decisions about groups that are in a cut: which batch has the group, or left it out."""
    return [
        _outcome(recipe, one.late, one.group_id, "in_batch" if one.place.trained else "left_out", one.place, at)
        for one in too_late
    ]


def call_futile(recipe: str, selection: Selection, sequence: int, at: float) -> list[Outcome]:
    """The fate of decisions about the cut's groups that would bring back what these were emitted without."""
    futile = [
        (group, {decision.fact_id for decision in list_futile(group.emitted, [d.decision for d in group.decisions])})
        for group in selection.groups
        if group.decisions
    ]
    return [
        _outcome(recipe, late, group.marker.group_id, "not_emitted", Place(sequence, trained=True), at)
        for group, fact_ids in futile
        for late in group.decisions
        if late.decision.fact_id in fact_ids
    ]


def _outcome(recipe: str, late: LateDecision, group_id: str, reason: str, place: Place, at: float) -> Outcome:
    decision = late.decision
    _, round_, part = split_group_id(group_id)
    return Outcome(
        outcome_id=derived_id("too-late", recipe, decision.run_id, group_id, decision.fact_id),
        recipe=recipe,
        run_id=decision.run_id,
        prompt_uid=decision.prompt_uid,
        group_id=group_id,
        round=round_,
        part=part,
        trajectory_uid=decision.trajectory_uid,
        fact_id=decision.fact_id,
        batch=place.sequence,
        outcome="late",
        reason=reason,
        at=at,
    )


class History:
    """A recipe's cuts and commits, folded in log order; it holds one small entry a batch."""

    def __init__(self) -> None:
        self.taken = Remembered()
        """Groups that a cut has, as members or exclusions."""
        self.cuts: dict[int, int] = {}
        """Sequence → offset of its BatchCut; the lowest offset wins."""
        self.sizes: dict[int, int] = {}
        """Sequence → groups of its batch."""
        self.last_cut: BatchCut | None = None
        """The cut with the highest sequence."""
        self.last_trained: BatchTrained | None = None
        """The newest commit in log order: where the trainer is."""
        self.newest: BatchTrained | None = None
        """The commit with the highest policy version."""
        self.holder: str | None = None
        """Who wrote last."""

    @property
    def last_sequence(self) -> int:
        return 0 if self.last_cut is None else self.last_cut.sequence

    @property
    def position(self) -> int:
        """Sequence of the last committed batch; 0 if there is none."""
        return 0 if self.last_trained is None else self.last_trained.sequence

    def untrained(self, position: int) -> int:
        """Groups of the cuts after batch `position`."""
        return sum(self.sizes.get(sequence, 0) for sequence in range(position + 1, self.last_sequence + 1))

    def put(self, offset: int, event: Event) -> None:
        """Take in the recipe's record at `offset` of the cuts topic."""
        if isinstance(event, BatchCut):
            self.holder = event.holder
            self.taken.take(event)
            if event.sequence in self.cuts:
                return
            self.cuts[event.sequence] = offset
            self.sizes[event.sequence] = len(event.members)
            if event.sequence > self.last_sequence:
                self.last_cut = event
        elif isinstance(event, BatchTrained):
            self.holder = event.holder
            self.last_trained = event
            if self.newest is None or event.policy_version > self.newest.policy_version:
                self.newest = event


@dataclass(frozen=True)
class Waiting:
    """Why the next batch is not there yet."""

    recipe: str
    sequence: int
    """Of the batch that is waited for."""
    ready: int
    """Ready groups that may be trained now."""
    needed: int
    excluded: dict[str, int]
    """Ready groups that may not, by reason."""
    strays: int
    """Samples whose group's marker has not come."""
    last_ready_at: float | None
    """When the last group of any kind became ready, seconds since the epoch; None if none was seen."""
    ended: bool
    """The recipe's newest version says that it has ended."""
    broker_away: bool = False

    def describe(self, now: float) -> str:
        """One or two sentences for a person; `now` in seconds since the epoch."""
        parts = [f"batch {self.sequence} of recipe {self.recipe}: {self.ready} of {self.needed} groups are ready"]
        if self.last_ready_at is None:
            parts.append("none has become ready since the last cut")
        else:
            parts.append(f"the last became ready {max(0.0, now - self.last_ready_at):.1f} s ago")
        if self.excluded:
            parts.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in sorted(self.excluded.items())))
        if self.strays:
            parts.append(f"{self.strays} samples wait for their group's marker")
        if self.broker_away:
            parts.append("the broker does not answer")
        if self.ended:
            parts.append("the recipe has ended, so no more groups will come")
        return "; ".join(parts)


def explain_wait(
    recipe: Recipe, ready: Sequence[ReadyGroup], trained: int | None, *, sequence: int, strays: int, ended: bool
) -> Waiting:
    reasons = [reason_against(group, recipe, trained) for group in ready]
    return Waiting(
        recipe.name,
        sequence,
        reasons.count(None),
        recipe.batch.groups,
        dict(Counter(reason for reason in reasons if reason is not None)),
        strays,
        ready[-1].ready_at if ready else None,
        ended,
    )
