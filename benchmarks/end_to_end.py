"""The whole way of a step on two cores: agents, gateway, log, streams, then the trainer's hand and the pool.

Real processes but for the engine, which answers at once what was prepared, and the trainer, which takes batches and does
nothing with them. A window lasts from its first call until everything of it was trained and a query finds every step: what is
told is what goes through to the end.
"""

import argparse
import asyncio
import contextlib
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.command import Command, hand_over, run, say
from benchmarks.costs import Window, Work
from benchmarks.end_agents import Plan
from benchmarks.end_latency import Stops, look_back, probe
from benchmarks.end_stand import DATABASE, Reading, Stand, a_stand
from benchmarks.gateways import LeftOut
from benchmarks.report import Report, Value, machine, percentile, sections
from benchmarks.shapes import Shape, conversation
from claw_r1.clickhouse import ClickHouse
from claw_r1.local.supervisor import StartFailed

PARTS: Final = ("rates", "shapes")
SHAPE: Final = conversation(512, 128, 100, 5)
FITTED: Final = (
    conversation(128, 32, 32, 5),
    SHAPE,
    conversation(1_200, 300, 100, 15),
    conversation(512, 512, 100, 5),
    conversation(2_000, 64, 200, 3),
    conversation(512, 128, 100, 1),
    conversation(4_000, 300, 500, 5),
)
HELD_OUT: Final = (
    conversation(800, 200, 150, 8),
    conversation(256, 400, 50, 3),
    conversation(3_000, 150, 300, 10),
)
QUICK_FITTED: Final = (FITTED[0], SHAPE, FITTED[4], FITTED[5])
STEADY: Final = ((0.25, False), (0.5, True), (0.75, False))
"""Shares of the most that goes through at which a shape is offered for the model, and whether that is held out."""
SHARE: Final = 0.5
"""The same of all shapes: about as much of its cores as a fleet uses. As fast as it goes records wait for each other and go in
larger requests, so a step costs less than anybody would have it."""
SAMPLE_EVERY: Final = 5.0
"""Seconds between looks at the memory in a long run."""
TELL_EVERY: Final = 12
"""Looks from one that is told to the next."""
PROBED: Final = 3
"""Times as long as another window: one step after the other is asked of the pool."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    seconds: float
    """Of a window, about."""
    fitted: tuple[Shape, ...]
    held_out: tuple[Shape, ...]


QUICK: Final = Effort(4.0, QUICK_FITTED, HELD_OUT[:1])
NORMAL: Final = Effort(20.0, FITTED, HELD_OUT)


# -------------------------------------------------------------------------------------------------------------- windows


@dataclass
class Measured:
    """A window, and what else was seen in it."""

    name: str
    window: Window
    rss: Mapping[str, int]
    steps_per_s: float
    stops: Stops = field(default_factory=Stops)


@dataclass
class Bench:
    """The stand with its pool, and how much is done on it."""

    stand: Stand
    pool: ClickHouse
    effort: Effort

    def groups(self, shape: Shape, steps_per_s: float, seconds: float) -> int:
        """Whole batches of groups that are about so many seconds' work."""
        of_batch = self.stand.batch * self.stand.group * shape.turns
        return self.stand.batch * max(1, round(steps_per_s * seconds / of_batch))

    async def play(
        self,
        shape: Shape,
        groups: int,
        *,
        steps_per_s: float | None = None,
        held_out: bool = False,
        watched: bool = False,
        probing: bool = False,
    ) -> Measured:
        """One window, until all of it is drained; `watched`: when each call and group came where; `probing`: also
        when the pool had a step. Raises LeftOut."""
        stand, name = self.stand, self.stand.new_name()
        seen = stand.folder / f"{name}.json" if watched else None
        begun = await Stops.begin(stand) if watched else None
        before = stand.read()
        plan = Plan(
            name,
            stand.gateway,
            asdict(shape),
            groups,
            stand.group,
            steps_per_s=steps_per_s,
            seen=None if seen is None else str(seen),
        )
        in_sql: list[float] = []
        async with _beside(probe(stand, self.pool, shape, in_sql) if probing else None):
            played = await stand.play(plan)
        await stand.drained(self.pool, name, groups, played.steps)
        after = stand.read()
        window = as_window(
            shape, groups * stand.group, before, after, played.cpu, len(stand.cores), steps_per_s, held_out=held_out
        )
        bytes_ = {**window.bytes, "requests": float(played.sent), "answers": float(played.received)}
        measured = Measured(
            name,
            replace(window, bytes=bytes_),
            after.rss,
            played.steps / (after.at - played.begun),
        )
        if seen is not None and begun is not None:
            measured.stops = await look_back(stand, name, seen, begun)
            measured.stops.in_sql = in_sql
        return measured


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None] | None) -> AsyncIterator[None]:
    """Something endless for the length of the block; what ended it before is raised."""
    if work is None:
        yield
        return
    task = asyncio.create_task(work)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def as_window(
    shape: Shape,
    trajectories: int,
    before: Reading,
    after: Reading,
    agents: float,
    cores: int,
    offered: float | None,
    *,
    held_out: bool,
) -> Window:
    """Two readings as what happened between them; `agents` is their processor time."""
    seconds = after.at - before.at
    others = after.all - before.all - (after.mine - before.mine) - agents
    return Window(
        shape.name,
        Work(
            seconds,
            float(trajectories * shape.turns),
            float(trajectories),
            float(trajectories * shape.new_tokens),
            float(trajectories * shape.turns * shape.sampled),
            float(trajectories * shape.all_prompt_tokens),
        ),
        {name: after.cpu[name] - before.cpu[name] for name in after.cpu},
        {name: after.bytes[name] - before.bytes[name] for name in after.bytes},
        offered,
        held_out,
        max(0.0, others / (cores * seconds)),
    )


