"""A group's trajectories become its fate for one recipe: wait, emit with these samples, or discard with a reason.

`judge` is a function of the group's facts and of stream time alone. A trajectory is settled once nothing more is awaited of
it; a group is decided once enough trajectories are settled, or its idle deadline or maximum age has passed. The group's
baseline covers every validly rewarded member, also those that give no sample. Decisions and filters act when the group is
decided, so that what came before that counts in any order.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from claw_r1.curation import NOTHING, Curation, curate, list_in_force
from claw_r1.errors import InvalidRecord
from claw_r1.events import (
    Decision,
    EffectiveReward,
    GroupCancel,
    GroupOpen,
    GroupReady,
    Member,
    Reward,
    Sample,
    StepSpan,
)
from claw_r1.ids import derived_id, group_id
from claw_r1.picking import pick
from claw_r1.recipes import Recipe
from claw_r1.rules import first_failing
from streams.annotations import count_unused, lay, row_bytes
from streams.forest import Node
from streams.join import DEFAULT_CHANNEL, RewardKey, TrajectoryState, effective_rewards, is_number, total
from streams.merge import Merged, Row, merge_steps
from streams.rules import group_values, trajectory_values
from streams.verdicts import ActiveRecipe, Discard, Emit, Hold, Nobody, Standing, Verdict, Wait, Written

MAX_ROW_BYTES = 13 * 2**19
MAX_METADATA_BYTES = 2**20  # together 7.5 MiB, with what else a sample holds less than a record may be
MAX_STEP_ROWS_BYTES = 2**25
"""Of a trajectory whose steps are its rows: with their prompts they grow with the square of its turns."""
ORPHAN_WAIT = 60.0
"""Seconds of stream time that facts wait for the TrajectoryOpen or the step that opens their group."""


@dataclass(slots=True)
class GroupState:
    """One round of a prompt: its facts, and the recipes that were active at its first fact."""

    run_id: str
    prompt_uid: str
    round: int
    first_offset: int
    opened_at: float
    """Stream time of the first fact."""
    last_at: float
    """Stream time of the newest fact."""
    recipes: tuple[ActiveRecipe, ...]
    seen: set[str] = field(default_factory=set)
    """Fact ids taken in."""
    trajectories: dict[str, TrajectoryState] = field(default_factory=dict)
    rewards: dict[RewardKey, Reward] = field(default_factory=dict)
    opens: dict[str, GroupOpen] = field(default_factory=dict)
    cancel: GroupCancel | None = None
    stopped: str | None = None
    """Why the whole group is discarded at once: a purged run, or more trajectories than a group may have."""
    spoiled: str | None = None
    """Why the whole group is discarded once it is decided: a fact that cannot be read."""
    look_at: float | None = None
    """Stream time at which the group is judged again unless a fact comes first."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    """By fact id."""
    standings: dict[str, Standing] = field(default_factory=dict)
    """By name of the recipe."""
    written: dict[tuple[str, int], Written] = field(default_factory=dict)
    """By recipe and part: the decisions that were on the ledger when a replay opened the group."""
    held: dict[tuple[str, int], float] = field(default_factory=dict)
    """By recipe and part: when it was held, according to that ledger."""
    announced: set[str] = field(default_factory=set)
    """Trajectories that were sent to the reward workers."""
    merged: dict[str, Merged | None] = field(default_factory=dict)
    """Trajectories with their steps linked, until another step arrives; None if a context cannot be restored."""
    carried: int = 0
    """How often its facts were written to the log again."""

    @property
    def group_id(self) -> str:
        return group_id(self.prompt_uid, self.round)

    @property
    def opened(self) -> bool:
        return bool(self.opens) or any(t.opened for t in self.trajectories.values())

    @property
    def stop(self) -> str | None:
        """Why the group is discarded without waiting."""
        return self.stopped or ("cancelled" if self.cancel is not None else None)

    @property
    def size(self) -> int | None:
        return max((o.size for o in self.opens.values() if o.size is not None), default=None)

    def channel_of(self, trajectory: TrajectoryState | None) -> str:
        """The trajectory's channel, else the group's, else `train`."""
        named = trajectory.channel if trajectory is not None else None
        if named or not self.opens:
            return named or DEFAULT_CHANNEL
        return min((o.channel for o in self.opens.values() if o.channel), default=DEFAULT_CHANNEL)

    def task_of(self, trajectory: TrajectoryState | None) -> str | None:
        named = trajectory.task_id if trajectory is not None else None
        return named or min((o.task_id for o in self.opens.values() if o.task_id), default=None)

    def metadata_of(self, trajectory: TrajectoryState) -> dict[str, object]:
        merged: dict[str, object] = {}
        for fact_id in sorted(self.opens):
            merged.update(self.opens[fact_id].metadata)
        return merged | trajectory.metadata

    def metadata_fits(self, trajectory: TrajectoryState) -> bool:
        """Whether the metadata, with names of reward sources and tags, is small enough to travel with every sample."""
        said = (trajectory.sources(self.rewards), self.curation(trajectory.trajectory_uid).tags)
        return len(msgspec.msgpack.encode((self.metadata_of(trajectory), *said))) <= MAX_METADATA_BYTES

    def standing(self, recipe: str) -> Standing:
        return self.standings.setdefault(recipe, Standing())

    def curation(self, trajectory_uid: str | None) -> Curation:
        """What people said of a trajectory; None: of the group as a whole."""
        return curate(list_in_force(self.decisions.values()), trajectory_uid) if self.decisions else NOTHING

    def merge(self, trajectory: TrajectoryState) -> Merged | None:
        """The trajectory's steps, linked, for every recipe the same; None if a context cannot be restored."""
        uid = trajectory.trajectory_uid
        if uid not in self.merged:
            try:
                self.merged[uid] = merge_steps(trajectory.steps.values())
            except InvalidRecord:
                self.merged[uid] = None
        return self.merged[uid]

    def concerned(self) -> list[ActiveRecipe]:
        """The recipes that judge this group: those whose channel it, or one of its trajectories, has."""
        channels = {self.channel_of(t) for t in self.trajectories.values() if t.opened} or {self.channel_of(None)}
        return [
            active
            for active in self.recipes
            if active.recipe is not None and any(active.recipe.concerns(self.run_id, c) for c in channels)
        ]


