"""A closed loop of agents: each connection sends its trajectory's next call when the last one's answer is whole.

`python -m benchmarks.load PLAN` prints a result as JSON. Invariants: one process, no client library; an answer is read to its
end and its status looked at, nothing more; the clock of a call runs from its first byte out to its last byte in.
"""

import asyncio
import contextlib
import gc
import json
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, Final, cast

import psutil
import uvloop

from benchmarks.report import percentile
from benchmarks.shapes import SHAPES, request

GROUP: Final = 8
"""Connections whose trajectories are one group's."""
DRAIN: Final = 60.0
"""Longest wait for the calls that are in flight when the window ends, seconds."""
_END: Final = b"\r\n0\r\n\r\n"
_LENGTH: Final = b"content-length:"


@dataclass(frozen=True)
class Plan:
    """What is asked of one gateway."""

    name: str
    """Of the run: part of the trajectories' ids."""
    port: int
    path: str
    """With {trajectory} and {prompt} where the gateway has them in its paths."""
    headers: dict[str, str]
    shape: str
    connections: int
    seconds: float
    warm_up: float
    limit: float
    """Longest run, seconds: a slow gateway gets more time, up to here, to answer every connection twice."""
    pids: list[int] = field(default_factory=list)
    """The gateway's processes: their processor time and memory are read at the window's ends."""
    calls: int | None = None
    """End after so many calls instead, and read the memory now and then."""


@dataclass
class Result:
    """What came of it; times in seconds, memory in bytes."""

    calls: int
    errors: int
    error: str | None
    seconds: float
    requests_per_s: float | None
    p50: float | None
    p99: float | None
    cpu_per_call: float | None
    rss_before: int | None
    rss_after: int | None
    all_calls: int
    """With those before and after the window."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """(calls, bytes) along a run of so many calls."""


class Agents:
    """The state that all connections share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        shape = SHAPES[plan.shape]
        self.bodies = [request(shape, turn) for turn in range(shape.turns)]
        lines = {"host": f"127.0.0.1:{plan.port}", "content-type": "application/json", **plan.headers}
        self.head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.latencies: list[float] = []
        self.calls = 0
        self.errors = 0
        self.error: str | None = None
        self.open = 0
        self.empty = asyncio.Event()
        self.ended = False
        self.until_at_most = 0.0

    def done(self, latency: float, error: str | None) -> None:
        if error is None:
            self.calls += 1
            self.latencies.append(latency)
        else:
            self.errors += 1
            self.error = self.error or error

    async def until(self, seconds: float, calls: int) -> None:
        """Wait so long, and until so many calls more have come, but not past the run's limit."""
        start, before = time.perf_counter(), self.calls
        while True:
            await asyncio.sleep(0.02)
            now = time.perf_counter()
            if now >= self.until_at_most or (now - start >= seconds and self.calls - before >= calls):
                return

    async def end(self) -> None:
        """Wait for the calls in flight: a call that is broken off would cost the gateway into the next measurement."""
        self.ended = True
        if self.open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.empty.wait(), DRAIN)


