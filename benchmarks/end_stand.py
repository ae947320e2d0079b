"""What the end-to-end benchmark stands on: the whole local stack on two cores, a stub engine, a trainer, and who looks at them.

Invariants: every process is an ordinary one, told by settings alone; processor time and memory are read from outside, bytes
where they lie: log segments on the broker's disk, the pool's own count of what was inserted.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from aiokafka import ConsumerRecord, TopicPartition

from benchmarks.adapter_trainer import Plan as TrainerPlan
from benchmarks.end_agents import Plan, Played
from benchmarks.gateways import START_TIMEOUT, LeftOut, end, wait_ready
from benchmarks.load import use
from benchmarks.shapes import Shape
from claw_r1 import bus, topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack, running_stack
from claw_r1.local.supervisor import GUARD
from claw_r1.recipes import Recipe
from claw_r1.registry import apply_recipe

RECIPE: Final = "benchmark"
DATABASE: Final = "benchmark"
CORES: Final = 2
LOOK_EVERY: Final = 0.05
"""Seconds between looks at what has come to its end."""
DRAINED_WITHIN: Final = 180.0
STAGES: Final = ("kafka", "clickhouse", "streams", "sinks", "gateway")
FLOWS: Final[Mapping[str, tuple[str, ...]]] = {
    "events": (topics.EVENTS,),
    "trajectories": (topics.TRAJECTORIES,),
    "batches": (topics.batch_topic(RECIPE),),
    "outcomes": (topics.OUTCOMES, topics.CUTS, topics.TRAJECTORY_INDEX, topics.DEMAND, topics.POLICY),
}
"""Which topics' bytes are which flow."""
_INSERTED = re.compile(r"^claw_clickhouse_inserted_bytes_total (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """All that is read at one moment."""

    at: float
    """Wall clock."""
    cpu: Mapping[str, float]
    rss: Mapping[str, int]
    bytes: Mapping[str, float]
    mine: float
    """Processor seconds of all processes of the benchmark that live now, this one included."""
    all: float
    """Processor seconds that the cores gave to anybody, without interrupts: those of connections count for nobody."""


@dataclass
class Stand:
    """Everything that runs."""

    backends: RunningStack
    folder: Path
    engine: subprocess.Popen[bytes]
    trainer: subprocess.Popen[str]
    group: int
    batch: int
    """Groups."""
    cores: Sequence[int]
    taken: dict[str, float] = field(default_factory=dict)
    """Group → when the trainer had it in hand, by the wall clock."""
    opened: threading.Event = field(default_factory=threading.Event)
    _number: int = 0

    @property
    def gateway(self) -> int:
        """Its port."""
        return int(self.backends.urls["gateway"].rpartition(":")[2])

    def new_name(self) -> str:
        """Of a window: what its groups' names begin with."""
        self._number += 1
        return f"w{self._number}"

    @property
    def supervisor(self) -> int:
        """The process whose children the stages are."""
        identity = self.backends.state.supervisor
        if identity is None:
            raise LeftOut("the stack has no supervisor")
        return identity.pid

    def pids(self) -> dict[str, int]:
        return {**{name: self.backends.pids[name] for name in STAGES}, "trainer": self.trainer.pid}

    def listen(self) -> None:
        """Take in what the trainer says, until it ends."""
        assert self.trainer.stdout is not None
        with self.trainer.stdout as lines:
            for line in lines:
                said = json.loads(line)
                if "opened" in said:
                    self.opened.set()
                for name in said.get("groups", ()):
                    self.taken[name] = said["at"]

    def read(self) -> Reading:
        """Processor time, memory and bytes now. Raises LeftOut if a process is gone."""
        try:
            found = {name: use([pid]) for name, pid in self.pids().items()}
            mine, _ = use([self.supervisor, self.trainer.pid, self.engine.pid])
        except psutil.NoSuchProcess as error:
            raise LeftOut(f"a process ended: {error}") from error
        busy = [psutil.cpu_times(percpu=True)[core] for core in self.cores]
        return Reading(
            at=time.time(),
            cpu={name: cpu for name, (cpu, _) in found.items()},
            rss={name: rss for name, (_, rss) in found.items()},
            bytes=self._bytes(),
            mine=mine + time.process_time(),
            all=sum(t.user + t.nice + t.system for t in busy),
        )

    def rss(self) -> dict[str, int]:
        """Bytes in memory by process."""
        return {name: use([pid])[1] for name, pid in self.pids().items()}

    def _bytes(self) -> dict[str, float]:
        held: dict[str, float] = {}
        for segment in (self.backends.data / "kafka" / "log").glob("*/*.log"):
            with contextlib.suppress(FileNotFoundError):  # cleaned in this moment
                topic = segment.parent.name.rpartition("-")[0]
                held[topic] = held.get(topic, 0.0) + segment.stat().st_size
        with urllib.request.urlopen(f"{self.backends.clickhouse}/metrics", timeout=30) as answer:
            inserted = _INSERTED.search(answer.read().decode())
        flows = {flow: sum(held.get(topic, 0.0) for topic in named) for flow, named in FLOWS.items()}
        return {**flows, "inserted": 0.0 if inserted is None else float(inserted[1])}

    async def play(self, plan: Plan) -> Played:
        """What the agents say when they have played. Raises LeftOut if a call failed."""
        process = await asyncio.create_subprocess_exec(*plan.argv(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise LeftOut(f"the agents failed: {errors.decode(errors='replace')[-400:]}")
        played = Played(**json.loads(out))
        if played.errors:
            raise LeftOut(f"{played.errors} trajectories failed, the first with: {played.error}")
        return played

    async def drained(self, pool: ClickHouse, name: str, groups: int, steps: int) -> None:
        """Return when the trainer had every group of a window and a query finds every step. Raises LeftOut."""
        deadline = time.monotonic() + DRAINED_WITHIN
        left = {f"{name}-{number}" for number in range(groups)}
        while left := {one for one in left if one not in self.taken}:
            self._still(deadline, f"{groups - len(left)} of {groups} groups are trained")
            await asyncio.sleep(LOOK_EVERY)
        counted = f"SELECT count() FROM {DATABASE}.steps WHERE startsWith(prompt_uid, '{name}-')"
        while (found := await pool.scalar(counted)) < steps:
            self._still(deadline, f"{found} of {steps} steps are in the pool")
            await asyncio.sleep(2 * LOOK_EVERY)

    def _still(self, deadline: float, what: str) -> None:
        if self.trainer.poll() is not None:
            raise LeftOut(f"the trainer ended: {(self.folder / 'trainer.log').read_text(errors='replace')[-400:]}")
        if time.monotonic() > deadline:
            raise LeftOut(f"{DRAINED_WITHIN:.0f} s after the last call {what}")


def choose_cores() -> list[int]:
    """The cores that everything of the benchmark runs on: this process's first two."""
    return sorted(os.sched_getaffinity(0))[:CORES]


@contextlib.contextmanager
def a_stand(shapes: Sequence[Shape], *, group: int, batch: int) -> Iterator[Stand]:
    """Everything fresh and ready, on two cores. Raises LeftOut, or StartFailed of the stack."""
    cores = choose_cores()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # what is started inherits it
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claw-benchmark-")))
            engine, url = _start_engine(stack, folder, shapes)
            backends = stack.enter_context(
                running_stack(folder / "stack", processes=STAGES, upstreams=[url], env={"CLAW_DATABASE": DATABASE})
            )
            asyncio.run(_apply_recipe(backends.kafka, group, batch))
            trainer = _start_trainer(stack, folder, backends.kafka)
            stand = Stand(backends, folder, engine, trainer, group, batch, cores)
            listening = threading.Thread(target=stand.listen, daemon=True)
            listening.start()
            try:
                if not stand.opened.wait(START_TIMEOUT):
                    raise LeftOut(f"no trainer: {(folder / 'trainer.log').read_text(errors='replace')[-400:]}")
                yield stand
            finally:
                trainer.kill()
                listening.join()
    finally:
        os.sched_setaffinity(0, before)


def _guarded(argv: Sequence[str]) -> list[str]:
    """The command, as one that ends with this process however it ends."""
    return [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *argv]


def _start_engine(
    stack: contextlib.ExitStack, folder: Path, shapes: Sequence[Shape]
) -> tuple[subprocess.Popen[bytes], str]:
    port, log = find_port(), folder / "engine.log"
    asked = json.dumps([asdict(shape) for shape in shapes])
    with log.open("wb") as output:
        argv = [sys.executable, "-m", "benchmarks.stub_engine", str(port), asked]
        engine = subprocess.Popen(_guarded(argv), stdout=output, stderr=output, start_new_session=True)
    stack.callback(end, engine)
    url = f"http://127.0.0.1:{port}"
    wait_ready(engine, f"{url}/v1/models", log)
    return engine, url


def _start_trainer(stack: contextlib.ExitStack, folder: Path, kafka: str) -> subprocess.Popen[str]:
    with (folder / "trainer.log").open("w") as log:
        trainer = subprocess.Popen(
            _guarded(TrainerPlan(kafka, RECIPE, what="follow").argv()),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )

    def stop() -> None:
        trainer.kill()
        trainer.wait()

    stack.callback(stop)
    return trainer


async def _apply_recipe(kafka: str, group: int, batch: int) -> None:
    """Groups that are decided by size alone, trained whatever their age."""
    recipe = Recipe.model_validate(
        {"name": RECIPE, "group": {"size": group, "idle": "4h", "max_age": "8h"}, "batch": {"groups": batch}}
    )
    await apply_recipe(kafka, recipe, deadline=60)


# --------------------------------------------------------------------------------------------------------- looking back


async def positions(kafka: str, *named: str) -> dict[TopicPartition, int]:
    """Where these topics end now."""
    consumer = await bus.start_consumer(kafka, client_id="benchmark-reader")
    try:
        places = [TopicPartition(t, number) for t in named for number in await bus.partitions_of(consumer, t)]
        consumer.assign(places)
        return await bus.end_offsets(consumer, places)
    finally:
        await bus.stop_consumer(consumer)


async def since(kafka: str, begun: Mapping[TopicPartition, int]) -> AsyncIterator[ConsumerRecord]:
    """What came to these partitions after that."""
    consumer = await bus.start_consumer(kafka, client_id="benchmark-reader")
    try:
        consumer.assign(list(begun))
        ends = await bus.end_offsets(consumer, begun)
        for place, first in begun.items():
            async for records in bus.read_range(consumer, place, first, ends[place]):
                for record in records:
                    yield record
    finally:
        await bus.stop_consumer(consumer)


def ask(port: int, path: str, body: bytes) -> dict[str, Any]:
    """One call of the gateway, read to its end."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found
