"""Rows leave the pool for a folder, table by table and day by day, and come back; over ClickHouse's HTTP interface alone.

A row that came from the log is copied only if it lies below what the sinks had committed; what lies above is stored again from
the log after a restore, so that no row is there twice and none is missing. Rows are lines of ClickHouse's own TabSeparated
form. Invariants: what is held is one insert; a table's hash does not depend on the order of its rows.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Final

from claw_r1.backups.folder import Committed, Folder, Part, Plan, TablePlan, TopicPlan
from claw_r1.clickhouse import LEDGER, UNKNOWN_DATABASE, ClickHouse, QueryRefused
from claw_r1.errors import UserError

INSERT_BYTES: Final = 16 * 2**20
"""Of lines: an insert ends with the first one that brings it so far."""
TIMEOUT: Final = 3600.0
"""Longest copy of one table's day, seconds."""
NO_DAY: Final = 0
_READ_BYTES: Final = 2**20
_EXACT: Final = {"precise_float_parsing": 1, "async_insert": 0, "insert_deduplicate": 0}
"""Numbers come back as they were, and a line that is there again in another backup's restore is no repetition."""
_LOG: Final = {"topic", "partition", "offset"}

Counted = Callable[[int], None]

_TABLES: Final = """
SELECT t.name, t.engine, groupArray(c.name)
FROM system.tables AS t
INNER JOIN (
    SELECT table, name FROM system.columns
    WHERE database = {database:String} AND default_kind NOT IN ('MATERIALIZED', 'ALIAS', 'EPHEMERAL')
    ORDER BY table, position
) AS c ON c.table = t.name
WHERE t.database = {database:String} AND t.engine LIKE '%MergeTree' AND t.name != {ledger:String}
GROUP BY t.name, t.engine
ORDER BY t.name
"""


async def plan_tables(clickhouse: ClickHouse) -> list[TablePlan]:
    """Every table of the pool but the list of migrations, with the days that it has rows of."""
    found = await clickhouse.query(_TABLES, {"database": clickhouse.database, "ledger": LEDGER})
    plans = []
    for name, engine, columns in found.rows:
        days = [NO_DAY]
        if "append_time" in columns:
            rows = await clickhouse.query(f"SELECT DISTINCT toYYYYMMDD(append_time) AS day FROM {name} ORDER BY day")
            days = [int(day) for (day,) in rows.rows]
        plans.append(TablePlan(name=name, final="Replacing" in engine, columns=list(columns), days=days))
    return plans


def stored_below(topics: Sequence[TopicPlan], groups: Sequence[Committed], sinks: str) -> dict[str, int]:
    """By TOPIC/PARTITION of the log, the offset below which the sinks' group has stored all; else where the log begins: what is
    older is in the pool alone, what is newer will be stored from the log."""
    begun = {f"{topic.name}/{number}": span.start for topic in topics for number, span in enumerate(topic.spans)}
    committed = {f"{one.topic}/{one.partition}": one.offset for one in groups if one.group == sinks}
    return {place: committed.get(place, start) for place, start in begun.items()}


async def count_rows(clickhouse: ClickHouse, plans: Sequence[TablePlan]) -> int:
    """About how many rows there are to copy."""
    return sum([int(await clickhouse.scalar(f"SELECT count() FROM {plan.name}") or 0) for plan in plans])


async def copy_tables(clickhouse: ClickHouse, plan: Plan, folder: Folder, count: Counted) -> None:
    """Copy every table's days, or what an earlier call left of them. Raises RetryableError if ClickHouse is away."""
    for table in plan.tables:
        for day in table.days:
            name = part_name(table, day)
            if name in folder.parts:
                count(folder.parts[name].count)
                continue
            await _copy(clickhouse, table, day, plan.stored, folder, count)


def part_name(table: TablePlan, day: int) -> str:
    return f"pool/{table.name}/{day or 'all'}.tsv.gz"


async def _copy(
    clickhouse: ClickHouse, table: TablePlan, day: int, stored: Mapping[str, int], folder: Folder, count: Counted
) -> None:
    source = _source(table, day, stored)
    rows, content = await _hash(clickhouse, table, source)
    lines = 0
    with folder.writing(part_name(table, day)) as draft:
        sql = f"SELECT {', '.join(map(_quoted, table.columns))} {source}"
        async with clickhouse.stream(sql, "TabSeparated") as pieces:
            async for piece in pieces:
                draft.zip(piece)
                lines += (new := piece.count(b"\n"))
                count(new)
        if lines != rows:
            raise UserError(
                f"{table.name} changed while it was copied ({rows} rows, then {lines}): is a purge or an expiry running? Start "
                "the same command again when it is done"
            )
        draft.said.update(count=rows, content=content)


