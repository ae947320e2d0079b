"""A trajectory, or a group, becomes the values that a recipe's filters ask for, and the filter that it does not pass.

Pure. claw_r1.rules has the fields and what a condition means; here is where their values come from. The dry run of a recipe
makes the same values of the pool (claw_r1/dry_run.py).
"""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from claw_r1.curation import Curation
from claw_r1.events import EffectiveReward, Step
from streams.join import TrajectoryState

Versions = tuple[int, int] | None
"""Oldest and newest known policy version; None: no version is known."""


def trajectory_values(
    trajectory: TrajectoryState,
    *,
    reward: float | None,
    rewards: Sequence[EffectiveReward],
    chains: int,
    drift: int,
    curation: Curation,
    task_id: str | None,
    metadata: Mapping[str, object],
) -> dict[str, Any]:
    """Values of the fields of level `trajectory`."""
    steps = complete_steps(trajectory)
    versions = find_versions(steps)
    return {
        "reward": reward,
        "rewards": {r.source: r.value for r in rewards},
        "self_reported": any(r.self_reported for r in rewards),
        "status": trajectory.end.status if trajectory.end is not None else None,
        "tokens": max((step.prompt_len + step.response_len for step in steps), default=0),
        "response_tokens": sum(step.response_len for step in steps),
        "turns": len(steps),
        "chains": chains,
        "drift": drift,
        "capture": all(step.capture.ok for step in trajectory.steps.values()),
        "policy_version": versions[0] if versions is not None else None,
        "policy_lag": versions[1] - versions[0] if versions is not None else None,
        "tags": curation.tags,
        "quality": curation.quality,
        "task_id": task_id,
        "metadata": metadata,
    }


def group_values(trajectories: Collection[TrajectoryState], rewards: Sequence[float]) -> dict[str, Any]:
    """Values of the fields of level `group`; `rewards` are those of its rewarded trajectories."""
    steps = [step for trajectory in trajectories for step in complete_steps(trajectory)]
    versions = find_versions(steps)
    return {
        "reward_mean": statistics.mean(rewards) if rewards else None,
        "reward_std": statistics.pstdev(rewards) if rewards else None,
        "reward_min": min(rewards, default=None),
        "reward_max": max(rewards, default=None),
        "n_trajectories": len(trajectories),
        "n_rewarded": len(rewards),
        "group_tokens": sum(step.response_len for step in steps),
        "group_policy_lag": versions[1] - versions[0] if versions is not None else None,
    }


def complete_steps(trajectory: TrajectoryState) -> list[Step]:
    return [step for step in trajectory.steps.values() if step.status == "complete"]


def find_versions(steps: Iterable[Step]) -> Versions:
    """Of steps that the policy sampled, as far as they are known."""
    known = [
        version
        for step in steps
        if step.role == "policy"
        for version in (step.policy_version, *(span.version for span in step.version_spans))
        if version is not None
    ]
    return (min(known), max(known)) if known else None
