"""One statement from HTTP: its kind, its format, its data, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.local.statement import StatementRefused, parse_statement


@pytest.mark.parametrize(
    ("sql", "kind", "format"),
    [
        (b"SELECT 1", "read", None),
        (b"  -- a comment\n select 1 format JSON ", "read", "JSON"),
        (b"SELECT 1 FORMAT Native;", "read", "Native"),
        (b"SELECT 1 FORMAT CSV SETTINGS max_threads = 1", "read", "CSV"),
        (b"(SELECT 1) UNION ALL (SELECT 2) FORMAT TSV", "read", "TSV"),
        (b"WITH 1 AS x SELECT 'FORMAT Native' AS format, x", "read", None),
        (b"SELECT format FROM t", "read", None),
        (b"SELECT * FROM (SELECT 1 AS format ORDER BY format)", "read", None),
        (b"/* c */ SHOW TABLES", "read", None),
        (b"DESCRIBE TABLE t", "read", None),
        (b"EXPLAIN SELECT 1", "read", None),
        (b"CREATE TABLE t (a Int8) ENGINE = Memory", "write", None),
        (b"ALTER TABLE t DELETE WHERE s = 'a;b'", "write", None),
        (b"INSERT INTO t VALUES (1)", "write", None),
        (b"INSERT INTO t SELECT 1", "write", None),
        (b"INSERT INTO t (format, values) FORMAT CSV", "insert_data", "CSV"),
        (b"INSERT INTO FUNCTION remote('a', 'b') FORMAT CSV", "insert_data", "CSV"),
        (b"INSERT INTO `format` FORMAT CSV", "insert_data", "CSV"),
        (b"insert into db.t settings a = 1 format Arrow", "insert_data", "Arrow"),
        (b"INSERT INTO t", "insert_data", None),
    ],
)
def test_kind_and_format(sql: bytes, kind: str, format: str | None) -> None:
    statement = parse_statement(sql)
    assert (statement.kind, statement.format) == (kind, format)


@pytest.mark.parametrize(
    ("between", "data"),
    [
        (b"\n", b"1,2\n"),
        (b"\r\n", b"1,2\n"),
        (b" ", b"1,2\n"),
        (b";\n", b"1,2\n"),
        (b"\n", b"\n1,2\n"),
        (b"\n", b"FORMAT VALUES SELECT ; ' \" `"),
        (b"", b""),
    ],
)
def test_data_begin_after_the_line_of_the_format(between: bytes, data: bytes) -> None:
    statement = parse_statement(b"INSERT INTO t FORMAT CSV" + between + data)
    assert statement.data == data
    assert statement.sql == b"INSERT INTO t FORMAT CSV"


@given(st.binary())
def test_any_bytes_after_the_format_are_data(data: bytes) -> None:
    statement = parse_statement(b"INSERT INTO t (a, b) SETTINGS x = 'FORMAT' FORMAT Native\n" + data)
    assert statement.data == data
    assert statement.sql[: statement.infile_at] == b"INSERT INTO t (a, b) "


@given(st.binary())
def test_every_text_is_read_or_refused(text: bytes) -> None:
    try:
        statement = parse_statement(text)
    except StatementRefused:
        return
    assert statement.sql.strip()
    assert statement.sql in text


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        (b"", 62),
        (b" -- nothing\n", 62),
        (b"SELECT 1; SELECT 2", 62),
        (b"SELECT ';'; DROP TABLE t", 62),
        (b"INSERT INTO t FORMAT", 62),
        (b"SELECT 1 INTO OUTFILE 'x'", 358),
        (b"SELECT 1 into /* c */ outfile 'x'", 358),
        (b"INSERT INTO t FROM INFILE 'x' FORMAT CSV", 358),
        (b"INSERT INTO t SELECT 1 INTO OUTFILE 'x'", 358),
    ],
)
def test_what_is_refused_has_clickhouse_code(sql: bytes, code: int) -> None:
    with pytest.raises(StatementRefused, match=rf"Code: {code}\."):
        parse_statement(sql)


@pytest.mark.parametrize("sql", [b"SELECT 1;", b"SELECT 1 ; ;", b"SELECT ';'", b"SELECT $$;$$", b"SELECT 1 -- ; x"])
def test_a_semicolon_alone_is_no_second_statement(sql: bytes) -> None:
    assert parse_statement(sql).kind == "read"
