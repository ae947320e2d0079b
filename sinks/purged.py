"""Rows of a run that is to be forgotten are dropped before they are inserted: pure.

A purge holds for good and for every topic: facts and outputs of the run may still be on the log, or come later.
"""

from collections.abc import Collection
from typing import Final

from sinks.plan import Rows
from sinks.rows import PURGES, TABLES

_RUNS: Final = {
    name: tuple(index for index, column in enumerate(table.names) if column in ("run_id", "group_run_id"))
    for name, table in TABLES.items()
    if table is not PURGES
}
"""By table, which columns hold a run. The purges themselves stay: by them a sink knows."""
_RUN: Final = PURGES.names.index("run_id")


def list_purged(rows: Rows) -> set[str]:
    """The runs that the buffered purges name."""
    return {str(row[_RUN]) for row in rows.get(PURGES.name, ())}


def drop_purged(rows: Rows, purged: Collection[str]) -> int:
    """Take the rows of purged runs out of the buffer; how many there were. A table without rows leaves it."""
    dropped = 0
    for name, columns in _RUNS.items() if purged else ():
        if (held := rows.get(name)) is None:
            continue
        kept = [row for row in held if not any(row[index] in purged for index in columns)]
        dropped += len(held) - len(kept)
        if kept:
            rows[name] = kept
        else:
            del rows[name]
    return dropped
