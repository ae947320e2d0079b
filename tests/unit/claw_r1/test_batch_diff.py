"""Two batches, trajectory by trajectory."""

from typing import Any

from claw_r1.batch_diff import COMPARED, compare


def a_row(uid: str, **over: Any) -> dict[str, Any]:
    place = {"group_run_id": "run", "group_id": "g", "trajectory_uid": uid}
    return place | dict.fromkeys(COMPARED, 1) | over


def test_what_only_one_has_and_what_differs_is_told_in_order() -> None:
    first = [a_row("a"), a_row("b"), a_row("c", mask="0f", decisions=[]), a_row("d")]
    second = [a_row("d"), a_row("e"), a_row("c", mask="f0", decisions=["x"]), a_row("b", group_id="other")]
    found = compare(first, second)
    assert [row["trajectory_uid"] for row in found["only_a"]] == ["a", "b"]
    assert [(row["group_id"], row["trajectory_uid"]) for row in found["only_b"]] == [("g", "e"), ("other", "b")]
    assert found["differ"] == [
        {
            "group_run_id": "run",
            "group_id": "g",
            "trajectory_uid": "c",
            "differs": {"mask": ["0f", "f0"], "decisions": [[], ["x"]]},
        }
    ]
    assert found["same"] == 1


def test_a_batch_is_the_same_as_itself() -> None:
    rows = [a_row("a"), a_row("b")]
    assert compare(rows, rows) == {"only_a": [], "only_b": [], "differ": [], "same": 2}
