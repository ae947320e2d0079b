"""`claw migrate` and `claw sql` as a person or a script runs them."""

import json
import subprocess
import sys

import pytest

from sinks.migrations import LEDGER, load_migrations
from sinks.rows import TABLES
from tests.conftest import Stack
from tests.pool import Pool

pytestmark = pytest.mark.stack


def claw(stack: Stack, *arguments: str, database: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    where = ["--clickhouse", stack.clickhouse, "--database", database]
    command = [sys.executable, "-P", "-m", "claw_r1.cli.entry", *arguments, *where]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)


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
    command = [sys.executable, "-P", "-m", "claw_r1.cli.entry", "sql", *arguments]
    if "--clickhouse" not in arguments:
        command += ["--clickhouse", stack.clickhouse]
    if "--database" not in arguments:
        command += ["--database", "default"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
