"""What the gateway adds to a model call, beside what a bare pass-through and other gateways add.

Each gateway has one core for itself; the stub engine, the agents and the broker have the other. Every gateway is asked the
same in turn, case by case, so that a ratio's two numbers were taken within seconds of each other.
"""

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.command import Command, hand_over, run, say
from benchmarks.gateways import (
    KINDS,
    OURS,
    PIN_WARNING,
    Cores,
    LeftOut,
    Running,
    end,
    environment,
    serving,
    wait_ready,
)
from benchmarks.load import Plan, Result
from benchmarks.report import Report, Value, bars, machine, ratio, table
from benchmarks.shapes import SHAPES
from benchmarks.spy import sampled
from claw_r1.bus import apply_topics
from claw_r1.local.ports import find_port
from claw_r1.local.stack import running_stack
from claw_r1.topics import all_topics

DIRECT: Final = "direct"
HEADLINE: Final = ("rl", 32)
CONNECTIONS: Final = (1, 32, 256)
COLUMNS: Final = (
    "gateway",
    "added_p50_ms",
    "added_p99_ms",
    "requests_per_s",
    "cpu_ms_per_request",
    "rss_before_mb",
    "rss_after_mb",
)
SLOW: Final = ("rllm-model-gateway", "litellm")
"""These run for their own sake too, and are stopped while others are measured; 256 prompts of 128 k tokens are not for them."""
PROFILE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Case:
    shape: str
    connections: int


@dataclass(frozen=True)
class Effort:
    """How long and how often each case is measured."""

    cases: tuple[Case, ...]
    seconds: float
    warm_up: float
    rounds: int
    limit: float


QUICK: Final = Effort((Case("rl", 1), Case("rl", 32)), 1.5, 0.5, 1, 15.0)
FULL: Final = Effort(tuple(Case(shape, c) for shape in SHAPES for c in CONNECTIONS), 4.0, 1.0, 3, 60.0)


class Stand:
    """A stub engine, a broker, and gateways that are asked one after the other."""

    def __init__(self, folder: Path, cores: Cores, upstream: int, kafka: str) -> None:
        self.folder = folder
        self.cores = cores
        self.kafka = kafka
        self.upstream = upstream
        self.gateways: dict[str, Running] = {}
        self._runs = 0

    def measure(self, name: str, case: Case, effort: Effort, *, calls: int | None = None) -> Result:
        """One run of agents against a gateway, or the engine itself. Raises LeftOut if it fails."""
        self._runs += 1
        running = self.gateways.get(name)
        plan = Plan(
            name=f"b{self._runs}",
            port=self.upstream if running is None else running.port,
            path="/v1/chat/completions" if running is None else running.kind.path,
            headers={} if running is None else dict(running.kind.headers),
            shape=case.shape,
            connections=case.connections,
            seconds=effort.seconds,
            warm_up=effort.warm_up,
            limit=effort.limit,
            pids=[] if running is None else [running.process.pid],
            calls=calls,
        )
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(plan))],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LeftOut(f"the agents failed: {done.stderr[-400:]}")
        result = Result(**json.loads(done.stdout))
        if result.errors:
            say(f"{name} {case}: {result.errors} calls failed, the first with: {result.error}")
        return result


@contextlib.contextmanager
def a_stand(wanted: Sequence[str], left_out: dict[str, str]) -> Iterator[Stand]:
    """Everything started and ready; what cannot be is named in `left_out`."""
    cores = Cores.choose()
    if cores.gateway is None:
        say(PIN_WARNING)
    bins: dict[str, Path] = {}
    for name in wanted:
        package = KINDS[name].package
        try:
            bins[name] = Path(sys.executable).parent if package is None else environment(package, say)
        except LeftOut as error:
            left_out[name] = str(error)
    cores.pin_others()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claw-benchmark-")))
        say("starting the broker, the stub engine and the gateways")
        kafka = stack.enter_context(running_stack(folder / "stack", processes=("kafka",))).kafka
        asyncio.run(apply_topics(kafka, all_topics()))
        stand = Stand(folder, cores, _start_engine(stack, folder), kafka)
        upstream = f"http://127.0.0.1:{stand.upstream}"
        for name, bin in bins.items():
            serve = serving(KINDS[name], upstream=upstream, kafka=kafka, folder=folder, cores=cores, bin=bin)
            stand.gateways[name] = stack.enter_context(serve)
        for name, running in list(stand.gateways.items()):
            try:
                _wait(running)
            except LeftOut as error:
                left_out[name] = str(error)
                del stand.gateways[name]
                continue
            if name in SLOW:
                running.freeze()
        yield stand


def _start_engine(stack: contextlib.ExitStack, folder: Path) -> int:
    port = find_port()
    log = folder / "engine.log"
    with log.open("wb") as output:
        argv = [sys.executable, "-m", "benchmarks.stub_engine", str(port)]
        engine = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
    stack.callback(end, engine)
    wait_ready(engine, f"http://127.0.0.1:{port}/v1/models", log)
    return port