Fate = Literal["waiting", "kept", "discarded"]


@dataclass(slots=True)
class _Settled:
    """A trajectory as a recipe sees it."""

    trajectory: TrajectoryState
    fate: Fate
    reason: str
    until: float = math.inf
    rewards: tuple[EffectiveReward, ...] = ()
    reward: float | None = None
    source_reward: float | None = None
    """What the sources say, where a decision says another."""
    rows: list[Row] = field(default_factory=list)
    curation: Curation = NOTHING
    label: str | None = None


def settles_at(trajectory: TrajectoryState, end_grace: float) -> float:
    """When an ended trajectory's steps are complete: at once if every started step is here, else after the grace."""
    assert trajectory.ended_at is not None
    return trajectory.ended_at + end_grace if trajectory.missing_steps else trajectory.ended_at


def judge(group: GroupState, active: ActiveRecipe, now: float, *, partition: int, pos: int) -> Verdict:
    """The group's fate for one recipe at stream time `now`; `pos` is the next input offset."""
    recipe = active.recipe
    assert recipe is not None
    standing = group.standing(active.name)
    members = [t for t in _concerned(group, recipe) if t.trajectory_uid not in standing.fated]
    if standing.part > 1 and not members:
        return Nobody()
    until = min(_deadlines(group, recipe, standing))
    ended = sum(t.end is not None for t in members)
    expected = _expected(group, recipe) if standing.part == 1 else len(members)
    if group.stop is None and now < until and ended < expected:
        return Wait(until)  # too few have ended: no need to look into them
    settled = [_settle(group, t, recipe, now) for t in members]
    if group.stop is not None:
        return Discard(group.stop, [_discarded(s, group.stop) for s in settled])
    reason, until = _due(group, recipe, standing, settled, now)
    if reason is None:
        return Wait(until)
    refused = _refuse(group, recipe, standing, settled, reason)
    if refused is not None:
        return refused
    if recipe.review == "required" and not group.curation(None).kept:
        held_at = standing.held_at or group.held.get((active.name, standing.part), now)
        if now < held_at + recipe.review_deadline:
            kept = [s.trajectory.trajectory_uid for s in settled if s.fate == "kept"]
            return Hold(held_at + recipe.review_deadline, kept)
        return Discard("review_expired", [_discarded(s, "review_expired") for s in settled])
    return _emit(group, active, settled, reason, now, partition, pos)


