"""`claw migrate` and `claw sql` as a person or a script runs them."""

import asyncio
import json
import subprocess

import pytest

from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import UserError
from sinks import migrations
from sinks.migrations import LEDGER, load_migrations
from sinks.rows import TABLES
from tests import warm
from tests.conftest import Stack
from tests.pool import Pool

pytestmark = pytest.mark.stack


def claw(stack: Stack, *arguments: str, database: str, text: str = "") -> subprocess.CompletedProcess[str]:
    where = ["--clickhouse", stack.clickhouse, "--database", database]
    return warm.claw(*arguments, *where, input=text)


def test_migrate_applies_once_and_says_what_it_would_do(stack: Stack) -> None:
    names = [file.name for file in load_migrations()]
    dry = claw(stack, "migrate", "--dry-run", "--json", database="cli_migrate")
    assert [file["name"] for file in json.loads(dry.stdout)["migrations"]] == names
    assert Pool(stack.clickhouse, "default").rows("SHOW DATABASES LIKE 'cli_migrate'") == []
    first = claw(stack, "migrate", database="cli_migrate")
    assert first.stdout.split() == [word for name in names for word in (name, "applied")]
    again = claw(stack, "migrate", database="cli_migrate")
    assert (again.returncode, again.stdout) == (0, "")
    shown = claw(stack, "sql", "SHOW TABLES", "--format", "TSV", database="cli_migrate").stdout.split()
    assert {*TABLES, LEDGER} <= set(shown)


def test_a_changed_migration_is_refused(stack: Stack) -> None:
    assert claw(stack, "migrate", database="cli_changed").returncode == 0
    insert = f"INSERT INTO {LEDGER} (id, name, sha256) SELECT 1, '0001_facts.sql', 'other'"
    assert claw(stack, "sql", insert, database="cli_changed").returncode == 0
    refused = claw(stack, "migrate", database="cli_changed")
    assert refused.returncode == 1
    assert "0001_facts.sql differs" in refused.stderr


def test_sql_answers_in_the_format_asked_for(stack: Stack) -> None:
    ask = "SELECT 1 AS a, 'x' AS b"
    assert claw(stack, "sql", ask, database="default").stdout == "a\tb\n1\tx\n"
    assert json.loads(claw(stack, "sql", ask, "--json", database="default").stdout)["data"] == [{"a": 1, "b": "x"}]
    assert claw(stack, "sql", ask, "--format", "CSV", database="default").stdout == '1,"x"\n'
    assert claw(stack, "sql", "-", database="default", text="SELECT 2 FORMAT TSV").stdout == "2\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["SELEC 1"], 1, "Syntax error"),
        (["SELECT * FROM nowhere"], 1, "SHOW TABLES"),
        ([""], 2, "empty"),
        (["SELECT 1", "--json", "--format", "CSV"], 2, "exclude"),
        (["SELECT 1", "--clickhouse", "http://127.0.0.1:9"], 3, "claw up"),
        (["SELECT 1", "--clickhouse", "nonsense"], 2, "http://host:port"),
        (["SELECT 1", "--database", "cli_missing"], 1, "claw migrate"),
    ],
)
def test_sql_errors_name_the_next_step(stack: Stack, arguments: list[str], code: int, says: str) -> None:
    command = ["sql", *arguments]
    if "--clickhouse" not in arguments:
        command += ["--clickhouse", stack.clickhouse]
    if "--database" not in arguments:
        command += ["--database", "default"]
    done = warm.claw(*command)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_engine_parses_every_statement_for_clusters_and_roles(stack: Stack) -> None:
    """They are parsed here and not run: the engine has no replicas, users or roles."""
    statements = [*migrations.ledger_statements("claw", "replicas")]
    statements += [statement for file in load_migrations() for statement in file.statements("claw", "replicas")]
    for cluster in (None, "replicas"):
        statements += migrations.role_statements("claw", ["run-1", "run.2"], cluster)

    async def parse() -> list[str]:
        async with await ClickHouse.connect(stack.clickhouse) as client:
            return [await client.scalar("SELECT formatQuery({q:String})", {"q": one}) for one in statements]

    for statement, parsed in zip(statements, asyncio.run(parse()), strict=True):
        head = parsed.split()[0]
        assert head == statement.split()[0]
        if head != "GRANT" and head != "REVOKE":
            assert ("ON CLUSTER" in parsed) == ("ON CLUSTER" in statement)


def test_roles_are_shown_and_refused_where_there_are_no_users(stack: Stack) -> None:
    shown = claw(stack, "migrate", "--roles", "--run", "run-1", "--dry-run", database="claw")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "CREATE ROLE IF NOT EXISTS `claw_run_run-1`" in shown.stdout
    refused = claw(stack, "migrate", "--roles", database="claw")
    assert refused.returncode == 1
    assert "docs/analysts.md" in refused.stderr


def test_a_reader_says_which_command_mends_an_old_schema(stack: Stack) -> None:
    async def check(database: str) -> None:
        async with await ClickHouse.connect(stack.clickhouse, database) as client:
            await client.check_schema()

    with pytest.raises(UserError, match="claw migrate"):
        asyncio.run(check("cli_nowhere"))
    asyncio.run(migrations.apply(stack.clickhouse, "cli_schema"))
    asyncio.run(check("cli_schema"))
    newest = load_migrations()[-1].id
    assert (
        claw(
            stack,
            "sql",
            f"ALTER TABLE {LEDGER} DELETE WHERE id = {newest} SETTINGS mutations_sync = 1",
            database="cli_schema",
        ).returncode
        == 0
    )
    with pytest.raises(UserError, match="claw migrate"):
        asyncio.run(check("cli_schema"))
