"""Two sinks and the engine under them are killed and paused at random, also at once: each fact is stored once."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from claw_r1.local.stack import RunningStack
from tests.kill.form import LONG, SEED, show
from tests.kill.sinks.play import SESSION, a_burst, a_pool, a_sink, check_stored
from tests.pool import write
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.kill, pytest.mark.slow]

SECONDS = 60.0 if LONG else 15.0
GROUPS = 10
"""Of a burst."""
STRIKES = ("sink", "engine", "both", "pause")


def test_facts_are_stored_once_whatever_strikes(backends: RunningStack, tmp_path: Path) -> None:
    show()
    draw, run = random.Random(SEED), "chaos"
    pool = a_pool(backends, run)
    sinks = [a_sink(backends, tmp_path / f"sink{n}.log", run) for n in range(2)]
    struck: Counter[str] = Counter()
    order = draw.sample(STRIKES, len(STRIKES))  # each of them at least once
    groups, begun = 0, time.monotonic()
    with workers(*sinks):
        while order or time.monotonic() - begun < SECONDS:
            for _ in range(draw.randint(2, 6)):
                write(backends.kafka, a_burst(run, groups, GROUPS))
                groups += GROUPS
                time.sleep(draw.uniform(0.0, 0.3))
            what = order.pop() if order else draw.choice(STRIKES)
            _strike(what, draw.choice(sinks), backends)
            struck[what] += 1
            for sink in sinks:
                if (
                    not sink.alive
                ):  # killed, or ended since the engine was away at its start: its supervisor starts it again
                    sink.start()
        check_stored(pool, run, groups)
    print(f"{groups} groups, struck {dict(struck)}, starts {[sink.starts for sink in sinks]}")
    assert set(struck) == set(STRIKES)


def _strike(what: str, sink: Worker, backends: RunningStack) -> None:
    if what == "pause":
        sink.signal(signal.SIGSTOP)
        time.sleep(SESSION + 2)
        sink.signal(signal.SIGCONT)
        return
    pid = backends.kill("clickhouse") if what != "sink" else None
    if what != "engine":
        sink.kill()
    if pid is not None:
        backends.wait_restarted("clickhouse", pid)