def _concerned(group: GroupState, recipe: Recipe) -> list[TrajectoryState]:
    found = [group.trajectories[uid] for uid in sorted(group.trajectories)]
    return [t for t in found if t.opened and recipe.concerns(group.run_id, group.channel_of(t))]


def _deadlines(group: GroupState, recipe: Recipe, standing: Standing) -> tuple[float, float]:
    """Stream times of the idle deadline and of the maximum age; a further group's begin with itself."""
    idle_at = max(group.last_at, standing.since) + recipe.group.idle
    return idle_at, max(group.opened_at, standing.since) + recipe.group.max_age


def _due(
    group: GroupState, recipe: Recipe, standing: Standing, settled: Sequence[_Settled], now: float
) -> tuple[str | None, float]:
    """(why the group is decided now, or None; when to look again)."""
    waiting = [s for s in settled if s.fate == "waiting"]
    kept = sum(s.fate == "kept" for s in settled)
    if standing.part == 1:
        expected = _expected(group, recipe)
        whole = kept >= expected or (len(settled) >= expected and not waiting)
    else:
        whole = kept >= recipe.group.least and not waiting
    if whole:
        return "size" if standing.part == 1 else "extra_group", now
    idle_at, old_at = _deadlines(group, recipe, standing)
    if now >= old_at:
        return "max_age", now
    if now >= idle_at:
        return "idle", now
    return None, min([idle_at, old_at, *(s.until for s in waiting)])


def _refuse(
    group: GroupState, recipe: Recipe, standing: Standing, settled: Sequence[_Settled], reason: str
) -> Discard | None:
    """Why the group that is due is not emitted, with its members' fates; None if it is."""
    if group.spoiled is not None:
        return Discard(group.spoiled, [_discarded(s, group.spoiled) for s in settled])
    curation = group.curation(None)
    if curation.vetoed:
        return Discard("vetoed", [_discarded(s, "vetoed") for s in settled])
    kept = [s for s in settled if s.fate == "kept"]
    if len(kept) < recipe.group.least:
        why = "too_small" if reason == "size" else f"too_small_at_{reason}"
        if standing.part > 1:
            return Discard(why, [_discarded(s, "straggler" if s.fate != "discarded" else s.reason) for s in settled])
        return _discard_kept(settled, why, reason)
    if recipe.filters and not curation.kept:
        rewards = [s.reward for s in settled if s.reward is not None]
        values = group_values([s.trajectory for s in settled], rewards)
        failing = first_failing(recipe.filters, "group", values)
        if failing is not None:
            return _discard_kept(settled, failing.reason, reason)
    if not any(s.rows for s in kept):
        return _discard_kept(settled, "nothing_to_train", reason)
    labels = pick(recipe.pick, {s.trajectory.trajectory_uid: s.reward for s in kept if s.rows and s.reward is not None})
    if labels.reason is not None:
        return _discard_kept(settled, labels.reason, reason)
    for one in kept:
        uid = one.trajectory.trajectory_uid
        if uid in labels.labels:
            one.label = one.label or labels.labels[uid]
        elif one.rows:
            one.fate, one.reason = "discarded", "not_picked"
    return None


def _discard_kept(settled: Sequence[_Settled], why: str, deadline: str) -> Discard:
    return Discard(why, [_discarded(s, why if s.fate == "kept" else _open_reason(s, deadline)) for s in settled])


def _expected(group: GroupState, recipe: Recipe) -> int:
    return group.size or recipe.group.size


