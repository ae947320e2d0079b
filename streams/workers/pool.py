"""The steps of a trajectory are read from the pool, which gets them from the log beside the streams and may be behind.

Invariants: steps are given all or not at all; while the pool is away they are waited for, since nothing is lost by it; a pool
that answers has a bounded time to get them.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import DependencyUnreachable, RetryableError, UserError
from claw_r1.events import Trajectory
from claw_r1.rewards.rollout import Missing, StepView
from streams.workers.contexts import restore

SHORTEST_WAIT: Final = 0.1
LONGEST_WAIT: Final = 2.0
QUERY_TIMEOUT: Final = 30.0
KEY: Final = "run_id = {run:String} AND prompt_uid = {prompt:String} AND trajectory_uid = {trajectory:String}"
COUNT: Final = f"SELECT uniqExact(step_id) FROM step_tokens WHERE {KEY} AND step_id IN {{steps:Array(String)}}"
ROWS: Final = f"""
SELECT s.step_id AS step_id, parent_step_id, prefix_len, status, role, finish_reason, messages_kept, multi_modal_data,
    new_prompt_ids, response_ids, prefix_hash, new_messages, reply
FROM (SELECT * FROM steps FINAL WHERE {KEY}) AS s
INNER JOIN (SELECT * FROM step_tokens FINAL WHERE {KEY}) AS t ON s.step_id = t.step_id
"""


PURGED: Final = "SELECT DISTINCT run_id FROM purges"
PURGES_AGE: Final = 5.0
"""Seconds after which the pool is asked again which runs are to be forgotten."""


class StepStore:
    """The pool, as far as these workers read it."""

    def __init__(self, url: str, database: str, timeout: float, tell: Callable[[str | None], None]) -> None:
        self._url, self._database, self._timeout = url, database, timeout
        self._tell = tell
        """Is told why the worker waits for the pool, None when it does no more."""
        self._clickhouse: ClickHouse | None = None
        self._purged: frozenset[str] = frozenset()
        self._purges_read = float("-inf")

    async def is_purged(self, run_id: str) -> bool:
        """Whether the run is to be forgotten, as far as the pool said when it last answered: for its absence nothing waits."""
        if time.monotonic() - self._purges_read > PURGES_AGE:
            self._purges_read = time.monotonic()
            with contextlib.suppress(
                RetryableError, DependencyUnreachable, UserError
            ):  # UserError: it has no schema yet
                pool = await self._connected()
                self._purged = frozenset(str(row["run_id"]) for row in (await pool.query(PURGED)).dicts())
        return run_id in self._purged

    async def _connected(self) -> ClickHouse:
        if self._clickhouse is None:
            clickhouse = await ClickHouse.connect(self._url, self._database, timeout=QUERY_TIMEOUT)
            try:
                await clickhouse.check_schema()
            except BaseException:
                await clickhouse.close()
                raise
            self._clickhouse = clickhouse
        return self._clickhouse

    async def steps_of(self, trajectory: Trajectory) -> list[StepView]:
        """In the order of the calls. Raises Missing: steps_not_stored, context_lost."""
        deadline = None
        wait = SHORTEST_WAIT
        while True:
            try:
                rows = await self._rows(trajectory)
                self._tell(None)
            except (RetryableError, DependencyUnreachable) as error:
                self._tell(f"the pool is away: {error}")
                deadline = rows = None
            if rows is not None and {row["step_id"] for row in rows} >= set(trajectory.step_ids):
                return restore(rows, trajectory.step_ids)
            if rows is not None:
                deadline = deadline or time.monotonic() + self._timeout
                if time.monotonic() > deadline:
                    raise Missing(
                        "steps_not_stored",
                        f"the pool has {len(rows)} of {len(trajectory.step_ids)} steps after {self._timeout:g} s",
                    )
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT, 2 * wait)

    async def _rows(self, trajectory: Trajectory) -> list[dict[str, Any]]:
        """Of the steps that are stored; none while some are missing."""
        pool = await self._connected()
        key: dict[str, Any] = {
            "run": trajectory.run_id,
            "prompt": trajectory.prompt_uid,
            "trajectory": trajectory.trajectory_uid,
            "steps": list(trajectory.step_ids),
        }
        if await pool.scalar(COUNT, key) < len(trajectory.step_ids):
            return []
        return (await pool.query(ROWS, key)).dicts()

    async def close(self) -> None:
        if self._clickhouse is not None:
            await self._clickhouse.close()
