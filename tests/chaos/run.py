"""A whole system plays under faults, comes to rest, and is judged.

Who runs where: the broker, the proxy before it, the stand-in engine and the agents are of this process; the stages, ClickHouse,
a second stream worker, a second sink and the trainer are kept running by a local stack's supervisor, as anywhere.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from claw_r1 import registry
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import ClawError
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack, python_module, running_stack
from claw_r1.local.supervisor import Process
from claw_r1.recipes import BatchRule, GroupRule, Recipe, RewardRule
from tests.chaos.book import Book
from tests.chaos.broker import Broker
from tests.chaos.engine import Engine, Serving
from tests.chaos.evidence import AWAY, Places, Watch, gather, is_settled
from tests.chaos.faults import Striker
from tests.chaos.invariants import check, counts
from tests.chaos.ledger import Violation
from tests.chaos.load import SIZE, Load
from tests.chaos.plan import SESSION, Fault, draw
from tests.chaos.proxy import Proxy

RUN: Final = "chaos"
RECIPE: Final = Recipe(
    name="chaos",
    run_id=RUN,
    group=GroupRule(size=SIZE, min_size=2, idle=20.0, max_age=120.0, end_grace=2.0),
    rewards=RewardRule(required=("reward", "even"), timeout=25.0),
    allow=("unknown_version",),
    batch=BatchRule(groups=2),
)
SETTLE_S: Final = 180.0
"""T of I9: seconds within which all is done after the faults have stopped."""
SPOOL_BYTES: Final = 200_000
"""Little, so that an outage of seconds fills it."""
LOOK_EVERY_S: Final = 1.0
WARM_S: Final = 180.0
"""Longest wait for the first batch; faults strike behind it."""
WATCH_EVERY_S: Final = 3.0


@dataclass
class Result:
    """What came of a run."""

    seed: int
    faults: list[Fault]
    struck: dict[str, int]
    missed: int
    counts: dict[str, int]
    happened: dict[str, int]
    restarts: dict[str, int]
    watermarks: int
    settled_in: float
    violations: list[Violation]
    timeline: list[str] = field(default_factory=list)

    def summary(self) -> str:
        steps = self.counts["steps on the log"]
        many = len(self.violations)
        return (
            f"{self.struck.get('kill', 0)} kills, {sum(self.struck.values())} faults, {steps} steps, "
            f"{many} violation{'' if many == 1 else 's'}"
        )

    def report(self) -> str:
        """For people: what happened, what there is, what does not hold."""

        def row(name: str, found: dict[str, int]) -> str:
            return f"{name}: " + ", ".join(f"{key} {value}" for key, value in sorted(found.items()))

        lines = [
            row("struck", self.struck) + (f" ({self.missed} found their target down)" if self.missed else ""),
            row("restarts", self.restarts),
            row("agents", self.happened),
            row("found", self.counts),
            f"committed offsets looked at: {self.watermarks}; at rest {self.settled_in:.0f} s after the last fault",
        ]
        lines += [str(violation) for violation in self.violations]
        return "\n".join([*lines, f"seed {self.seed}: {self.summary()}"])


def settings() -> dict[str, str]:
    """Of the stages: short sessions, groups that are carried, steps on disk, small flushes, a spool that fills."""
    return {
        "CLAW_GATEWAY_RUN": RUN,
        "CLAW_GATEWAY_SPOOL_BYTES": str(SPOOL_BYTES),
        "CLAW_GATEWAY_ACK_TIMEOUT": "6s",
        "CLAW_STREAMS_SESSION_TIMEOUT": f"{SESSION:g}s",
        "CLAW_STREAMS_CARRY_AFTER": "6s",
        "CLAW_STREAMS_MEMORY_BYTES": "200000",
        "CLAW_SINKS_SESSION_TIMEOUT": f"{SESSION:g}s",
        "CLAW_SINKS_FLUSH_ROWS": "200",
        "CLAW_WORKERS_SESSION_TIMEOUT": f"{SESSION:g}s",
        "CLAW_WORKERS_REWARDS": "tests.chaos.rewards:even",
    }


def extra(data: Path, books: Path) -> list[Process]:
    """A second stream worker, a second sink, the trainer."""
    streams, sinks = find_port(), find_port()
    second = {
        "CLAW_STREAMS_WORKER": "second",
        "CLAW_STREAMS_PORT": str(streams),
        "CLAW_STREAMS_SPILL": str(data / "spill-b"),
    }
    return [
        Process(
            name="b-streams",
            argv=python_module("streams"),
            env=second,
            ready=f"http://127.0.0.1:{streams}/readyz",
            port=streams,
        ),
        Process(
            name="b-sinks",
            argv=python_module("sinks"),
            env={"CLAW_SINKS_PORT": str(sinks)},
            ready=f"http://127.0.0.1:{sinks}/readyz",
            port=sinks,
        ),
        Process(name="trainer", argv=[*python_module("tests.chaos.trainer"), RECIPE.name, str(books / "trainer.book")]),
    ]


@dataclass
class System:
    """Everything that runs."""

    stack: RunningStack
    broker: Broker
    proxy: Proxy
    places: Places


@contextlib.asynccontextmanager
async def a_system(data: Path, seed: int) -> AsyncIterator[System]:
    """A ready system with its recipe; all of it ends with the block."""
    books = data / "books"
    books.mkdir(parents=True, exist_ok=True)
    proxy_port = find_port()
    broker = Broker(data, proxy_port)
    proxy = Proxy(proxy_port, broker.proxied_port)
    # A process dies with the thread that started it: this one lives as long as the system.
    thread = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as ending:
        ending.callback(thread.shutdown)
        ending.push_async_callback(broker.stop)
        await broker.start()
        ending.push_async_callback(proxy.stop)
        await proxy.start()
        engine = await ending.enter_async_context(Serving(Engine(seed), find_port()))
        running = running_stack(
            data,
            processes=("clickhouse", "streams", "workers", "sinks", "gateway"),
            kafka=f"127.0.0.1:{proxy_port}",
            upstreams=(engine.url,),
            extra=extra(data, books),
            env=settings(),
        )
        stack = await loop.run_in_executor(thread, running.__enter__)
        ending.push_async_callback(lambda: loop.run_in_executor(thread, running.__exit__, None, None, None))
        await registry.apply_recipe(broker.direct, RECIPE, deadline=90)
        places = Places(broker.direct, stack.clickhouse, RUN, RECIPE.name, books, required=RECIPE.rewards.required)
        yield System(stack, broker, proxy, places)


async def look(places: Places, looks: list[int]) -> None:
    """What an analyst does: ask again and again, also while the pool is away."""
    while True:
        with contextlib.suppress(ClawError):
            async with await ClickHouse.connect(places.clickhouse, places.database) as pool:
                sql = f"SELECT count() FROM {places.database}.steps FINAL WHERE run_id = '{places.run_id}'"
                looks.append(int(await pool.scalar(sql) or 0))
        await asyncio.sleep(LOOK_EVERY_S)


async def watch_offsets(watch: Watch) -> None:
    """Look at committed offsets again and again, also while everything is well."""
    while True:
        for one in (watch.streams, watch.sinks):
            with contextlib.suppress(*AWAY):
                await one()
        await asyncio.sleep(WATCH_EVERY_S)


async def rest(places: Places, say: Callable[[str], None]) -> float:
    """Wait until the system is at rest, `SETTLE_S` at most; the seconds that took."""
    begun = time.monotonic()
    while (lacking := await is_settled(places)) is not None:
        if time.monotonic() - begun > SETTLE_S:
            say(f"after {SETTLE_S:.0f} s still not at rest: {lacking}")
            break
        await asyncio.sleep(1.0)
    return time.monotonic() - begun


async def run_chaos(data: Path, seed: int, seconds: float, say: Callable[[str], None]) -> Result:
    """Start everything, play and strike for so many seconds, wait for rest, judge, stop everything."""
    faults, timeline = draw(seed, seconds), list[str]()

    def tell(line: str) -> None:
        timeline.append(line)
        say(line)

    async with a_system(data, seed) as system:
        stack, places = system.stack, system.places
        watch = Watch(places.kafka, places.clickhouse)
        looks: list[int] = []
        observing = [asyncio.create_task(look(places, looks)), asyncio.create_task(watch_offsets(watch))]
        with Book(places.books / "agents.book") as book:
            load = Load(stack.urls["gateway"], RUN, book, seed)
            striker = Striker(stack, system.broker, system.proxy, load, watch, tell, seed)
            playing = asyncio.create_task(load.play())
            striking = asyncio.create_task(_strike(striker, faults, seconds, places.books / "trainer.book"))
            try:
                await asyncio.wait([playing, striking], return_when=asyncio.FIRST_EXCEPTION)
                await asyncio.gather(playing, striking)
            finally:
                striking.cancel()
                playing.cancel()
                await asyncio.gather(playing, striking, return_exceptions=True)
        tell(f"{time.monotonic() - striker.begun:7.1f} s  the faults and the agents have stopped")
        settled_in = await rest(places, tell)
        for task in observing:
            task.cancel()
        ends = await asyncio.gather(*observing, return_exceptions=True)
        if failed := [end for end in ends if isinstance(end, Exception)]:
            raise failed[0]
        evidence = await gather(places, watermarks=watch.marks, looks=looks)
        restarts = {name: process.restarts for name, process in stack.state.processes.items()}
        return Result(
            seed=seed,
            faults=faults,
            struck=dict(striker.struck),
            missed=striker.missed,
            counts=counts(evidence),
            happened=dict(load.happened),
            restarts=restarts | {"kafka": system.broker.starts - 1},
            watermarks=len(watch.marks),
            settled_in=settled_in,
            violations=check(evidence),
            timeline=timeline,
        )


async def _strike(striker: Striker, faults: list[Fault], seconds: float, trained: Path) -> None:
    """Once a batch was trained: all parts work."""
    async with asyncio.timeout(WARM_S):
        while not _has_trained(trained):  # noqa: ASYNC110  another process's file
            await asyncio.sleep(0.2)
    begun = time.monotonic()
    await striker.strike_all(faults)
    await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
    striker.load.stopped = True


def _has_trained(book: Path) -> bool:
    return book.exists() and b"acknowledged" in book.read_bytes()
