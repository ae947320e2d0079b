"""Ready groups become a cut: which of them the next optimiser step gets, which are left out, and why.

Pure. Invariants:
- a cut goes through the ready order: every ready group below its cursor is in it or in an earlier one, as a member or as an
  exclusion with a reason, so each ready group is in exactly one cut. Its cursor is behind its last group, or, where a mix lets
  groups wait for a later batch, at the first of these; groups above that a cut has are remembered;
- what people decided about a ready group before the cut is in it: applied, and named; every later decision about a group of a
  cut is said to be late;
- cuts and commits of a recipe are one history in log order; what is durable is never judged again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from claw_r1.events import BatchCut, BatchTrained, CutDecision, CutExclusion, CutMember, Event, Outcome
from claw_r1.ids import derived_id, split_group_id
from claw_r1.recipes import Recipe
from trainer_adapter.credit import name_annotations
from trainer_adapter.decisions import LateDecision, list_futile
from trainer_adapter.filling import Filling
from trainer_adapter.groups import Place, ReadyGroup, Remembered, TooLate
from trainer_adapter.staleness import floor_of


@dataclass(frozen=True)
class Selection:
    """The groups of one cut, both lists in ready order."""

    members: tuple[ReadyGroup, ...]
    excluded: tuple[tuple[ReadyGroup, str], ...]
    floor: int | None = None
    """Tokens of versions below are masked; None: none are."""
    passed: int | None = None
    """Offset of the first group that waits for a later batch; None: none does."""

    @property
    def groups(self) -> tuple[ReadyGroup, ...]:
        """All that the cut takes."""
        return (*self.members, *(group for group, _ in self.excluded))

    @property
    def cursor(self) -> int:
        """All ready groups below have been taken."""
        behind = max(group.offset for group in self.groups) + 1
        return behind if self.passed is None else min(behind, self.passed)

    @property
    def needs(self) -> int:
        """Lowest offset that a replay reads."""
        return min(group.first_offset for group in self.members)

    @property
    def tokens(self) -> int:
        """Of all members, stale ones too."""
        return sum(group.tokens for group in self.members)


class Judge:
    """Says of groups why they may not be trained now.

    `trained` is the newest trained policy version; while there is none, nothing is stale.
    """

    def __init__(self, recipe: Recipe, trained: int | None) -> None:
        self._recipe = recipe
        self._floor = floor_of(recipe, trained)
        self._needed = name_annotations(recipe)
        most = recipe.staleness.max_versions
        self._oldest = None if self._floor is not None or most is None or trained is None else trained - most
        """Groups with tokens of older versions are stale; None: none are for that."""

    def reason_against(self, group: ReadyGroup) -> str | None:
        """Why a group may not be trained now (a key of claw_r1.reasons.BATCH_EXCLUSIONS), or None."""
        if group.refused is not None:
            return group.refused
        if group.fault is not None:
            return group.fault
        annotations, labels = group.annotations, group.labels
        if self._floor is not None:
            left = [sample for sample in group.samples if sample.is_left(self._floor)]
            if not left:
                return "stale"
            annotations = frozenset.intersection(*[sample.annotations for sample in left])
            labels = frozenset([sample.label for sample in left])
        if (lack := self._lack(annotations, labels)) is not None:
            return lack
        if group.version_unknown and self._recipe.staleness.unknown == "drop":
            return "unknown_version"
        oldest = group.oldest_version
        return "stale" if oldest is not None and self._oldest is not None and oldest < self._oldest else None

    def _lack(self, annotations: frozenset[str], labels: frozenset[str | None]) -> str | None:
        """What the recipe's algorithm needs and a group lacks, as one does that another version emitted."""
        if not annotations >= self._needed:
            return "annotation_missing"
        if self._recipe.algorithm == "dpo" and labels != {"chosen", "rejected"}:
            return "no_pair"
        if self._recipe.algorithm == "kto" and not labels <= {"desirable", "undesirable"}:
            return "no_label"
        return None