def _settle(group: GroupState, trajectory: TrajectoryState, recipe: Recipe, now: float) -> _Settled:
    if trajectory.end is None or trajectory.ended_at is None:
        return _Settled(trajectory, "waiting", "not_ended")
    complete_at = settles_at(trajectory, recipe.group.end_grace)
    if now < complete_at:
        return _Settled(trajectory, "waiting", "steps_missing", complete_at)
    curation = group.curation(trajectory.trajectory_uid)
    found = _Settled(trajectory, "discarded", "", curation=curation, label=curation.label)
    missing = _reward(group, recipe, found)
    rewarded_at = trajectory.ended_at + recipe.rewards.timeout
    if curation.vetoed:
        found.reason = "vetoed"
    elif missing and now < rewarded_at:
        found.fate, found.reason, found.until = "waiting", "reward_missing", rewarded_at
    elif recipe.group.on_end.get(trajectory.end.status, "keep") == "discard":
        found.reason = trajectory.end.status
    elif trajectory.missing_steps:
        found.reason = "incomplete"
    elif missing and recipe.rewards.on_missing == "mask":
        found.fate, found.reason = "kept", "reward_masked"
    elif found.reward is None:
        found.reason = "reward_missing" if missing else "reward_not_finite"
    else:
        _merge_rows(group, recipe, found)
        _await_annotations(recipe, found, now)
        _filter(group, recipe, found)
    return found


def _reward(group: GroupState, recipe: Recipe, found: _Settled) -> bool:
    """Find the trajectory's reward; whether a required one is missing, also where it counts 0 once its time is over."""
    rule = recipe.rewards
    found.rewards = effective_rewards(found.trajectory.rewards, group.rewards)
    sources = {r.source for r in found.rewards}
    missing = not sources.issuperset(rule.required) or not (sources or rule.on_missing == "zero")
    weighted = [rule.weights.get(r.source, 1.0) * r.value for r in found.rewards]
    reward: float | None = None if missing and rule.on_missing != "zero" else total(weighted)
    override = found.curation.reward
    if override is not None:
        found.source_reward = reward if is_number(reward) else None
        reward, missing = override.value, override.value is None
    found.reward = reward if is_number(reward) else None
    return missing


def _merge_rows(group: GroupState, recipe: Recipe, found: _Settled) -> None:
    merged = group.merge(found.trajectory)
    if merged is None:
        found.reason = "context_lost"
        return
    by_step = recipe.rows == "step"
    if by_step and 9 * merged.step_tokens > MAX_STEP_ROWS_BYTES:
        found.reason = "too_large"
        return
    rows = merged.rows(allowed(recipe), by_step=by_step)
    found.rows = [_without_steps(row, found.curation.vetoed_steps) for row in rows]
    if not any(row.trained_tokens for row in found.rows):
        found.reason = "nothing_to_train"
    elif not group.metadata_fits(found.trajectory) or any(
        row_bytes(row, found.trajectory.annotations) > MAX_ROW_BYTES for row in found.rows
    ):
        found.reason = "too_large"
    else:
        found.fate, found.reason = "kept", "complete"


def _without_steps(row: Row, vetoed: frozenset[str]) -> Row:
    """The row with the tokens of vetoed steps masked."""
    if not vetoed:
        return row
    mask, log_probs, reasons = bytearray(row.loss_mask), bytearray(row.log_probs), row.mask_reasons.copy()
    for node in row.nodes:
        trained = mask.count(1, node.start, node.end)
        if node.step.step_id in vetoed and trained:
            reasons["vetoed"] += trained
            mask[node.start : node.end] = bytes(node.end - node.start)
            log_probs[4 * node.start : 4 * node.end] = bytes(4 * (node.end - node.start))
    trained = mask.count(1)
    return replace(row, loss_mask=mask, log_probs=log_probs, mask_reasons=reasons, trained_tokens=trained)


def _await_annotations(recipe: Recipe, found: _Settled, now: float) -> None:
    """Wait for the arrays that the recipe requires of every trained step, up to their time."""
    rule = recipe.annotations
    if found.fate != "kept" or not rule.required or not _lacks(found, rule.required):
        return
    assert found.trajectory.ended_at is not None
    found.until = found.trajectory.ended_at + rule.timeout
    if now < found.until:
        found.fate, found.reason = "waiting", "annotation_missing"
    elif rule.on_missing == "mask":
        found.reason, found.rows = "annotation_masked", []
    else:
        found.fate, found.reason = "discarded", "annotation_missing"