# ---------------------------------------------------------------------------------------------------------------- rates


async def warm_up(bench: Bench, shape: Shape) -> float:
    """Play until what is asked twice is no longer asked for the first time; the steps a second that go through."""
    first = await bench.play(shape, bench.stand.batch)
    again = await bench.play(shape, bench.groups(shape, first.steps_per_s, bench.effort.seconds / 4))
    return again.steps_per_s


async def measure_rates(bench: Bench, shape: Shape, rate: float | None) -> tuple[list[dict[str, Value]], list[Window]]:
    """As fast as it goes, then at half of that (or at `rate`), watched; then at steady rates, unwatched, for the model."""
    effort = bench.effort
    say(f"rates: {shape.words}: warming up")
    speed = await warm_up(bench, shape)
    say(f"rates: as fast as it goes, about {speed:.0f} steps a second")
    most = await bench.play(shape, bench.groups(shape, speed, effort.seconds), watched=True)
    offered = rate or most.steps_per_s / 2
    say(f"rates: {most.steps_per_s:.0f} steps a second went through; now {offered:.0f}")
    groups = bench.groups(shape, offered, PROBED * effort.seconds)
    half = await bench.play(shape, groups, steps_per_s=offered, watched=True, probing=True)
    windows: list[Window] = []
    for share, held_out in STEADY:
        part = most.steps_per_s * share
        say(f"rates: {part:.0f} steps a second, unwatched")
        measured = await bench.play(
            shape, bench.groups(shape, part, effort.seconds), steps_per_s=part, held_out=held_out
        )
        windows.append(measured.window)
    figures = [
        stops_figure("as fast as it goes", most),
        stops_figure("half of it" if rate is None else "offered", half),
    ]
    return [*figures, *process_figures(most)], windows


def stops_figure(what: str, measured: Measured) -> dict[str, Value]:
    """Latencies at each stop, ms."""
    figure: dict[str, Value] = {
        "load": what,
        "offered_per_s": measured.window.offered_steps_per_s,
        "steps_per_s": measured.steps_per_s,
        "others_share": measured.window.others,
    }
    for stop, values in measured.stops.lists().items():
        ordered = sorted(values)
        for share in (50, 99):
            value = percentile(ordered, share / 100)
            figure[f"{stop}_p{share}_ms"] = None if value is None else 1e3 * value
    return figure


def process_figures(measured: Measured) -> list[dict[str, Value]]:
    """What a step cost each process; in and out are what it reads and writes over connections, without their frames."""
    window, steps = measured.window, measured.window.work.steps
    per = {name: value / steps for name, value in window.bytes.items()}
    outputs = per["trajectories"] + per["batches"] + per["outcomes"]
    log = per["events"] + outputs
    http = per["requests"] + per["answers"]
    flows = {
        "gateway": (http, http + per["events"]),
        "kafka": (log, per["events"] + log + per["batches"]),
        "streams": (per["events"], outputs),
        "sinks": (log, per["inserted"]),
        "clickhouse": (per["inserted"], None),
        "trainer": (per["batches"], None),
    }
    return [
        {
            "process": name,
            "cpu_us_per_step": 1e6 * window.cpu[name] / steps,
            "cores": window.cpu[name] / window.work.seconds,
            "in_bytes_per_step": flows[name][0],
            "out_bytes_per_step": flows[name][1],
            "rss_mb": measured.rss[name] / 2**20,
        }
        for name in flows
    ]


