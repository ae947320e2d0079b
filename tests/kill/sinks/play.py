"""What the sink's kill tests play: a sink of a database's own, bursts of facts, and what must be in the pool afterwards."""

import asyncio
from pathlib import Path
from typing import Any

from claw_r1 import topics
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack
from sinks import migrations
from tests.factories import a_group
from tests.pool import Located, Pool
from tests.workers import Worker

SESSION = 3.0
"""Seconds for which a sink may be silent: then the partitions of one that was killed, or is paused, are another's."""
GROUPS = 24
"""Of a burst: each has 64 facts, 8 trajectories of 3 steps, with reward and end. A flush takes 300 rows."""


def a_sink(stack: RunningStack, log: Path, database: str, stage: str = "sinks", **over: Any) -> Worker:
    settings: dict[str, Any] = {"clickhouse": stack.clickhouse, "kafka": stack.kafka, "database": database}
    settings |= {
        "sinks_port": find_port(),
        "sinks_group": database,
        "sinks_flush_rows": 300,
        "sinks_session_timeout": f"{SESSION:g}s",
    }
    return Worker(stage, log, **(settings | over))


def a_burst(run: str, first: int = 0, groups: int = GROUPS) -> list[Located]:
    facts = [a_group([1.0] * 8, run_id=run, prompt_uid=f"p{number}") for number in range(first, first + groups)]
    return [(topics.EVENTS, fact) for group in facts for fact in group]


def a_pool(stack: RunningStack, name: str) -> Pool:
    asyncio.run(migrations.apply(stack.clickhouse, name))
    return Pool(stack.clickhouse, name)


def check_stored(pool: Pool, run: str, groups: int) -> None:
    """Every fact of the run's groups is there, once."""
    wanted = {"steps": 24, "step_tokens": 24, "calls": 24, "rewards": 8, "trajectory_events": 8, "trajectory_lookup": 8}
    pool.wait_for(f"SELECT count() FROM trajectory_events FINAL WHERE run_id = '{run}'", 8 * groups, timeout=90)
    for table, number in wanted.items():
        pool.wait_for(f"SELECT count() FROM {table} FINAL WHERE run_id = '{run}'", number * groups)
    pool.check_once(tuple(wanted))
