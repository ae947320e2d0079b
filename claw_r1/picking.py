"""A ready group's trajectories become those that are trained, with their labels: all, the best, a pair, or labelled ones.

Pure. Equal rewards are told apart by the trajectory's id, so that the choice does not depend on the order of arrival.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from claw_r1.recipes import PickRule


@dataclass(frozen=True, slots=True)
class Picked:
    """Trajectory → its label, None for those without; or why there is nothing to pick."""

    labels: Mapping[str, str | None]
    reason: str | None = None


def pick(rule: PickRule, rewards: Mapping[str, float]) -> Picked:
    """Choose among the complete trajectories of a group by their rewards."""
    best_first = sorted(rewards, key=lambda uid: (-rewards[uid], uid))
    match rule.how:
        case "label":
            return Picked({u: "desirable" if rewards[u] > rule.threshold else "undesirable" for u in best_first})
        case "pair":
            if len(best_first) < 2 or not rewards[best_first[0]] - rewards[best_first[-1]] > rule.min_gap:
                return Picked({}, reason="no_pair")
            return Picked({best_first[0]: "chosen", best_first[-1]: "rejected"})
    good = [uid for uid in best_first if rule.min_reward is None or rewards[uid] >= rule.min_reward]
    if rule.how == "best":
        good = good[: rule.count]
    return Picked(dict.fromkeys(good)) if good else Picked({}, reason="nothing_picked")
