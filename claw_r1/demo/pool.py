"""What the pool holds of one start of the demo, asked in SQL.

The ids of a start begin with its session, and the tables are sorted by run and prompt: a question reads that range alone.
"""

from dataclasses import dataclass
from typing import Final

from claw_r1.clickhouse import ClickHouse

_WHERE: Final = "run_id = {run:String} AND startsWith(prompt_uid, {session:String})"
_COUNT: Final = f"""
WITH fates AS (
    SELECT trajectory_uid, group_id, outcome FROM outcomes FINAL
    WHERE {_WHERE} AND recipe = {{recipe:String}} AND fact_id IS NULL AND outcome IN ('emitted', 'discarded', 'held')
),
here AS (
    SELECT group_id FROM groups FINAL WHERE {_WHERE} AND recipe = {{recipe:String}}
)
SELECT
    (SELECT countIf(status = 'complete') FROM steps FINAL WHERE {_WHERE}) AS stored,
    (SELECT countIf(status = 'complete' AND NOT capture_ok) FROM steps FINAL WHERE {_WHERE}) AS captured_badly,
    (SELECT count() FROM here) AS ready,
    (SELECT uniqExactIf(group_id, outcome = 'emitted' AND group_id NOT IN here) FROM fates) AS owed,
    (SELECT countIf(trajectory_uid IS NULL AND outcome = 'discarded') FROM fates) AS discarded,
    (SELECT countIf(trajectory_uid IS NOT NULL) FROM fates) AS fates,
    (SELECT uniqExactIf(trajectory_uid, trajectory_uid IS NOT NULL) FROM fates) AS fated
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """`stored`: complete steps; `captured_badly`: those of them whose capture has a fault; `ready`, `discarded`: groups;
    `owed`: groups whose emission is told and that are not here yet (each table is filled on its own); `fates`: outcomes of
    trajectories, `fated`: trajectories with an outcome (equal: none has two)."""

    stored: int = 0
    captured_badly: int = 0
    ready: int = 0
    owed: int = 0
    discarded: int = 0
    fates: int = 0
    fated: int = 0


async def count(clickhouse: ClickHouse, *, run: str, session: str, recipe: str) -> Counts:
    """The counts of a session. Raises RetryableError while the pool is away."""
    rows = await clickhouse.query(_COUNT, {"run": run, "session": session, "recipe": recipe})
    return Counts(*(int(value) for value in rows.rows[0]))
