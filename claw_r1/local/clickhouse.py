"""ClickHouse's HTTP interface in front of the engine in this process: an HTTP request in, rows or an error out.

Ordinary clients (curl, clickhouse-connect, a dashboard) talk to it as to a server, so the code that runs on one machine
is the code that runs in production.

Invariants:
- an answer says 200 only if the first block of rows was computed; a failure after that breaks the body visibly;
- requests, bodies and waiting statements are bounded;
- no state between requests: sessions are accepted and ignored;
- what the user `analyst` sends is judged before it runs (`callers` says who calls, `guarding` what becomes of it).
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple
from urllib.parse import parse_qsl, urlsplit

from claw_r1.errors import WrongUse
from claw_r1.health import answer as health_answer
from claw_r1.health import respond
from claw_r1.keys import Secrets, is_loopback
from claw_r1.local.callers import Door
from claw_r1.local.codings import BodyTooLarge, CodingError, UnknownCoding, choose_coding, decode_body, encoder
from claw_r1.local.engine import Answer, Engine, EngineError, Request
from claw_r1.local.guarding import guard
from claw_r1.local.statement import StatementRefused, parse_statement
from claw_r1.metrics import CLICKHOUSE_INSERTED_BYTES, CLICKHOUSE_QUERIES, CLICKHOUSE_QUERY_SECONDS
from claw_r1.settings import PASSWORD_VARIABLE, Settings

log = logging.getLogger("claw.clickhouse")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
A = TypeVarTuple("A")
R = TypeVar("R")

# Many more than cores: a few slow statements of an analyst must not hold up the sink's inserts.
WORKERS = 32
MAX_WAITING = 128
# Of analysts, at once: they leave workers to the sink.
MAX_ANALYSING = 8
ANALYST_SECONDS = 300.0
"""For one statement of an analyst, until its answer is read."""
MAX_BODY = 512 * 1024 * 1024
# A body that goes on with the URL's INSERT rather than being its data.
MORE_SQL = re.compile(rb"\s*(SELECT|WITH|VALUES|FORMAT|SETTINGS)\b", re.IGNORECASE)
# URL parameters that speak to the HTTP interface; every other one is a setting or a query parameter.
TRANSPORT_PARAMETERS = frozenset(
    {"query", "database", "default_format", "user", "password", "quota_key", "query_id", "stacktrace", "role"}
    | {"session_id", "session_timeout", "session_check", "close_session", "client_protocol_version"}
    | {"buffer_size", "wait_end_of_query", "compress", "decompress", "enable_http_compression"}
    | {"send_progress_in_http_headers", "http_headers_progress_interval_ms"}
    | {"cancel_http_readonly_queries_on_client_close", "http_native_compression_disable_checksumming_on_decompress"}
)
# ClickHouse's own table from error codes to statuses, and 503 for the bound of this front; every other code is a 500.
STATUS_OF_CODE: Mapping[int, int] = {
    **dict.fromkeys((192, 193, 497, 512, 516), 403),
    194: 401,
    **dict.fromkeys((6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 89, 117, 123, 167, 168), 400),
    **dict.fromkeys((223, 271, 321, 376, 427, 441, 675, 676), 400),
    **dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511), 404),
    48: 501,
    **dict.fromkeys((76, 202, 209, 439), 503),
    159: 408,
    229: 413,
    381: 411,
    779: 415,
}
CONTENT_TYPES: Mapping[str, str] = {
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "Native": "application/octet-stream",
    "RowBinary": "application/octet-stream",
    "Arrow": "application/octet-stream",
    "ArrowStream": "application/octet-stream",
    "Parquet": "application/octet-stream",
}


@dataclass(frozen=True)
class Call:
    """An HTTP request as ClickHouse reads it: URL and form parameters, lower-case headers, and the body."""

    method: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def flag(self, name: str) -> bool:
        return self.parameters.get(name, "0").lower() in ("1", "true")

    @property
    def query_id(self) -> str:
        return self.parameters.get("query_id") or str(uuid.uuid4())


def to_request(call: Call) -> Request:
    """The statement a call asks for.  Raises StatementRefused for what this front does not do."""
    if call.flag("decompress") or call.flag("compress"):
        raise StatementRefused(
            48, "NOT_IMPLEMENTED", "compress=1 and decompress=1 are not served here: use HTTP codings"
        )
    query = call.parameters.get("query", "").encode()
    statement = parse_statement(query) if query.strip() else None
    data = call.body
    if statement is None or statement.kind != "insert_data" or (statement.format is None and MORE_SQL.match(call.body)):
        # The URL's text and the body are one statement, whichever of them is empty.
        statement = parse_statement(b"\n".join(text for text in (query, call.body) if text))
        data = b""
    settings = {
        k: v for k, v in call.parameters.items() if k not in TRANSPORT_PARAMETERS and not k.startswith("param_")
    }
    if call.method in ("GET", "HEAD"):
        settings.setdefault("readonly", "2")
    wanted = call.headers.get("x-clickhouse-format") or call.parameters.get("default_format")
    if statement.kind == "insert_data" and statement.format is None and wanted:
        statement = parse_statement(statement.sql + b" FORMAT " + wanted.encode())
    return Request(
        statement=statement,
        data=statement.data + data,
        output_format=wanted or "TabSeparated",
        settings=settings,
        parameters={k.removeprefix("param_"): v for k, v in call.parameters.items() if k.startswith("param_")},
        database=call.headers.get("x-clickhouse-database") or call.parameters.get("database"),
        whole=call.flag("wait_end_of_query"),
    )


def status_of_code(code: int) -> int:
    return STATUS_OF_CODE.get(code, 500)


def form_fields(content_type: str, body: bytes) -> dict[str, str] | None:
    """The fields of a form body, or None if the body is no form.  Raises StatementRefused for attached files."""
    if content_type.startswith("application/x-www-form-urlencoded"):
        # curl -d says this of any body, so only what looks like a form with a query counts.
        return dict(parse_qsl(body.decode(), keep_blank_values=True)) if body.startswith(b"query=") else None
    if not content_type.startswith("multipart/form-data"):
        return None
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    fields: dict[str, str] = {}
    for part in message.get_payload():
        if isinstance(part, str):
            continue
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is not None:
            raise StatementRefused(48, "NOT_IMPLEMENTED", f"External table {name!r}: not served by the local engine")
        payload = part.get_payload(decode=True)
        fields[str(name)] = payload.decode() if isinstance(payload, bytes) else ""
    return fields


def from_this_machine(headers: Mapping[str, str]) -> bool:
    """Whether a request cannot come from a web page elsewhere: its Origin and its Host, if any, name this machine."""
    origin = headers.get("origin")
    names = [
        urlsplit("//" + headers.get("host", "localhost")).hostname,
        urlsplit(origin).hostname if origin else "localhost",
    ]
    return all(name in ("localhost", "127.0.0.1", "::1") for name in names)


class Front:
    """The ASGI application.  One thread pool runs the engine; the event loop only moves bytes."""

    def __init__(
        self, engine: Engine, door: Door, database: str, *, any_host: bool = False, max_body: int = MAX_BODY
    ) -> None:
        self._engine = engine
        self._door = door
        self._database = database
        self._any_host = any_host
        self._max_body = max_body
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="engine")
        self._running = 0
        self._analysing = 0
        self._version = f" (version {engine.version} (official build))\n"

    def close(self) -> None:
        """Wait for the statements that run, then stop the engine."""
        self._pool.shutdown(wait=True)
        self._engine.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parameters = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if not self._any_host and not from_this_machine(headers):
            await _plain(
                send, 403, "Only programs on this machine may ask this server: the Host or the Origin is another.\n"
            )
        elif scope["path"] in ("/", "/query") and (scope["method"] == "POST" or "query" in parameters):
            await self._answer(scope["method"], parameters, headers, receive, send)
        else:
            await self._answer_page(scope["path"], send)

    async def _answer_page(self, path: str, send: Send) -> None:
        if path in ("/", "/ping", "/replicas_status"):
            await _plain(send, 200, "Ok.\n")
        elif (page := health_answer(path, lambda: None)) is not None:
            await respond(send, *page)
        else:
            text = f"There is no handle {path}\nUse / or /ping for health checks, or /?query=... for queries.\n"
            await _plain(send, 404, text)

    async def _answer(
        self, method: str, parameters: dict[str, str], headers: Mapping[str, str], receive: Receive, send: Send
    ) -> None:
        async with contextlib.AsyncExitStack() as until_sent:
            await self._answer_call(method, parameters, headers, receive, send, until_sent)

    async def _answer_call(
        self,
        method: str,
        parameters: dict[str, str],
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
        until_sent: contextlib.AsyncExitStack,
    ) -> None:
        started, kind = time.perf_counter(), "unread"
        call = Call(method, parameters, headers, b"")
        query_id = call.query_id
        try:
            body = await self._read_body(headers, receive)
            fields = form_fields(headers.get("content-type", ""), body)
            call = Call(method, {**parameters, **(fields or {})}, headers, b"" if fields is not None else body)
            analyst = self._door.identify(call.parameters, headers, time.time())
            request = to_request(call)
            kind = request.statement.kind
            if analyst is not None:
                await until_sent.enter_async_context(self._one_of_analysts())
                request = await self._in_thread(guard, self._engine, request, analyst, self._database)
            answer = await self._run(request)
        except (EngineError, StatementRefused, BodyTooLarge, CodingError, UnknownCoding, UnicodeDecodeError) as error:
            code, status, text = self._explain(error)
            CLICKHOUSE_QUERIES.labels(kind, str(status)).inc()
            await _plain(
                send, status, text, {"X-ClickHouse-Exception-Code": str(code), "X-ClickHouse-Query-Id": query_id}
            )
            return
        CLICKHOUSE_QUERIES.labels(kind, "200").inc()
        CLICKHOUSE_QUERY_SECONDS.labels(kind).observe(time.perf_counter() - started)
        CLICKHOUSE_INSERTED_BYTES.inc(len(request.data))
        await self._send_answer(call, request, answer, query_id, receive, send)

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CodingError("The client went away before its body was complete")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body:
                raise BodyTooLarge(f"The body is larger than {self._max_body} bytes")
        coding = headers.get("content-encoding", "").strip().lower()
        return await self._in_thread(decode_body, bytes(body), coding, self._max_body)

    async def _run(self, request: Request) -> Answer:
        if self._running >= MAX_WAITING:
            text = f"Too many simultaneous queries. Maximum: {MAX_WAITING}"
            raise StatementRefused(202, "TOO_MANY_SIMULTANEOUS_QUERIES", text)
        self._running += 1
        try:
            return await self._in_thread(self._engine.run, request)
        finally:
            self._running -= 1

    @contextlib.asynccontextmanager
    async def _one_of_analysts(self) -> AsyncIterator[None]:
        """One of few, to the last byte of the answer, which must be read within ANALYST_SECONDS."""
        if self._analysing >= MAX_ANALYSING:
            text = f"Too many simultaneous queries of analysts. Maximum: {MAX_ANALYSING}"
            raise StatementRefused(202, "TOO_MANY_SIMULTANEOUS_QUERIES", text)
        self._analysing += 1
        try:
            async with asyncio.timeout(ANALYST_SECONDS):
                yield
        except TimeoutError:  # the answer has no end, and its connection is closed
            log.warning("an analyst's answer was not read in time", extra={"seconds": ANALYST_SECONDS})
        finally:
            self._analysing -= 1

    async def _in_thread(self, function: Callable[[*A], R], *args: *A) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def _explain(self, error: Exception) -> tuple[int, int, str]:
        """ClickHouse's code, the HTTP status and the body for an error."""
        if isinstance(error, EngineError | StatementRefused):
            engine_error = error if isinstance(error, EngineError) else EngineError(str(error))
            return engine_error.code, status_of_code(engine_error.code), f"{engine_error}{self._version}"
        code = 229 if isinstance(error, BodyTooLarge) else 89 if isinstance(error, UnknownCoding) else 271
        return code, status_of_code(code), f"Code: {code}. DB::Exception: {error}{self._version}"

    async def _send_answer(
        self, call: Call, request: Request, answer: Answer, query_id: str, receive: Receive, send: Send
    ) -> None:
        tag = uuid.uuid4().hex[:16]
        accepted = call.headers.get("accept-encoding", "") if call.flag("enable_http_compression") else ""
        coding = choose_coding(accepted)
        encode = encoder(coding) if coding else None
        await send(self._head(request, answer, query_id, tag, coding))
        gone = asyncio.ensure_future(receive())
        try:
            if call.method != "HEAD":
                while not gone.done() and (chunk := await self._in_thread(_next_chunk, answer.chunks)):
                    piece = await self._in_thread(encode.encode, chunk) if encode else chunk
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            tail = encode.finish() if encode and call.method != "HEAD" else b""
            await send({"type": "http.response.body", "body": tail})
        except EngineError as error:
            # 200 was said: the text goes into the body, and the missing end of the body tells of the failure.
            broken = _exception_block(tag, f"{error}{self._version}".encode())
            piece = encode.encode(broken) + encode.finish() if encode else broken
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            log.warning("statement failed after its first rows", extra={"query_id": query_id, "code": error.code})
        finally:
            gone.cancel()
            await self._in_thread(answer.close)

    def _head(self, request: Request, answer: Answer, query_id: str, tag: str, coding: str | None) -> dict[str, Any]:
        headers = {
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Server-Display-Name": "claw",
            "X-ClickHouse-Timezone": self._engine.timezone,
            "X-ClickHouse-Exception-Tag": tag,
            "X-ClickHouse-Summary": json.dumps({key: str(value) for key, value in answer.summary.items()}),
        }
        if request.statement.kind == "read":
            name = request.statement.format or request.output_format
            headers["X-ClickHouse-Format"] = name
            headers["Content-Type"] = CONTENT_TYPES.get(name, "text/plain; charset=UTF-8")
        if coding:
            headers["Content-Encoding"] = coding
        return _head(200, headers)


