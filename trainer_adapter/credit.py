"""Rewards, values and log-probs become what single tokens get: rewards in their places, and advantages per token.

Pure. A trajectory's trained tokens stand in one order here: by the number of their step, then by position, over all of the
trajectory's samples. What nothing trained is passed over, so that the token behind an action is the next action's first one.
Sums run in that order in float64, so that the same batch has the same bits everywhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from claw_r1.events import StepSpan
from claw_r1.recipes import Recipe

Tokens = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gae:
    """How advantages follow from values."""

    level: Literal["token", "step"] = "token"
    """An action is a token, or all trained tokens of a step."""
    gamma: float = 1.0
    lam: float = 1.0


def gae_of(recipe: Recipe) -> Gae | None:
    """None where the recipe leaves advantages to the trainer's critic: it requires no `values`, or is not of ppo."""
    if recipe.algorithm != "ppo" or "values" not in recipe.annotations.required:
        return None
    return Gae(recipe.gae, recipe.gamma, recipe.lam)


def name_annotations(recipe: Recipe) -> frozenset[str]:
    """The arrays that the columns of the recipe's batches are made of."""
    if recipe.algorithm == "distill":
        return frozenset({"teacher_log_probs"})
    return frozenset() if gae_of(recipe) is None else frozenset({"values"})


@dataclass(frozen=True, slots=True)
class Course:
    """The trained tokens of one trajectory, in order."""

    tokens: NDArray[np.int64]
    """Indices into the batch's token columns."""
    steps: NDArray[np.int64]
    """The number of each token's step; -1 where no span covers it."""

    def actions(self, level: Literal["token", "step"]) -> NDArray[np.int64]:
        """Where in `tokens` each action begins."""
        if level == "token":
            return np.arange(len(self.tokens))
        return np.flatnonzero(np.diff(self.steps, prepend=-2))


def list_courses(
    offsets: NDArray[np.int64],
    loss_mask: NDArray[np.uint8],
    spans: Sequence[Sequence[StepSpan]],
    trajectory_index: NDArray[np.int32],
) -> list[Course]:
    """One for each trajectory of the batch, by its number; samples of a trajectory stand side by side."""
    numbers = np.full(len(loss_mask), -1, np.int64)
    for base, of_sample in zip(offsets, spans, strict=False):
        for span in of_sample:
            numbers[base + span.start : base + span.end] = span.step_index
    firsts = np.flatnonzero(np.diff(trajectory_index, prepend=-1))
    bounds = [*offsets[firsts].tolist(), len(loss_mask)]
    courses = []
    for start, end in pairwise(bounds):
        tokens = start + np.flatnonzero(loss_mask[start:end])
        ordered = tokens[np.argsort(numbers[tokens], kind="stable")]
        courses.append(Course(ordered, numbers[ordered]))
    return courses


def place_rewards(
    courses: Sequence[Course],
    rewards: Sequence[float],
    offsets: NDArray[np.int64],
    loss_mask: NDArray[np.uint8],
    spans: Sequence[Sequence[StepSpan]],
) -> Tokens:
    """float64 [T]: each trained step's own reward at its last trained token; what it lacks to the trajectory's reward (by the
    trajectory's number in `rewards`) at the trajectory's last one, so that a trajectory's tokens add up to its reward."""
    placed = np.zeros(len(loss_mask))
    for base, of_sample in zip(offsets, spans, strict=False):
        for span in of_sample:
            trained = np.flatnonzero(loss_mask[base + span.start : base + span.end])
            if span.reward is not None and len(trained):
                placed[base + span.start + trained[-1]] = span.reward
    for course, reward in zip(courses, rewards, strict=True):
        if len(course.tokens):
            placed[course.tokens[-1]] += math.fsum([reward, *(-placed[course.tokens]).tolist()])
    return placed


def estimate(courses: Sequence[Course], rewards: Tokens, values: NDArray[np.float32], rule: Gae) -> Tokens:
    """float64 [T]: generalised advantage estimates of the trained tokens; 0.0 elsewhere.

    Source: "High-Dimensional Continuous Control Using Generalized Advantage Estimation" (arXiv 1506.02438), equations 11, 12
    and 16, as in PPO (arXiv 1707.06347), equations 11 and 12: δ_t = r_t + γ·V(s_t+1) − V(s_t), Â_t = δ_t + γλ·Â_t+1. The state
    behind the last action has the value 0: a rollout is an episode, and nothing is bootstrapped, also where it was truncated.
    `values` is V before its token was sampled. At the level `step` an action has the value of its first token, the sum of
    its tokens' rewards, and one advantage for all of them. Advantages are not whitened.
    """
    found = np.zeros(len(rewards))
    for course in courses:
        if not len(course.tokens):
            continue
        begins = course.actions(rule.level)
        earned = np.add.reduceat(rewards[course.tokens], begins)
        before = values[course.tokens[begins]].astype(np.float64)
        lengths = np.diff(begins, append=len(course.tokens))
        found[course.tokens] = np.repeat(_gae(earned, before, rule.gamma, rule.lam), lengths)
    return found


def _gae(rewards: Tokens, values: Tokens, gamma: float, lam: float) -> Tokens:
    advantages, advantage, following = [0.0] * len(rewards), 0.0, 0.0
    pairs = list(zip(rewards.tolist(), values.tolist(), strict=True))
    for index in range(len(pairs) - 1, -1, -1):
        reward, value = pairs[index]
        advantage = reward + gamma * following - value + gamma * lam * advantage
        advantages[index], following = advantage, value
    return np.array(advantages)


def subtract_rollout(
    teacher: NDArray[np.float32], rollout: NDArray[np.float32], loss_mask: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """float32 [T]: teacher's less rollout's log-prob of the sampled token, nats, on trained tokens; 0.0 elsewhere.

    Its mean over sampled tokens, negated, estimates the reverse KL divergence of the student from the teacher. Source: MiniLLM
    (arXiv 2306.08543), section 2.2, where log p/q of a token is its reward, here without those of later tokens; on-policy
    distillation of this kind is GKD (arXiv 2306.13649) with student's samples and the reverse divergence.
    """
    return (teacher - rollout) * loss_mask
