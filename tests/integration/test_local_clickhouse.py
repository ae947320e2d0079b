"""The front's contract: one body run through clickhouse-connect's ordinary HTTP client and through plain HTTP."""

import gzip
import json
import threading
import urllib.error
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
import lz4.frame
import pyarrow as pa
import pytest
from backports import zstd
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.conftest import Stack, wait_until

pytestmark = pytest.mark.stack

Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Failure:
    code: int
    text: str


class Asker(Protocol):
    """What every client of ClickHouse can do; `ask` and `insert` answer a Failure instead of raising."""

    def ask(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[list[Any]] | Failure: ...

    def do(self, sql: str) -> None: ...

    def insert(self, table: str, rows: Rows, columns: Sequence[str], token: str | None = None) -> Failure | None: ...


class ConnectAsker:
    """clickhouse-connect over HTTP, as an analyst would use it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.client = clickhouse_connect.get_client(host=parts.hostname or "", port=parts.port or 0, compress=True)

    def ask(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[list[Any]] | Failure:
        try:
            result = self.client.query(sql, parameters=dict(parameters or {}), settings=dict(settings or {}))
        except DatabaseError as error:
            return Failure(error.code or 0, str(error))
        return [list(row) for row in result.result_rows]

    def do(self, sql: str) -> None:
        self.client.command(sql)

    def insert(self, table: str, rows: Rows, columns: Sequence[str], token: str | None = None) -> Failure | None:
        settings = {"insert_deduplication_token": token} if token else {}
        try:
            self.client.insert(table, rows, column_names=columns, settings=settings)
        except DatabaseError as error:
            return Failure(error.code or 0, str(error))
        return None


class PlainAsker:
    """HTTP as curl speaks it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(
        self, sql: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> list[list[Any]] | Failure:
        bound = {f"param_{name}": str(value) for name, value in (parameters or {}).items()}
        answer = send(self.url, {**bound, **(settings or {})}, f"{sql} FORMAT JSONCompactEachRow".encode())
        if answer.status != 200:
            return Failure(int(answer.headers["X-ClickHouse-Exception-Code"]), answer.body.decode())
        return [json.loads(line) for line in answer.body.splitlines()]

    def do(self, sql: str) -> None:
        assert send(self.url, {}, sql.encode()).status == 200

    def insert(self, table: str, rows: Rows, columns: Sequence[str], token: str | None = None) -> Failure | None:
        settings = {"insert_deduplication_token": token} if token else {}
        query = f"INSERT INTO {table} ({', '.join(columns)}) FORMAT JSONCompactEachRow"
        body = "\n".join(json.dumps(list(row)) for row in rows).encode()
        answer = send(self.url, {"query": query, **settings}, body)
        if answer.status != 200:
            return Failure(int(answer.headers["X-ClickHouse-Exception-Code"]), answer.body.decode())
        return None


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    headers: Message
    body: bytes


def send(
    url: str,
    parameters: Mapping[str, Any],
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
) -> HttpAnswer:
    request = urllib.request.Request(f"{url}/?{urlencode(parameters)}", body, dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return HttpAnswer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return HttpAnswer(error.code, error.headers, error.read())


ASKERS: Mapping[str, Callable[[str], Asker]] = {"clickhouse-connect": ConnectAsker, "http": PlainAsker}


@pytest.fixture(params=list(ASKERS))
def asker(request: pytest.FixtureRequest, stack: Stack) -> Asker:
    return ASKERS[request.param](stack.clickhouse)


@pytest.fixture
def table(stack: Stack) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex}"
    columns = "id UInt64, tokens Array(UInt32), text String"
    engine = "MergeTree ORDER BY id SETTINGS non_replicated_deduplication_window=100"
    assert send(stack.clickhouse, {}, f"CREATE TABLE {name} ({columns}) ENGINE = {engine}".encode()).status == 200
    yield name
    assert send(stack.clickhouse, {}, f"DROP TABLE {name}".encode()).status == 200


ROWS = [[1, [1, 2, 3], "a"], [2, [], "b'\\\n\t;--"], [3, [4_294_967_295], "ü"]]


def test_rows_come_back_as_inserted(asker: Asker, table: str) -> None:
    assert asker.insert(table, ROWS, ["id", "tokens", "text"]) is None
    assert asker.ask(f"SELECT id, tokens, text FROM {table} ORDER BY id") == ROWS


def test_query_parameters_are_bound_by_the_server(asker: Asker, table: str) -> None:
    assert asker.insert(table, ROWS, ["id", "tokens", "text"]) is None
    found = asker.ask(f"SELECT id FROM {table} WHERE id > {{low:UInt64}} ORDER BY id", {"low": 1})
    assert found == [[2], [3]]
    assert asker.ask("SELECT {text:String}", {"text": "it's"}) == [["it's"]]


def test_settings_hold_for_one_request_only(asker: Asker) -> None:
    setting = "SELECT value FROM system.settings WHERE name = 'max_threads'"
    assert asker.ask(setting, settings={"max_threads": 1}) == [["1"]]
    assert asker.ask(setting) != [["1"]]


def test_a_retried_insert_with_the_same_token_adds_nothing(asker: Asker, table: str) -> None:
    for _ in range(3):
        assert asker.insert(table, ROWS, ["id", "tokens", "text"], token="cluster/topic/0/0-3") is None
    assert asker.ask(f"SELECT count() FROM {table}") == [[3]]
    assert asker.insert(table, ROWS, ["id", "tokens", "text"], token="cluster/topic/0/3-6") is None
    assert asker.ask(f"SELECT count() FROM {table}") == [[6]]


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT * FROM no_such_table", 60),
        ("SELECT no_such_column FROM system.one", 47),
        ("SELECT * FRM system.one", 62),
        ("SELECT throwIf(1)", 395),
        ("SELECT no_such_function(1)", 46),
    ],
)
def test_errors_carry_clickhouse_codes(asker: Asker, sql: str, code: int) -> None:
    failure = asker.ask(sql)
    assert isinstance(failure, Failure)
    assert failure.code == code
    assert f"Code: {code}." in failure.text