def _source(table: TablePlan, day: int, stored: Mapping[str, int] | None = None) -> str:
    """FROM and what follows, of one day; with `stored`, only rows below these offsets.

    Which rows count is asked before FINAL: of two rows with one key the other one may lie below.
    """
    before = ""
    if stored and set(table.columns) >= _LOG:
        places = ", ".join(f"'{place}'" for place in stored)
        offsets = ", ".join(f"toUInt64({offset})" for offset in stored.values())
        before = (
            f" PREWHERE offset < transform(concat(toString(topic), '/', toString(partition)), [{places}], [{offsets}], "
            "toUInt64(18446744073709551615))"
        )
    after = "" if day == NO_DAY else f" WHERE toYYYYMMDD(append_time) = {day}"
    return f"FROM {table.name}{' FINAL' if table.final else ''}{before}{after}"


async def _hash(clickhouse: ClickHouse, table: TablePlan, source: str) -> tuple[int, str]:
    """Number of rows, and the sum of the hashes of all they hold."""
    columns = ", ".join(map(_quoted, table.columns))
    found = await clickhouse.query(f"SELECT count(), sum(cityHash64(formatRow('RowBinary', {columns}))) {source}")
    rows, content = found.rows[0]
    return int(rows), f"{int(content):016x}"


def _quoted(column: str) -> str:
    return f"`{column}`"


# -------------------------------------------------------------------------------------------------------------- restore


async def check_empty(clickhouse: ClickHouse) -> None:
    """Raise UserError if the pool holds rows; it need not exist."""
    try:
        tables = await plan_tables(clickhouse)
    except QueryRefused as error:
        if error.code != UNKNOWN_DATABASE:
            raise
        return
    for table in tables:
        if await clickhouse.scalar(f"SELECT count() FROM (SELECT 1 FROM {table.name} LIMIT 1)"):
            raise UserError(
                f"the target is not empty: the pool's table {table.name} has rows. A backup is restored into a database "
                f"without rows: DROP DATABASE {clickhouse.database}, or name another with --database"
            )


async def check_schema(clickhouse: ClickHouse, plans: Sequence[TablePlan]) -> None:
    """Raise UserError if the pool lacks a column that the backup has."""
    there = {table.name: table.columns for table in await plan_tables(clickhouse)}
    for plan in plans:
        lacking = [plan.name] if plan.name not in there else [c for c in plan.columns if c not in there[plan.name]]
        if lacking:
            raise UserError(
                f"the backup is of a later version: this one's schema has no {lacking[0]} (table {plan.name}). Restore with "
                "the version of claw-r1 that made it, or a later one"
            )


async def fill_tables(clickhouse: ClickHouse, plans: Sequence[TablePlan], folder: Folder, count: Counted) -> None:
    """Insert every part; each was checked before."""
    for plan in plans:
        for day in plan.days:
            part = folder.parts[part_name(plan, day)]
            for data in _inserts(folder, part, plan.columns):
                await clickhouse.insert_bytes(plan.name, data, "TabSeparatedWithNames", settings=_EXACT)
                count(data.count(b"\n") - 1)


def _inserts(folder: Folder, part: Part, columns: Sequence[str]) -> Iterator[bytes]:
    """The part's lines, each insert behind the names of the columns."""
    head = "\t".join(columns).encode() + b"\n"
    held = bytearray()
    with folder.unzip(part) as source:
        while piece := source.read(_READ_BYTES):
            held += piece
            if len(held) >= INSERT_BYTES and (end := held.rfind(b"\n") + 1):
                yield head + bytes(held[:end])
                del held[:end]
    if held:
        yield head + bytes(held)


async def verify_tables(clickhouse: ClickHouse, plans: Sequence[TablePlan], folder: Folder) -> list[str]:
    """What of the pool is not as it was."""
    return [wrong async for wrong in _differences(clickhouse, plans, folder)]


async def _differences(clickhouse: ClickHouse, plans: Sequence[TablePlan], folder: Folder) -> AsyncIterator[str]:
    for plan in plans:
        for day in plan.days:
            part = folder.parts[part_name(plan, day)]
            rows, content = await _hash(clickhouse, plan, _source(plan, day))
            if (rows, content) != (part.count, part.content):
                of = "" if day == NO_DAY else f" of {day}"
                yield f"table {plan.name}{of} has {rows} rows of the hash {content}, the backup {part.count} of {part.content}"
