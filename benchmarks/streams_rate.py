"""How fast facts become ready groups: one stream worker, a real broker, steps of 4 KB; and how fast other pools take steps in.

The log is filled while the worker is frozen, then it runs: what is measured is the worker, not who writes. The worker has one
core for itself; the broker, the writer and the reader have the other.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks import pools, stream_log
from benchmarks.command import Command, hand_over, run, say
from benchmarks.gateways import PIN_WARNING, Cores, LeftOut
from benchmarks.report import Report, Value, machine, percentile, ratio, sections
from benchmarks.spy import sampled
from benchmarks.stream_log import STEPS, TRAJECTORIES, Plan, name_of, write
from benchmarks.stream_stand import PARTITIONS, Reader, Stand, Worker, a_stand, fill
from claw_r1 import bus

STEPS_OF_GROUP: Final = STEPS * TRAJECTORIES
PARTS: Final = ("rate", "latency", "workers", "gap", "rebuild", "groups", "pools")
PROFILE_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    groups: int
    """Of a run of the worker."""
    rounds: int
    probes: int
    open_facts: int
    open_groups: tuple[int, ...]
    gap_seconds: float


QUICK: Final = Effort(500, 1, 50, 20_000, (1_000, 10_000), 4.0)
NORMAL: Final = Effort(5_000, 3, 300, 200_000, (10_000, 100_000), 10.0)
FULL: Final = Effort(5_000, 3, 300, 200_000, (10_000, 100_000, 1_000_000), 10.0)


# ---------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Drained:
    """What it took to make the facts of some groups into ready groups."""

    seconds: float
    cpu: float
    groups: int
    facts: int

    def figure(self) -> dict[str, Value]:
        steps = self.groups * STEPS_OF_GROUP
        return {
            "steps_per_s": steps / self.seconds,
            "events_per_s": self.facts / self.seconds,
            "cpu_us_per_step": 1e6 * self.cpu / steps,
            "cpu_us_per_event": 1e6 * self.cpu / self.facts,
            "steps_per_cpu_s": steps / self.cpu,
        }


async def drain(stand: Stand, reader: Reader, workers: Sequence[Worker], series: str, groups: int) -> Drained:
    """Freeze the workers, fill the log, and let them run until every group is visible."""
    for worker in workers:
        worker.freeze()
    try:
        facts = await fill(stand.kafka, stream_log.whole(), series, groups)
        cpu = sum(worker.cpu() for worker in workers)
        begun = time.monotonic()
    finally:
        for worker in workers:
            worker.thaw()
    last = await reader.wait_for(series, groups, timeout=300)
    return Drained(last - begun, sum(worker.cpu() for worker in workers) - cpu, groups, facts)


def median(results: Sequence[Drained]) -> Drained:
    return sorted(results, key=lambda one: one.seconds)[len(results) // 2]


async def measure_rate(stand: Stand, effort: Effort) -> tuple[list[dict[str, Value]], float]:
    """One worker at full speed, and the time from the last fact to the marker; the steps a second."""
    worker = stand.started_worker()
    await stand.apply_recipe()
    async with Reader(stand.kafka) as reader:
        await drain(stand, reader, [worker], "w", max(50, effort.groups // 10))  # warm up
        results = []
        for round_ in range(effort.rounds):
            say(f"rate: round {round_ + 1} of {effort.rounds}")
            results.append(await drain(stand, reader, [worker], "abcdef"[round_], effort.groups))
        found = median(results)
        figure: dict[str, Value] = {"what": "log to ready group", "workers": 1, "groups": found.groups}
        figure |= found.figure() | {"step_bytes": _step_bytes(), "twice": reader.twice}
    return [figure], found.groups * STEPS_OF_GROUP / found.seconds


def _step_bytes() -> int:
    """Of a step's record, on average."""
    steps = [
        len(r.value)
        for r in stream_log.whole().records(name_of("a", 0))
        if (b"claw.step.v1") in dict(r.headers).values()
    ]
    return sum(steps) // len(steps)