def _wait(running: Running) -> None:
    wait_ready(running.process, f"http://127.0.0.1:{running.port}{running.kind.ready}", running.log)


# ------------------------------------------------------------------------------------------------------------- overhead


def measure_all(stand: Stand, effort: Effort, left_out: dict[str, str]) -> list[dict[str, Value]]:
    """A row for each case and gateway: the median of the rounds."""
    results: dict[tuple[Case, str], list[Result]] = {}
    for round_ in range(effort.rounds):
        for case in effort.cases:
            for name in (DIRECT, *stand.gateways):
                if name in left_out or (name in SLOW and case == Case("long", 256)):
                    continue
                say(f"round {round_ + 1} of {effort.rounds}: {case.shape}, {case.connections} at once: {name}")
                try:
                    results.setdefault((case, name), []).append(_measure_one(stand, name, case, effort))
                except LeftOut as error:
                    left_out[name] = str(error)
    return [
        row(case, name, found, results.get((case, DIRECT), []))
        for (case, name), found in sorted(results.items(), key=lambda item: effort.cases.index(item[0][0]))
    ]


def _measure_one(stand: Stand, name: str, case: Case, effort: Effort) -> Result:
    if name not in SLOW:
        return stand.measure(name, case, effort)
    running = stand.gateways[name]
    running.thaw()
    try:
        return stand.measure(name, case, replace(effort, warm_up=2 * effort.warm_up))
    finally:
        running.freeze()


def row(case: Case, name: str, results: Sequence[Result], direct: Sequence[Result]) -> dict[str, Value]:
    """The figure of a case: medians over the rounds; `added` is the distance to the engine itself."""
    p50, p99 = _median(results, "p50", 1e3), _median(results, "p99", 1e3)
    base50, base99 = _median(direct, "p50", 1e3), _median(direct, "p99", 1e3)
    return {
        "gateway": name,
        "shape": case.shape,
        "connections": case.connections,
        "added_p50_ms": None if name == DIRECT or p50 is None or base50 is None else p50 - base50,
        "added_p99_ms": None if name == DIRECT or p99 is None or base99 is None else p99 - base99,
        "p50_ms": p50,
        "p99_ms": p99,
        "requests_per_s": _median(results, "requests_per_s"),
        "cpu_ms_per_request": _median(results, "cpu_per_call", 1e3),
        "rss_before_mb": _median(results, "rss_before", 2**-20),
        "rss_after_mb": _median(results, "rss_after", 2**-20),
        "calls": sum(result.calls for result in results),
        "errors": sum(result.errors for result in results),
    }


def _median(results: Sequence[Result], name: str, factor: float = 1.0) -> float | None:
    values = [getattr(result, name) for result in results if getattr(result, name) is not None]
    return statistics.median(values) * factor if values else None


def ratios(figures: Sequence[dict[str, Value]]) -> dict[str, float | None]:
    """Our requests a second over each other gateway's, by case: `rl_c32_vs_vllm_router`."""
    speeds = {(f["shape"], f["connections"], f["gateway"]): f["requests_per_s"] for f in figures}
    found: dict[str, float | None] = {}
    for (shape, connections, name), speed in speeds.items():
        if name not in (OURS, DIRECT):
            key = f"{shape}_c{connections}_vs_{str(name).replace('-', '_').replace('pass_through', 'passthrough')}"
            found[key] = ratio(speeds.get((shape, connections, OURS)), speed)
    return found


def check_captured(stand: Stand, calls: int) -> dict[str, Value]:
    """What our gateway says it recorded: every call that an agent saw end has a whole step."""
    text = stand.gateways[OURS].metrics()
    steps = re.search(r'^claw_gateway_steps_total\{status="complete"\} (\S+)', text, re.MULTILINE)
    faults = re.findall(r"^claw_gateway_capture_failed_total\{.*\} (\S+)", text, re.MULTILINE)
    found = 0 if steps is None else int(float(steps[1]))
    failed = sum(int(float(fault)) for fault in faults)
    if found < calls or failed:
        say(
            f"the gateway recorded {found} steps of {calls} calls, {failed} of them with a fault: the numbers do not count"
        )
    return {"gateway": OURS, "check": "steps recorded", "calls": calls, "steps": found, "faults": failed}


def draw(figures: Sequence[dict[str, Value]]) -> str:
    """The picture: what is added at one call at a time, and the calls a second at 32."""

    def rows(shape: str, connections: int, column: str) -> list[tuple[str, float | None]]:
        mine = [f for f in figures if f.get("shape") == shape and f.get("connections") == connections]
        values = [
            (str(f["gateway"]), f[column]) for f in mine if not (column == "added_p50_ms" and f["gateway"] == DIRECT)
        ]
        return [(name, value if isinstance(value, int | float) else None) for name, value in values]

    charts = (
        ("RL reply, one call at a time: added at the median, ms (less is better)", rows("rl", 1, "added_p50_ms")),
        ("RL reply, 32 calls at once: replies a second (more is better)", rows("rl", 32, "requests_per_s")),
    )
    return bars(charts, ours=OURS)


