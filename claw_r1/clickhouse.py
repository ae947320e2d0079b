"""Rows reach ClickHouse and come back: the one client, over HTTP, of the sinks, the console and the command line.

Errors say what to do: DependencyUnreachable when nothing answers at the start, RetryableError when the server goes away or
is overloaded later, QueryRefused when the statement itself is wrong. Every call has a deadline.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import aiohttp
import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError, Error

from claw_r1 import wire
from claw_r1.errors import DependencyUnreachable, RetryableError, UserError

RETRYABLE_CODES: Final = frozenset(
    {159, 198, 202, 209, 210, 236, 241, 242, 243, 252, 279, 285, 319, 394, 425, 439, 665, 745, 999}
)
"""Server errors that pass: timeouts, overload, memory, too many parts, disk, replicas, Keeper."""

UNKNOWN_TABLE, UNKNOWN_DATABASE = 60, 81
"""Server errors by which a pool that is not there, or not yet whole, is known."""

_WRAPPING: Final = re.compile(
    r"^.*?server response: |\s*\(version [^()]*(?:\([^()]*\))?\)|\s*\(for url [^)]*\)$", re.DOTALL
)
"""What the driver and the server put around the message."""

LEDGER: Final = "migrations"
"""Table of the database that says which files of the schema were applied."""
NEEDED: Final = 13
"""Number of the newest file of the schema: readers of this version ask for what it makes."""

Settings = Mapping[str, str | int]


class QueryRefused(UserError):
    """The server answered that the statement cannot run; `code` and `name` are ClickHouse's."""

    def __init__(self, message: str, code: int | None, name: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.name = name


@dataclass(frozen=True)
class Rows:
    """A result: column names and rows in the same order."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class ClickHouse:
    """An open client; use `connect`."""

    def __init__(self, client: Any, url: str, database: str, timeout: float) -> None:
        self._client = client
        self.url = without_password(url)
        self.database = database
        self._timeout = timeout

    @classmethod
    async def connect(cls, url: str, database: str = "default", *, timeout: float = 30.0) -> Self:
        """A client of the server at `url` (http[s]://[user:password@]host[:port]); `timeout` in seconds bounds every call.

        Raises DependencyUnreachable if nothing answers there, UserError if the URL is none. The database need not exist.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{without_password(url)!r} is not a ClickHouse URL: write http://host:8123")
        try:
            async with asyncio.timeout(min(timeout, 10.0)):
                client = await clickhouse_connect.get_async_client(
                    interface=parts.scheme,
                    host=parts.hostname,
                    port=parts.port or (8443 if parts.scheme == "https" else 8123),
                    username=unquote(parts.username) if parts.username else None,
                    password=unquote(parts.password or ""),
                    ca_cert=wire.clickhouse_ca() if parts.scheme == "https" else None,
                    database=None,
                    connect_timeout=5,
                    send_receive_timeout=timeout,
                    compress=False,
                    autogenerate_session_id=False,
                )
        except (ClickHouseError, aiohttp.ClientError, OSError, TimeoutError) as error:
            if isinstance(error, Error) and error.code is not None and error.code not in RETRYABLE_CODES:
                raise _refused(error) from error
            raise DependencyUnreachable(
                f"no ClickHouse answers at {without_password(url)} ({_first_line(error)}). Start one with `claw up`, or say "
                "which with --clickhouse URL or CLAW_CLICKHOUSE."
            ) from error
        return cls(client, url, database, timeout)

    async def close(self) -> None:
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, settings: Settings | None = None
    ) -> Rows:
        """The rows of a reading statement; `{name:Type}` in it takes its value from `parameters`."""
        async with self._deadline():
            result = await self._client.query(
                sql, parameters=dict(parameters or {}), settings=dict(settings or {}), transport_settings=self._headers
            )
        return Rows(tuple(result.column_names), [tuple(row) for row in result.result_rows])

    async def scalar(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The first value of the first row, None if there is no row."""
        rows = (await self.query(sql, parameters)).rows
        return rows[0][0] if rows else None

    async def check_schema(self) -> None:
        """Raise UserError, which says what mends it, if the database lacks a file of the schema that this version reads."""
        try:
            newest = await self.scalar(f"SELECT max(id) FROM {self.database}.{LEDGER}") or 0
        except QueryRefused as error:
            if error.code not in (UNKNOWN_TABLE, UNKNOWN_DATABASE):
                raise
            newest = 0
        if newest < NEEDED:
            raise UserError(
                f"the database {self.database} at {self.url} has the schema up to {newest:04d}, and this version reads "
                f"{NEEDED:04d}: run `claw migrate`"
            )

    async def command(self, sql: str, *, settings: Settings | None = None) -> None:
        """Run a statement that gives no rows."""
        async with self._deadline():
            await self._client.command(sql, settings=dict(settings or {}), transport_settings=self._headers)

    async def raw(self, sql: str, output_format: str, *, settings: Settings | None = None) -> bytes:
        """A statement's answer as the server wrote it; a FORMAT clause in the statement beats `output_format`."""
        async with self._deadline():
            answer: bytes = await self._client.raw_query(
                sql,
                settings=dict(settings or {}),
                transport_settings=self._headers | {"X-ClickHouse-Format": output_format},
            )
        return answer

    @contextlib.asynccontextmanager
    async def stream(self, sql: str, output_format: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """A statement's answer in pieces as the server writes them; leaving the block early gives the rest up. The client's
        timeout is that of the whole block."""
        async with self._deadline():
            headers = self._headers | {"X-ClickHouse-Format": output_format}
            async with await self._client.raw_stream(sql, transport_settings=headers) as pieces:
                yield pieces

    async def insert_bytes(
        self, table: str, data: bytes, input_format: str, *, settings: Settings | None = None
    ) -> None:
        """Insert rows in one of ClickHouse's formats that names its columns."""
        async with self._deadline():
            await self._client.raw_insert(
                f"{self.database}.{table}", None, data, settings=dict(settings or {}), fmt=input_format
            )

    async def insert_arrow(self, table: str, columns: Sequence[str], stream: bytes, *, token: str) -> None:
        """Insert one Arrow IPC stream; an insert whose `token` the table has seen lately adds nothing.

        The answer comes when the rows are in a part (no asynchronous insert), so a success is durable.
        """
        settings = {"insert_deduplication_token": token, "insert_deduplicate": 1, "async_insert": 0}
        async with self._deadline():
            await self._client.raw_insert(
                f"{self.database}.{table}", list(columns), stream, settings=settings, fmt="ArrowStream"
            )

    @property
    def _headers(self) -> dict[str, str]:
        return {"X-ClickHouse-Database": self.database}

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError as error:
            raise RetryableError(f"ClickHouse at {self.url} did not answer within {self._timeout:g} s") from error
        except ClickHouseError as error:
            code = error.code if isinstance(error, Error) else None
            if code is None and isinstance(error, Error):
                raise RetryableError(f"ClickHouse at {self.url} went away: {_first_line(error)}") from error
            if code in RETRYABLE_CODES:
                raise RetryableError(f"ClickHouse at {self.url} cannot now: {_first_line(error)}") from error
            raise _refused(error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RetryableError(f"ClickHouse at {self.url} went away: {_first_line(error)}") from error


def _refused(error: ClickHouseError) -> QueryRefused:
    code, name = (error.code, error.name) if isinstance(error, Error) else (None, None)
    said = str(error).strip()
    text = _WRAPPING.sub("", said)
    return QueryRefused(f"ClickHouse refused the statement: {text}", code, name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":…@", 1)
