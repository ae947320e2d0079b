"""Two batches become what tells them apart, trajectory by trajectory. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

Row = Mapping[str, Any]
Key = tuple[str, str, str]
"""(run_id, group_id, trajectory_uid)"""

COMPARED: Final = ("samples", "tokens", "trained_tokens", "ids", "mask", "reward", "versions", "decisions")
"""What may differ of a trajectory that both have; `ids` and `mask` are hashes of its tokens and of its loss mask."""


def compare(first: Sequence[Row], second: Sequence[Row]) -> dict[str, Any]:
    """Rows are trajectories of a batch, in its order. `only_a`, `only_b`: the rows of those that the other has not; `differ`:
    those that both have, with both values of what differs; `same`: how many there are beside."""
    a, b = _by_key(first), _by_key(second)
    both = [key for key in a if key in b]
    differ = [
        {**_named(key), "differs": changes} for key in both if (changes := _changes(a[key], b[key]))
    ]  # in the order of the first batch
    return {
        "only_a": [row for key, row in a.items() if key not in b],
        "only_b": [row for key, row in b.items() if key not in a],
        "differ": differ,
        "same": len(both) - len(differ),
    }


def _by_key(rows: Sequence[Row]) -> dict[Key, Row]:
    return {(row["group_run_id"], row["group_id"], row["trajectory_uid"]): row for row in rows}


def _named(key: Key) -> dict[str, str]:
    return dict(zip(("group_run_id", "group_id", "trajectory_uid"), key, strict=True))


def _changes(a: Row, b: Row) -> dict[str, list[Any]]:
    return {name: [a[name], b[name]] for name in COMPARED if a[name] != b[name]}
