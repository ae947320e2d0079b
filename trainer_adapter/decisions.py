"""A ready group and what people decided after it was emitted become the group as it would be emitted now, or why it would not.

Pure, and the rules are those by which the streams judge before (docs/recipes.md). What was not emitted does not come back: its
samples are not on the topic. Filters are asked again as far as decisions change what they ask for.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from claw_r1.codec import pack_floats, unpack_floats
from claw_r1.curation import Curation, curate, list_in_force
from claw_r1.events import Decision, GroupReady, Member, Sample, StepSpan
from claw_r1.ids import split_group_id
from claw_r1.picking import pick
from claw_r1.recipes import Recipe
from claw_r1.rules import Condition, Level, first_failing

ASKED_AGAIN: Final = frozenset(
    {"reward", "tags", "quality", "reward_mean", "reward_std", "reward_min", "reward_max", "n_rewarded"}
)
"""Fields of filters that decisions change."""


@dataclass(frozen=True, slots=True)
class LateDecision:
    """A decision that was forwarded behind its group, at this offset of the recipe's topic."""

    offset: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Curated:
    """A group with its decisions applied."""

    marker: GroupReady
    samples: tuple[Sample, ...] = ()
    reason: str | None = None
    """Why it is no group any more: a key of claw_r1.reasons.BATCH_EXCLUSIONS."""


@dataclass(slots=True)
class _Standing:
    """A member as it stands now."""

    member: Member
    samples: list[Sample] = field(default_factory=list)
    label: str | None = None

    def discard(self, reason: str) -> None:
        self.member = self.member.model_copy(update={"outcome": "discarded", "reason": reason})
        self.samples = []

    def name_samples(self) -> Member:
        return self.member.model_copy(update={"samples": tuple(sample.sample_id for sample in self.samples)})


def is_about(decision: Decision, marker: GroupReady) -> bool:
    """Whether a decision on the group's prompt is about this group, or a trajectory or a step of it."""
    named = decision.group_id
    if named is not None and split_group_id(named)[:2] != split_group_id(marker.group_id)[:2]:
        return False
    return decision.trajectory_uid is None or any(m.trajectory_uid == decision.trajectory_uid for m in marker.members)


def curate_group(marker: GroupReady, samples: Sequence[Sample], later: Iterable[Decision], recipe: Recipe) -> Curated:
    """Apply decisions that came after the marker, in log order, to its group with the samples that it names.

    `recipe` is of the version that emitted the group. Together with those that the marker carries they are read as the streams
    read them: the latest by `at` counts, an undo makes void. A vetoed trajectory stays in the baseline.
    """
    said = list_in_force(_distinct([*marker.curation, *later]))
    whole = curate(said, None)
    if whole.vetoed:
        return Curated(marker, reason="vetoed")
    before = list_in_force(marker.curation)
    mine: dict[str, list[Sample]] = {}
    for sample in samples:
        mine.setdefault(sample.trajectory_uid, []).append(sample)
    standings = {
        member.trajectory_uid: _settle(member, mine.get(member.trajectory_uid, []), said, before, recipe)
        for member in marker.members
    }
    reason = _refuse(standings, whole, recipe)
    if reason is not None:
        return Curated(marker, reason=reason)
    kept = [row for uid in mine if uid in standings for row in _label(standings[uid])]
    members = tuple(standing.name_samples() for standing in standings.values())
    names = tuple(sample.sample_id for sample in kept)
    return Curated(marker.model_copy(update={"members": members, "sample_ids": names}), tuple(kept))


def list_futile(marker: GroupReady, later: Iterable[Decision]) -> list[Decision]:
    """Later decisions that would bring back what the group was emitted without: a keep, or an undo of a veto."""
    vetoes = {d.fact_id: d for d in marker.curation if d.action == "veto" and d.fact_id in marker.decisions}
    gone = {(d.trajectory_uid, d.step_id) for d in vetoes.values()}
    gone |= {(m.trajectory_uid, None) for m in marker.members if m.reason.startswith("filtered_")}
    return [
        d
        for d in later
        if (d.action == "undo" and d.undoes in vetoes) or (d.action == "keep" and (d.trajectory_uid, d.step_id) in gone)
    ]


def _distinct(decisions: Sequence[Decision]) -> Iterable[Decision]:
    """The first of each id."""
    return {decision.fact_id: decision for decision in reversed(decisions)}.values()


