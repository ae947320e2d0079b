"""`claw expire`: groups that closed long ago leave the pool, each with all its rows."""

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer
from pydantic import TypeAdapter, ValidationError

from claw_r1.cli.address import clickhouse_address, database_name
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database
from claw_r1.clickhouse import ClickHouse
from claw_r1.ids import check_id
from claw_r1.recipes import Duration

MUTATION_TIMEOUT: Final = 3600.0
"""Longest rewriting of one table, seconds."""
_MUTATION: Final = {"mutations_sync": 2, "allow_nondeterministic_mutations": 1}
"""Replicas wait for each other, and take the keys from `expired`, which is the same on each."""

_CLOSED: Final = """
SELECT run_id, prompt_uid, max(append_time) AS closed_at, toDateTime64({now:String}, 3, 'UTC') AS expired_at
FROM (
    SELECT run_id, prompt_uid, append_time, channel, false AS closes FROM steps
    UNION ALL SELECT run_id, prompt_uid, append_time, NULL, false FROM calls
    UNION ALL SELECT run_id, prompt_uid, append_time, channel, false FROM group_events
    UNION ALL SELECT run_id, prompt_uid, append_time, channel, false FROM trajectory_events
    UNION ALL SELECT run_id, prompt_uid, append_time, channel, false FROM trajectories
    UNION ALL SELECT run_id, prompt_uid, append_time, NULL, trajectory_uid IS NULL AND fact_id IS NULL FROM outcomes
)
WHERE {run:String} IN ('', run_id)
    AND (run_id, prompt_uid) NOT IN (SELECT run_id, prompt_uid FROM snapshot_members)
GROUP BY run_id, prompt_uid
HAVING max(closes) AND closed_at < toDateTime64({before:String}, 3, 'UTC')
    AND ({channel:String} = '' OR has(groupUniqArray(channel), {channel:String}))
"""
_TABLES: Final = """
SELECT name FROM system.tables
WHERE database = {database:String} AND engine LIKE '%MergeTree' AND name NOT IN ('expired', 'snapshot_members') AND name IN (
    SELECT table FROM system.columns WHERE database = {database:String} AND name = 'prompt_uid'
)
ORDER BY name = 'outcomes', name
"""
"""Outcomes go last: by them a group whose removal broke off is found again."""
_EXPIRED: Final = "(run_id, prompt_uid) IN (SELECT run_id, prompt_uid FROM {database}.expired)"


def expire(
    older: Annotated[str, typer.Option("--older", help="Groups that closed longer ago than this: 12h, 30d.")],
    run: Annotated[str | None, typer.Option("--run", help="Only groups of this run.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Only groups of this channel.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and change nothing.")] = False,
    as_json: AsJson = False,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
) -> None:
    """Remove whole groups from the pool that closed long ago; batches stay, and what is in a snapshot."""
    for name, given in (("--run", run), ("--channel", channel)):
        if given is not None:
            check_id(name, given)
    try:
        age = TypeAdapter(Duration).validate_python(older)
    except ValidationError as error:
        raise typer.BadParameter(f"{older!r} is no time: write 12h or 30d", param_hint="--older") from error
    now = datetime.now(UTC)
    asked = {
        "run": run or "",
        "channel": channel or "",
        "now": _text(now),
        "before": _text(now - timedelta(seconds=age)),
    }
    url, pool = clickhouse_address(clickhouse), database_name(database)
    groups = asyncio.run(_count(url, pool, asked))
    if groups and not dry_run:
        if not yes:
            _confirm(groups)
        asyncio.run(_expire(url, pool, asked))
    if as_json:
        print(json.dumps({"groups": groups, "removed": not dry_run, "closed_before": asked["before"]}))
        return
    print(f"{groups} groups {'would be removed' if dry_run else 'removed'}", file=sys.stderr)


def _confirm(groups: int) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to be asked: say --yes", param_hint="--yes")
    typer.confirm(f"Remove {groups} groups? This cannot be undone.", abort=True, err=True)


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


async def _count(url: str, database: str, asked: dict[str, Any]) -> int:
    async with await ClickHouse.connect(url, database, timeout=MUTATION_TIMEOUT) as client:
        await client.check_schema()
        return int(await client.scalar(f"SELECT count() FROM ({_CLOSED})", asked))


async def _expire(url: str, database: str, asked: dict[str, Any]) -> None:
    """First the list, then the rows. What breaks off in between is found again by the next call."""
    async with await ClickHouse.connect(url, database, timeout=MUTATION_TIMEOUT) as client:
        await client.command("TRUNCATE TABLE expired")
        await client.query(f"INSERT INTO expired (run_id, prompt_uid, closed_at, expired_at) {_CLOSED}", asked)
        tables = [name for (name,) in (await client.query(_TABLES, {"database": database})).rows]
        condition = _EXPIRED.format(database=database)
        for table in tables:
            if int(await client.scalar(f"SELECT count() FROM {table} WHERE {condition}")):
                await client.command(f"ALTER TABLE {table} DELETE WHERE {condition}", settings=_MUTATION)
