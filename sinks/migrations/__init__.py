"""The pool's schema grows by numbered SQL files; a ledger in the database says which were applied.

A file is immutable once applied: its SHA-256 is in the ledger, and a changed or missing one is refused. Every statement can
be run again, so a run that broke off is mended by the next one. `${database}` in a file is the database's name.
"""

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Final

from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import UserError

LEDGER: Final = "migrations"

_LEDGER_SQL: Final = """
CREATE TABLE IF NOT EXISTS ${database}.migrations
(
    id UInt32 COMMENT 'Number of the file',
    name String COMMENT 'Name of the file',
    sha256 String COMMENT 'Of the file as it was applied',
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When it was applied'
)
ENGINE = ReplacingMergeTree ORDER BY id
COMMENT 'Which files of the schema were applied'
"""
_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True)
class Migration:
    """One numbered file, as it is in the package."""

    id: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def statements(self, database: str) -> list[str]:
        """The statements in order, for a database; a `;` at a line's end separates them."""
        code = "\n".join(line for line in self.text.splitlines() if not line.lstrip().startswith("--"))
        whole = Template(code).substitute(database=database)
        return [part.strip() for part in re.split(r";\s*\n", whole + "\n") if part.strip()]


@dataclass(frozen=True)
class Applied:
    """A line of the ledger."""

    id: int
    name: str
    sha256: str


def load_migrations() -> list[Migration]:
    """Every file of the package, in order."""
    folder = importlib.resources.files(__name__)
    found = [
        Migration(int(match[1]), entry.name, entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if (match := _FILE.fullmatch(entry.name))
    ]
    return sorted(found, key=lambda migration: migration.id)


def choose_pending(migrations: Sequence[Migration], applied: Sequence[Applied]) -> list[Migration]:
    """The files that the ledger does not have. Raises UserError if one was changed, or came in below an applied one."""
    known = {migration.id: migration for migration in migrations}
    done = {line.id: line for line in applied}
    for line in applied:
        migration = known.get(line.id)
        if migration is None:
            continue  # a newer version of this project migrated the database; it only adds
        if migration.sha256 != line.sha256:
            raise UserError(
                f"migration {migration.name} differs from the one that was applied ({line.name}, sha256 {line.sha256[:12]}…). "
                "An applied file never changes: install the version of claw-r1 that made this database, or put the file "
                "back, and write a new file for the change."
            )
    newest = max(done, default=0)
    pending = [migration for migration in migrations if migration.id not in done]
    if late := [migration.name for migration in pending if migration.id < newest]:
        raise UserError(
            f"migration {late[0]} has a number below {newest:04d}, which was applied: give it the next number"
        )
    return pending


async def read_ledger(clickhouse: ClickHouse, database: str) -> list[Applied]:
    """The applied files; none if the database or the ledger does not exist."""
    there = await clickhouse.scalar(
        "SELECT count() FROM system.tables WHERE database = {database:String} AND name = {name:String}",
        {"database": database, "name": LEDGER},
    )
    if not there:
        return []
    result = await clickhouse.query(f"SELECT id, name, sha256 FROM {database}.{LEDGER} FINAL ORDER BY id")
    return [Applied(*row) for row in result.rows]


async def list_pending(url: str, database: str) -> list[Migration]:
    """What `apply` would do. Raises DependencyUnreachable, or UserError if an applied file was changed."""
    async with await ClickHouse.connect(url) as clickhouse:
        return choose_pending(load_migrations(), await read_ledger(clickhouse, database))


async def apply(url: str, database: str) -> list[Migration]:
    """Bring the database to the newest schema; returns what was applied now. Errors as `list_pending`."""
    async with await ClickHouse.connect(url) as clickhouse:
        pending = choose_pending(load_migrations(), await read_ledger(clickhouse, database))
        if pending:
            await clickhouse.command(f"CREATE DATABASE IF NOT EXISTS {database}")
            await clickhouse.command(Template(_LEDGER_SQL).substitute(database=database))
        for migration in pending:
            for statement in migration.statements(database):
                await clickhouse.command(statement)
            await clickhouse.command(
                f"INSERT INTO {database}.{LEDGER} (id, name, sha256) "
                f"VALUES ({migration.id}, '{migration.name}', '{migration.sha256}')",
                settings={"async_insert": 0},
            )
        return pending
