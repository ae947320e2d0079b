"""What the demo knows of itself: the pace of the agents, the result, and what a person sees."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from claw_r1.cli import console
from claw_r1.demo import learner, pool
from claw_r1.demo.run import BATCH_GROUPS, Options, Progress, check_upstream, report
from claw_r1.demo.view import Screen, draw, facts, plot
from claw_r1.errors import DependencyUnreachable


def a_progress(batches: int | None = None) -> Progress:
    return Progress(Options(Path("unused"), batches=batches), "me", {"gateway": "http://g"})


def say(progress: Progress, event: str, sequence: int, **more: object) -> None:
    progress.learn(msgspec.json.encode({"at": 1.0, "event": event, "session": "me", "sequence": sequence, **more}))


def take(progress: Progress, sequence: int, success: float = 0.5, own: int = BATCH_GROUPS) -> None:
    say(progress, "taken", sequence, success=success, groups=BATCH_GROUPS, own=own, ready_ms=float(sequence))
    say(progress, "trained", sequence, version=sequence + 10)


def test_agents_stay_two_batches_ahead() -> None:
    progress = a_progress()
    assert progress.allowance() == 2 * BATCH_GROUPS
    take(progress, 1)
    assert progress.allowance() == 3 * BATCH_GROUPS
    progress.counts = pool.Counts(discarded=2)
    assert progress.allowance() == 3 * BATCH_GROUPS + 2


def test_groups_of_an_earlier_start_let_nobody_run_further_ahead() -> None:
    progress = a_progress()
    take(progress, 1, own=0)
    assert progress.allowance() == 2 * BATCH_GROUPS


def test_nothing_is_played_that_no_batch_waits_for() -> None:
    progress = a_progress(batches=2)
    say(progress, "opened", 5)
    assert progress.allowance() == 2 * BATCH_GROUPS
    take(progress, 6)
    assert (progress.allowance(), progress.done) == (2 * BATCH_GROUPS, False)
    take(progress, 7)
    assert (progress.allowance(), progress.done) == (2 * BATCH_GROUPS, True)


def test_a_batch_that_came_again_counts_once() -> None:
    progress = a_progress()
    say(progress, "opened", 0)
    take(progress, 1, 0.1)
    say(progress, "opened", 0)
    take(progress, 1, 0.1)
    take(progress, 2, 0.3)
    assert progress.curve == [0.1, 0.3]
    assert (progress.first, progress.trained, progress.version) == (0, 2, 12)


def test_lines_of_another_session_are_not_ours() -> None:
    progress = a_progress()
    progress.learn(msgspec.json.encode({"at": 1.0, "event": "opened", "session": "other", "sequence": 3}))
    assert progress.first is None


def test_the_report_has_every_figure() -> None:
    progress = a_progress()
    say(progress, "opened", 0)
    for sequence, success in enumerate([0.0, 0.2, 0.4, 0.5, 0.8, 1.0, 0.9], start=1):
        take(progress, sequence, success)
    progress.counts = pool.Counts(stored=9, ready=42)
    result = report(progress)
    assert result["reward_first"] == pytest.approx(0.2)
    assert result["reward_last"] == pytest.approx(0.9)
    assert (result["batches"], result["policy_version"], result["groups_ready"]) == (7, 17, 42)
    assert result["ready_to_trainer_ms"] == {"p50": 4.0, "p99": pytest.approx(6.94)}
    assert result["capture_ok"] is True
    progress.counts = pool.Counts(stored=9, captured_badly=1)
    assert report(progress)["capture_ok"] is False


@pytest.mark.parametrize(
    ("lack", "settled"), [({}, True), ({"stored": 8}, False), ({"fated": 1}, False), ({"owed": 1}, False)]
)
def test_the_pool_has_settled_when_it_lacks_nothing(lack: dict[str, int], settled: bool) -> None:
    progress = a_progress()
    progress.tally.acknowledged, progress.tally.begun = 9, 2
    progress.counts = pool.Counts(**({"stored": 9, "fated": 2, "ready": 1} | lack))
    assert progress.settled is settled


def test_the_first_cursor_of_a_session_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    assert learner.first_cursor(path, "one", 4) == 4
    assert learner.first_cursor(path, "one", 6) == 4
    assert learner.first_cursor(path, "two", 6) == 6


@pytest.mark.parametrize("curve", [[], [0.0, 0.5, 1.0], list(np.linspace(0, 1, 500))])
def test_the_plot_stays_in_its_frame(curve: list[float]) -> None:
    lines = plot(curve, width=20, height=4)
    assert len(lines) == 4
    assert {len(line) for line in lines} == {min(len(curve), 20)}


def test_the_plot_is_as_high_as_its_values() -> None:
    assert plot([0.0, 0.5, 1.0], height=2) == ["  █", " ██"]


def test_the_screen_shows_the_facts() -> None:
    progress = a_progress()
    say(progress, "opened", 0)
    take(progress, 1, 0.25)
    progress.troubles = ["streams"]
    console = Console(width=100, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(draw(progress))
    text = captured.get()
    assert "version 11" in text
    assert "25%" in text
    assert "http://g" in text
    assert "streams: ends again and again" in text
    assert dict(facts(progress))["batches"] == "1 trained"


def test_an_engine_that_is_not_there_is_named() -> None:
    with pytest.raises(DependencyUnreachable, match=r"http://127\.0\.0\.1:9/v1/models"):
        check_upstream("http://127.0.0.1:9", "any")


def test_the_console_is_opened_once_when_its_address_is_known() -> None:
    opened: list[str] = []
    screen = Screen(opened.append)
    progress = a_progress()
    screen.show(progress)
    assert opened == []
    progress.urls = {"console": "http://c"}
    screen.show(progress)
    screen.show(progress)
    assert opened == ["http://c"]


@pytest.mark.parametrize(("variable", "opened"), [("DISPLAY", True), ("WAYLAND_DISPLAY", True), ("TERM", False)])
def test_a_browser_is_opened_only_where_there_is_a_screen(
    monkeypatch: pytest.MonkeyPatch, variable: str, opened: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", asked.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, ":0")
    console.show("http://c")
    assert asked == (["http://c"] if opened else [])