async def measure_latency(stand: Stand, effort: Effort, steps_per_s: float) -> list[dict[str, Value]]:
    """From the acknowledgement of the last fact that a group needs to its marker, idle and under half the load."""
    worker = stand.started_worker()
    await stand.apply_recipe()
    figures: list[dict[str, Value]] = []
    async with Reader(stand.kafka) as reader:
        say("latency: warm up")  # a broker that has just started takes twice as long for a transaction
        await _probe(stand, reader, "warm up", "w", max(100, effort.probes))
        say("latency: idle")
        figures.append(await _probe(stand, reader, "latency, idle", "i", effort.probes))
        rate = steps_per_s / STEPS_OF_GROUP / 2
        plan = Plan(stand.kafka, "l", rate, PARTITIONS)
        say(f"latency: {rate:.0f} groups a second beside it")
        with stream_log.loading(plan):
            await reader.wait_for("l", int(rate), timeout=60)
            cpu, begun = worker.cpu(), time.monotonic()
            before = len(reader.of("l"))
            half = await _probe(stand, reader, "latency, half load", "h", effort.probes)
            seconds = time.monotonic() - begun
            done = (len(reader.of("l")) - before + effort.probes) * STEPS_OF_GROUP / seconds
            figures.append(half | {"steps_per_s": done, "cpu_share": (worker.cpu() - cpu) / seconds})
    return figures


async def _probe(stand: Stand, reader: Reader, what: str, series: str, probes: int) -> dict[str, Value]:
    """Groups one at a time; the last fact apart from the others."""
    template = stream_log.whole()
    producer = await bus.start_producer(stand.kafka, client_id="benchmark-probe")
    taken: list[float] = []
    try:
        for number in range(probes):
            name = name_of(series, number)
            *first, last = [(number, record) for record in template.records(name)]
            await write(producer, first, PARTITIONS)
            await asyncio.sleep(0.02)  # so that the others are taken in
            begun = time.monotonic()
            await write(producer, [last], PARTITIONS)
            taken.append(await reader.wait_for_one(name) - begun)
    finally:
        await bus.stop_producer(producer)
    taken.sort()
    figure: dict[str, Value] = {"what": what, "probes": probes}
    for share in (50, 90, 99):
        value = percentile(taken, share / 100)
        figure[f"p{share}_ms"] = None if value is None else 1e3 * value
    return figure


async def measure_workers(stand: Stand, effort: Effort) -> list[dict[str, Value]]:
    """The same log for one, two and three workers; on fewer cores than that only the processor time says something."""
    figures: list[dict[str, Value]] = []
    workers: list[Worker] = []
    for number in range(3):
        workers.append(stand.started_worker(f"w{number}", pinned=False))
        if not number:
            await stand.apply_recipe()
        for worker in workers:
            await asyncio.to_thread(worker.wait_ready)
        say(f"workers: {len(workers)}")
        async with Reader(stand.kafka) as reader:
            found = await drain(stand, reader, workers, "abc"[number], effort.groups)
        figures.append(found.figure() | {"what": "workers", "workers": len(workers), "groups": found.groups})
    return figures


async def measure_gap(stand: Stand, effort: Effort) -> list[dict[str, Value]]:
    """How long no group of a partition becomes ready when a worker joins, leaves, or is killed and started again."""
    stand.started_worker("w0", pinned=False)
    await stand.apply_recipe()
    figures: list[dict[str, Value]] = []
    rate = 100.0
    plan = Plan(stand.kafka, "l", rate, PARTITIONS)
    with stream_log.loading(plan):
        async with Reader(stand.kafka) as reader:
            await reader.wait_for("l", int(rate), timeout=60)
            figures.append(await _gap(reader, "nothing happens", effort, lambda: None))
            second: list[Worker] = []
            figures.append(
                await _gap(reader, "a second worker joins", effort, lambda: second.append(stand.started_worker("w1")))
            )
            figures.append(await _gap(reader, "it is killed and started again", effort, lambda: _again(stand, second)))
            figures.append(await _gap(reader, "it ends and is started again", effort, lambda: _ended(stand, second)))
            twice = reader.twice
    return [*figures, {"what": "markers seen twice in all that", "twice": twice}]