def test_a_failed_insert_says_why(asker: Asker) -> None:
    failure = asker.insert("no_such_table", [[1]], ["id"])
    assert isinstance(failure, Failure)
    assert failure.code == 60


def test_readers_go_on_while_a_slow_query_runs(asker: Asker, stack: Stack) -> None:
    slow = threading.Thread(target=send, args=(stack.clickhouse, {}, b"SELECT sleep(3), 'slow'"))
    slow.start()
    running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleep%'"
    wait_until(lambda: asker.ask(running) == [[1]], what="the slow query runs")
    assert slow.is_alive()
    slow.join()


def test_arrow_goes_in_and_out(stack: Stack, table: str) -> None:
    client = ConnectAsker(stack.clickhouse).client
    rows = pa.table(
        {
            "id": pa.array(range(1000), pa.uint64()),
            "tokens": pa.array([[i, i + 1] for i in range(1000)], pa.list_(pa.uint32())),
            "text": pa.array([f"row {i}" for i in range(1000)]),
        }
    )
    summary = client.insert_arrow(table, rows)
    assert summary.written_rows == 1000
    back = client.query_arrow(f"SELECT * FROM {table} ORDER BY id", use_strings=True)
    assert back.num_rows == 1000
    assert back.column("tokens").to_pylist() == rows.column("tokens").to_pylist()


def test_large_results_stream(stack: Stack) -> None:
    client = ConnectAsker(stack.clickhouse).client
    total = 0
    with client.query_column_block_stream("SELECT number FROM numbers(1000000)") as blocks:
        for block in blocks:
            total += sum(block[0])
    assert total == 499_999_500_000


def test_an_error_after_the_first_rows_reaches_the_client(stack: Stack) -> None:
    client = ConnectAsker(stack.clickhouse).client
    sql = "SELECT number, throwIf(number = 900000, 'as late as this') FROM numbers(1000000)"
    with (
        pytest.raises(Exception, match="as late as this"),
        client.query_rows_stream(sql, settings={"max_block_size": 1000}) as rows,
    ):
        for _ in rows:
            pass