def _lacks(found: _Settled, names: Sequence[str]) -> bool:
    """Whether a trained token has no value of one of these arrays."""
    rows = [row for row in found.rows if row.trained_tokens]
    return any(not lay(row, found.trajectory.annotations).arrays.keys() >= set(names) for row in rows)


def _filter(group: GroupState, recipe: Recipe, found: _Settled) -> None:
    """Discard a complete trajectory that does not pass the recipe's filters, unless a person keeps it."""
    if not recipe.filters or not found.rows or found.fate != "kept" or found.curation.kept:
        return
    merged = group.merge(found.trajectory)
    assert merged is not None, "only a merged trajectory is kept"
    values = trajectory_values(
        found.trajectory,
        reward=found.reward,
        rewards=found.rewards,
        chains=_count_chains(merged, recipe, found),
        drift=merged.links.get("drift", 0),
        curation=found.curation,
        task_id=group.task_of(found.trajectory),
        metadata=group.metadata_of(found.trajectory),
    )
    failing = first_failing(recipe.filters, "trajectory", values)
    if failing is not None:
        found.fate, found.reason = "discarded", failing.reason


def _count_chains(merged: Merged, recipe: Recipe, found: _Settled) -> int:
    """Chains with a token to train, also where rows are steps."""
    rows = found.rows
    if recipe.rows == "step":
        vetoed = found.curation.vetoed_steps
        rows = [_without_steps(row, vetoed) for row in merged.rows(allowed(recipe))]
    return sum(row.trained_tokens > 0 for row in rows)


def allowed(recipe: Recipe) -> frozenset[str]:
    """Reasons to mask that the recipe allows. Tokens of unknown versions are masked only where its staleness rule drops them
    token by token: else they stay, or the cut drops their group."""
    rule = recipe.staleness
    judged_at_the_cut = rule.unknown == "keep" or rule.mode == "drop_group"
    return frozenset(recipe.allow) | ({"unknown_version"} if judged_at_the_cut else frozenset())


def _open_reason(settled: _Settled, deadline: str) -> str:
    if settled.fate != "waiting":
        return settled.reason
    return f"{settled.reason}_at_{deadline}" if deadline in ("idle", "max_age") else "straggler"


def _discarded(settled: _Settled, reason: str) -> Member:
    uid = settled.trajectory.trajectory_uid
    masked = _mask_reasons(settled.rows)
    return Member(
        trajectory_uid=uid,
        outcome="discarded",
        reason=reason,
        reward=settled.reward,
        source_reward=settled.source_reward,
        mask_reasons=masked,
    )


def _mask_reasons(rows: Sequence[Row]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.mask_reasons)
    return {reason: counts[reason] for reason in sorted(counts)}


def _emit(
    group: GroupState,
    active: ActiveRecipe,
    settled: Sequence[_Settled],
    reason: str,
    now: float,
    partition: int,
    pos: int,
) -> Emit:
    recipe = active.recipe
    assert recipe is not None
    part = group.standing(active.name).part
    samples: list[Sample] = []
    members: list[Member] = []
    for one in settled:
        if one.fate == "waiting" and part == 1 and recipe.group.stragglers == "extra_group":
            continue  # its fate is said with the further group, or without it
        if one.fate != "kept":
            members.append(_discarded(one, "straggler" if one.fate == "waiting" else one.reason))
            continue
        mine = _samples(group, active, one, group_id(group.prompt_uid, group.round, part))
        samples += mine
        members.append(
            Member(
                trajectory_uid=one.trajectory.trajectory_uid,
                outcome="emitted",
                reason=one.reason,
                reward=one.reward,
                source_reward=one.source_reward,
                samples=tuple(s.sample_id for s in mine),
                mask_reasons=_mask_reasons(one.rows),
                **_quality(group, one.trajectory),
            )
        )
    rewards = [m.reward for m in members if m.reward is not None]
    trained = [v.version for s in samples for v in s.version_spans if 1 in s.loss_mask[v.start : v.end]]
    versions = [version for version in trained if version is not None]
    ready = GroupReady(
        recipe=active.name,
        recipe_version=active.version,
        run_id=group.run_id,
        prompt_uid=group.prompt_uid,
        group_id=group_id(group.prompt_uid, group.round, part),
        channel=recipe.channel,
        task_id=group.task_of(settled[0].trajectory),
        reason=reason,
        members=tuple(members),
        sample_ids=tuple(s.sample_id for s in samples),
        tokens=sum(len(s.loss_mask) for s in samples),
        trained_tokens=sum(r.trained_tokens for one in settled if one.fate == "kept" for r in one.rows),
        reward_mean=statistics.mean(rewards) if rewards else None,
        reward_std=statistics.pstdev(rewards) if rewards else None,
        min_version=min(versions, default=None),
        max_version=max(versions, default=None),
        decisions=tuple(d.fact_id for d in list_in_force(group.decisions.values())),
        curation=tuple(d for _, d in sorted(group.decisions.items()) if d.action != "note"),
        partition=partition,
        pos=pos,
        at=now,
    )
    return Emit(samples, ready)


