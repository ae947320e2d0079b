"""Agents that play whole groups against the gateway: a trajectory's calls, then its end with a reward; and write down when.

`python -m benchmarks.end_agents PLAN` prints a Played as JSON. Invariants: one process, no client library; an answer is read to
its end; a trajectory's next call goes out after the last one's answer, and at a steady rate not before its turn. Moments are
the wall clock's, as the broker's are; a call's own time is the steady clock's.
"""

import asyncio
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.load import Exchange
from benchmarks.shapes import Shape, request

GAP: Final = 0.25
"""Seconds between a trajectory's calls at a steady rate: what the tool of an agent takes."""


@dataclass(frozen=True)
class Plan:
    """What is played."""

    name: str
    """The groups' names begin with it."""
    port: int
    shape: dict[str, Any]
    """Fields of a Shape."""
    groups: int
    group: int
    """Trajectories of a group."""
    connections: int = 32
    """Trajectories at a time, where nothing is said of a rate."""
    steps_per_s: float | None = None
    """None: as fast as answers come."""
    seen: str | None = None
    """File for what was seen of each call and group; None: nothing is kept."""

    def argv(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.end_agents", json.dumps(asdict(self))]


@dataclass
class Played:
    """What came of it; seconds, bytes."""

    steps: int
    errors: int
    error: str | None
    begun: float
    """Wall clock."""
    ended: float
    cpu: float
    sent: int
    received: int


@dataclass
class Seen:
    """Calls and groups as the agents saw them."""

    calls: list[tuple[str, float, float]] = field(default_factory=list)
    """(trajectory, first byte out by the wall clock, seconds to the last byte in), in the order of their ends."""
    groups: dict[str, float] = field(default_factory=dict)
    """Group → when the end of its last trajectory was sent: the first byte out of the call that was answered last."""


class Line(Exchange):
    """A kept connection that a trajectory has while it asks."""

    def __init__(self) -> None:
        super().__init__()
        self._answered: asyncio.Future[None] | None = None
        self.closed = False

    async def ask(self, data: bytes) -> str | None:
        """Send a request and read its answer; why it failed."""
        self._answered = asyncio.get_running_loop().create_future()
        self.write(data)
        await self._answered
        return self.failed

    def finish(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self.failed = f"the connection was closed ({error!r})"
        self.finish()


class Agents:
    """What all trajectories share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        shape = Shape(**plan.shape)
        self.bodies = [request(shape, turn) for turn in range(shape.turns)]
        self.seen = Seen()
        self.steps = self.errors = self.sent = 0
        self.error: str | None = None
        self._head = f"host: 127.0.0.1:{plan.port}\r\ncontent-type: application/json\r\n"
        self._free: deque[Line] = deque()
        self._lines: list[Line] = []
        self._left = dict.fromkeys(range(plan.groups), plan.group)

    def received(self) -> int:
        return sum(line.received for line in self._lines)

    def close(self) -> None:
        for line in self._lines:
            if not line.closed:
                line.close()

    async def _take(self) -> Line:
        while self._free:
            if not (line := self._free.pop()).closed:
                return line
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(Line, "127.0.0.1", self.plan.port)
        self._lines.append(line)
        return line

    async def ask(self, path: str, body: bytes) -> str | None:
        line = await self._take()
        head = f"POST {path} HTTP/1.1\r\n{self._head}content-length: {len(body)}\r\n\r\n".encode()
        self.sent += len(head) + len(body)
        try:
            return await line.ask(head + body)
        finally:
            self._free.append(line)

    async def play(self, number: int, begin: float | None) -> None:
        """A trajectory; `begin` is when its first call is due by the loop's clock. What fails ends it, and is counted."""
        group, member = divmod(number, self.plan.group)
        prompt = f"{self.plan.name}-{group}"
        uid = f"{prompt}-{member}"
        loop = asyncio.get_running_loop()
        for turn, body in enumerate(self.bodies):
            if begin is not None and (wait := begin + turn * GAP - loop.time()) > 0:
                await asyncio.sleep(wait)
            out, started = time.time(), time.perf_counter()
            failed = await self.ask(f"/{uid}/{prompt}/v1/chat/completions", body)
            taken = time.perf_counter() - started
            if failed is not None:
                return self._fail(failed)
            self.steps += 1
            if self.plan.seen is not None:
                self.seen.calls.append((uid, out, taken))
        end = json.dumps({"reward": float(member % 2)}).encode()
        out = time.time()
        if (failed := await self.ask(f"/{uid}/{prompt}/v1/complete_trajectory", end)) is not None:
            return self._fail(failed)
        self._left[group] -= 1
        if not self._left[group]:
            del self._left[group]
            if self.plan.seen is not None:
                self.seen.groups[prompt] = out
        return None

    def _fail(self, why: str) -> None:
        self.errors += 1
        self.error = self.error or why

    async def play_all(self) -> None:
        """Every group: as fast as answers come, or each trajectory when its turn comes."""
        numbers = iter(range(self.plan.groups * self.plan.group))
        if self.plan.steps_per_s is None:
            await asyncio.gather(*(self._play_on(numbers) for _ in range(self.plan.connections)))
            return
        loop = asyncio.get_running_loop()
        apart = len(self.bodies) / self.plan.steps_per_s
        begun = loop.time()
        playing: set[asyncio.Task[None]] = set()
        for number in numbers:
            begin = begun + number * apart
            await asyncio.sleep(max(0.0, begin - loop.time()))
            task = asyncio.create_task(self.play(number, begin))
            playing.add(task)
            task.add_done_callback(playing.discard)
        await asyncio.gather(*playing)

    async def _play_on(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self.play(number, None)


async def run(plan: Plan) -> Played:
    """Play, and write down what was seen."""
    agents = Agents(plan)
    gc.freeze()
    begun, cpu = time.time(), time.process_time()
    try:
        await agents.play_all()
    finally:
        agents.close()
    ended, cpu = time.time(), time.process_time() - cpu
    if plan.seen is not None:
        await asyncio.to_thread(Path(plan.seen).write_text, json.dumps(asdict(agents.seen)))
    return Played(agents.steps, agents.errors, agents.error, begun, ended, cpu, agents.sent, agents.received())


def main(argument: str) -> None:
    print(json.dumps(asdict(uvloop.run(run(Plan(**json.loads(argument)))))))


if __name__ == "__main__":
    main(sys.argv[1])
