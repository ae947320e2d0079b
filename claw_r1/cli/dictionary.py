"""`python -m claw_r1.cli.dictionary`: docs/pool.md, every column of the pool as the engine has it after all migrations."""

import asyncio
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from claw_r1.clickhouse import ClickHouse
from claw_r1.local.stack import running_stack
from sinks import migrations

TARGET: Final = Path("docs/pool.md")
COMMAND: Final = "python -m claw_r1.cli.dictionary"
HEAD: Final = f"""<!-- Made by `{COMMAND}`. Do not edit. -->

# The pool, column by column

Tables keep one row for each sorting key, also after retries and kills; read them with `FINAL`, since rows that were written
twice are merged later. Every row says which Kafka record it is (`topic`, `partition`, `offset`), but for those of snapshots,
which [`claw snapshots`](datasets.md) writes. The [guide](guide.md#the-pool) says what the tables are for.
"""
_TABLES: Final = """
SELECT name, engine LIKE '%View' AS is_view, sorting_key, comment FROM system.tables
WHERE database = {database:String} AND name != {ledger:String} ORDER BY is_view, name
"""
_COLUMNS: Final = """
SELECT table, name, type, comment FROM system.columns WHERE database = {database:String} AND name != 'version'
ORDER BY table, position
"""


async def write_dictionary(url: str, database: str) -> str:
    """The document, from a database that has all migrations."""
    async with await ClickHouse.connect(url, database) as client:
        asked = {"database": database, "ledger": migrations.LEDGER}
        tables = (await client.query(_TABLES, asked)).dicts()
        columns = (await client.query(_COLUMNS, asked)).dicts()
        by_table = {name: list(found) for name, found in groupby(columns, key=lambda column: str(column["table"]))}
        for table in tables:
            if table["name"] not in by_table:  # a view with a parameter
                parameter = table["comment"].rpartition("parameter: ")[2]
                question = f"DESCRIBE (SELECT * FROM {table['name']}({parameter} = '0'))"
                by_table[table["name"]] = (await client.query(question)).dicts()
    return "\n".join([HEAD, *(line for table in tables for line in _section(table, by_table[table["name"]]))])


def _section(table: dict[str, Any], columns: list[dict[str, Any]]) -> Iterator[str]:
    yield f"## {table['name']}\n"
    kind = "A view. " if table["is_view"] else f"Sorted by `{table['sorting_key']}`. "
    yield f"{kind}{table['comment']}.\n"
    if table["is_view"]:  # the engine keeps no words for columns of views
        yield from (f"- `{column['name']}`: `{_type(column)}`" for column in columns)
    else:
        yield "| column | type | meaning |"
        yield "|---|---|---|"
        yield from (f"| `{column['name']}` | `{_type(column)}` | {column['comment']} |" for column in columns)
    yield ""


def _type(column: dict[str, Any]) -> str:
    return " ".join(str(column["type"]).split()).replace("( ", "(")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder), processes=("clickhouse",)) as stack:
        asyncio.run(migrations.apply(stack.clickhouse, "claw"))
        TARGET.write_text(asyncio.run(write_dictionary(stack.clickhouse, "claw")), "utf-8")


if __name__ == "__main__":
    main()
