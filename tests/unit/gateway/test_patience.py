"""Bounds on waits: what takes too long ends, what does not leaves nothing behind."""

import asyncio

import pytest

from gateway import patience
from gateway.patience import within


def test_what_waits_too_long_is_ended_and_what_does_not_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LOOK_EVERY", 0.01)

    async def play() -> str:
        with within(60):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError), within(0.01):
            await asyncio.Event().wait()
        with within(60):
            await asyncio.sleep(0.05)  # bounds that are looked at meanwhile
        return "went on"

    assert asyncio.run(play()) == "went on"
    assert not patience._waits.all


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def play() -> None:
        async def wait() -> None:
            with within(60):
                await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(play())
    assert not patience._waits.all


def test_each_event_loop_has_its_bounds_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LOOK_EVERY", 0.01)

    async def play() -> None:
        with pytest.raises(TimeoutError), within(0.01):
            await asyncio.Event().wait()

    for _ in range(2):  # the first loop ends with its look still to come
        asyncio.run(play())
