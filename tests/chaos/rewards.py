"""The reward function that the reward worker of a chaos run has: what it says follows from the trajectory's id."""

import zlib

from claw_r1.rewards.function import Rollout, reward


@reward("even")
def even(rollout: Rollout) -> float:
    return float(zlib.crc32(rollout.trajectory_uid.encode()) % 2)
