"""What the streams' benchmark stands on: a broker, stream workers as processes, and a reader of ready groups.

Invariants: workers are ordinary ones, told by settings alone; the reader sees what a trainer sees (read_committed), and looks
at no more of a record than its type and key.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.gateways import Cores, LeftOut, end
from benchmarks.stream_log import Template, batches, write
from claw_r1 import bus, registry, topics
from claw_r1.codec import header
from claw_r1.local.ports import find_port
from claw_r1.local.stack import running_stack
from claw_r1.recipes import Recipe

RECIPE = "benchmark"
PARTITIONS = 6
"""Divided evenly by one, two and three workers: a worker takes at most the share of a partition that is rounded up."""
START_TIMEOUT = 120.0
FROZEN = "120s"
"""Session time-out: the longest time for which a frozen worker waits for its log to be filled."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_READY = b"claw.group-ready.v1"


@dataclass
class Worker:
    """A stream worker's process."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss(self) -> int:
        """Bytes in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * _PAGE

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self) -> float:
        """Seconds until it has its partitions. Raises LeftOut."""
        begun = time.monotonic()
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() - begun > START_TIMEOUT:
                raise LeftOut(f"a worker did not become ready: {self.log.read_text(errors='replace')[-400:]}")
            time.sleep(0.01)
        return time.monotonic() - begun


def start(
    stage: str,
    name: str,
    settings: Mapping[str, str],
    folder: Path,
    stack: contextlib.ExitStack,
    pin: Callable[[], None] | None = None,
) -> Worker:
    """A stage's process on a free port; the stack ends it."""
    port = find_port()
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", stage],
            env={**os.environ, **settings, f"CLAW_{stage.upper()}_PORT": str(port)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=pin,
        )
    stack.callback(end, process)
    return Worker(name, port, process, log)


@dataclass
class Stand:
    """A broker of its own, and the workers on it."""

    folder: Path
    kafka: str
    cores: Cores
    stack: contextlib.ExitStack
    workers: list[Worker] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    """More settings of the workers."""

    def start_worker(self, name: str = "w0", *, pinned: bool = True) -> Worker:
        """Started, not yet ready. A name that comes again is the same member of the group."""
        settings = {
            "CLAW_KAFKA": self.kafka,
            "CLAW_STREAMS_WORKER": name,
            "CLAW_STREAMS_SESSION_TIMEOUT": FROZEN,
        }
        pin = self.cores.pin_gateway if pinned else None
        worker = start("streams", name, settings | self.env, self.folder, self.stack, pin)
        self.workers.append(worker)
        return worker

    def started_worker(self, name: str = "w0", *, pinned: bool = True) -> Worker:
        worker = self.start_worker(name, pinned=pinned)
        worker.wait_ready()
        return worker

    async def apply_recipe(self) -> None:
        """Groups of four, decided by size alone."""
        group = {"size": 4, "idle": "4h", "max_age": "8h"}
        recipe = Recipe.model_validate({"name": RECIPE, "group": group, "rewards": {"timeout": "1h"}})
        await registry.apply_recipe(self.kafka, recipe, deadline=60)


@contextlib.contextmanager
def a_stand(cores: Cores, *, env: dict[str, str] | None = None) -> Iterator[Stand]:
    """A fresh broker with every topic, and nothing on them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claw-benchmark-")))
        kafka = stack.enter_context(running_stack(folder / "stack", processes=("kafka",))).kafka
        asyncio.run(bus.apply_topics(kafka, topics.all_topics(PARTITIONS)))
        yield Stand(folder, kafka, cores, stack, env=env or {})


async def fill(kafka: str, template: Template, series: str, groups: int, *, side_by_side: int = 50) -> int:
    """Write many groups to the log as fast as it takes them; how many facts."""
    producer = await bus.start_producer(kafka, client_id="benchmark-writer")
    try:
        return await write(producer, batches(template, series, groups, side_by_side=side_by_side), PARTITIONS)
    finally:
        await bus.stop_producer(producer)


class Reader:
    """Sees ready groups come."""

    def __init__(self, kafka: str) -> None:
        self.kafka = kafka
        self.seen: dict[str, float] = {}
        """Group → when its marker was visible, by the monotonic clock."""
        self.twice = 0
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> "Reader":
        consumer = await bus.start_consumer(self.kafka, client_id="benchmark-reader", max_poll_records=2_000)
        place = TopicPartition(topics.batch_topic(RECIPE), 0)
        consumer.assign([place])
        await consumer.seek_to_end(place)
        await consumer.position(place)
        self._consumer = consumer
        self._task = asyncio.create_task(self._read(consumer))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        assert self._consumer is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await bus.stop_consumer(self._consumer)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                now = time.monotonic()
                for record in records:
                    if header(record.headers, "ce_type") == _READY:
                        name = (record.key or b"").decode().rpartition("/")[2]
                        self.twice += name in self.seen
                        self.seen.setdefault(name, now)
            self._news.set()

    def of(self, series: str) -> list[float]:
        """When the groups of a series were seen."""
        return [at for name, at in self.seen.items() if name.startswith(series)]

    async def wait_for(self, series: str, number: int, *, timeout: float) -> float:
        """When the last of so many groups of a series was seen. Raises LeftOut."""
        deadline = time.monotonic() + timeout
        while len(found := self.of(series)) < number:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except TimeoutError:
                raise LeftOut(f"after {timeout:.0f} s {len(found)} of {number} groups are ready") from None
        return max(found)

    async def wait_for_one(self, name: str, *, timeout: float = 30.0) -> float:
        deadline = time.monotonic() + timeout
        while name not in self.seen:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except TimeoutError:
                raise LeftOut(f"after {timeout:.0f} s group {name} is not ready") from None
        return self.seen[name]
