"""An analyst's request becomes one that may run: the engine parses the statement, `analyst` judges it, limits are put on it.

Nothing of the statement runs here: `formatQuery` gets it as a value, and EXPLAIN AST its normal form on a connection that may
only read.
"""

import dataclasses
from collections.abc import Mapping

from claw_r1.local import analyst
from claw_r1.local.callers import Analyst
from claw_r1.local.engine import SETTING_NAME, Engine, EngineError, Request
from claw_r1.local.statement import Statement, StatementRefused, parse_statement

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0", "\b": "\\b", "\f": "\\f"})
READONLY = 164
"""ClickHouse's number for what a connection that may only read must not do."""
READING = {"readonly": "1", **analyst.LIMITS}


def guard(engine: Engine, request: Request, who: Analyst, database: str) -> Request:
    """The request as it may run, on rows of the analyst's runs. Blocking. Raises StatementRefused or EngineError."""
    if request.statement.kind != "read" or request.data:
        _ask(
            engine, "SELECT formatQuery({statement:String})", {"statement": _escaped(request.statement.sql)}
        )  # its syntax
        raise analyst.refuse("Only SELECT, SHOW TABLES and DESCRIBE TABLE are allowed")
    _check_around(request, database)
    text = _ask(engine, "SELECT formatQuery({statement:String})", {"statement": _escaped(request.statement.sql)})
    analyst.check_text(text, bound=who.runs is not None)
    try:
        tree = _ask(engine, f"EXPLAIN AST {text}", request.parameters)
    except EngineError as error:
        if error.code == READONLY:
            raise analyst.refuse("SETTINGS are not allowed in a statement") from error
        raise
    existing = _ask(engine, "SELECT name FROM system.tables WHERE database = {database:String}", {"database": database})
    analyst.judge(analyst.read_tree(tree), text, database=database, existing=frozenset(existing.splitlines()))
    settings = {**request.settings, **READING}
    if who.runs is not None:
        runs = ", ".join(f"'{run}'" for run in sorted(who.runs))  # ids: no quote, no backslash
        settings |= {
            **analyst.RUN_SETTINGS,
            "additional_table_filters": _map(
                {f"{database}.{table}": f"run_id IN ({runs})" for table in analyst.TABLES}
            ),
        }
    return dataclasses.replace(
        request, statement=parse_statement(text.encode()), settings=settings, database=database, whole=True
    )


def _check_around(request: Request, database: str) -> None:
    """What comes beside the statement: the database, settings, and the format."""
    if request.database not in (None, "", "default", database):
        raise analyst.refuse(f"The database is {database}, not {request.database}")
    for name in request.parameters:
        if not SETTING_NAME.fullmatch(name):
            raise analyst.refuse(f"{name[:80]} is no name of a parameter")
    for name in request.settings:
        if not analyst.SETTINGS.fullmatch(name):
            raise analyst.refuse(f"The setting {name} is not allowed")
    if request.output_format not in analyst.FORMATS:
        raise analyst.refuse(f"FORMAT {request.output_format} is not allowed")


def _ask(engine: Engine, sql: str, parameters: Mapping[str, str]) -> str:
    """The text of a short answer."""
    statement = Statement("read", sql.encode(), None)
    answer = engine.run(Request(statement, output_format="TSVRaw", settings=READING, parameters=parameters))
    try:
        return b"".join(answer.chunks).decode()
    finally:
        answer.close()


def _escaped(sql: bytes) -> str:
    """As a query parameter reads it."""
    try:
        return sql.decode().translate(_ESCAPES)
    except UnicodeDecodeError as error:
        raise StatementRefused(62, "SYNTAX_ERROR", "The statement is not UTF-8") from error


def _map(values: Mapping[str, str]) -> str:
    """A Map(String, String) as a setting takes it."""

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    return "{" + ", ".join(f"{quoted(key)}: {quoted(value)}" for key, value in values.items()) + "}"
