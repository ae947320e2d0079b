"""`claw sql`: a question in SQL, the pool's answer on stdout."""

import asyncio
import sys
import time
from typing import Annotated, Final

import typer

from claw_r1.cli.address import clickhouse_address, database_name
from claw_r1.cli.options import ClickHouseUrl, Database
from claw_r1.clickhouse import UNKNOWN_DATABASE, UNKNOWN_TABLE, ClickHouse, QueryRefused
from claw_r1.errors import UserError
from claw_r1.keys import Secrets, analyst_url
from claw_r1.settings import Settings

KEY_LIFETIME: Final = 600.0
"""Seconds: it is shown once, when the statement is sent."""


def sql(
    statement: Annotated[str, typer.Argument(help="The SQL; - reads it from stdin.")],
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="ClickHouse output format (default: a table on a terminal, else TSVWithNames)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: meta, data, rows.")] = False,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Longest wait, seconds.")] = 300.0,
    as_analyst: Annotated[
        bool, typer.Option("--as-analyst", help="Ask as the user analyst: it may read the pool and nothing else.")
    ] = False,
    run: Annotated[
        str | None, typer.Option("--run", help="As an analyst of this run: rows of other runs are not there.")
    ] = None,
) -> None:
    """Ask the pool: `claw sql "SELECT count() FROM steps FINAL"`."""
    text = (sys.stdin.read() if statement == "-" else statement).strip()
    if not text:
        raise typer.BadParameter("the statement is empty", param_hint="STATEMENT")
    if as_json and output_format:
        raise typer.BadParameter("--json and --format exclude each other", param_hint="--format")
    wanted = "JSON" if as_json else output_format or _default_format()
    url = clickhouse_address(clickhouse)
    if as_analyst or run is not None:
        url = with_analyst(url, run, time.time())
    answer = asyncio.run(_ask(url, database_name(database), text, wanted, timeout))
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def with_analyst(url: str, run: str | None, now: float) -> str:
    """The URL with the user analyst and a key, signed with the first secret of CLAW_SECRET: of the run, or of every run.

    Raises UserError if the run is no id, or for a server on another machine.
    """
    return analyst_url(url, Secrets.of(Settings.read().secret), run_id=run, now=now, lifetime=KEY_LIFETIME)


def _default_format() -> str:
    return "PrettyCompactMonoBlock" if sys.stdout.isatty() else "TSVWithNames"


async def _ask(url: str, database: str, text: str, output_format: str, timeout: float) -> bytes:
    async with await ClickHouse.connect(url, database, timeout=timeout) as client:
        try:
            return await client.raw(text, output_format, settings={"output_format_json_quote_64bit_integers": 0})
        except QueryRefused as error:
            if error.code == UNKNOWN_DATABASE:
                raise UserError(f"{error}\nThe pool is not there yet: `claw migrate` makes it.") from error
            if error.code == UNKNOWN_TABLE:
                raise UserError(f'{error}\n`claw sql "SHOW TABLES"` lists what there is.') from error
            raise
