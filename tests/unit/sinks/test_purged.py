"""Rows of purged runs leave the buffer, and nothing else does."""

from sinks.purged import drop_purged, list_purged
from sinks.rows import TABLES, Place, list_rows
from tests.pool import every_event


def buffered(run: str) -> dict[str, list[tuple[object, ...]]]:
    rows: dict[str, list[tuple[object, ...]]] = {}
    for topic, event in every_event(run):
        for table, row in list_rows(event, Place(topic, 0, 0, 0)):
            rows.setdefault(table, []).append(row)
    return rows


def test_every_table_loses_the_rows_of_a_purged_run_but_the_purges() -> None:
    rows, other = buffered("gone"), buffered("kept")
    assert set(rows) == set(TABLES)
    total = sum(map(len, rows.values())) - 1
    both = {table: [*rows[table], *other[table]] for table in rows}
    assert drop_purged(both, {"gone", "gone-purged"}) == total
    assert both == other | {"purges": [*rows["purges"], *other["purges"]]}
    assert drop_purged(both, {"gone", "gone-purged"}) == 0


def test_a_table_that_lost_all_its_rows_is_not_inserted() -> None:
    rows = buffered("gone")
    drop_purged(rows, {"gone"})
    assert set(rows) == {"purges"}


def test_without_purges_nothing_changes() -> None:
    rows = buffered("kept")
    assert drop_purged(rows, set()) == 0
    assert rows == buffered("kept")


def test_a_purge_in_the_buffer_counts_at_once() -> None:
    assert list_purged(buffered("gone")) == {"gone-purged"}
    assert list_purged({}) == set()