def _again(stand: Stand, second: list[Worker]) -> None:
    second[-1].kill()
    second.append(stand.started_worker("w1"))


def _ended(stand: Stand, second: list[Worker]) -> None:
    second[-1].process.terminate()
    second[-1].process.wait(60)
    second.append(stand.started_worker("w1"))


async def _gap(reader: Reader, what: str, effort: Effort, act: Callable[[], None]) -> dict[str, Value]:
    """The longest silence of any partition from just before `act` to some seconds after it."""
    say(f"gap: {what}")
    begun = time.monotonic()
    await asyncio.to_thread(act)
    await asyncio.sleep(effort.gap_seconds)
    ended = time.monotonic()
    longest = 0.0
    for partition in range(PARTITIONS):
        mine = sorted(at for name, at in reader.seen.items() if int(name[1:]) % PARTITIONS == partition)
        inside = [begun, *(at for at in mine if begun <= at <= ended), ended]
        longest = max(longest, *(b - a for a, b in pairwise(inside)))
    return {"what": f"gap: {what}", "gap_ms": 1e3 * longest}


async def measure_rebuild(stand: Stand, effort: Effort) -> list[dict[str, Value]]:
    """A worker starts on a log of open groups: how long until it has them all, and how much memory they take."""
    worker = stand.started_worker()
    await stand.apply_recipe()
    worker.kill()
    empty = stand.start_worker()
    without = await asyncio.to_thread(empty.wait_ready)
    small = empty.rss()
    empty.kill()
    template = stream_log.unfinished()
    groups = effort.open_facts // len(template)
    say(f"rebuild: {groups * len(template)} open facts")
    facts = await fill(stand.kafka, template, "o", groups)
    again = stand.start_worker()
    took = await asyncio.to_thread(again.wait_ready)
    figure: dict[str, Value] = {"what": "rebuild", "open_facts": facts, "seconds": took - without, "start_s": without}
    memory = (again.rss() - small) / (groups * STEPS_OF_GROUP)
    return [figure | {"cpu_us_per_event": 1e6 * again.cpu() / facts, "bytes_per_open_step": memory}]


async def measure_groups(stand: Stand, effort: Effort, number: int) -> dict[str, Value]:
    """The cost of a step while so many other groups are open."""
    worker = stand.started_worker()
    await stand.apply_recipe()
    say(f"groups: {number} open ones")
    async with Reader(stand.kafka) as reader:
        await fill(stand.kafka, stream_log.announced(), "o", number)
        groups = min(1_000, effort.groups)
        await drain(stand, reader, [worker], "w", groups)  # also waits until the open ones are taken in
        found = await drain(stand, reader, [worker], "a", groups)
    return found.figure() | {"what": "open groups beside it", "open_groups": number, "rss_mb": worker.rss() / 2**20}


# ------------------------------------------------------------------------------------------------------------- profile


async def profile(stand: Stand, folder: Path) -> None:
    """Sample a worker that runs at full speed; tables on stdout, the stacks into `folder`."""
    worker = stand.started_worker()
    await stand.apply_recipe()
    async with Reader(stand.kafka) as reader:
        await drain(stand, reader, [worker], "w", 200)
        worker.freeze()
        await fill(stand.kafka, stream_log.whole(), "a", 6_000)
        worker.thaw()
        with sampled(worker.process.pid, PROFILE_SECONDS, folder / "streams.txt", say):
            await asyncio.sleep(PROFILE_SECONDS)


# --------------------------------------------------------------------------------------------------------- command line