def _settle(
    member: Member, samples: list[Sample], said: list[Decision], before: list[Decision], recipe: Recipe
) -> _Standing:
    uid = member.trajectory_uid
    curation = curate(said, uid)
    then = curate(before, uid)
    reward = member.reward if then.reward is None else member.source_reward
    if curation.reward is not None:
        reward = curation.reward.value
    standing = _Standing(member.model_copy(update={"reward": reward}), label=curation.label)
    if member.outcome != "emitted":
        return standing
    if curation.vetoed:
        standing.discard("vetoed")
    elif reward is None:
        _without_reward(standing, recipe)
    elif samples:
        standing.samples = _apply(samples, curation, then, reward)
        values = {"reward": reward, "tags": curation.tags, "quality": curation.quality}
        failing = None if curation.kept else _failing(recipe, "trajectory", values)
        if not standing.samples:
            standing.discard("nothing_to_train")
        elif failing is not None:
            standing.discard(failing.reason)
    return standing


def _without_reward(standing: _Standing, recipe: Recipe) -> None:
    if recipe.rewards.on_missing == "mask":
        standing.member = standing.member.model_copy(update={"reason": "reward_masked"})
    else:
        standing.discard("reward_missing")


def _apply(samples: Sequence[Sample], curation: Curation, then: Curation, reward: float) -> list[Sample]:
    """A trajectory's samples as its curation says, `then` being that of its emission; without those with nothing to train."""
    masked = [_mask(sample, curation.vetoed_steps) for sample in samples]
    left = [sample for sample in masked if 1 in sample.loss_mask]
    return [
        sample.model_copy(
            update={
                "sample_index": index,
                "n_samples": len(left),
                "reward": reward,
                "tags": curation.tags,
                "quality": curation.quality,
                "spans": tuple(_reward_span(span, curation, then) for span in sample.spans),
            }
        )
        for index, sample in enumerate(left)
    ]


def _reward_span(span: StepSpan, curation: Curation, then: Curation) -> StepSpan:
    said = span.source_reward if span.step_id in then.step_rewards else span.reward
    override = curation.step_rewards.get(span.step_id)
    update = (said, None) if override is None else (override.value, said)
    return span.model_copy(update=dict(zip(("reward", "source_reward"), update, strict=True)))


def _mask(sample: Sample, vetoed: frozenset[str]) -> Sample:
    """The sample with the tokens of vetoed steps masked."""
    mask, log_probs = bytearray(sample.loss_mask), unpack_floats(sample.rollout_log_probs).copy()
    for span in sample.spans:
        if span.step_id in vetoed:
            mask[span.start : span.end] = bytes(span.end - span.start)
            log_probs[span.start : span.end] = 0.0
    masked = sample.loss_mask.count(1) - mask.count(1)
    if not masked:
        return sample
    reasons = sample.mask_reasons | {"vetoed": sample.mask_reasons.get("vetoed", 0) + masked}
    return sample.model_copy(
        update={"loss_mask": bytes(mask), "rollout_log_probs": pack_floats(log_probs), "mask_reasons": reasons}
    )


def _failing(recipe: Recipe, level: Level, values: Mapping[str, Any]) -> Condition | None:
    return first_failing((c for c in recipe.filters if c.field in ASKED_AGAIN), level, values)


def _refuse(standings: Mapping[str, _Standing], whole: Curation, recipe: Recipe) -> str | None:
    """Why the group is no group any more; None if it is, and then what is not picked is discarded, the rest labelled."""
    complete = [s for s in standings.values() if s.member.outcome == "emitted" or s.member.reason == "not_picked"]
    if len(complete) < recipe.group.least:
        return "too_small"
    rewards = [s.member.reward for s in standings.values() if s.member.reward is not None]
    if not whole.kept and (failing := _failing(recipe, "group", _group_values(rewards))) is not None:
        return failing.reason
    trained = {uid: s for uid, s in standings.items() if s.samples}
    if not trained:
        return "no_trained_tokens"
    picked = pick(recipe.pick, {uid: s.member.reward for uid, s in trained.items() if s.member.reward is not None})
    if picked.reason is not None:
        return picked.reason
    for uid, standing in trained.items():
        if uid in picked.labels:
            standing.label = standing.label or picked.labels[uid]
        else:
            standing.discard("not_picked")
    return None


def _group_values(rewards: Sequence[float]) -> dict[str, Any]:
    return {
        "reward_mean": statistics.mean(rewards) if rewards else None,
        "reward_std": statistics.pstdev(rewards) if rewards else None,
        "reward_min": min(rewards, default=None),
        "reward_max": max(rewards, default=None),
        "n_rewarded": len(rewards),
    }


def _label(standing: _Standing) -> list[Sample]:
    return [sample.model_copy(update={"label": standing.label}) for sample in standing.samples]
