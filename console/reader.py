"""Questions reach the pool here: few at a time, each with a deadline, and the same question of many viewers once.

Invariants: at most AT_ONCE questions run; an answer is shared by all who ask the same within KEEP seconds; the cache is
bounded; a reader of one run gets rows of that run alone, whatever it asks; a pool that went away is
asked anew with a new connection.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from string import Template
from typing import Any, Final

from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import DependencyUnreachable, RetryableError
from claw_r1.local.analyst import TABLES
from claw_r1.rules import sql_literal
from claw_r1.settings import ConsoleSettings

AT_ONCE: Final = 4
KEEP: Final = 1.0
CACHED: Final = 128
TIMEOUT: Final = 10.0

Row = dict[str, Any]


class Reader:
    """Reads one pool for all viewers, or one run of it for those who may see no more."""

    def __init__(
        self, settings: ConsoleSettings, *, run: str | None = None, timeout: float = TIMEOUT, at_once: int = AT_ONCE
    ) -> None:
        self._settings = settings
        self._bounds: dict[str, str] = {} if run is None else bound(settings.database, run)
        self._timeout = timeout
        self._client: ClickHouse | None = None
        self._connecting = asyncio.Lock()
        self._slots = asyncio.Semaphore(at_once)
        self._answers: OrderedDict[str, tuple[float, asyncio.Future[list[Row]]]] = OrderedDict()
        self.asked = 0
        """Questions that reached the pool."""

    async def ask(
        self, template: str, parameters: Mapping[str, Any] | None = None, *, join_use_nulls: bool = True
    ) -> list[Row]:
        """The rows of a statement; `${database}` in it is the pool's. Shared with whoever asks the same now.

        Raises DependencyUnreachable, RetryableError, QueryRefused.
        """
        key = json.dumps([template, parameters, join_use_nulls], sort_keys=True, default=str)
        known = self._answers.get(key)
        now = time.monotonic()
        if known is not None and (not known[1].done() or now - known[0] < KEEP):
            return await asyncio.shield(known[1])
        answer = asyncio.ensure_future(self._ask(template, parameters or {}, join_use_nulls))
        answer.add_done_callback(_retrieved)
        self._answers[key] = now, answer
        self._answers.move_to_end(key)
        while len(self._answers) > CACHED:
            self._answers.popitem(last=False)
        return await asyncio.shield(answer)

    async def _ask(self, template: str, parameters: Mapping[str, Any], join_use_nulls: bool) -> list[Row]:
        sql = Template(template).substitute(database=self._settings.database)
        settings: dict[str, str | int] = {
            "join_use_nulls": int(join_use_nulls),
            "max_execution_time": int(self._timeout),
            **self._bounds,
        }
        async with self._slots:
            self.asked += 1
            try:
                client = await self._connected()
                return (await client.query(sql, parameters, settings=settings)).dicts()
            except (DependencyUnreachable, RetryableError):
                await self.close()
                raise

    async def _connected(self) -> ClickHouse:
        async with self._connecting:
            if self._client is None:
                self._client = await ClickHouse.connect(
                    self._settings.clickhouse, self._settings.database, timeout=self._timeout
                )
            return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def bound(database: str, run: str) -> dict[str, str]:
    """The settings of a statement that sees rows of one run alone: every table of facts is filtered wherever it stands."""
    mine = sql_literal(f"run_id = {sql_literal(run)}")
    filters = ", ".join(f"{sql_literal(f'{database}.{table}')}: {mine}" for table in sorted(TABLES))
    return {"additional_table_filters": f"{{{filters}}}"}


def _retrieved(answer: "asyncio.Future[list[Row]]") -> None:
    """An error that nobody waited for any more is no leak."""
    if not answer.cancelled():
        answer.exception()
