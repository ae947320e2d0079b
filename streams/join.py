"""A trajectory's facts, in whatever order and however often they arrive, become one state.

The state is a set of keyed maps: a fact's id decides whether it is new, the highest revision of a reward wins, and the order
of the steps comes from the steps themselves, so that any interleaving and duplication gives the same state. A step's index
counts along that order and parents come before their children.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from claw_r1.curation import is_usable
from claw_r1.events import (
    Annotation,
    EffectiveReward,
    Reward,
    Step,
    StepStarted,
    TrajectoryEnd,
    TrajectoryFact,
    TrajectoryOpen,
)

DEFAULT_CHANNEL = "train"
RewardKey = tuple[str | None, str]
"""(step_id or None, source)."""
AnnotationKey = tuple[str, str]
"""(step_id, name)."""


@dataclass(slots=True)
class TrajectoryState:
    """What is known of one rollout."""

    trajectory_uid: str
    opens: dict[str, TrajectoryOpen] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    steps: dict[str, Step] = field(default_factory=dict)
    rewards: dict[RewardKey, Reward] = field(default_factory=dict)
    annotations: dict[AnnotationKey, Annotation] = field(default_factory=dict)
    end: TrajectoryEnd | None = None
    ended_at: float | None = None
    """Stream time at which the end signal was taken in."""
    channels: set[str] = field(default_factory=set)
    """The channels that its facts name."""

    def add(self, fact: TrajectoryFact | Reward, now: float) -> None:
        """Take in one new fact (the caller dropped duplicates by fact id)."""
        match fact:
            case StepStarted():
                self.started.add(fact.step_id)
            case Step():
                if self.steps.setdefault(fact.step_id, fact) is fact:
                    self._name_channel(fact.channel)
            case TrajectoryOpen():
                self.opens[fact.fact_id] = fact
                self._name_channel(fact.channel)
            case Reward():
                add_reward(self.rewards, fact)
            case Annotation():
                add_annotation(self.annotations, fact)
            case TrajectoryEnd() if self.end is None or fact.fact_id < self.end.fact_id:
                self.end = fact
                self.ended_at = now if self.ended_at is None else self.ended_at

    def _name_channel(self, channel: str | None) -> None:
        if channel is not None:
            self.channels.add(channel)

    @property
    def opened(self) -> bool:
        """Whether a fact arrived that opens a group: TrajectoryOpen, StepStarted or Step."""
        return bool(self.started or self.steps or self.opens)

    @property
    def orphans(self) -> list[str]:
        """Ids of the facts that open nothing."""
        said = [*self.rewards.values(), *self.annotations.values(), *([] if self.end is None else [self.end])]
        return [fact.fact_id for fact in said]

    @property
    def channel(self) -> str | None:
        """The smallest channel that any of its facts names: one, unless senders disagree."""
        return min(self.channels) if self.channels else None

    @property
    def task_id(self) -> str | None:
        return min((o.task_id for o in self.opens.values() if o.task_id is not None), default=None)

    @property
    def metadata(self) -> dict[str, object]:
        merged: dict[str, object] = {}
        for fact_id in sorted(self.opens):
            merged.update(self.opens[fact_id].metadata)
        return merged

    def sources(self, of_group: Mapping[RewardKey, Reward]) -> set[str]:
        """Names of those who rewarded it, a step of it, or its group."""
        return {source for rewards in (self.rewards, of_group) for _, source in rewards}

    @property
    def missing_steps(self) -> set[str]:
        """Steps that were started and have not arrived."""
        return self.started - self.steps.keys()


def differs(step: Step, trajectory: TrajectoryState | None) -> bool:
    """Whether the trajectory's step of this id has another response, or it has none."""
    known = None if trajectory is None else trajectory.steps.get(step.step_id)
    return known is None or known.response_ids != step.response_ids


