"""The ClickHouse engine in this process (chDB): one statement in, rows or an error with ClickHouse's code out.

Invariants:
- every statement runs on an engine connection of its own, so settings, the current database and SET never leak from one
  to the next and statements run side by side (opening one takes 0.1 ms);
- inserted data never passes through SQL text: the engine reads the bytes from a memory file.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claw_r1.local.statement import STREAMED_FORMATS, Statement, StatementRefused

# What every statement starts from.  Acknowledged means in a part on disk, and a retry with the same token adds nothing.
BASE_SETTINGS: Mapping[str, str] = {"async_insert": "0", "insert_deduplicate": "1"}
SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
STANDARD_EXCEPTION = 1001


class EngineError(Exception):
    """What ClickHouse says about a statement that failed: its code, and the text for the client."""

    def __init__(self, message: str) -> None:
        found = re.search(r"Code: (\d+)\.", message)
        self.code = int(found.group(1)) if found else STANDARD_EXCEPTION
        at = found.start() if found else 0
        super().__init__(message[at:].strip())


@dataclass(frozen=True)
class Request:
    """One statement with everything that bears on it.  `data` is inserted data (already decoded)."""

    statement: Statement
    data: bytes = b""
    output_format: str = "TabSeparated"
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    database: str | None = None
    whole: bool = True  # answer in one piece, with full counts, rather than as it comes


@dataclass
class Answer:
    """Rows in `output_format` as chunks, and the counts known when the first chunk was ready."""

    chunks: Iterator[bytes]
    summary: Mapping[str, int]

    def close(self) -> None:
        """Give the connection back; a stream that was not read to its end is cancelled."""
        close = getattr(self.chunks, "close", None)
        if close is not None:
            close()


class Engine:
    """The engine bound to one directory; a process has one, and a directory has one process.

    Raises EngineError if another process holds the directory.
    """

    def __init__(self, path: Path) -> None:
        import chdb

        self._connect = chdb.connect
        self._path = os.path.realpath(path)
        try:
            # Held open for the whole life: the engine stops when its last connection closes.
            self._keeper = chdb.connect(self._path)
        except RuntimeError as error:
            raise EngineError(str(error)) from error
        self.version = self._keeper.query("SELECT version()", "TSVRaw").bytes().decode().strip()
        self.timezone = self._keeper.query("SELECT timezone()", "TSVRaw").bytes().decode().strip()

    def close(self) -> None:
        self._keeper.close()

    def run(self, request: Request) -> Answer:
        """Run one statement to its first chunk.  Blocking.  Raises EngineError or StatementRefused."""
        connection = self._connect(self._path)
        try:
            with _engine_errors():
                self._configure(connection, request)
                if request.statement.kind == "insert_data":
                    return _insert(connection, request)
                if request.whole or not _streams(request):
                    return _query(connection, request)
                return _stream(connection, request)
        except BaseException:
            connection.close()
            raise

    def _configure(self, connection: Any, request: Request) -> None:
        settings = {**BASE_SETTINGS, **request.settings}
        # readonly goes last: after it no other setting can be changed.
        ordered = sorted(settings.items(), key=lambda item: item[0] == "readonly")
        if request.database:
            connection.query(f"USE {_quoted(request.database, '`')}", "Null")
        connection.query("SET " + ", ".join(f"{_setting_name(k)}={_quoted(v)}" for k, v in ordered), "Null")


def _streams(request: Request) -> bool:
    return request.statement.streamable and (request.statement.format or request.output_format) in STREAMED_FORMATS


def _query(connection: Any, request: Request) -> Answer:
    result = connection.query(request.statement.sql, request.output_format, params=dict(request.parameters))
    reads = request.statement.kind == "read"
    summary = {
        "read_rows": result.storage_rows_read(),
        "read_bytes": result.storage_bytes_read(),
        "written_rows": result.rows_written(),
        "written_bytes": result.bytes_written(),
        "result_rows": result.rows_read() if reads else 0,
        "result_bytes": result.bytes_read() if reads else 0,
        "elapsed_ns": int(result.elapsed() * 1e9),
    }
    body = bytes(result.bytes())
    connection.close()
    return Answer(iter([body] if body else []), summary)


def _stream(connection: Any, request: Request) -> Answer:
    stream = connection.send_query(request.statement.sql, request.output_format, params=dict(request.parameters))
    first = next(stream, None)  # an error before the first row becomes a status, not a broken body

    def chunks() -> Iterator[bytes]:
        try:
            with _engine_errors():
                if first is not None:
                    yield bytes(first.bytes())
                for chunk in stream:
                    yield bytes(chunk.bytes())
        finally:
            stream.close()
            connection.close()

    answer = chunks()
    return Answer(answer, {})


def _insert(connection: Any, request: Request) -> Answer:
    """Insert `data` by letting the engine read it as a file: its own parallel parsers, no copy through SQL."""
    statement = request.statement
    with _as_file(request.data) as path:
        infile = f" FROM INFILE {_quoted(path)} COMPRESSION 'none' ".encode()
        sql = statement.sql[: statement.infile_at] + infile + statement.sql[statement.infile_at :]
        if statement.format is None:
            sql += b" FORMAT Values"
        result = connection.query(sql, "Null", params=dict(request.parameters))
    rows, elapsed = result.rows_read(), int(result.elapsed() * 1e9)
    connection.close()
    return Answer(iter(()), {"written_rows": rows, "written_bytes": len(request.data), "elapsed_ns": elapsed})


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path under which the engine, in this process, reads `data`."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("claw-insert", os.MFD_CLOEXEC)
        with open(descriptor, "wb", buffering=0) as file:
            _write_all(file.fileno(), data)
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile(prefix="claw-insert-") as named:
            named.write(data)
            named.flush()
            yield named.name


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextlib.contextmanager
def _engine_errors() -> Iterator[None]:
    from chdb import ChdbError

    try:
        yield
    except (ChdbError, RuntimeError) as error:
        raise EngineError(str(error)) from error


def _setting_name(name: str) -> str:
    if not SETTING_NAME.fullmatch(name):
        raise StatementRefused(115, "UNKNOWN_SETTING", f"Unknown setting {name!r}")
    return name


def _quoted(text: str, quote: str = "'") -> str:
    return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