def test_an_empty_result_is_no_error(asker: Asker, table: str) -> None:
    assert asker.ask(f"SELECT id FROM {table}") == []


def test_a_command_without_rows_names_no_format(stack: Stack, table: str) -> None:
    quiet = send(stack.clickhouse, {}, f"TRUNCATE TABLE {table}".encode())
    assert (quiet.status, quiet.body, quiet.headers["X-ClickHouse-Format"]) == (200, b"", None)
    loud = send(stack.clickhouse, {}, b"SELECT 1")
    assert (loud.body, loud.headers["X-ClickHouse-Format"]) == (b"1\n", "TabSeparated")


def test_the_format_comes_from_the_text_the_header_or_the_url(stack: Stack) -> None:
    url = stack.clickhouse
    assert send(url, {"default_format": "CSV"}, b"SELECT 'a'").body == b'"a"\n'
    assert send(url, {"default_format": "CSV"}, b"SELECT 'a' AS x FORMAT JSONEachRow").body == b'{"x":"a"}\n'
    assert send(url, {}, b"SELECT 'a' AS x", {"X-ClickHouse-Format": "JSONEachRow"}).body == b'{"x":"a"}\n'


@pytest.mark.parametrize(
    ("url_text", "body"),
    [
        ("INSERT INTO {t} (id, text) FORMAT CSV", b'1,"a;b"\n2,"c"\n'),
        ("INSERT INTO {t} (id, text) VALUES", b"(1,'a;b'),(2,'c')"),
        ("", b'INSERT INTO {t} (id, text) FORMAT CSV\n1,"a;b"\n2,"c"\n'),
        ("", b"INSERT INTO {t} (id, text) FORMAT TSV 1\ta;b\n2\tc\n"),
        ("", b'INSERT INTO {t} (id, text) SETTINGS async_insert=0 FORMAT CSV\n1,"a;b"\n2,"c"\n'),
        ("", b"INSERT INTO {t} (id, text) VALUES (1,'a;b'),(2,'c')"),
        ("INSERT INTO {t} (id, text)", b"(1,'a;b'),(2,'c')"),
        ("", b"INSERT INTO {t} (id, text) SELECT number+1, ['a;b','c'][number+1] FROM numbers(2)"),
        ("INSERT INTO {t} (id, text)", b" SELECT number+1, ['a;b','c'][number+1] FROM numbers(2)"),
    ],
)
def test_data_comes_in_the_body_in_the_text_or_in_both(stack: Stack, table: str, url_text: str, body: bytes) -> None:
    parameters = {"query": url_text.format(t=table)} if url_text else {}
    answer = send(stack.clickhouse, parameters, body.replace(b"{t}", table.encode()))
    assert (answer.status, answer.body) == (200, b"")
    rows = send(stack.clickhouse, {"query": f"SELECT id, text FROM {table} ORDER BY id FORMAT CSV"}).body
    assert rows == b'1,"a;b"\n2,"c"\n'


ENCODE: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
}
DECODE: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "lz4": lz4.frame.decompress,
    "zstd": zstd.decompress,
}


@pytest.mark.parametrize("coding", list(ENCODE))
def test_bodies_are_coded_both_ways(stack: Stack, table: str, coding: str) -> None:
    lines = [b'{"id":%d}\n' % i for i in range(500)]
    body = ENCODE[coding](b"".join(lines[:200])) + ENCODE[coding](b"".join(lines[200:]))  # clients send many frames
    query = {"query": f"INSERT INTO {table} (id) FORMAT JSONEachRow"}
    inserted = send(stack.clickhouse, query, body, {"Content-Encoding": coding})
    assert json.loads(inserted.headers["X-ClickHouse-Summary"])["written_rows"] == "500"
    select = {"query": f"SELECT sum(id), repeat('x', 10000) FROM {table}", "enable_http_compression": "1"}
    answer = send(stack.clickhouse, select, headers={"Accept-Encoding": coding})
    assert answer.headers["Content-Encoding"] == coding
    assert DECODE[coding](answer.body) == b"124750\t" + b"x" * 10000 + b"\n"
    plain = send(stack.clickhouse, {"query": "SELECT 1"}, headers={"Accept-Encoding": coding})
    assert (plain.headers["Content-Encoding"], plain.body) == (None, b"1\n")


