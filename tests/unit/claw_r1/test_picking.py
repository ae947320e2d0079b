"""Of a ready group the recipe picks what is trained."""

from claw_r1.picking import Picked, pick
from claw_r1.recipes import PickRule

REWARDS = {"a": 0.5, "b": 1.0, "c": 1.0, "d": 0.0}


def test_all() -> None:
    assert set(pick(PickRule(), REWARDS).labels) == set(REWARDS)
    assert set(pick(PickRule(min_reward=0.5), REWARDS).labels) == {"a", "b", "c"}
    assert pick(PickRule(min_reward=2), REWARDS) == Picked({}, "nothing_picked")


def test_the_best_of_equal_ones_is_the_smaller_id() -> None:
    assert pick(PickRule(how="best"), REWARDS).labels == {"b": None}
    assert set(pick(PickRule(how="best", count=3), REWARDS).labels) == {"b", "c", "a"}
    assert pick(PickRule(how="best", min_reward=1.5), REWARDS).reason == "nothing_picked"


def test_a_pair_is_the_best_and_the_worst() -> None:
    assert pick(PickRule(how="pair"), REWARDS).labels == {"b": "chosen", "d": "rejected"}
    assert pick(PickRule(how="pair", min_gap=1.0), REWARDS).reason == "no_pair"
    assert pick(PickRule(how="pair"), {"a": 1.0, "b": 1.0}).reason == "no_pair"
    assert pick(PickRule(how="pair"), {"a": 1.0}).reason == "no_pair"


def test_labels() -> None:
    said = {"a": "undesirable", "b": "desirable", "c": "desirable", "d": "undesirable"}
    assert pick(PickRule(how="label", threshold=0.5), REWARDS).labels == said
