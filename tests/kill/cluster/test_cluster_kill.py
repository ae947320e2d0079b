"""Three brokers and two of each process: whoever dies, comes or goes, what was acknowledged is there, each once.

How long nothing was acknowledged is measured and printed, and not judged: it is the machine's too.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from aiokafka.errors import KafkaError

from claw_r1 import bus, registry, topics
from claw_r1.checks.broker import read_copies
from claw_r1.events import Outcome, Step
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.stack import RunningStack, python_module, running_stack
from claw_r1.local.supervisor import Process, answers
from tests.chaos.invariants import check, counts
from tests.chaos.ledger import Evidence
from tests.conftest import wait_until
from tests.factories import a_recipe
from tests.kill.cluster.play import AGENTS, Agents, Clock, evidence_of, playing, probing, read_log
from tests.pool import Pool
from tests.workers import Worker

pytestmark = [pytest.mark.stack, pytest.mark.kill, pytest.mark.slow, pytest.mark.timeout(1200)]

PARTS = ("kafka", "clickhouse", "streams", "sinks", "gateway")
TWO = {"streams": 2, "sinks": 2, "gateway": 2}
SESSION = "6s"
RECIPE = "test"
RUN = "cluster"
LONGEST = 180.0
"""Seconds for what takes some on a machine that has nothing else to do."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RunningStack]:
    port = find_port()
    engine = Process(
        name="inference",
        argv=[*python_module("claw_r1.demo.engine"), "--port", str(port)],
        ready=f"http://{HOST}:{port}/health",
        port=port,
    )
    env = {
        "CLAW_GATEWAY_RUN": RUN,
        "CLAW_GATEWAY_LOG_PROBS_MODE": "processed",
        "CLAW_STREAMS_SESSION_TIMEOUT": SESSION,
        "CLAW_SINKS_SESSION_TIMEOUT": SESSION,
    }
    with running_stack(
        tmp_path / "data",
        processes=PARTS,
        brokers=3,
        many=TWO,
        upstreams=[f"http://{HOST}:{port}"],
        extra=[engine],
        env=env,
    ) as stack:
        yield stack


def newcomers(stack: RunningStack, folder: Path) -> dict[str, Worker]:
    """Two stream workers, a sink and a gateway with the settings of the others, not started, by their URLs.

    A third stream worker alone would get none of four partitions.
    """
    servers: dict[str, object] = {"kafka": stack.kafka, "clickhouse": stack.clickhouse}
    engine = f"http://{HOST}:{stack.state.processes['inference'].port}"
    streams: dict[str, object] = {"streams_session_timeout": SESSION, "streams_spill": folder / "spill"}
    gateway: dict[str, object] = {"gateway_run": RUN, "gateway_upstream": engine, "gateway_spool": folder / "spool"}
    own: list[tuple[str, dict[str, object]]] = [
        *(("streams", streams | {"streams_worker": name}) for name in ("third", "fourth")),
        ("sinks", {"sinks_session_timeout": SESSION}),
        ("gateway", gateway | {"gateway_log_probs_mode": "processed"}),
    ]
    found = {}
    for stage, settings in own:
        port = find_port()
        settings |= {**servers, f"{stage}_port": port}
        found[f"http://{HOST}:{port}"] = Worker(stage, folder / f"{stage}-{port}.log", **settings)
    return found