def _next_chunk(chunks: Iterator[bytes]) -> bytes:
    """The next non-empty chunk, or b"" at the end."""
    return next((chunk for chunk in chunks if chunk), b"")


def _exception_block(tag: str, message: bytes) -> bytes:
    """The trailer by which ClickHouse tells clients of a failure inside a body that began well."""
    head, tail = f"\r\n__exception__\r\n{tag}\r\n".encode(), f"\n{len(message)} {tag}\r\n__exception__\r\n".encode()
    return head + message + tail


def _head(status: int, headers: Mapping[str, str]) -> dict[str, Any]:
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


async def _plain(send: Send, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
    body = text.encode()
    described = {"Content-Type": "text/plain; charset=UTF-8", "Content-Length": str(len(body)), **(headers or {})}
    await send(_head(status, described))
    await send({"type": "http.response.body", "body": body})


def read_door(host: str) -> tuple[Door, str]:
    """What callers are asked for, and the pool's database, as the environment says. Raises WrongUse."""
    settings = Settings.read()
    door = Door(Secrets.of(settings.secret), os.environ.get(PASSWORD_VARIABLE, ""))
    if not door.password and not is_loopback(host):
        raise WrongUse(
            f"ClickHouse's engine does not listen on {host} without a password, because everybody who reaches it could read "
            f"this machine's files: set {PASSWORD_VARIABLE}, or listen on 127.0.0.1"
        )
    return door, settings.database


def serve(path: Path, host: str, port: int, *, max_body: int = MAX_BODY) -> None:
    """Serve the engine over `path` until SIGTERM or SIGINT; answers that run are finished first."""
    import uvicorn

    try:
        door, database = read_door(host)
    except WrongUse as error:
        sys.exit(f"error: {error}")
    path.mkdir(parents=True, exist_ok=True)
    try:
        engine = Engine(path)
    except EngineError as error:
        sys.exit(
            f"error: the engine cannot open {path}: {error}\nIs another server running on it? Stop that one first."
        )
    front = Front(engine, door, database, any_host=not is_loopback(host), max_body=max_body)
    config = uvicorn.Config(
        front,
        host=host,
        port=port,
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=10,
        backlog=256,
    )
    # uvicorn stops at these signals and raises them again when it is done; the engine is still to be closed then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    try:
        uvicorn.Server(config).run()
    finally:
        front.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m claw_r1.local.clickhouse", description="ClickHouse's engine, over HTTP"
    )
    parser.add_argument("--path", type=Path, required=True, help="directory of the data; one server a directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument(
        "--max-body", type=int, default=MAX_BODY, help="largest request body in bytes, also when decoded"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    serve(arguments.path, arguments.host, arguments.port, max_body=arguments.max_body)


if __name__ == "__main__":
    main()