def test_bytes_that_are_not_what_their_coding_says_are_refused(stack: Stack, table: str) -> None:
    query = {"query": f"INSERT INTO {table} (id) FORMAT CSV"}
    assert send(stack.clickhouse, query, b"1\n", {"Content-Encoding": "gzip"}).status == 400
    assert send(stack.clickhouse, query, gzip.compress(b"1\n" * 99)[:-12], {"Content-Encoding": "gzip"}).status == 400
    assert send(stack.clickhouse, query, b"1\n", {"Content-Encoding": "snappy"}).status == 400
    assert send(stack.clickhouse, {"query": f"SELECT count() FROM {table}"}).body == b"0\n"


@pytest.mark.parametrize(
    ("sql", "status", "code"),
    [
        ("SELECT * FROM nope", 404, "60"),
        ("SELECT 1; SELECT 2", 400, "62"),
        ("SELECT 1 INTO OUTFILE '/tmp/never'", 500, "358"),
        ("INSERT INTO nope FROM INFILE '/etc/passwd' FORMAT TSV", 500, "358"),
        ("", 400, "62"),
    ],
)
def test_statuses_are_clickhouse_own(stack: Stack, sql: str, status: int, code: str) -> None:
    answer = send(stack.clickhouse, {}, sql.encode())
    assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (status, code)


def test_get_cannot_write(stack: Stack, table: str) -> None:
    answer = send(stack.clickhouse, {"query": f"TRUNCATE TABLE {table}"})
    assert answer.headers["X-ClickHouse-Exception-Code"] == "164"


def test_a_readonly_request_stays_readonly(stack: Stack, table: str) -> None:
    answer = send(stack.clickhouse, {"readonly": "1", "max_threads": "1"}, f"TRUNCATE TABLE {table}".encode())
    assert answer.headers["X-ClickHouse-Exception-Code"] == "164"


def test_unknown_settings_and_databases_are_named(stack: Stack) -> None:
    assert b"no_such_setting" in send(stack.clickhouse, {"no_such_setting": "1"}, b"SELECT 1").body
    unknown = send(stack.clickhouse, {"database": "no_such_db"}, b"SELECT 1")
    assert (unknown.status, unknown.headers["X-ClickHouse-Exception-Code"]) == (404, "81")
    assert send(stack.clickhouse, {"database": "system"}, b"SELECT dummy FROM one").body == b"0\n"


def test_health_and_metrics(stack: Stack) -> None:
    for path in ("/ping", "/replicas_status", "/"):
        with urllib.request.urlopen(stack.clickhouse + path, timeout=10) as answer:
            assert answer.read() == b"Ok.\n"
    for path in ("/healthz", "/readyz"):
        with urllib.request.urlopen(stack.clickhouse + path, timeout=10) as answer:
            assert answer.status == 200
    assert send(stack.clickhouse, {}, method="HEAD").status == 200
    with urllib.request.urlopen(stack.clickhouse + "/metrics", timeout=10) as answer:
        assert b"claw_clickhouse_queries_total" in answer.read()


def test_a_web_page_elsewhere_is_refused(stack: Stack) -> None:
    assert send(stack.clickhouse, {}, b"SELECT 1", {"Origin": "http://elsewhere.example"}).status == 403
    assert send(stack.clickhouse, {}, b"SELECT 1", {"Host": "elsewhere.example"}).status == 403


def test_long_parameters_come_as_a_form(stack: Stack) -> None:
    client = ConnectAsker(stack.clickhouse).client
    text = "x" * 100_000
    assert client.query("SELECT length({text:String})", parameters={"text": text}).result_rows == [(100_000,)]