# --------------------------------------------------------------------------------------------------------------- shapes


async def measure_shapes(bench: Bench) -> tuple[list[dict[str, Value]], list[Window]]:
    """Every shape at a share of what goes through: what the model is fitted on, and what it is judged by."""
    figures: list[dict[str, Value]] = []
    windows: list[Window] = []
    for shape in (*bench.effort.fitted, *bench.effort.held_out):
        held_out = shape in bench.effort.held_out
        say(f"shapes: {shape.words}{', held out' if held_out else ''}")
        speed = await warm_up(bench, shape)
        offered = SHARE * speed
        groups = bench.groups(shape, offered, bench.effort.seconds)
        measured = await bench.play(shape, groups, steps_per_s=offered, held_out=held_out)
        windows.append(measured.window)
        figures.append(shape_figure(shape, speed, measured))
    return figures, windows


def shape_figure(shape: Shape, most: float, measured: Measured) -> dict[str, Value]:
    """What a step of a shape cost at a share of the `most` steps a second that went through."""
    window, steps = measured.window, measured.window.work.steps
    times: dict[str, Value] = {f"{name}_us": 1e6 * cpu / steps for name, cpu in window.cpu.items()}
    return {
        "shape": shape.words,
        "used_for": "the check" if window.held_out else "the fit",
        "most_per_s": most,
        "offered_per_s": window.offered_steps_per_s,
        "log_bytes_per_step": window.bytes["events"] / steps,
        **times,
        "others_share": window.others,
    }


# --------------------------------------------------------------------------------------------------------------- memory


async def measure_memory(bench: Bench, shape: Shape, steps_per_s: float, steps: int) -> list[dict[str, Value]]:
    """Memory by process while so many steps come at a steady rate: its growth from the first quarter to the end."""
    groups = bench.groups(shape, float(steps), 1.0)
    say(f"memory: {groups * bench.stand.group * shape.turns:,} steps at {steps_per_s:.0f} a second")
    samples: list[dict[str, int]] = []

    async def look() -> None:
        while True:
            found = bench.stand.rss()
            if len(samples) % TELL_EVERY == 0:
                told = ", ".join(f"{name} {rss / 2**20:.0f}" for name, rss in found.items())
                say(f"memory in MB after {len(samples) * SAMPLE_EVERY / 60:.0f} min: {told}")
            samples.append(found)
            await asyncio.sleep(SAMPLE_EVERY)

    async with _beside(look()):
        await bench.play(shape, groups, steps_per_s=steps_per_s)
    return growth_figures(samples, groups * bench.stand.group * shape.turns)


def growth_figures(samples: Sequence[Mapping[str, int]], steps: int) -> list[dict[str, Value]]:
    """Growth by process: mean of the last tenth of the samples less the mean of the tenth that ends with the first quarter.

    Raises LeftOut if they are too few to say.
    """
    if len(samples) < 20:
        raise LeftOut(f"{len(samples)} looks at the memory say nothing of its growth: let it run for longer")
    tenth = len(samples) // 10
    quarter = len(samples) // 4

    def mean(part: Sequence[Mapping[str, int]], name: str) -> float:
        return sum(sample[name] for sample in part) / len(part) / 2**20

    figures: list[dict[str, Value]] = []
    for name in samples[0]:
        first, last = mean(samples[quarter - tenth : quarter], name), mean(samples[-tenth:], name)
        figures.append(
            {
                "memory_of": name,
                "steps": steps,
                "rss_mb_at_first": mean(samples[:1], name),
                "rss_mb_at_quarter": first,
                "rss_mb_at_end": last,
                "growth_mb": last - first,
                "growth_bytes_per_step": (last - first) * 2**20 / (0.75 * steps),
            }
        )
    return figures


# --------------------------------------------------------------------------------------------------------- command line