def as_text(report: Report, effort: Effort) -> str:
    """Tables for people, one a case."""
    parts = [f"{report.where()} Median of {effort.rounds} round(s) of {effort.seconds:g} s."]
    for case in effort.cases:
        mine = [f for f in report.figures if (f.get("shape"), f.get("connections")) == (case.shape, case.connections)]
        title = f"{SHAPES[case.shape].words}, {case.connections} at once"
        parts.append(f"### {title}\n\n{table(mine, COLUMNS)}")
    named = [{"ratio": name, "value": value} for name, value in report.ratios.items()]
    parts.append(f"### Requests a second, ours over theirs\n\n{table(named, ('ratio', 'value'))}")
    parts += [f"{f['gateway']} was left out: {f['left_out']}" for f in report.figures if "left_out" in f]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------- soak, profile


def soak(stand: Stand, calls: int) -> list[dict[str, Value]]:
    """Many RL calls in one process: its memory at every tenth of them, and the growth over the second half.

    In the first half the bounded tables fill: what is held for deltas and for retries.
    """
    say(f"soak: {calls} calls")
    effort = Effort((), 0.0, 1.0, 1, 3600.0)
    result = stand.measure(OURS, Case(*HEADLINE), effort, calls=calls)
    sizes = {f"rss_mb_at_{10 * (place + 1)}": size / 2**20 for place, (_, size) in enumerate(result.memory)}
    growth = (result.memory[-1][1] - result.memory[4][1]) / 2**20
    summary: dict[str, Value] = {"gateway": OURS, "soak": "rl", "calls": result.calls, "errors": result.errors}
    summary |= sizes | {"growth_mb": growth, "requests_per_s": result.requests_per_s}
    return [summary, check_captured(stand, result.all_calls)]


def profile(stand: Stand, folder: Path, shape: str) -> None:
    """Sample our gateway's stacks under load: tables on stdout, stacks into `folder` (any flame graph tool reads them)."""
    pid = stand.gateways[OURS].process.pid
    for connections in (1, HEADLINE[1]):
        with sampled(pid, PROFILE_SECONDS, folder / f"gateway-{shape}-c{connections}.txt", say):
            result = stand.measure(OURS, Case(shape, connections), Effort((), PROFILE_SECONDS, 1.0, 1, 60.0))
            print(
                f"\n## {SHAPES[shape].words}, {connections} at once: {result.requests_per_s:,.0f} a second while watched"
            )


# --------------------------------------------------------------------------------------------------------- command line


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    command = Command(
        "gateway_overhead",
        __doc__,
        quick="the RL reply alone, about a minute",
        parts=list(KINDS),
        one="gateway",
        profile="our gateway's time",
    )
    command.add_argument("--rounds", type=int, metavar="N", help="how often each case is measured; the median counts")
    command.add_argument("--picture", type=Path, metavar="FILE", help="write an SVG picture")
    command.add_argument("--shape", choices=list(SHAPES), help="this shape alone, also for --quick and --profile")
    command.add_argument(
        "--soak", type=int, metavar="N", help="N calls through our gateway alone: does its memory grow?"
    )
    arguments = command.read(argv)
    if arguments.soak or arguments.profile:
        arguments.parts = [OURS]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 if our gateway was measured, 1 if it could not be."""
    arguments = _arguments(argv)
    effort = QUICK if arguments.quick else FULL
    if arguments.shape:
        connections = [case.connections for case in effort.cases if case.shape in (arguments.shape, HEADLINE[0])]
        effort = replace(effort, cases=tuple(Case(arguments.shape, c) for c in sorted(set(connections))))
    if arguments.rounds:
        effort = replace(effort, rounds=arguments.rounds)
    report = Report(machine(("aiohttp", "aiokafka", "msgspec", "uvicorn", "uvloop", "httptools")))
    left_out: dict[str, str] = {}
    begun = time.monotonic()
    try:
        with a_stand(arguments.parts, left_out) as stand:
            if OURS in arguments.parts and OURS in left_out:
                raise LeftOut(left_out[OURS])
            if arguments.profile:
                profile(stand, arguments.profile, arguments.shape or HEADLINE[0])
                return 0
            if arguments.soak:
                report.figures += soak(stand, arguments.soak)
            else:
                report.figures += measure_all(stand, effort, left_out)
                report.ratios |= ratios(report.figures)
                if OURS in stand.gateways:
                    mine = [f["calls"] for f in report.figures if f["gateway"] == OURS]
                    report.figures.append(check_captured(stand, sum(int(calls or 0) for calls in mine)))
    except LeftOut as error:
        say(f"our gateway could not be measured: {error}")
        return 1
    report.figures += [{"gateway": name, "left_out": why} for name, why in left_out.items()]
    report.machine["seconds"] = round(time.monotonic() - begun)
    if arguments.picture:
        arguments.picture.write_text(draw(report.figures))
    arguments.json |= bool(arguments.soak)
    hand_over(report, as_text(report, effort), "gateway overhead", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
