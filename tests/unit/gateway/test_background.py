"""What works beside the calls does not end unseen: the gateway says that it is not ready, and its log why."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from claw_r1.blobs import open_blobs
from gateway.calls.chains import ChainMemory
from gateway.calls.steps import MAX_WARNINGS, Steps
from gateway.durable.recorder import Recorder
from gateway.rollouts.admission import Groups
from gateway.rollouts.gate import Gate
from gateway.sessions import Sessions

NOWHERE = "127.0.0.1:1"


async def fails(*_: Any) -> None:
    raise RuntimeError("nobody thought of this")


def test_a_watch_of_the_broker_that_fails_is_seen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Recorder, "_look", fails)

    async def play() -> None:
        recorder = Recorder(NOWHERE, 1.0)
        recorder.start()
        assert recorder._watcher is not None
        await asyncio.wait([recorder._watcher])
        await asyncio.sleep(0)
        assert recorder.reason is not None
        assert "failed" in recorder.reason
        await recorder.stop()

    asyncio.run(play())
    assert "nobody thought of this" in caplog.text


def test_an_index_that_is_not_followed_any_more_is_seen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Sessions, "_read", fails)

    async def play() -> None:
        sessions = Sessions(NOWHERE, "run", 10, 1.0)
        sessions._unread = None  # it was read before
        sessions.start()
        assert sessions._tailer is not None
        await asyncio.wait([sessions._tailer])
        await asyncio.sleep(0)
        assert sessions.reason is not None
        await sessions.stop()

    asyncio.run(play())
    assert "nobody thought of this" in caplog.text


def test_demand_that_is_not_followed_any_more_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Gate, "_read", fails)

    async def play() -> None:
        groups = Groups(10)
        recorder = Recorder(NOWHERE, 1.0)
        sessions = Sessions(NOWHERE, "run", 10, 1.0)
        gate = Gate(NOWHERE, recorder, sessions, groups, refuses=True, deadline=1.0)
        gate.start()
        assert gate._tailer is not None
        await asyncio.wait([gate._tailer])
        await gate.stop()

    asyncio.run(play())
    assert "nobody thought of this" in caplog.text


def test_each_run_is_warned_of_what_keeps_its_steps_from_training_however_many_runs_there_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(NOWHERE, 1.0)
    sessions = Sessions(NOWHERE, "run", 10, 1.0)
    steps = Steps(recorder, sessions, ChainMemory(10, 1000), open_blobs(str(tmp_path)))
    runs = [f"run-{number}" for number in range(MAX_WARNINGS + 10)]
    for run in runs:
        for _ in range(2):
            steps._say(run, "a step cannot be trained", "no_log_probs", "")
    assert [vars(record)["run_id"] for record in caplog.records] == runs
    assert len(steps._warned) <= MAX_WARNINGS