COLUMNS: Final = {
    "Latency at each stop": (
        "load", "offered_per_s", "steps_per_s", "acknowledged_p50_ms", "acknowledged_p99_ms", "on_log_p50_ms", "on_log_p99_ms",
        "ready_p50_ms", "ready_p99_ms", "in_hand_p50_ms", "in_hand_p99_ms", "in_sql_p50_ms", "in_sql_p99_ms", "others_share",
    ),
    "What a step costs": (
        "process", "cpu_us_per_step", "cores", "in_bytes_per_step", "out_bytes_per_step", "rss_mb",
    ),
    "Shapes": (
        "shape", "used_for", "most_per_s", "offered_per_s", "log_bytes_per_step", "gateway_us", "streams_us", "sinks_us",
        "kafka_us", "clickhouse_us", "trainer_us", "others_share",
    ),
    "Memory over a long run": (
        "memory_of", "steps", "rss_mb_at_first", "rss_mb_at_quarter", "rss_mb_at_end", "growth_mb", "growth_bytes_per_step",
    ),
}  # fmt: skip
_MARKS: Final = {
    "Latency at each stop": "acknowledged_p50_ms",
    "What a step costs": "process",
    "Shapes": "used_for",
    "Memory over a long run": "memory_of",
}


def as_text(report: Report) -> str:
    """Tables for people."""
    return sections(report, COLUMNS, _MARKS)


def read_shape(text: str) -> Shape:
    """`FIRST,SAMPLED,OBSERVED,TURNS`. Raises ArgumentTypeError."""
    try:
        return conversation(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST,SAMPLED,OBSERVED,TURNS: {error}") from error


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and value > 0):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return read


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    command = Command("end_to_end", __doc__, quick="short windows, fewer shapes: about two minutes", parts=PARTS)
    command.add_argument(
        "--shape",
        type=read_shape,
        default=SHAPE,
        metavar="F,S,O,T",
        help="the conversation of rates and memory: tokens of the first prompt, sampled and observed tokens a turn, turns",
    )
    command.add_argument("--group", type=_positive(int), default=8, metavar="N", help="trajectories of a group")
    command.add_argument("--batch", type=_positive(int), default=8, metavar="N", help="groups of a batch")
    command.add_argument(
        "--rate", type=_positive(float), metavar="N", help="offered steps a second, in place of half of the maximum"
    )
    command.add_argument(
        "--minutes", type=_positive(float), metavar="N", help="a long run at the offered rate: does memory grow?"
    )
    command.add_argument("--steps", type=_positive(int), metavar="N", help="the same, told by its steps")
    command.add_argument(
        "--keep", type=Path, metavar="FILE", help="write the windows as JSON, for benchmarks.scale_model"
    )
    arguments = command.read(argv)
    if arguments.keep and "shapes" not in arguments.parts:
        command.error("--keep needs the shapes: what is kept is fitted on them")
    return arguments


def run_parts(arguments: argparse.Namespace, report: Report) -> list[Window]:
    """Everything that was asked for, on one stand; the windows that a model is fitted on. Raises LeftOut, StartFailed."""
    effort = QUICK if arguments.quick else NORMAL
    long = arguments.minutes or arguments.steps
    shapes = {shape.name: shape for shape in (arguments.shape, *effort.fitted, *effort.held_out)}

    async def measure(stand: Stand) -> list[Window]:
        windows: list[Window] = []
        async with await ClickHouse.connect(stand.backends.clickhouse, DATABASE) as pool:
            bench = Bench(stand, pool, effort)
            if long:
                rate = arguments.rate or await warm_up(bench, arguments.shape) / 2
                steps = arguments.steps or math.ceil(arguments.minutes * 60 * rate)
                report.figures += await measure_memory(bench, arguments.shape, rate, steps)
                return windows
            if "rates" in arguments.parts:
                figures, found = await measure_rates(bench, arguments.shape, arguments.rate)
                report.figures += figures
                windows += found
            if "shapes" in arguments.parts:
                figures, found = await measure_shapes(bench)
                report.figures += figures
                windows += found
        return windows

    with contextlib.ExitStack() as stack:
        stand = stack.enter_context(a_stand(list(shapes.values()), group=arguments.group, batch=arguments.batch))
        return asyncio.run(measure(stand))


def keep(path: Path, report: Report, arguments: argparse.Namespace, windows: Sequence[Window]) -> None:
    """What `benchmarks.scale_model` reads."""
    kept = {
        "machine": report.machine,
        "group": arguments.group,
        "batch": arguments.batch,
        "windows": [window.plain() for window in windows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 if the way was measured, 1 if it could not be."""
    arguments = _arguments(argv)
    report = Report(machine(("aiokafka", "chdb", "faust-streaming", "msgspec", "pyarrow", "uvicorn")))
    begun = time.monotonic()
    try:
        windows = run_parts(arguments, report)
    except (LeftOut, StartFailed) as error:
        say(f"the way could not be measured: {error}")
        return 1
    report.machine["seconds"] = round(time.monotonic() - begun)
    if arguments.keep:
        keep(arguments.keep, report, arguments, windows)
    hand_over(report, as_text(report), "end to end", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