def reason_against(group: ReadyGroup, recipe: Recipe, trained: int | None) -> str | None:
    """What a Judge says of one group."""
    return Judge(recipe, trained).reason_against(group)


def fill(ready: Iterable[ReadyGroup], recipe: Recipe, trained: int | None, *, on: bool = False) -> Filling:
    """The next batch as far as the ready groups fill it; with `on` those behind a full one are judged too."""
    filling = Filling(recipe.batch, floor_of(recipe, trained))
    go_on(filling, ready, recipe, trained, on=on)
    return filling


def go_on(
    filling: Filling, further: Iterable[ReadyGroup], recipe: Recipe, trained: int | None, *, on: bool = False
) -> None:
    """Fill on with the groups behind those that were put in; the rest is as for `fill`."""
    judge = Judge(recipe, trained)
    for group in further:
        if not on and filling.full:
            break
        filling.put(group, judge.reason_against(group))


def select(ready: Iterable[ReadyGroup], recipe: Recipe, trained: int | None) -> Selection | None:
    """The next cut of the ready groups, or None while they do not fill a batch."""
    return take(fill(ready, recipe, trained))


def take(filling: Filling) -> Selection | None:
    """The cut of a filling that lacks nothing, or None while it is not full."""
    if not filling.full:
        return None
    return Selection(tuple(filling.members), tuple(filling.excluded), filling.floor, filling.passed)


def name_members(selection: Selection) -> tuple[CutMember, ...]:
    return tuple(_name_member(group, selection.floor) for group in selection.members)


def _name_member(group: ReadyGroup, floor: int | None) -> CutMember:
    names, left_out = group.mark.sample_ids, group.left_out
    if floor is not None:
        names = tuple(sample.sample_id for sample in group.samples if sample.is_left(floor))
        kept = set(names)
        left_out = tuple(name for name in group.emitted.sample_ids if name not in kept)
    return CutMember(
        group_id=group.mark.group_id,
        run_id=group.mark.run_id,
        offset=group.offset,
        sample_ids=names,
        left_out=left_out,
        decisions=_name_decisions(group),
    )


def name_exclusions(selection: Selection) -> tuple[CutExclusion, ...]:
    return tuple(
        CutExclusion(
            group_id=group.mark.group_id,
            run_id=group.mark.run_id,
            offset=group.offset,
            reason=reason,
            decisions=_name_decisions(group),
        )
        for group, reason in selection.excluded
    )


def _name_decisions(group: ReadyGroup) -> tuple[CutDecision, ...]:
    return tuple(CutDecision(fact_id=late.decision.fact_id, offset=late.offset) for late in group.applied)


def call_late(recipe: str, too_late: Iterable[TooLate], at: float) -> list[Outcome]:
    """The fate of decisions about groups that are in a cut: which batch has the group, or left it out."""
    return [
        _outcome(recipe, one.late, one.group_id, "in_batch" if one.place.trained else "left_out", one.place, at)
        for one in too_late
    ]


def call_futile(recipe: str, selection: Selection, sequence: int, at: float) -> list[Outcome]:
    """The fate of decisions about the cut's groups that would bring back what these were emitted without."""
    futile = [
        (
            group,
            {decision.fact_id for decision in list_futile(group.emitted.marker, [d.decision for d in group.applied])},
        )
        for group in selection.groups
        if group.decisions
    ]
    return [
        _outcome(recipe, late, group.mark.group_id, "not_emitted", Place(sequence, trained=True), at)
        for group, fact_ids in futile
        for late in group.applied
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
    def read_below(self) -> int:
        """Next offset behind every group that the newest cut has, or 0."""
        if self.last_cut is None:
            return 0
        members, excluded = self.last_cut.members, self.last_cut.excluded
        return 1 + max([*(member.offset for member in members), *(one.offset for one in excluded)], default=-1)

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
