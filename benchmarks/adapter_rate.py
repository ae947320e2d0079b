"""How fast ready groups become batches in a trainer's hands, what that takes in memory, and what other pools' fetches cost.

A real broker, and a trainer as a process of its own that does nothing but take batches. The trainer has one core for itself;
the broker and the writer have the other.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import pools
from benchmarks.adapter_log import LONG, STEP, TRAJECTORIES, TURNS, Shape, Template, a_writer
from benchmarks.adapter_trainer import Plan
from benchmarks.command import Command, hand_over, run, say
from benchmarks.gateways import PIN_WARNING, Cores, LeftOut
from benchmarks.report import Report, Value, machine, percentile, ratio, sections
from benchmarks.spy import sampled
from benchmarks.stream_log import name_of
from claw_r1.ids import new_id
from claw_r1.local.stack import running_stack

PARTS: Final = ("rate", "latency", "memory", "pools")
GROUPS: Final = 256
"""Of a batch of 1,024 samples."""
PROFILE_SECONDS: Final = 10.0
TIMEOUT: Final = 300.0
SHAPES: Final = {"1 step of 512+128": STEP, "5 steps, 512+128 and 4 × 100+128": TURNS}


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    batches: int
    rounds: int
    probes: int
    long_groups: int
    """Of the batch of 4 long samples each whose memory is measured."""


QUICK: Final = Effort(4, 1, 20, 32)
NORMAL: Final = Effort(20, 3, 300, 256)


# --------------------------------------------------------------------------------------------------------------- stand


@dataclass
class Stand:
    """A broker of its own, and recipes that are numbered."""

    kafka: str
    cores: Cores
    folder: Path
    recipes: int = field(default=0)

    def new_recipe(self) -> str:
        self.recipes += 1
        return f"benchmark-{new_id()[-8:]}-{self.recipes}"

    async def filled(self, template: Template, groups: int, of_batch: int) -> str:
        """A new recipe with so many ready groups."""
        recipe = self.new_recipe()
        async with a_writer(self.kafka, recipe) as writer:
            await writer.announce(of_batch)
            await writer.fill(template, "a", groups)
        return recipe

    @contextlib.contextmanager
    def trainer(self, plan: Plan) -> Iterator[subprocess.Popen[str]]:
        """Its process, alone on its core."""
        with (self.folder / "trainer.log").open("w") as log:
            process = subprocess.Popen(
                plan.argv(), stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=self.cores.pin_gateway
            )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    async def drain(self, recipe: str, batches: int, warm_up: str) -> dict[str, Any]:
        """What a trainer says when it has taken so many batches."""
        with self.trainer(Plan(self.kafka, recipe, batches, warm_up=warm_up)) as process:
            await asyncio.to_thread(self.answer, process)
            return await asyncio.to_thread(self.answer, process)

    def answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """The next line that a trainer says. Raises LeftOut if it ended."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            log = (self.folder / "trainer.log").read_text(errors="replace")
            raise LeftOut(f"the trainer ended with {process.wait()}: {log[-400:]}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def a_stand(cores: Cores) -> Iterator[Stand]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claw-benchmark-")))
        kafka = stack.enter_context(running_stack(folder / "stack", processes=("kafka",))).kafka
        yield Stand(kafka, cores, folder)


# ---------------------------------------------------------------------------------------------------------------- rate


