"""The ledger decides which files are applied, and refuses what would make two databases of one version differ."""

import re

import pytest

from claw_r1.errors import UserError
from sinks.migrations import Applied, Migration, choose_pending, load_migrations

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
