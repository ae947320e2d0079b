"""How fast facts become rows: one sink, a real broker, the real engine behind its HTTP interface, steps of 4 KB.

The log is filled while the sink is frozen, then it runs: what is measured is sink and engine, not who writes. They share all
cores with the broker: beside each rate stands the processor time of both.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from benchmarks import stream_log
from benchmarks.command import Command, hand_over, run, say
from benchmarks.gateways import LeftOut
from benchmarks.report import Report, Value, machine, percentile, sections
from benchmarks.spy import sampled
from benchmarks.stream_log import RUN, STEPS, TRAJECTORIES, Plan, Template, a_step, name_of, write
from benchmarks.stream_stand import FROZEN, PARTITIONS, Worker, fill, start
from claw_r1 import bus, topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import pack_ids
from claw_r1.events import GroupFact, Step
from claw_r1.local.stack import BACKENDS, RunningStack, running_stack
from sinks import migrations

DATABASE: Final = "benchmark"
STEPS_OF_GROUP: Final = STEPS * TRAJECTORIES
TURNS: Final = 12
CONVERSATIONS: Final = 300
VOCABULARY: Final = 150_000
PARTS: Final = ("rate", "freshness", "disk")
PROFILE_SECONDS: Final = 15.0
LOOK_EVERY: Final = 0.02
"""Seconds between looks for a fact in the pool."""
STORED_WITHIN: Final = 300.0


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    groups: int
    rounds: int
    probes: int


QUICK: Final = Effort(1_000, 1, 30)
NORMAL: Final = Effort(5_000, 3, 100)


# --------------------------------------------------------------------------------------------------------------- stand


@dataclass
class Stand:
    """A broker, an engine with the pool's schema, and a sink between them."""

    backends: RunningStack
    sink: Worker

    def cpu(self) -> tuple[float, float]:
        """Seconds of processor time of sink and engine so far."""
        spent = psutil.Process(self.backends.pids["clickhouse"]).cpu_times()
        return self.sink.cpu(), spent.user + spent.system

    async def wait_for(self, pool: ClickHouse, sql: str, number: int) -> None:
        """Return when the statement says that so many are there. Raises LeftOut."""
        deadline = time.monotonic() + STORED_WITHIN
        while (found := await pool.scalar(sql)) < number:
            if time.monotonic() > deadline:
                raise LeftOut(f"after {STORED_WITHIN:.0f} s {found} of {number} are in the pool")
            await asyncio.sleep(LOOK_EVERY)