def measure_all(report: Report, parts: Sequence[str], effort: Effort, cores: Cores, claw_r1: Path | None) -> None:
    """Each part on a broker of its own."""
    speed = 10_000.0
    if "rate" in parts:
        with _part(report, "rate"), a_stand(cores) as stand:
            figures, speed = asyncio.run(measure_rate(stand, effort))
            report.figures += figures
    if "latency" in parts:
        with _part(report, "latency"), a_stand(cores) as stand:
            report.figures += asyncio.run(measure_latency(stand, effort, speed))
    for name, measure in (("workers", measure_workers), ("gap", measure_gap), ("rebuild", measure_rebuild)):
        if name in parts:
            with _part(report, name), a_stand(cores) as stand:
                report.figures += asyncio.run(measure(stand, effort))
    for number in effort.open_groups if "groups" in parts else ():
        with _part(report, f"groups {number}"), a_stand(cores) as stand:
            report.figures.append(asyncio.run(measure_groups(stand, effort, number)))
    if "pools" in parts:
        report.figures += pools.measure(say, claw_r1, quick=effort is QUICK)
        report.ratios |= ratios(report.figures, speed if "rate" in parts else None)


@contextlib.contextmanager
def _part(report: Report, name: str) -> Iterator[None]:
    """A part that cannot be measured is a figure with the reason."""
    try:
        yield
    except LeftOut as error:
        say(f"{name}: {error}")
        report.figures.append({"what": name, "left_out": str(error)})


def ratios(figures: Sequence[dict[str, Value]], speed: float | None) -> dict[str, float | None]:
    """Our durable steps a second, joined into ready groups, over what each other pool takes in."""
    return {
        f"vs_{f['pool']}_{f['call']}": ratio(speed, f["steps_per_s"])
        for f in figures
        if "steps_per_s" in f and "pool" in f
    }


COLUMNS: Final = {
    "Speed": ("what", "workers", "open_groups", "steps_per_s", "events_per_s", "cpu_us_per_step", "cpu_us_per_event"),
    "Latency": ("what", "p50_ms", "p90_ms", "p99_ms", "probes", "steps_per_s", "cpu_share"),
    "Gap": ("what", "gap_ms"),
    "Rebuild": ("what", "open_facts", "seconds", "start_s", "cpu_us_per_event", "bytes_per_open_step"),
    "Other pools": ("pool", "call", "steps_per_s"),
}
_MARKS: Final = {
    "Speed": "cpu_us_per_step",
    "Latency": "p50_ms",
    "Gap": "gap_ms",
    "Rebuild": "open_facts",
    "Other pools": "call",
}


def as_text(report: Report) -> str:
    """Tables for people."""
    return sections(report, COLUMNS, _MARKS, "Steps a second, ours over theirs")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    command = Command(
        "streams_rate", __doc__, quick="everything, small: two minutes", parts=PARTS, profile="a worker's time"
    )
    command.add_argument("--full", action="store_true", help="also a million open groups")
    command.add_argument(
        "--claw-r1", type=Path, metavar="FOLDER", help="a checkout of upstream Claw-R1, to compare its pool"
    )
    return command.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 if the streams were measured, 1 if they could not be."""
    arguments = _arguments(argv)
    effort = QUICK if arguments.quick else FULL if arguments.full else NORMAL
    cores = Cores.choose()
    if cores.gateway is None:
        say(PIN_WARNING)
    report = Report(machine(("faust-streaming", "aiokafka", "msgspec", "pydantic")))  # before it is pinned
    cores.pin_others()
    begun = time.monotonic()
    try:
        if arguments.profile:
            with a_stand(cores) as stand:
                asyncio.run(profile(stand, arguments.profile))
            return 0
        measure_all(report, arguments.parts, effort, cores, arguments.claw_r1)
    except LeftOut as error:
        say(f"the streams could not be measured: {error}")
        return 1
    report.machine["seconds"] = round(time.monotonic() - begun)
    hand_over(report, as_text(report), "streams rate", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
