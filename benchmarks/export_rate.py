"""What an export costs by the size of the pool: time, and the memory of its process, which must not grow with what it writes.

Steps of 4 KB go through the log and the sink into the pool; each export is a process of its own.
"""

import asyncio
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from string import ascii_letters
from typing import Final

from benchmarks import stream_log
from benchmarks.command import Command, hand_over, run, say
from benchmarks.report import Report, Value, machine, table
from benchmarks.sink_rate import DATABASE, STEPS_OF_GROUP, Stand, a_stand
from benchmarks.stream_log import RUN, Template
from benchmarks.stream_stand import PARTITIONS, fill
from claw_r1.clickhouse import ClickHouse
from claw_r1.datasets.export import Order, export
from claw_r1.datasets.moment import TOPIC_OF, Moment
from claw_r1.datasets.pool import Source, count
from claw_r1.datasets.selection import Selection

SIZES: Final = (100_000, 1_000_000)
QUICK: Final = (2_000, 10_000)
EXPORTS: Final = (("tokens", "parquet"), ("sft", "hf"))
"""(form, container)"""
EVERYTHING: Final = Moment(2**42, {topic: dict.fromkeys(range(PARTITIONS), 2**62) for topic in TOPIC_OF.values()})
COLUMNS: Final = ("steps", "form", "format", "rows", "mb", "seconds", "steps_per_s", "cpu_seconds", "peak_rss_mb")
CHUNK: Final = 2_500
"""Groups that the log is ahead of the pool."""

ENDED: Final = f"""
INSERT INTO {DATABASE}.trajectories
    (run_id, prompt_uid, group_id, trajectory_uid, channel, status, complete, step_ids, topic, partition, offset, append_time)
SELECT run_id, prompt_uid, prompt_uid, trajectory_uid, 'train', 'completed', true, groupArray(step_id),
    'claw.trajectories.v1', any(partition), min(offset), min(append_time)
FROM {DATABASE}.steps GROUP BY run_id, prompt_uid, trajectory_uid
"""
"""What the streams would have said of the trajectories."""


def write(url: str, size: int, form: str, container: str, folder: str) -> dict[str, Value]:
    """Export the run, in a process that does nothing else; what it took. Peak memory is the whole process', with Python."""

    async def run() -> dict[str, Value]:
        written: dict[str, int] = {"rows": 0, "bytes": 0}
        async with await ClickHouse.connect(url, DATABASE, timeout=600) as pool:
            source = Source(Selection(run_id=RUN).question(), EVERYTHING)
            total = await count(pool, source)
            target = Path(folder) / f"{form}-{size}"
            summary = await export(pool, Order(target, form, container, source, total, {}), lambda done, of: None)
            written = {name: summary[name] for name in written}
        return {"rows": written["rows"], "mb": written["bytes"] / 1e6}

    begun = time.monotonic()
    figure = asyncio.run(run())
    seconds = time.monotonic() - begun
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "steps": size,
        "form": form,
        "format": container,
        **figure,
        "seconds": seconds,
        "steps_per_s": size / seconds,
        "cpu_seconds": spent.ru_utime + spent.ru_stime,
        "peak_rss_mb": spent.ru_maxrss / 1024,
    }


async def grow(stand: Stand, template: Template, series: Iterator[str], begun: int, size: int) -> None:
    """The pool, from so many steps to `size`."""
    async with await ClickHouse.connect(stand.backends.clickhouse, DATABASE, timeout=600) as pool:
        for first in range(begun // STEPS_OF_GROUP, size // STEPS_OF_GROUP, CHUNK):
            groups = min(CHUNK, size // STEPS_OF_GROUP - first)
            await fill(stand.backends.kafka, template, next(series), groups)
            steps = (first + groups) * STEPS_OF_GROUP
            await stand.wait_for(pool, f"SELECT count() FROM {DATABASE}.steps", steps)
            await stand.wait_for(pool, f"SELECT count() FROM {DATABASE}.step_tokens", steps)
            say(f"{steps:,} steps in the pool")
        await pool.command(f"TRUNCATE TABLE {DATABASE}.trajectories")
        await pool.command(ENDED)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0."""
    small = f"pools of {' and '.join(f'{n:,}' for n in QUICK)} steps"
    arguments = Command("export_rate", __doc__, quick=small).read(argv)
    report = Report(machine(("chdb", "pyarrow")))
    begun = time.monotonic()
    with a_stand() as stand, tempfile.TemporaryDirectory(prefix="claw-benchmark-") as folder:
        template, series, held = stream_log.whole(), iter(ascii_letters), 0
        for size in QUICK if arguments.quick else SIZES:
            asyncio.run(grow(stand, template, series, held, size))
            held = size
            for form, container in EXPORTS:
                # A fresh process each: peak memory is that of the process' whole life.
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as one:
                    figure = one.submit(write, stand.backends.clickhouse, size, form, container, folder).result()
                report.figures.append(figure)
                say(f"{size:,} steps as {form}: {figure['seconds']:.0f} s")
    report.machine["seconds"] = round(time.monotonic() - begun)
    text = f"{report.where()}\n\n{table(report.figures, COLUMNS)}"
    hand_over(report, text, "export rate", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
