"""The newest status is kept here for every viewer: one question to the pool and the processes at most once a second.

Invariants: one refresh at a time; a slow pool is asked less often, so that the console takes at most a fifth of its time; the
last numbers stay when the pool goes away, with their age.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Final, Self

import aiohttp

from claw_r1.clickhouse import UNKNOWN_DATABASE, UNKNOWN_TABLE, QueryRefused, without_password
from claw_r1.errors import DependencyUnreachable, RetryableError, UserError
from claw_r1.probe_answers import BEHIND, Process, stage_of, sum_gauge
from claw_r1.probes import MOST, Found, Gauges, ask_port, ask_process, find_processes, places_of, session
from claw_r1.settings import ConsoleSettings
from console import queries
from console.letterbox import Letterbox
from console.reader import Reader
from console.status import Lag, Numbers, PartlyAsked, Pool, Status, engines_of, fold_numbers

log = logging.getLogger("claw.console")

PERIOD: Final = 1.0
REST: Final = 4.0
"""After a refresh of t seconds the pool has at least REST * t seconds of rest."""
_STATEMENTS: Final = {
    "totals": queries.TOTALS,
    "recent": queries.RECENT,
    "tokens": queries.TOKENS,
    "lost": queries.LOST,
    "fates": queries.FATES,
    "recipes": queries.RECIPES,
    "ready": queries.READY,
    "oldest": queries.OLDEST,
    "curve": queries.CURVE,
    "policies": queries.POLICIES,
}


class Board:
    """The status of one pool and its processes; use `opened`."""

    def __init__(self, settings: ConsoleSettings, reader: Reader, http: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._reader = reader
        self._http = http
        self._letters = Letterbox(settings.kafka)
        self._numbers: Numbers | None = None
        self._status: Status | None = None
        self._due = 0.0
        self._lock = asyncio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, settings: ConsoleSettings, reader: Reader) -> AsyncIterator[Self]:
        """A board for the length of the block."""
        async with session() as http:
            board = cls(settings, reader, http)
            if settings.read_only:
                yield board
                return
            counting = asyncio.create_task(board._letters.run(), name="letters")
            try:
                yield board
            finally:
                counting.cancel()
                await asyncio.wait([counting])

    async def status(self) -> Status:
        """The status, at most a period old (longer if the pool is slow)."""
        async with self._lock:
            if self._status is None or time.monotonic() >= self._due:
                started = time.monotonic()
                self._status = await self._ask()
                took = time.monotonic() - started
                self._due = started + max(PERIOD, took * (1 + REST))
            return self._status

    async def _ask(self) -> Status:
        settings = self._settings
        asked = Found({}, {}) if settings.read_only else await find_processes(places_of(settings))
        pool, kafka, answers = await asyncio.gather(
            self._ask_pool(),
            asyncio.gather(*(ask_port("kafka", settings.kafka) for _ in asked.places and ("kafka",))),
            asyncio.gather(*(ask_process(self._http, name, url) for name, url in asked.places.items())),
        )
        gauges: dict[str, Gauges] = {}
        for process, found in answers:
            gauges.setdefault(stage_of(process.name), []).extend(found)
        return Status(
            at=time.time(),
            pool=pool,
            numbers=self._numbers,
            processes=(*kafka, *(process for process, _ in answers), self._describe(pool)),
            partly_asked=tuple(
                PartlyAsked(stage=stage, asked=MOST, known=MOST + more) for stage, more in asked.passed_over.items()
            ),
            engines=engines_of(gauges.get("gateway", []), self._numbers.policies if self._numbers else ()),
            lags=tuple(
                Lag(name=stage, records=sum_gauge(gauges.get(stage, []), BEHIND[stage]))
                for stage in ("streams", "sinks", "workers")
            ),
            dead_letters=self._letters.count(),
            open_groups=sum_gauge(gauges.get("streams", []), "claw_streams_open_groups"),
            calls_in_flight=sum_gauge(gauges.get("gateway", []), "claw_gateway_in_flight"),
            urls={"gateway": settings.gateway, "kafka": settings.kafka, "clickhouse": self._pool_url},
            database=settings.database,
        )

    def _describe(self, pool: Pool) -> Process:
        state = "down" if pool.state == "away" else "ready" if pool.state == "ok" else "waiting"
        return Process.model_validate({"name": "clickhouse", "state": state, "detail": "", "url": self._pool_url})

    @property
    def _pool_url(self) -> str:
        return without_password(self._settings.clickhouse)

    async def _ask_pool(self) -> Pool:
        try:
            self._numbers = await self._read()
        except (DependencyUnreachable, RetryableError) as error:
            return self._note(Pool(state="away", detail=str(error)))
        except QueryRefused as error:
            unmade = error.code in (UNKNOWN_TABLE, UNKNOWN_DATABASE)
            detail = "the pool has no tables yet: `claw migrate` makes them" if unmade else str(error)[:300]
            return self._note(Pool(state="unmade" if unmade else "refused", detail=detail))
        except UserError as error:
            return self._note(Pool(state="refused", detail=str(error)))
        return Pool(state="ok")

    def _note(self, pool: Pool) -> Pool:
        if self._status is None or self._status.pool.state != pool.state:
            log.warning("the pool gives no numbers", extra={"state": pool.state, "why": pool.detail})
        return pool

    async def _read(self) -> Numbers:
        found = await asyncio.gather(*(self._reader.ask(template) for template in _STATEMENTS.values()))
        return fold_numbers(time.time(), dict(zip(_STATEMENTS, found, strict=True)))
