"""The ledger says what was sent and what came back, also while it is still being written."""

from pathlib import Path

from claw_r1.demo.ledger import Ledger, Tail, Tally, read_ledger


def test_a_tally_counts_what_the_ledger_says(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, "one") as ledger:
        ledger.note("group", prompt_uid="one-0", kind="solo")
        ledger.note("begun", prompt_uid="one-0", trajectory_uid="one-0-0")
        first, second, third = (ledger.send("one-0-0") for _ in range(3))
        ledger.note("acknowledged", trajectory_uid="one-0-0", call=first, step_id="s1")
        ledger.note("indeterminate", trajectory_uid="one-0-0", call=second, error="x" * 1000)
        ledger.note("ended", trajectory_uid="one-0-0", status="completed", success=True)
    tally = Tally()
    for line in path.read_bytes().splitlines():
        tally.add(line)
    assert (first, second, third) == (1, 2, 3)
    assert (tally.sent, tally.acknowledged, tally.broken) == (3, 1, 1)
    assert tally.indeterminate == 2  # the third was in flight when the file ended
    assert (tally.groups, tally.begun, tally.ended, tally.won) == (1, 1, 1, 1)
    assert tally.last_error == "x" * 500


def test_sessions_share_a_file_and_are_read_apart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for session in ("one", "two"):
        with Ledger(path, session) as ledger:
            ledger.send(f"{session}-0")
    assert [entry.trajectory_uid for entry in read_ledger(path)] == ["one-0", "two-0"]
    assert [entry.trajectory_uid for entry in read_ledger(path, "two")] == ["two-0"]


def test_a_tail_gives_whole_lines_from_its_beginning_on(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    early = Tail(path)
    assert list(early.lines()) == []
    path.write_bytes(b"a\nb")
    late = Tail(path)
    assert list(early.lines()) == [b"a\n"]
    with path.open("ab") as file:
        file.write(b"c\nd\n")
    assert list(early.lines()) == [b"bc\n", b"d\n"]
    assert list(late.lines()) == [b"c\n", b"d\n"]
