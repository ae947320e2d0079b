"""Rows as the pool gives them, and numbers made of them."""

from typing import Any

from console.status import Numbers, fold_numbers


def some_rows(**over: Any) -> dict[str, list[dict[str, Any]]]:
    """A pool of two batches of one recipe; any statement's rows overridden by its name."""
    totals = {"calls": 12, "steps": 11, "trajectories": 4, "groups": 3, "trained": 1, "cuts": 2}
    curve: dict[str, Any] = {"recipe": "guess", "run_id": "default", "groups": 1, "excluded": 0, "at": 1000.0}
    curve |= {"reward_std": 0.5, "length": 150.5, "trained_tokens": 40, "stalest": 1, "drifted": 0.25}
    rows: dict[str, list[dict[str, Any]]] = {
        "totals": [{"what": what, "n": n} for what, n in totals.items()],
        "recent": [{"what": "steps", "bucket": 0, "n": 6}, {"what": "steps", "bucket": 23, "n": 5}],
        "tokens": [{"sampled": 345, "faulty": 1, "broken": 0}],
        "lost": [{"n": 1}],
        "fates": [
            {"about": "group", "outcome": "emitted", "reason": "size", "n": 3},
            {"about": "group", "outcome": "discarded", "reason": "too_small", "n": 2},
        ],
        "recipes": [
            {"name": "guess", "version": 2, "recipe": '{"name": "guess", "run_id": "default", "batch": {"groups": 1}}'}
        ],
        "ready": [{"recipe": "guess", "ready": 3, "cut": 2}],
        "oldest": [{"recipe": "guess", "since": 990.0}],
        "curve": [
            {**curve, "sequence": 1, "reward": 0.25, "policy_version": 7},
            {**curve, "sequence": 2, "reward": None, "policy_version": None},
        ],
        "policies": [{"run_id": "default", "engine": "", "version": 7, "at": 1000.0}],
    }
    return rows | over


def some_numbers(**over: Any) -> Numbers:
    return fold_numbers(1001.0, some_rows(**over))
