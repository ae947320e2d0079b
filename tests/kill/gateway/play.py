"""Agents that call while a gateway is ill-treated, and what must be on the log afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientError, ClientSession, TCPConnector

from claw_r1 import topics
from claw_r1.bus import read_topic
from claw_r1.codec import decode
from claw_r1.events import Step, StepStarted
from tests.integration.gateway_stand import wait_for
from tests.workers import Worker

AGENTS = 6


def a_spooling_gateway(folder: Path, kafka: str, engine: str, *, port: int, run: str, workers: int = 1) -> Worker:
    """A gateway as a process, not started, with its spool and its log in a folder."""
    return Worker(
        "gateway",
        folder / "gateway.log",
        kafka=kafka,
        gateway_port=port,
        gateway_upstream=engine,
        gateway_run=run,
        gateway_spool=folder / "spool",
        gateway_workers=workers,
    )


class Play:
    """Agents that call until they are told to stop, whatever becomes of the gateway."""

    def __init__(self, url: str, run: str) -> None:
        self.url = url
        self.run = run
        self.answered: list[list[str]] = [[] for _ in range(AGENTS)]
        """Step ids, in the order of their answers."""
        self.calls = 0
        self.broken = 0
        """Calls whose gateway was killed: nobody knows what became of them."""
        self.stopped = False

    async def agent(self, http: ClientSession, number: int) -> None:
        while not self.stopped:
            self.calls += 1
            body = {"model": "tiny", "messages": [{"role": "user", "content": f"call {self.calls}"}]}
            path = f"{self.url}/{self.run}-{number}/p{number}/v1/chat/completions"
            try:
                async with http.post(path, json=body) as response:
                    await response.read()
                    if response.status == 200:
                        self.answered[number].append(response.headers["x-claw-step-id"])
                        continue
            except ClientError:
                self.broken += 1
            await asyncio.sleep(0.05)

    async def go_on(self, calls: int, what: str) -> None:
        """Wait until every agent got so many more answers."""
        before = [len(answered) for answered in self.answered]
        await wait_for(
            lambda: all(len(now) >= n + calls for now, n in zip(self.answered, before, strict=True)), what, deadline=60
        )


@asynccontextmanager
async def playing(url: str, run: str, *, keeps_connections: bool = True) -> AsyncIterator[Play]:
    """Agents that call; without kept connections, each call may be any worker's."""
    play = Play(url, run)
    connector = TCPConnector(force_close=not keeps_connections)
    async with ClientSession(connector=connector) as http, asyncio.TaskGroup() as agents:
        for number in range(AGENTS):
            agents.create_task(play.agent(http, number))
        yield play
        play.stopped = True


async def check_log(kafka: str, play: Play, *, in_order: bool = True) -> None:
    """Every answered step is there, announced before, and a trajectory's steps are first seen in their order.

    Several workers promise no order: each has a queue of its own.
    """
    first: dict[str, int] = {}
    announced: dict[str, int] = {}
    records = await read_topic(kafka, topics.EVENTS, client_id="test")
    for place, record in enumerate(records):
        if (record.key or b"").startswith(f"{play.run}/".encode()):
            fact = decode(record.headers, record.value)
            if isinstance(fact, Step) and fact.status == "complete":
                first.setdefault(fact.step_id, place)
            elif isinstance(fact, StepStarted):
                announced.setdefault(fact.step_id, place)
    for answered in play.answered:
        assert [step_id for step_id in answered if step_id not in first] == []
        places = [first[step_id] for step_id in answered]
        assert not in_order or places == sorted(places)
        assert all(announced[step_id] < first[step_id] for step_id in answered)
    assert len(first) <= play.calls


def segments(spool: Path) -> list[Path]:
    return list(spool.glob("worker-*/*.segment"))