class Exchange(asyncio.Protocol, ABC):
    """A kept connection: a request is written, its answer read to the end, then `finish` is called."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._left: int | None = None
        self._tail = b""
        self.failed: str | None = None
        """The beginning of an answer that is not a 200."""
        self.received = 0
        """Bytes of all answers."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it

    def write(self, request: bytes) -> None:
        """Send a request; the one before has been answered."""
        assert self._transport is not None
        self._head, self._left, self._tail, self.failed = b"", None, b"", None
        self._transport.write(request)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    @abstractmethod
    def finish(self) -> None:
        """The answer is whole."""

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._left is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = self._begin(end + 4)
        if self._left is not None and self._left >= 0:
            self._left -= len(data)
            whole = self._left == 0
        else:
            self._tail = (self._tail + data)[-len(_END) :]
            whole = self._tail in (_END, _END[2:])
        if whole:
            self.finish()

    def _begin(self, end: int) -> bytes:
        """Read the head; what follows it."""
        head = self._head[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            self.failed = self._head[:500].decode(errors="replace")
        at = head.find(_LENGTH)
        self._left = -1 if at < 0 else int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
        return self._head[end:]


class Connection(Exchange):
    """An agent: trajectory after trajectory."""

    def __init__(self, agents: Agents, number: int) -> None:
        super().__init__()
        self._agents = agents
        self._number = number
        self._trajectory = 0
        self._turn = 0
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._agents.open += 1
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._agents.open -= 1
        if self._agents.ended and not self._agents.open:
            self._agents.empty.set()
        if not self._agents.ended:
            self._agents.done(0.0, f"the connection was closed ({error!r})")
            asyncio.get_running_loop().call_later(0.05, reconnect, self._agents, self._number)

    def _send(self) -> None:
        agents = self._agents
        name = agents.plan.name
        path = agents.plan.path.format(
            trajectory=f"{name}-{self._number}-{self._trajectory}",
            prompt=f"{name}-{self._number // GROUP}-{self._trajectory}",
        )
        body = agents.bodies[self._turn]
        head = f"POST {path} HTTP/1.1\r\n{agents.head}content-length: {len(body)}\r\n\r\n"
        self._started = time.perf_counter()
        self.write(head.encode() + body)

    def finish(self) -> None:
        agents = self._agents
        agents.done(time.perf_counter() - self._started, self.failed)
        self._turn += 1
        if self._turn == len(agents.bodies):
            self._turn = 0
            self._trajectory += 1
        if agents.ended:
            self.close()
        else:
            self._send()


def reconnect(agents: Agents, number: int) -> None:
    """Connect an agent, unless the run is over."""
    if not agents.ended:
        task = asyncio.ensure_future(connect(agents, number))
        task.add_done_callback(lambda t: t.cancelled() or t.exception())  # a refused connection shows as missing calls


async def connect(agents: Agents, number: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: Connection(agents, number), "127.0.0.1", agents.plan.port)


def use(pids: list[int]) -> tuple[float, int]:
    """Processor seconds and resident bytes of these processes and their children."""
    cpu, rss = 0.0, 0
    for pid in pids:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            cpu += times.user + times.system
            rss += process.memory_info().rss
    return cpu, rss


async def run(plan: Plan) -> Result:
    """Warm up, measure, let what is in flight end."""
    agents = Agents(plan)
    gc.freeze()
    gc.disable()  # what it makes has no cycles
    agents.until_at_most = time.perf_counter() + plan.limit
    await asyncio.gather(*(connect(agents, number) for number in range(plan.connections)))
    await agents.until(plan.warm_up, plan.connections)
    before, agents.latencies = agents.calls, []
    start = time.perf_counter()
    cpu, rss = use(plan.pids)
    memory: list[tuple[int, int]] = []
    if plan.calls is None:
        await agents.until(plan.seconds, 2 * plan.connections)
    else:
        for part in range(1, 11):
            await agents.until(0.0, plan.calls * part // 10 - (agents.calls - before))
            memory.append((agents.calls - before, use(plan.pids)[1]))
    seconds = time.perf_counter() - start
    cpu_after, rss_after = use(plan.pids)
    latencies = sorted(agents.latencies)
    calls = len(latencies)
    await agents.end()
    return Result(
        calls=calls,
        errors=agents.errors,
        error=agents.error,
        seconds=seconds,
        requests_per_s=calls / seconds if calls else None,
        p50=percentile(latencies, 0.5),
        p99=percentile(latencies, 0.99),
        cpu_per_call=(cpu_after - cpu) / calls if plan.pids and calls else None,
        rss_before=rss if plan.pids else None,
        rss_after=rss_after if plan.pids else None,
        all_calls=agents.calls,
        memory=memory,
    )


def main(argument: str) -> None:
    values: dict[str, Any] = json.loads(argument)
    print(json.dumps(asdict(uvloop.run(run(Plan(**values))))))


if __name__ == "__main__":
    main(sys.argv[1])
