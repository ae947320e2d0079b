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

from claw_r1.clickhouse import LEDGER as LEDGER
from claw_r1.clickhouse import ClickHouse, QueryRefused
from claw_r1.errors import UserError, WrongUse
from claw_r1.ids import check_id
from sinks.migrations.cluster import check_cluster as check_cluster
from sinks.migrations.cluster import on_cluster, role_on_cluster
from sinks.rows import TABLES

ACCESS_DENIED: Final = 497

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

    def statements(self, database: str, cluster: str | None = None) -> list[str]:
        """The statements in order, for a database, of one server or of all of a cluster."""
        plain = _split(self.text, {"database": database})
        return plain if cluster is None else [on_cluster(statement, cluster) for statement in plain]


@dataclass(frozen=True)
class Applied:
    """A line of the ledger."""

    id: int
    name: str
    sha256: str


def _split(text: str, names: dict[str, str]) -> list[str]:
    """The statements of a file; a `;` at a line's end separates them."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    whole = Template(code).substitute(names)
    return [part.strip() for part in re.split(r";\s*\n", whole + "\n") if part.strip()]


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
    if await _find_engine(clickhouse, database) is None:
        return []
    result = await clickhouse.query(f"SELECT id, name, sha256 FROM {database}.{LEDGER} FINAL ORDER BY id")
    return [Applied(*row) for row in result.rows]


async def _find_engine(clickhouse: ClickHouse, database: str) -> str | None:
    """The ledger's engine; None: there is no ledger."""
    engine: str | None = await clickhouse.scalar(
        "SELECT engine FROM system.tables WHERE database = {database:String} AND name = {name:String}",
        {"database": database, "name": LEDGER},
    )
    return engine


def check_kind(database: str, engine: str | None, cluster: str | None) -> None:
    """Raise WrongUse if a ledger of this engine was made for one server and a cluster is meant, or the other way round."""
    if engine is None:
        return
    if cluster is None and engine.startswith("Replicated"):
        raise WrongUse(f"the tables of {database} are those of a cluster: say which, `claw migrate --cluster NAME`")
    if cluster is not None and not engine.startswith("Replicated"):
        raise WrongUse(f"the tables of {database} are those of one server: `claw migrate` without --cluster goes on")


async def list_pending(url: str, database: str) -> list[Migration]:
    """What `apply` would do. Raises DependencyUnreachable, or UserError if an applied file was changed."""
    async with await ClickHouse.connect(url) as clickhouse:
        return choose_pending(load_migrations(), await read_ledger(clickhouse, database))


async def apply(url: str, database: str, cluster: str | None = None) -> list[Migration]:
    """Bring the database to the newest schema, on one server or on all of a cluster; returns what was applied now.

    Errors as `list_pending`, and WrongUse if the database is of the other kind.
    """
    async with await ClickHouse.connect(url) as clickhouse:
        check_kind(database, await _find_engine(clickhouse, database), cluster)
        pending = choose_pending(load_migrations(), await read_ledger(clickhouse, database))
        if pending:
            for statement in ledger_statements(database, cluster):
                await clickhouse.command(statement)
        for migration in pending:
            for statement in migration.statements(database, cluster):
                await clickhouse.command(statement)
            await clickhouse.command(
                f"INSERT INTO {database}.{LEDGER} (id, name, sha256) "
                f"VALUES ({migration.id}, '{migration.name}', '{migration.sha256}')",
                settings={"async_insert": 0},
            )
        return pending


def ledger_statements(database: str, cluster: str | None = None) -> list[str]:
    """What makes the database and the ledger in it."""
    made = [f"CREATE DATABASE IF NOT EXISTS {database}", Template(_LEDGER_SQL).substitute(database=database).strip()]
    return made if cluster is None else [on_cluster(statement, cluster) for statement in made]


def role_statements(database: str, runs: Sequence[str] = (), cluster: str | None = None) -> list[str]:
    """What makes the role `claw_analyst`, and for each run the role `claw_run_RUN`, of one server or of all of a cluster.

    Raises UserError for a run that is no id.
    """
    folder = importlib.resources.files(__name__) / "roles"
    names = {"database": database, "tables": ", ".join(f"{database}.{table}" for table in sorted(TABLES))}
    statements = _split((folder / "analyst.sql").read_text(encoding="utf-8"), names)
    for run in runs:
        check_id("run", run)
        statements += _split((folder / "run.sql").read_text(encoding="utf-8"), {**names, "run": run})
    return statements if cluster is None else [role_on_cluster(statement, cluster) for statement in statements]


async def run_roles(url: str, statements: Sequence[str]) -> None:
    """Run statements about roles. Raises UserError where the user may not, or the server has no roles."""
    async with await ClickHouse.connect(url) as clickhouse:
        for statement in statements:
            try:
                await clickhouse.command(statement)
            except QueryRefused as error:
                if error.code != ACCESS_DENIED:
                    raise
                raise UserError(
                    f"{error}\nThe user may not make roles, or the server has none: the local stack guards its user `analyst` "
                    "without them (docs/analysts.md)."
                ) from error
