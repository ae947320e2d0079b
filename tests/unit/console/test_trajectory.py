"""Steps become a tree, fates a state, and tokens meet what is known of each."""

from typing import Any

import pytest

from console import looks, signals, trajectories
from console.trajectory import tree, waits_for


def a_step(name: str, parent: str | None = None) -> dict[str, Any]:
    return {"id": name, "parent": parent}


def test_a_chain_keeps_its_lane_and_forks_and_roots_open_one() -> None:
    steps = [
        a_step("a"),
        a_step("b", "a"),
        a_step("sub"),
        a_step("c", "b"),
        a_step("fork", "b"),
        a_step("lost", "gone"),
    ]
    placed = {s["id"]: (s["lane"], s["begins"], s["orphan"], s["turn"]) for s in tree(steps)}
    assert placed == {
        "a": (0, "root", False, 0),
        "b": (0, None, False, 1),
        "sub": (1, "root", False, 0),
        "c": (0, None, False, 2),
        "fork": (2, "fork", False, 2),
        "lost": (3, "root", True, 0),
    }


EMITTED = {"outcome": "emitted"}


@pytest.mark.parametrize(
    ("status", "fates", "batches", "state"),
    [
        ("running", [], [], "running"),
        ("completed", [], [], "waiting"),
        ("completed", [EMITTED], [], "ready"),
        ("completed", [EMITTED, {"outcome": "discarded"}], [{"trained": False}], "batched"),
        ("completed", [EMITTED], [{"trained": False}, {"trained": True}], "trained"),
        ("completed", [{"outcome": "held"}], [], "held"),
        ("failed", [{"outcome": "discarded"}], [], "discarded"),
    ],
)
def test_the_state_is_how_far_it_came(status: str, fates: list[Any], batches: list[Any], state: str) -> None:
    assert trajectories.state_of(status, fates, batches) == state
    assert (waits_for(status, [], fates, batches) is None) == (state in ("trained", "discarded"))


def test_news_that_are_more_than_one_look_go_on_behind_their_last_row() -> None:
    rows = [{"partition": 1, "offset": n} for n in range(looks.MOST)]
    assert trajectories.read_to(rows[:3], {}, {0: 5, 1: 7}) == {0: 5, 1: 7}
    assert trajectories.read_to(rows, {1: 2, 2: 3}, {0: 5, 1: 9999, 2: 8, 3: 4}) == {
        0: 5,
        1: looks.MOST - 1,
        2: 3,
    }


def some_tokens(**over: Any) -> dict[str, Any]:
    """A second turn: prompt [1 2 3 4], response [5 6]; its sample has the first turn's response [2 3] too."""
    sample = {
        "sample_id": "x",
        "recipe": "demo",
        "spans": [("s1", 0, 1, 3, None), ("s2", 1, 4, 6, 0.5)],
        "token_ids": [1, 2, 3, 4, 5, 6],
        "loss_mask": [0, 1, 1, 0, 1, 0],
        "rollout_log_probs": [0.0, -0.1, -0.2, 0.0, -0.5, 0.0],
        "version_spans": [(3, 1, 3), (4, 4, 6)],
        "annotation_values": {"ref_log_probs": [0.0, -0.1, -0.3, 0.0, -1.0, float("nan")]},
    }
    step = {"step_id": "s2", "policy_version": 4, "version_spans": []}
    context = {"prompt_ids": [1, 2, 3, 4], "response_ids": [5, 6], "rollout_log_probs": [-0.5, -0.75]}
    stats = [{"sample_id": "x", "name": "log_probs", "values": [0, -0.1, -0.2, 0, -0.4, -0.75]}]
    given: dict[str, Any] = {"step": step, "context": context, "samples": [sample], "stats": stats, "annotations": []}
    return given | over


def values(found: dict[str, Any], name: str) -> Any:
    (signal,) = [s for s in found["signals"] if s["name"] == name]
    return signal.get("values", signal.get("missing"))


def test_tokens_meet_what_is_known_of_each() -> None:
    found = signals.read(**some_tokens())
    assert found["ids"] == [1, 2, 3, 4, 5, 6]
    assert values(found, "log_prob") == [None, -0.1, -0.2, None, -0.5, -0.75], (
        "the step's own, and those of turns before"
    )
    assert values(found, "loss_mask") == [0, 1, 1, 0, 1, 0]
    assert values(found, "policy_version") == [None, 3, 3, None, 4, 4]
    assert values(found, "trainer_difference") == [None, 0, 0, None, 0.1, 0]
    assert values(found, "ref_difference") == [None, 0, -0.1, None, -0.5, None]
    assert values(found, "step_reward") == [None, None, None, None, 0.5, 0.5]


def test_a_signal_that_nobody_recorded_says_why() -> None:
    found = signals.read(**some_tokens(samples=[], stats=[]))
    assert values(found, "loss_mask") == signals.WHY_NOT["loss_mask"]
    assert values(found, "advantage") == signals.WHY_NOT["advantage"]
    assert values(found, "log_prob") == [None, None, None, None, -0.5, -0.75]
    assert found["sample"] is None


def test_a_sample_whose_prompt_differs_gives_the_response_alone() -> None:
    given = some_tokens()
    given["context"]["prompt_ids"] = [9, 9]
    found = signals.read(**given)
    assert values(found, "loss_mask") == [None, None, 1, 0]