def add_reward(rewards: dict[RewardKey, Reward], fact: Reward) -> None:
    """The highest revision of a source wins; of equal revisions the smallest fact id, whatever the order of arrival."""
    key = (fact.step_id, fact.source)
    have = rewards.get(key)
    if have is None or (-fact.revision, fact.fact_id) < (-have.revision, have.fact_id):
        rewards[key] = fact


def add_annotation(annotations: dict[AnnotationKey, Annotation], fact: Annotation) -> None:
    """The highest revision of a step's name wins, whoever the source; of equal revisions the smallest fact id."""
    key = (fact.step_id, fact.name)
    have = annotations.get(key)
    if have is None or (-fact.revision, fact.fact_id) < (-have.revision, have.fact_id):
        annotations[key] = fact


def effective_rewards(
    trajectory: Mapping[RewardKey, Reward], group: Mapping[RewardKey, Reward]
) -> tuple[EffectiveReward, ...]:
    """One reward per source, ordered by source: the trajectory's own, else the sum of its steps', else its group's.

    A withdrawn (None) or non-finite value makes its source missing, never 0 and never a coarser level's value; a step's
    withdrawn value leaves the sum to the other steps.
    """
    found: dict[str, EffectiveReward] = {}
    for rewards in (group, _summed_steps(trajectory), trajectory):
        for (step_id, source), reward in rewards.items():
            if step_id is not None:
                continue
            if is_number(reward.value):
                found[source] = EffectiveReward(
                    source=source,
                    value=reward.value,
                    revision=reward.revision,
                    components=reward.components,
                    self_reported=reward.self_reported,
                )
            else:
                found.pop(source, None)
    return tuple(found[source] for source in sorted(found))


def _summed_steps(rewards: Mapping[RewardKey, Reward]) -> dict[RewardKey, Reward]:
    by_source: dict[str, list[Reward]] = {}
    for (step_id, source), reward in rewards.items():
        if step_id is not None and reward.value is not None:
            by_source.setdefault(source, []).append(reward)
    summed: dict[RewardKey, Reward] = {}
    for source, parts in by_source.items():
        parts.sort(key=lambda r: r.fact_id)
        update = {
            "value": total(r.value for r in parts if r.value is not None),
            "components": _summed_components(parts),
            "self_reported": any(r.self_reported for r in parts),
        }
        summed[None, source] = parts[-1].model_copy(update=update)
    return summed


def _summed_components(parts: Iterable[Reward]) -> dict[str, float]:
    """By name over the parts that have it; a name whose sum is no number is left out."""
    by_name: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.components.items():
            by_name.setdefault(name, []).append(value)
    sums = {name: total(by_name[name]) for name in sorted(by_name)}
    return {name: value for name, value in sums.items() if is_number(value)}


def total(values: Iterable[float]) -> float:
    """The sum, rounded once, whatever the order; nan where it overflows or infinities of both signs meet."""
    try:
        return math.fsum(sorted(values))
    except (OverflowError, ValueError):
        return math.nan


def is_number(value: float | None) -> bool:
    """Whether a reward can be used: given, finite, and of a size that trainers compute with."""
    return value is not None and is_usable(value)


def order_steps(steps: Iterable[Step]) -> list[Step]:
    """Steps in the order of their calls: parents first, else by the sender's index, the time received, the id."""
    by_id = {step.step_id: step for step in steps}
    children: dict[str, list[Step]] = {}
    ready: list[tuple[float, float, str]] = []
    for step in by_id.values():
        if step.parent_step_id in by_id:
            children.setdefault(step.parent_step_id, []).append(step)
        else:
            heapq.heappush(ready, _call_order(step))
    ordered: list[Step] = []
    while ready:
        step = by_id[heapq.heappop(ready)[2]]
        ordered.append(step)
        for child in children.get(step.step_id, ()):
            heapq.heappush(ready, _call_order(child))
    return ordered


def _call_order(step: Step) -> tuple[float, float, str]:
    index = math.inf if step.step_index is None else float(step.step_index)
    received = math.inf if step.timings.received is None else step.timings.received
    return index, received, step.step_id
