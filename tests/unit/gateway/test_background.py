"""What works beside the calls does not end unseen: the gateway says that it is not ready, and its log why."""

import asyncio
from typing import Any

import pytest

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
