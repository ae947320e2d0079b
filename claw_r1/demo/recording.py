"""A recorded demo: the pool's rows in one file that the package ships, so that the console shows a run with no services.

`make recording` (`python -m claw_r1.demo.recording`) plays a demo and writes the file anew. It holds every table of the pool as
the engine wrote it (ClickHouse's Native format), so that loading is inserting; columns that came later have their defaults.
"""

import asyncio
import platform
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from claw_r1.clickhouse import LEDGER, ClickHouse
from claw_r1.errors import UserError
from claw_r1.settings import Settings

FILE: Final = Path(__file__).parent / "recorded.zip"
BATCHES: Final = 8
SEED: Final = 7
HOLDER: Final = "demo-trainer"
"""In the place of who cut the batches, which names the recorder's machine."""
HELD: Final = ("cuts", "token_stats", "trained")
"""Tables that have this column."""
_STAMP: Final = (1980, 1, 1, 0, 0, 0)
_TABLES: Final = """
SELECT name, engine LIKE 'Replacing%' AS is_merged FROM system.tables
WHERE database = {database:String} AND engine NOT LIKE '%View' AND name != {ledger:String}
ORDER BY name
"""


async def write(url: str, database: str, target: Path) -> dict[str, int]:
    """The rows of every table into a file. Returns bytes by table, before compression."""
    sizes = {}
    async with await ClickHouse.connect(url, database) as client:
        tables = (await client.query(_TABLES, {"database": database, "ledger": LEDGER})).rows
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for table, is_merged in tables:
                columns = f"* REPLACE ('{HOLDER}' AS holder)" if table in HELD else "*"
                data = await client.raw(f"SELECT {columns} FROM {table}{' FINAL' if is_merged else ''}", "Native")
                if data:
                    file.writestr(zipfile.ZipInfo(f"{table}.native", _STAMP), data, zipfile.ZIP_DEFLATED)
                    sizes[table] = len(data)
    return sizes


async def load(url: str, database: str, source: Path = FILE) -> list[str]:
    """The rows of a file into a pool that has its tables and no rows. Returns the tables. Raises UserError without a file."""
    loaded = []
    try:
        opened = zipfile.ZipFile(source)
    except FileNotFoundError as error:
        raise UserError(f"there is no recorded demo at {source}: `make recording` writes it") from error
    with opened as file:
        async with await ClickHouse.connect(url, database) as client:
            for name in file.namelist():
                await client.insert_bytes(name.removesuffix(".native"), file.read(name), "Native")
                loaded.append(name.removesuffix(".native"))
    return loaded


def main() -> None:
    """Play a demo, and write what its pool holds."""
    from claw_r1.demo.run import Options, run_demo
    from claw_r1.demo.view import open_view
    from claw_r1.local.stack import running_stack

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with open_view(live=False) as shown:
            run_demo(Options(data=data, batches=BATCHES, seed=SEED), shown)
        with running_stack(data, processes=("clickhouse",)) as stack:
            sizes = asyncio.run(write(stack.clickhouse, Settings.read().database, FILE))
    with zipfile.ZipFile(FILE) as file:
        named = [name for name in file.namelist() if platform.node().encode() in file.read(name)]
    if named:
        raise UserError(f"{', '.join(named)} name this machine: {FILE} must not be shipped so")
    print(f"{FILE}: {FILE.stat().st_size:,} bytes, {', '.join(f'{table} {size:,}' for table, size in sizes.items())}")


if __name__ == "__main__":
    main()
