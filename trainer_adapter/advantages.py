"""Rewards of a group become advantages of its trajectories.

Pure. Advantages are per trajectory and computed before any mask: a trajectory whose tokens are masked, or that gave no sample,
still counts in the baseline of the others.
"""

import math
from collections.abc import Callable, Mapping

Advantages = Callable[[Mapping[str, float]], dict[str, float]]
"""Rewards by trajectory, of every rewarded trajectory of a group → advantages."""
GRPO_EPSILON = 1e-6


def grpo(rewards: Mapping[str, float]) -> dict[str, float]:
    """Trajectory → advantage, (r − mean) / (std + 1e-6) over all rewarded trajectories of one group.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2, outcome supervision: rewards normalised by the group's mean and
    standard deviation. The paper states neither divisor nor epsilon; here std is the sample standard deviation (divisor
    n − 1) and epsilon 1e-6, as in verl and, but for the size of epsilon, TRL. A group of one and a group of equal rewards
    give 0. Sums are exact (`math.fsum`), so the result does not depend on order or machine.
    """
    values = list(rewards.values())
    if len(values) < 2:
        return dict.fromkeys(rewards, 0.0)
    if min(values) == max(values):  # the mean of equal floats may differ from them by a rounding
        return dict.fromkeys(rewards, 0.0)
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return {name: (value - mean) / (std + GRPO_EPSILON) for name, value in rewards.items()}


def rloo(rewards: Mapping[str, float]) -> dict[str, float]:
    """Trajectory → advantage, the reward less the mean reward of the group's other trajectories.

    Source: "Back to Basics" (arXiv 2402.14740), equation 9: r_i − mean of the others = n / (n − 1) · (r_i − mean). A group
    of one has no others and gives 0.
    """
    values = list(rewards.values())
    if len(values) < 2 or min(values) == max(values):
        return dict.fromkeys(rewards, 0.0)
    whole = math.fsum(values)
    return {name: value - (whole - value) / (len(values) - 1) for name, value in rewards.items()}


def reinforce(rewards: Mapping[str, float]) -> dict[str, float]:
    """Trajectory → its reward, without a baseline (Williams, 1992)."""
    return dict(rewards)


def sft(rewards: Mapping[str, float]) -> dict[str, float]:
    """Trajectory → 1: what was picked is imitated, however high its reward."""
    return dict.fromkeys(rewards, 1.0)


BY_ALGORITHM: dict[str, Advantages] = {
    "grpo": grpo,
    "dapo": grpo,
    "gspo": grpo,
    "rloo": rloo,
    "reinforce": reinforce,
    "sft": sft,
}
"""The algorithms that have an advantage by trajectory; dapo (arXiv 2503.14476) and gspo (arXiv 2507.18071) have GRPO's."""
