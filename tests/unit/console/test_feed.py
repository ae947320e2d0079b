"""News reach every viewer once and in order; who was away goes on where it stopped, or is told that it cannot."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from claw_r1.errors import Overloaded
from console import feed
from console.feed import Feed, Tail


class Log:
    """A pool of one partition: looks are counted."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.looks = 0

    async def look(self, text: str, ends: dict[int, int] | None) -> tuple[list[dict[str, Any]], dict[int, int]]:
        self.looks += 1
        now = {0: len(self.rows)}
        return ([] if ends is None else self.rows[ends[0] : now[0]]), now

    async def status(self) -> dict[str, int]:
        return {"rows": len(self.rows)}


async def read(stream: AsyncIterator[bytes], wanted: int) -> tuple[list[int], str]:
    """The numbers of the first `wanted` rows, and the last id."""
    found: list[int] = []
    last = ""
    async for chunk in stream:
        fields = dict(line.split(": ", 1) for line in chunk.decode().strip().splitlines() if ": " in line)
        last = fields.get("id", last)
        if fields.get("event") == "rows":
            found += [row["n"] for row in json.loads(fields["data"])]
        if len(found) >= wanted:
            break
    return found, last


async def begun(news: Feed, text: str = "") -> AsyncIterator[bytes]:
    """A stream that the feed has looked for once."""
    stream = news.follow(text, False, None)
    for _ in range(2):
        await anext(stream)
    await asyncio.sleep(0.05)
    return stream


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PERIOD", 0.0)


def test_a_burst_of_a_thousand_is_a_thousand_for_each_of_ten_viewers() -> None:
    async def scenario() -> None:
        log = Log()
        news = Feed({"trajectories": log.look}, log.status)
        running = asyncio.create_task(news.run())
        streams = [await begun(news) for _ in range(10)]
        await asyncio.sleep(0.3)
        looks = log.looks
        log.rows += [{"n": n} for n in range(1000)]
        found = await asyncio.gather(*(read(stream, 1000) for stream in streams))
        assert all(numbers == list(range(1000)) for numbers, _ in found)
        assert log.looks - looks < 10, "ten viewers of one filter cost one look a period"
        running.cancel()

    asyncio.run(scenario())


def test_a_viewer_goes_on_behind_its_last_id() -> None:
    async def scenario() -> None:
        log = Log()
        news = Feed({"trajectories": log.look}, log.status)
        running = asyncio.create_task(news.run())
        async with aclosing(await begun(news)) as stream:  # type: ignore[type-var]
            log.rows += [{"n": n} for n in range(5)]
            found, last = await read(stream, 5)
        await asyncio.sleep(0)
        assert found == [0, 1, 2, 3, 4]
        keeper = await begun(news)
        log.rows += [{"n": n} for n in range(5, 9)]
        assert (await read(keeper, 4))[0] == [5, 6, 7, 8]
        assert (await read(news.follow("", False, last), 4))[0] == [5, 6, 7, 8]
        running.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize("last", ["other.3", "nonsense", "{boot}.99"])
def test_an_id_that_is_not_kept_is_a_gap(last: str) -> None:
    async def scenario() -> None:
        log = Log()
        news = Feed({"trajectories": log.look}, log.status)
        stream = news.follow("", False, last.replace("{boot}", news._boot))
        await anext(stream)
        assert b"event: gap" in await anext(stream)

    asyncio.run(scenario())


def test_what_is_kept_is_bounded() -> None:
    tail = Tail("trajectories", "")
    tail.add([{"n": n} for n in range(feed.KEPT + 10)])
    assert tail.since(5) is None
    assert [row["n"] for row in tail.since(feed.KEPT + 8) or []] == [feed.KEPT + 8, feed.KEPT + 9]
    assert tail.since(feed.KEPT + 11) is None


def test_too_many_filters_are_refused_and_idle_ones_make_room() -> None:
    async def scenario() -> None:
        log = Log()
        news = Feed({"trajectories": log.look}, log.status)
        streams = [news.follow(f"steps>{n}", False, None) for n in range(feed.MOST_FILTERS)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(Overloaded):
            news.check("steps>99")
        await streams[3].aclose()  # type: ignore[attr-defined]
        news.check("steps>99")

    asyncio.run(scenario())


def test_nobody_looking_costs_nothing() -> None:
    async def scenario() -> None:
        log = Log()
        news = Feed({"trajectories": log.look}, log.status)
        running = asyncio.create_task(news.run())
        await asyncio.sleep(0.3)
        assert log.looks == 0
        running.cancel()

    asyncio.run(scenario())
