"""The ledger decides which files are applied, and refuses what would make two databases of one version differ."""

import re

import pytest

from claw_r1.clickhouse import NEEDED
from claw_r1.errors import UserError, WrongUse
from sinks.migrations import (
    Applied,
    Migration,
    check_cluster,
    check_kind,
    choose_pending,
    ledger_statements,
    load_migrations,
    role_statements,
)
from sinks.migrations.cluster import on_cluster
from sinks.rows import TABLES

FILES = [Migration(1, "0001_a.sql", "SELECT 1;\n"), Migration(2, "0002_b.sql", "SELECT 2;\n")]


def applied(*files: Migration) -> list[Applied]:
    return [Applied(file.id, file.name, file.sha256) for file in files]


def test_pending_are_those_that_the_ledger_lacks() -> None:
    assert choose_pending(FILES, []) == FILES
    assert choose_pending(FILES, applied(FILES[0])) == [FILES[1]]
    assert choose_pending(FILES, applied(*FILES)) == []


def test_a_database_of_a_newer_version_is_borne() -> None:
    assert choose_pending(FILES, [*applied(*FILES), Applied(3, "0003_c.sql", "x")]) == []


def test_a_changed_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"0001_a\.sql differs"):
        choose_pending(FILES, [Applied(1, "0001_a.sql", "0" * 64)])


def test_a_file_below_an_applied_one_is_refused() -> None:
    with pytest.raises(UserError, match="next number"):
        choose_pending(FILES, applied(FILES[1]))


def test_statements_are_split_and_templated() -> None:
    file = Migration(
        1, "0001_a.sql", "-- a; comment\nCREATE TABLE ${database}.t\n(a String COMMENT 'x; y');\n\nSELECT 1;\n"
    )
    assert file.statements("pool") == ["CREATE TABLE pool.t\n(a String COMMENT 'x; y')", "SELECT 1"]


def test_the_files_are_numbered_without_gaps_and_can_be_run_again() -> None:
    files = load_migrations()
    assert [file.id for file in files] == list(range(1, len(files) + 1))
    for file in files:
        for statement in file.statements("claw"):
            head = r"(CREATE (TABLE IF NOT EXISTS|OR REPLACE VIEW)|ALTER TABLE) claw\."
            assert re.match(head, statement), statement[:80]
            if statement.startswith("ALTER"):
                indexed = re.search(r"(ADD INDEX IF NOT EXISTS|MATERIALIZE INDEX) \w+", statement)
                if indexed and "COLUMN" not in statement:
                    continue  # an index has no words of its own
                changes = re.findall(r"^ +(\w+ \w+)(?: IF NOT EXISTS )?", statement, re.MULTILINE)
                assert set(changes) <= {"ADD COLUMN", "MODIFY COLUMN"}, statement[
                    :80
                ]  # a column of that type stays as it is
                assert statement.count("ADD COLUMN") == statement.count("ADD COLUMN IF NOT EXISTS"), statement[:80]
            assert "COMMENT" in statement


def test_readers_ask_for_the_newest_file() -> None:
    assert load_migrations()[-1].id == NEEDED


def test_the_plain_form_is_the_file_and_a_cluster_changes_no_hash() -> None:
    for file in load_migrations():
        assert len(file.statements("claw", "replicas")) == len(file.statements("claw"))
    assert on_cluster("ALTER TABLE claw.t\n    ADD COLUMN a UInt8", "c") == (
        "ALTER TABLE claw.t ON CLUSTER 'c'\n    ADD COLUMN a UInt8"
    )


def test_every_table_of_a_cluster_is_replicated_and_its_window_lasts_a_week() -> None:
    def statements(cluster: str | None) -> list[str]:
        files = load_migrations()
        return [*ledger_statements("claw", cluster), *(s for file in files for s in file.statements("claw", cluster))]

    for plain, statement in zip(statements(None), statements("c"), strict=True):
        assert statement.count(" ON CLUSTER 'c'") == 1
        assert statement.startswith("CREATE TABLE") == ("ENGINE = Replicated" in statement)
        assert ("non_replicated" in plain) == ("replicated_deduplication_window_seconds = 604800" in statement)
        assert "non_replicated" not in statement
    table = next(statement for statement in statements("c") if "claw.steps ON CLUSTER" in statement)
    assert (
        "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}', version)" in table
    )


def test_what_is_no_statement_of_the_schema_has_no_form_for_a_cluster() -> None:
    with pytest.raises(ValueError, match="not a statement"):
        on_cluster("DROP TABLE claw.steps", "c")
    with pytest.raises(WrongUse, match=r"system\.clusters"):
        check_cluster("a' b")


def test_a_database_stays_of_one_server_or_of_a_cluster() -> None:
    check_kind("claw", None, "c")
    check_kind("claw", "ReplicatedReplacingMergeTree", "c")
    check_kind("claw", "ReplacingMergeTree", None)
    with pytest.raises(WrongUse, match="--cluster NAME"):
        check_kind("claw", "ReplicatedReplacingMergeTree", None)
    with pytest.raises(WrongUse, match="without --cluster"):
        check_kind("claw", "ReplacingMergeTree", "c")


def test_roles_name_every_table_and_the_runs() -> None:
    statements = role_statements("pool", ["run-1"])
    policies = [statement for statement in statements if "ROW POLICY" in statement]
    assert len(policies) == 2
    assert all(f"pool.{table}" in policy for policy in policies for table in TABLES)
    assert "USING run_id = 'run-1' TO `claw_run_run-1`" in policies[1]
    with pytest.raises(UserError, match="not an id"):
        role_statements("pool", ["a' OR 1"])