@contextlib.contextmanager
def a_stand() -> Iterator[Stand]:
    """Everything fresh. Raises LeftOut."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="claw-benchmark-")))
        backends = stack.enter_context(running_stack(folder / "stack", processes=BACKENDS))
        asyncio.run(bus.apply_topics(backends.kafka, topics.all_topics(PARTITIONS)))
        asyncio.run(migrations.apply(backends.clickhouse, DATABASE))
        settings = {
            "CLAW_KAFKA": backends.kafka,
            "CLAW_CLICKHOUSE": backends.clickhouse,
            "CLAW_DATABASE": DATABASE,
            "CLAW_SINKS_SESSION_TIMEOUT": FROZEN,
        }
        sink = start("sinks", "sink", settings, folder, stack)
        sink.wait_ready()
        yield Stand(backends, sink)


# ---------------------------------------------------------------------------------------------------------------- rate


def steps_alone() -> Template:
    """Groups of nothing but steps, as white-box senders write them."""
    return Template(fact for fact in stream_log.a_group() if isinstance(fact, Step))


async def measure_rate(stand: Stand, effort: Effort) -> tuple[list[dict[str, Value]], float]:
    """From the log to rows that a query finds; the steps a second of whole groups."""
    figures: list[dict[str, Value]] = []
    rates: list[float] = []
    async with await ClickHouse.connect(stand.backends.clickhouse, DATABASE) as pool:
        await _drain(stand, pool, stream_log.whole(), "w", max(50, effort.groups // 10))  # warm up
        for what, template, letters in (
            ("whole groups", stream_log.whole(), "abc"),
            ("steps alone", steps_alone(), "def"),
        ):
            rounds: list[tuple[float, float, float]] = []
            for letter in letters[: effort.rounds]:
                say(f"rate: {what}, round {len(rounds) + 1} of {effort.rounds}")
                rounds.append(await _drain(stand, pool, template, letter, effort.groups))
            seconds, sink, engine = sorted(rounds)[len(rounds) // 2]
            steps = effort.groups * STEPS_OF_GROUP
            rates.append(steps / seconds)
            figures.append(
                {
                    "what": what,
                    "steps": steps,
                    "steps_per_s": steps / seconds,
                    "facts_per_s": effort.groups * len(template) / seconds,
                    "mb_per_s": effort.groups * template.bytes / seconds / 1e6,
                    "sink_cpu_us_per_step": 1e6 * sink / steps,
                    "engine_cpu_us_per_step": 1e6 * engine / steps,
                    "sink_rss_mb": stand.sink.rss() / 2**20,
                }
            )
    return figures, rates[0]


async def _drain(
    stand: Stand, pool: ClickHouse, template: Template, series: str, groups: int
) -> tuple[float, float, float]:
    """(seconds, processor seconds of the sink, of the engine) for so many groups."""
    stand.sink.freeze()
    try:
        await fill(stand.backends.kafka, template, series, groups)
        before = stand.cpu()
        begun = time.monotonic()
    finally:
        stand.sink.thaw()
    found = f"SELECT count() FROM {DATABASE}.steps WHERE startsWith(prompt_uid, '{series}')"
    await stand.wait_for(pool, found, groups * STEPS_OF_GROUP)
    seconds = time.monotonic() - begun
    sink, engine = (after - first for after, first in zip(stand.cpu(), before, strict=True))
    return seconds, sink, engine


async def profile(stand: Stand, folder: Path) -> None:
    """Sample a sink that runs at full speed; tables on stdout, the stacks into `folder`."""
    async with await ClickHouse.connect(stand.backends.clickhouse, DATABASE) as pool:
        await _drain(stand, pool, stream_log.whole(), "w", 200)
        stand.sink.freeze()
        await fill(stand.backends.kafka, stream_log.whole(), "a", 8_000)
        stand.sink.thaw()
        with sampled(stand.sink.process.pid, PROFILE_SECONDS, folder / "sink.txt", say):
            await asyncio.sleep(PROFILE_SECONDS)


# ----------------------------------------------------------------------------------------------------------- freshness


async def measure_freshness(stand: Stand, effort: Effort, steps_per_s: float) -> list[dict[str, Value]]:
    """From the acknowledgement of a step to the first query that finds it, idle and under half the load."""
    figures: list[dict[str, Value]] = []
    async with await ClickHouse.connect(stand.backends.clickhouse, DATABASE) as pool:
        say("freshness: idle")
        figures.append(await _probe(stand, pool, "freshness, idle", "i", effort.probes))
        rate = steps_per_s / STEPS_OF_GROUP / 2
        say(f"freshness: {rate:.0f} groups a second beside it")
        with stream_log.loading(Plan(stand.backends.kafka, "l", rate, PARTITIONS)):
            loaded = f"SELECT count() FROM {DATABASE}.steps WHERE startsWith(prompt_uid, 'l')"
            await stand.wait_for(pool, loaded, int(rate) * STEPS_OF_GROUP)
            before, begun = await pool.scalar(loaded), time.monotonic()
            figure = await _probe(stand, pool, "freshness, half load", "h", effort.probes)
            rows = await pool.scalar(loaded) - before
            figures.append(figure | {"steps_per_s": rows / (time.monotonic() - begun)})
    return figures


async def _probe(stand: Stand, pool: ClickHouse, what: str, series: str, probes: int) -> dict[str, Value]:
    producer = await bus.start_producer(stand.backends.kafka, client_id="benchmark-probe")
    template = Template(stream_log.a_group()[1:2])
    taken: list[float] = []
    try:
        for number in range(probes):
            name = name_of(series, number)
            await write(producer, [(number, record) for record in template.records(name)], PARTITIONS)
            begun = time.monotonic()
            mine = f"SELECT count() FROM {DATABASE}.steps WHERE run_id = '{RUN}' AND prompt_uid = '{name}'"
            await stand.wait_for(pool, mine, 1)
            taken.append(time.monotonic() - begun)
            await asyncio.sleep(random.uniform(0.0, 0.3))  # a flush is due by its age: probes come at any time of it
    finally:
        await bus.stop_producer(producer)
    taken.sort()
    figure: dict[str, Value] = {"what": what, "probes": probes}
    for share in (50, 90, 99):
        value = percentile(taken, share / 100)
        figure[f"p{share}_ms"] = None if value is None else 1e3 * value
    return figure


# ---------------------------------------------------------------------------------------------------------------- disk


def conversations() -> Template:
    """Conversations of twelve turns, side by side; tokens as frequent as words are, by Zipf's law (exponent 1)."""
    rng, pick = random.Random(7), np.random.default_rng(7)
    shares = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    ids = pick.permutation(VOCABULARY)

    def draw(number: int) -> bytes:
        return pack_ids(ids[np.searchsorted(shares, pick.random(number) * shares[-1])].tolist())

    facts: list[GroupFact] = []
    for place in range(CONVERSATIONS):
        context: list[int] = []
        uid = f"X00000000-t{place}"
        for turn in range(TURNS):
            step, context = a_step(rng, uid, turn, context, f"{uid}-s{turn - 1}" if turn else None)
            new = {"new_prompt_ids": len(step.new_prompt_ids) // 4, "response_ids": len(step.response_ids) // 4}
            facts.append(step.model_copy(update={name: draw(number) for name, number in new.items()}))
    return Template(facts)


async def measure_disk(stand: Stand) -> list[dict[str, Value]]:
    """Bytes on disk of a token's id and of its log-prob, merged, each token counted once."""
    say("disk")
    async with await ClickHouse.connect(stand.backends.clickhouse, DATABASE) as pool:
        await fill(stand.backends.kafka, conversations(), "z", 1)
        mine = f"FROM {DATABASE}.step_tokens FINAL WHERE startsWith(prompt_uid, 'z')"
        await stand.wait_for(pool, f"SELECT count() {mine}", CONVERSATIONS * TURNS)
        # One part of their own, each column a file, as the parts of a large pool are.
        await pool.command(
            f"CREATE TABLE {DATABASE}.conversations AS {DATABASE}.step_tokens ENGINE = MergeTree "
            "ORDER BY (run_id, prompt_uid, trajectory_uid, step_id) SETTINGS min_bytes_for_wide_part = 0"
        )
        await pool.command(f"INSERT INTO {DATABASE}.conversations SELECT * {mine}")
        columns = await pool.query(
            "SELECT column, sum(column_data_compressed_bytes) FROM system.parts_columns "
            f"WHERE database = '{DATABASE}' AND table = 'conversations' AND active GROUP BY column"
        )
        size = {str(name): int(held) for name, held in columns.rows}
        prompts, responses = (
            await pool.query(
                f"SELECT sum(length(new_prompt_ids)), sum(length(response_ids)) FROM {DATABASE}.conversations"
            )
        ).rows[0]
    ids = size["new_prompt_ids"] + size["response_ids"]
    return [
        {
            "what": f"conversations of {TURNS} turns",
            "tokens": prompts + responses,
            "bytes_per_token": ids / (prompts + responses),
            "bytes_per_log_prob": size["rollout_log_probs"] / responses,
            "bytes_per_step": sum(size.values()) / (CONVERSATIONS * TURNS),
        }
    ]


# --------------------------------------------------------------------------------------------------------- command line


COLUMNS: Final = {
    "Speed": (
        "what", "steps", "steps_per_s", "facts_per_s", "mb_per_s", "sink_cpu_us_per_step", "engine_cpu_us_per_step",
        "sink_rss_mb",
    ),
    "Freshness": ("what", "p50_ms", "p90_ms", "p99_ms", "probes", "steps_per_s"),
    "On disk": ("what", "tokens", "bytes_per_token", "bytes_per_log_prob", "bytes_per_step"),
}  # fmt: skip
_MARKS: Final = {"Speed": "facts_per_s", "Freshness": "p50_ms", "On disk": "bytes_per_token"}


def as_text(report: Report) -> str:
    """Tables for people."""
    return sections(report, COLUMNS, _MARKS)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    command = Command(
        "sink_rate", __doc__, quick="everything, small: about a minute", parts=PARTS, profile="the sink's time"
    )
    return command.read(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 if the sink was measured, 1 if it could not be."""
    arguments = _arguments(argv)
    effort = QUICK if arguments.quick else NORMAL
    report = Report(machine(("aiokafka", "chdb", "clickhouse-connect", "msgspec", "pyarrow")))
    begun = time.monotonic()
    speed = 10_000.0
    try:
        with a_stand() as stand:
            if arguments.profile:
                asyncio.run(profile(stand, arguments.profile))
                return 0
            if "rate" in arguments.parts:
                figures, speed = asyncio.run(measure_rate(stand, effort))
                report.figures += figures
            if "freshness" in arguments.parts:
                report.figures += asyncio.run(measure_freshness(stand, effort, speed))
            if "disk" in arguments.parts:
                report.figures += asyncio.run(measure_disk(stand))
    except LeftOut as error:
        say(f"the sink could not be measured: {error}")
        return 1
    report.machine["seconds"] = round(time.monotonic() - begun)
    hand_over(report, as_text(report), "sink rate", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