def _quality(group: GroupState, trajectory: TrajectoryState) -> dict[str, Any]:
    """What a member says of how its steps go on from each other, and of its annotations."""
    merged = group.merge(trajectory)
    if merged is None:
        return {}
    return {
        "links": merged.links,
        "holes": merged.hole_count,
        "step_tokens": merged.step_tokens,
        "unused": count_unused(trajectory.annotations, merged.nodes),
    }


def _samples(group: GroupState, active: ActiveRecipe, one: _Settled, name: str) -> list[Sample]:
    """The trajectory's samples in the group that is called `name`; none of one that is masked."""
    trajectory = one.trajectory
    rows = [row for row in one.rows if row.trained_tokens]
    rewards = _step_rewards(trajectory)
    laid = [lay(row, trajectory.annotations) for row in rows]
    assert one.reward is not None or not rows
    assert active.recipe is not None
    return [
        Sample(
            sample_id=derived_id("sample", active.name, active.version, group.run_id, name, uid, index),
            recipe=active.name,
            recipe_version=active.version,
            run_id=group.run_id,
            prompt_uid=group.prompt_uid,
            group_id=name,
            trajectory_uid=uid,
            channel=active.recipe.channel,
            task_id=group.task_of(trajectory),
            sample_index=index,
            n_samples=len(rows),
            spans=tuple(_span(node, one.curation, rewards.get(node.step.step_id)) for node in row.nodes),
            token_ids=row.token_ids,
            loss_mask=bytes(row.loss_mask),
            rollout_log_probs=bytes(row.log_probs),
            version_spans=tuple(row.versions),
            mask_reasons=dict(row.mask_reasons),
            links=row.links,
            holes=row.holes,
            annotations=laid[index].arrays,
            annotations_missing=laid[index].missing,
            routed_experts=row.experts,
            multi_modal_data=row.media,
            reward=one.reward,
            reward_components={r.source: r.value for r in one.rewards},
            label=one.label,
            tags=one.curation.tags,
            quality=one.curation.quality,
            metadata=group.metadata_of(trajectory),
        )
        for uid in (trajectory.trajectory_uid,)
        for index, row in enumerate(rows)
    ]


def _step_rewards(trajectory: TrajectoryState) -> dict[str, float]:
    """By step, the sum of its own rewards."""
    own: dict[str, list[float]] = {}
    for (step_id, _source), reward in trajectory.rewards.items():
        if step_id is not None and reward.value is not None:
            own.setdefault(step_id, []).append(reward.value)
    return {step_id: total(values) for step_id, values in own.items()}


def _span(node: Node, curation: Curation, reward: float | None) -> StepSpan:
    """`reward`: the step's own; None: it has none."""
    override = curation.step_rewards.get(node.step.step_id)
    source = reward if override is not None and is_number(reward) else None
    if override is not None:
        reward = override.value
    return StepSpan(
        step_id=node.step.step_id,
        step_index=node.index,
        start=node.start,
        end=node.end,
        reward=reward if is_number(reward) else None,
        source_reward=source,
        link=node.link.kind,
        link_to=None if node.link.to is None else node.link.to.step.step_id,
        differs_at=node.link.differs_at,
    )
