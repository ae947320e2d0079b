"""Routes of the screen SQL: people's statements reach the pool as those of an analyst, who may only read, within limits."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from claw_r1 import batch_questions, keys
from claw_r1.clickhouse import LEDGER, UNKNOWN_DATABASE, UNKNOWN_TABLE, ClickHouse, QueryRefused
from claw_r1.errors import UserError
from claw_r1.settings import ConsoleSettings
from console import statements
from console.kept import Kept
from console.reader import Reader
from console.screens import Console, answer, console_of
from console.training import as_dry_run, find_batch

routes: Final = APIRouter()
TIMEOUT: Final = 60.0
LIFETIME: Final = 600.0
"""Seconds that a key holds: it is shown once, when the statement is sent."""
AT_ONCE: Final = 2
NEWEST_MIGRATION: Final = f"SELECT max(id) AS newest FROM ${{database}}.{LEDGER}"
"""By the ledger it is known whether the words of the pool are others now."""
_slots: Final = asyncio.Semaphore(AT_ONCE)
"""Statements of people at once; others wait."""


@routes.get("/sql.json")
async def schema(request: Request) -> Response:
    """What may be asked: tables, views and columns with their meanings, and the limits."""
    return answer(await console_of(request).schema.get())


def keep_schema(reader: Reader, database: str) -> Kept:
    """The words of the pool, read anew when its ledger of migrations has grown."""

    async def make() -> dict[str, Any]:
        asked = {"database": database, "names": statements.names()}
        tables, columns = await asyncio.gather(
            reader.ask(statements.WORDS, asked), reader.ask(statements.COLUMNS, asked)
        )
        called = [table for table in tables if statements.parameter_of(table) is not None]
        described = await asyncio.gather(*(reader.ask(statements.describe(view)) for view in called))
        by_name = {view["name"]: rows for view, rows in zip(called, described, strict=True)}
        return {"tables": statements.schema(tables, columns, by_name), "limits": statements.limits()}

    async def mark() -> Any:
        try:
            return (await reader.ask(NEWEST_MIGRATION))[0]["newest"] or None
        except QueryRefused as error:
            if error.code in (UNKNOWN_TABLE, UNKNOWN_DATABASE):
                return None
            raise

    return Kept(make, mark)


@routes.post("/sql.json")
async def ask(request: Request, asked: statements.Asked) -> Response:
    """The first rows of an answer."""
    started = time.monotonic()
    async with _asked(console_of(request), asked.sql, statements.LINES) as pieces:
        found = await statements.read_lines(pieces)
    return answer({**found, "seconds": round(time.monotonic() - started, 3)})


@routes.get("/sql.csv")
@routes.get("/sql.parquet")
async def download(request: Request, sql: str) -> Response:
    """The answer as a file."""
    ending = request.url.path.rpartition(".")[2]
    output_format, media_type = statements.FORMATS[ending]
    if len(sql) > statements.LONGEST:
        raise UserError(f"a statement has {statements.LONGEST:,} characters at most")
    opened = contextlib.AsyncExitStack()
    # What is refused is answered before the first byte of the file.
    pieces = await opened.enter_async_context(_asked(console_of(request), sql, output_format))

    async def body() -> AsyncIterator[bytes]:
        async with opened:
            async for piece in pieces:
                yield piece

    disposition = {"content-disposition": f'attachment; filename="answer.{ending}"'}
    return StreamingResponse(body(), media_type=media_type, headers=disposition)


@routes.get("/sql/{name}.json")
async def as_statement(request: Request, name: str) -> Response:
    """A table of the screens as a statement; what it is of is said as for the screen."""
    words = dict(request.query_params)
    if name in statements.OF_BATCH:
        head = await find_batch(console_of(request), words.get("recipe", ""), words.get("sequence", ""))
        return answer({"sql": statements.literal(statements.OF_BATCH[name], batch_questions.key_of(head))})
    if name == "dry-run":
        return answer({"sql": as_dry_run(words.get("draft", ""))})
    return answer({"sql": statements.as_statement(name, words)})


@contextlib.asynccontextmanager
async def _asked(console: Console, sql: str, output_format: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The answer to a statement, as it comes. Raises UserError with the words of the refusal."""
    url = analyst_of(console.settings, console.run)
    async with _slots, await ClickHouse.connect(url, console.settings.database, timeout=TIMEOUT) as client:
        try:
            async with client.stream(sql.strip().rstrip(";"), output_format) as pieces:
                yield pieces
        except QueryRefused as error:
            hint = " (SHOW TABLES lists what there is)" if error.code == UNKNOWN_TABLE else ""
            raise UserError(f"{error}{hint}") from error


def analyst_of(settings: ConsoleSettings, run: str | None = None) -> str:
    """The URL by which statements of people reach the pool, or one run of it. Raises UserError if no reading user is known."""
    if settings.analyst and run is not None:
        raise UserError(
            f"the reading user of this console sees every run, and the key is of {run}: the screens show it"
        )
    if settings.analyst:
        return settings.analyst
    if not keys.is_loopback(urlsplit(settings.clickhouse).hostname or ""):
        raise UserError(
            "this console knows no user of the ClickHouse server who may only read: name one in CLAW_CONSOLE_ANALYST "
            "(http://USER:PASSWORD@HOST:8123); `claw migrate --roles` makes the roles"
        )
    secrets = keys.Secrets.of(settings.secret)
    return keys.analyst_url(settings.clickhouse, secrets, run_id=run, now=time.time(), lifetime=LIFETIME)