async def measure_rate(stand: Stand, effort: Effort, name: str, shape: Shape) -> dict[str, Value]:
    """From the opening of the stream to the last batch in hand; the median of the rounds."""
    template = Template(shape)
    warm_up = await stand.filled(template, GROUPS, GROUPS)
    found: list[dict[str, Any]] = []
    for round_ in range(effort.rounds):
        say(f"rate: {name}, round {round_ + 1} of {effort.rounds}")
        recipe = await stand.filled(template, effort.batches * GROUPS, GROUPS)
        found.append(await stand.drain(recipe, effort.batches, warm_up))
    one = sorted(found, key=lambda answer: answer["seconds"])[len(found) // 2]
    return rate_figure(name, shape, one)


def rate_figure(name: str, shape: Shape, found: dict[str, Any]) -> dict[str, Value]:
    """A trainer's answer as a row."""
    steps = found["samples"] * shape.steps
    return {
        "samples_of": name,
        "steps": steps,
        "steps_per_s": steps / found["seconds"],
        "rows_per_s": found["samples"] / found["seconds"],
        "gb_per_s": found["samples"] * shape.row_bytes / found["seconds"] / 1e9,
        "cpu_us_per_row": 1e6 * found["cpu"] / found["samples"],
    }


# ------------------------------------------------------------------------------------------------------------- latency


async def measure_latency(stand: Stand, effort: Effort, what: str, of_batch: int) -> dict[str, Value]:
    """From the acknowledgement of the group that completes a batch to the batch in the hands of a trainer that waits for it."""
    say(f"latency: {what}")
    template, recipe = Template(STEP), stand.new_recipe()
    probes = effort.probes if of_batch == 1 else max(5, effort.probes // 10)
    warm = probes // 5
    taken: list[float] = []
    async with a_writer(stand.kafka, recipe) as writer:
        await writer.announce(of_batch)
        with stand.trainer(Plan(stand.kafka, recipe, warm + probes, "probe")) as process:
            for number in range(warm + probes):
                await asyncio.to_thread(stand.answer, process)
                names = [name_of("a", number * of_batch + place) for place in range(of_batch)]
                *first, last = [template.records(name) for name in names]
                if first:
                    await writer.write(first)
                await asyncio.sleep(0.05)  # the trainer waits, and has taken in all but the last
                await writer.write([last])
                acknowledged = time.monotonic()
                found = await asyncio.to_thread(stand.answer, process)
                if found["group"] != names[-1]:
                    raise LeftOut(f"the trainer has group {found['group']}, not {names[-1]}")
                taken.append(found["at"] - acknowledged)
    taken = sorted(taken[warm:])
    figure: dict[str, Value] = {"what": what, "probes": probes}
    for share in (50, 90, 99):
        value = percentile(taken, share / 100)
        figure[f"p{share}_ms"] = None if value is None else 1e3 * value
    return figure


# -------------------------------------------------------------------------------------------------------------- memory


async def measure_memory(stand: Stand, groups: int) -> dict[str, Value]:
    """The most that a trainer's process grows by while it takes one batch of long samples."""
    rows = groups * TRAJECTORIES
    say(f"memory: {rows} samples of {LONG.tokens} tokens")
    warm_up = await stand.filled(Template(STEP), 1, 1)
    recipe = await stand.filled(Template(LONG), groups, groups)
    return memory_figure(rows, await stand.drain(recipe, 1, warm_up))


def memory_figure(rows: int, found: dict[str, Any]) -> dict[str, Value]:
    """A trainer's answer as a row."""
    raw = rows * LONG.row_bytes
    return {
        "batch": f"{rows} × {LONG.tokens} tokens",
        "raw_mb": raw / 1e6,
        "peak_mb": found["grown"] / 1e6,
        "peak_over_raw": found["grown"] / raw,
        "seconds": found["seconds"],
        "gb_per_s": raw / found["seconds"] / 1e9,
    }


# ------------------------------------------------------------------------------------------------------------- profile


async def profile(stand: Stand, folder: Path) -> None:
    """Sample a trainer that takes batches at full speed; tables on stdout, the stacks into `folder`."""
    template = Template(STEP)
    batches = 150
    recipe = await stand.filled(template, batches * GROUPS, GROUPS)
    with stand.trainer(Plan(stand.kafka, recipe, batches)) as process:
        await asyncio.to_thread(stand.answer, process)
        with sampled(process.pid, PROFILE_SECONDS, folder / "adapter.txt", say):
            await asyncio.sleep(PROFILE_SECONDS)
        say(str(await asyncio.to_thread(stand.answer, process)))


# --------------------------------------------------------------------------------------------------------- command line


def measure_all(report: Report, parts: Sequence[str], effort: Effort, cores: Cores, claw_r1: Path | None) -> None:
    """Each part on a broker of its own."""
    speed: Value = None
    if "rate" in parts:
        with _part(report, "rate"), a_stand(cores) as stand:
            for name, shape in SHAPES.items():
                report.figures.append(asyncio.run(measure_rate(stand, effort, name, shape)))
            speed = next(figure["rows_per_s"] for figure in report.figures if "rows_per_s" in figure)
    if "latency" in parts:
        with _part(report, "latency"), a_stand(cores) as stand:
            for what, of_batch in (("a batch of one group", 1), (f"the last of {GROUPS} groups", GROUPS)):
                report.figures.append(asyncio.run(measure_latency(stand, effort, what, of_batch)))
    if "memory" in parts:
        with _part(report, "memory"), a_stand(cores) as stand:
            report.figures.append(asyncio.run(measure_memory(stand, effort.long_groups)))
    if "pools" in parts:
        report.figures += pools.measure_fetch(say, claw_r1, quick=effort is QUICK)
        report.ratios |= ratios(report.figures, speed)


@contextlib.contextmanager
def _part(report: Report, name: str) -> Iterator[None]:
    """A part that cannot be measured is a figure with the reason."""
    try:
        yield
    except LeftOut as error:
        say(f"{name}: {error}")
        report.figures.append({"what": name, "left_out": str(error)})


def ratios(figures: Sequence[dict[str, Value]], speed: Value) -> dict[str, float | None]:
    """Our durable rows a second, as a batch of columns, over what each other pool gives."""
    return {
        f"vs_{f['pool']}_{f['call']}": ratio(speed, f["rows_per_s"])
        for f in figures
        if "rows_per_s" in f and "pool" in f
    }


COLUMNS: Final = {
    "Speed": ("samples_of", "steps", "steps_per_s", "rows_per_s", "gb_per_s", "cpu_us_per_row"),
    "Latency": ("what", "p50_ms", "p90_ms", "p99_ms", "probes"),
    "Memory": ("batch", "raw_mb", "peak_mb", "peak_over_raw", "seconds", "gb_per_s"),
    "Other pools": ("pool", "call", "rows_per_s"),
}
_MARKS: Final = {"Speed": "samples_of", "Latency": "p50_ms", "Memory": "batch", "Other pools": "call"}


def as_text(report: Report) -> str:
    """Tables for people."""
    return sections(report, COLUMNS, _MARKS, "Rows a second, ours over theirs")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    command = Command(
        "adapter_rate", __doc__, quick="everything, small: two minutes", parts=PARTS, profile="a trainer's time"
    )
    command.add_argument(
        "--claw-r1", type=Path, metavar="FOLDER", help="a checkout of upstream Claw-R1, to compare its pool"
    )
    return command.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 if the adapter was measured, 1 if it could not be."""
    arguments = _arguments(argv)
    effort = QUICK if arguments.quick else NORMAL
    cores = Cores.choose()
    if cores.gateway is None:
        say(PIN_WARNING)
    report = Report(machine(("aiokafka", "msgspec", "numpy", "pydantic")))  # before it is pinned
    cores.pin_others()
    begun = time.monotonic()
    try:
        if arguments.profile:
            with a_stand(cores) as stand:
                asyncio.run(profile(stand, arguments.profile))
            return 0
        measure_all(report, arguments.parts, effort, cores, arguments.claw_r1)
    except LeftOut as error:
        say(f"the adapter could not be measured: {error}")
        return 1
    report.machine["seconds"] = round(time.monotonic() - begun)
    hand_over(report, as_text(report), "adapter rate", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