class Play:
    """The faults, one after the other."""

    def __init__(self, stack: RunningStack, agents: Agents, clock: Clock, new: dict[str, Worker]) -> None:
        self.stack = stack
        self.agents = agents
        self.clock = clock
        self.new = new

    async def all(self) -> None:
        measure = self.clock.measure
        await self.agents.go_on(5 * AGENTS, "calls are served")
        await measure("the leader of a partition of steps is killed", self.kill_leader)
        for name in ("kafka-1", "kafka-2", "kafka-3"):
            await measure(f"{name} is restarted", partial(self.restart, name, signal.SIGTERM))
        for names in (("gateway", "streams", "sinks-2"), ("gateway-2", "streams-2", "sinks")):
            await measure(f"{', '.join(names)} killed", partial(self.kill, *names))
        await measure("two stream workers, a sink, a gateway added", self.add)
        await measure("these four removed", self.remove)

    async def kill_leader(self) -> None:
        async with bus.admin(self.stack.kafka) as client:
            (events,) = [t for t in await client.describe_topics() if t["topic"] == topics.EVENTS]
        await self.restart(f"kafka-{events['partitions'][0]['leader']}", signal.SIGKILL)

    async def restart(self, broker: str, number: signal.Signals) -> None:
        """Until it is there again and every copy is in sync."""
        pid = self.stack.kill(broker, number)
        await asyncio.to_thread(self.stack.wait_restarted, broker, pid, LONGEST)
        await self.whole()

    async def whole(self) -> None:
        async with asyncio.timeout(LONGEST), bus.admin(self.stack.kafka) as client:
            while True:
                with contextlib.suppress(KafkaError):  # it was asked of one that is away
                    found = await read_copies(client)
                    if len(found.answering) == 3 and not (found.behind or found.leaderless):
                        return
                await asyncio.sleep(0.2)

    async def kill(self, *names: str) -> None:
        pids = {name: self.stack.kill(name) for name in names}
        for name, pid in pids.items():
            await asyncio.to_thread(self.stack.wait_restarted, name, pid, LONGEST)

    async def add(self) -> None:
        for worker in self.new.values():
            worker.start()
        for url in self.new:
            ready = partial(answers, f"{url}/readyz")
            await asyncio.to_thread(wait_until, ready, what=f"{url} is ready", timeout=LONGEST)
        self.agents.urls.append(url)

    async def remove(self) -> None:
        self.agents.urls.pop()
        for worker in self.new.values():
            assert await asyncio.to_thread(worker.end) == 0, worker.logged()[-3_000:]


async def settle(stack: RunningStack, pool: Pool, agents: Agents) -> Evidence:
    """Wait until every trajectory's group is closed and the pool has every step; then everything that is known."""
    played = {entry.trajectory_uid for entry in agents.entries}
    async with asyncio.timeout(LONGEST):
        while True:
            events = [record.event for record in await read_log(stack.kafka, RECIPE)]
            closed = {
                uid
                for event in events
                if isinstance(event, Outcome) and event.outcome == "closed"
                for uid in event.trajectories
            }
            if played <= closed:
                break
            await asyncio.sleep(0.5)
    steps = len({event.step_id for event in events if isinstance(event, Step)})
    await asyncio.to_thread(pool.wait_for, "SELECT count() FROM steps FINAL", steps)
    return await evidence_of(stack.kafka, pool, agents, RECIPE)


async def check_copies(kafka: str) -> None:
    """Each topic of the project and of the brokers has three copies, and takes writes that two of them have."""
    async with bus.admin(kafka) as client:
        described = await client.describe_topics()
        names = [str(topic["topic"]) for topic in described]
        configs = await bus.read_configs(client, names)
    assert {topics.EVENTS, topics.batch_topic(RECIPE), "__transaction_state", "__consumer_offsets"} <= set(names)
    copies = {str(t["topic"]): {len(p["replicas"]) for p in t["partitions"]} for t in described}
    assert {name: found for name, found in copies.items() if found != {3}} == {}
    assert {name: configs[name]["min.insync.replicas"] for name in names if name.startswith("claw.")} == dict.fromkeys(
        (name for name in names if name.startswith("claw.")), "2"
    )


def test_a_cluster_loses_and_doubles_nothing(cluster: RunningStack, tmp_path: Path) -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # brokers that are away are no news here
    urls = [cluster.urls["gateway"], cluster.urls["gateway-2"]]
    new = newcomers(cluster, tmp_path)
    pool = Pool(cluster.clickhouse, "claw")

    async def body() -> tuple[Evidence, list[str]]:
        recipe = a_recipe(name=RECIPE, run_id=RUN, group={"size": 2, "idle": "10s"})
        await registry.apply_recipe(cluster.kafka, recipe, deadline=60)
        async with probing(cluster.kafka) as probe, playing(urls, RUN) as agents:
            play = Play(cluster, agents, clock := Clock(agents, probe), new)
            await play.all()
        evidence = await settle(cluster, pool, agents)
        await check_copies(cluster.kafka)
        return evidence, clock.lines

    try:
        evidence, lines = asyncio.run(body())
    finally:
        for worker in new.values():
            worker.kill()
    print("fault; until all is whole; longest time without an acknowledged call; without one of the log")
    print("\n".join(lines))
    print(counts(evidence))
    violations = check(evidence)
    assert not violations, "\n".join(map(str, violations[:10]))
    pool.check_once()
    check_played(evidence)


def check_played(evidence: Evidence) -> None:
    """There was something to judge."""
    told = counts(evidence)
    assert told["call acknowledged"] > 100
    assert told["groups ready"] > 20
