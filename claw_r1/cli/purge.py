"""`claw purge`: a run is forgotten, first by those who read the log, then by the pool."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Final

import typer

from claw_r1 import bus
from claw_r1.blobs import open_blobs
from claw_r1.cli.address import clickhouse_address, database_name, kafka_address
from claw_r1.cli.options import AsJson, ClickHouseUrl, Database, Kafka
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import encode
from claw_r1.datasets.pool import Places, await_pool, event_partitions
from claw_r1.errors import UserError
from claw_r1.events import RunPurged
from claw_r1.ids import check_id, derived_id, new_id
from claw_r1.settings import Settings, SinksSettings
from claw_r1.topics import EVENTS, OUTCOMES, TRAJECTORIES

SETTLE: Final = 3.0
"""Seconds after which no sink inserts rows of a run that was purged before: it looks once a second, and flushes within one."""
ROUNDS: Final = 20
MUTATION_TIMEOUT: Final = 3600.0
"""Longest rewriting of one table, seconds."""
PUBLISH_TIMEOUT: Final = 30.0

_COLUMNS: Final = """
SELECT table, groupArray(name) AS runs FROM system.columns
WHERE database = {database:String} AND name IN ('run_id', 'group_run_id') AND table IN (
    SELECT name FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree' AND name != 'purges'
)
GROUP BY table ORDER BY table
"""
_STORED: Final = "SELECT uniqExact(fact_id) FROM purges WHERE fact_id IN {facts:Array(String)}"
_BLOBS: Final = """
WITH blobs AS (
    SELECT run_id, arrayJoin(arrayConcat(
        multi_modal_data.sha256, if(routed_experts IS NULL, [], [assumeNotNull(routed_experts)])
    )) AS sha256 FROM steps
)
SELECT sha256 FROM blobs GROUP BY sha256 HAVING groupUniqArray(run_id) = [{run:String}] ORDER BY sha256
"""


def purge(
    run: Annotated[str, typer.Option("--run", help="The run that is to be forgotten. Its id is not to be used again.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and change nothing.")] = False,
    blobs: Annotated[
        bool, typer.Option("--blobs", help="Also remove pictures and routed experts that no other run's steps name.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why.")] = None,
    wait: Annotated[float, typer.Option("--wait", min=1, help="Longest wait for the sinks, seconds.")] = 60.0,
    as_json: AsJson = False,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
) -> None:
    """Forget a run: its open groups are discarded, its rows are removed, and rows that still come are dropped."""
    check_id("--run", run)
    url, name = clickhouse_address(clickhouse), database_name(database)
    found, held = asyncio.run(_look(url, name, run, blobs))
    if not found:
        print(f"the pool has nothing of run {run}", file=sys.stderr)
    if not dry_run:
        if not yes:
            _confirm(run, found, held)
        asyncio.run(_purge(kafka_address(kafka), url, name, run, reason, wait, held))
    if as_json:
        print(json.dumps({"run": run, "removed": not dry_run, "rows": found, "blobs": len(held)}))
        return
    for table, rows in found.items():
        print(f"{rows:>12}  {table}")
    if blobs:
        print(f"{len(held):>12}  blobs")
    print(f"run {run}: {'would be forgotten' if dry_run else 'forgotten'}", file=sys.stderr)


def _confirm(run: str, found: dict[str, int], held: Sequence[str]) -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to be asked: say --yes", param_hint="--yes")
    what = f"{sum(found.values())} rows" + (f" and {len(held)} blobs" if held else "")
    typer.confirm(f"Forget run {run}, {what}? This cannot be undone.", abort=True, err=True)


async def _look(url: str, database: str, run: str, blobs: bool) -> tuple[dict[str, int], list[str]]:
    """Rows of the run by table, those without any left out, and the blobs that only its steps name."""
    async with await ClickHouse.connect(url, database, timeout=MUTATION_TIMEOUT) as client:
        await client.check_schema()
        held = [row[0] for row in (await client.query(_BLOBS, {"run": run})).rows] if blobs else []
        return await _count(client, run), held


async def _conditions(client: ClickHouse, run: str) -> dict[str, str]:
    """By table, the condition for the run's rows."""
    rows = (await client.query(_COLUMNS, {"database": client.database})).rows
    return {table: " OR ".join(f"{column} = '{run}'" for column in sorted(columns)) for table, columns in rows}


async def _count(client: ClickHouse, run: str) -> dict[str, int]:
    conditions = await _conditions(client, run)
    parts = [
        f"SELECT '{table}', count() AS n FROM {table} WHERE {condition}" for table, condition in conditions.items()
    ]
    rows = (await client.query(f"SELECT * FROM ({' UNION ALL '.join(parts)}) WHERE n > 0 ORDER BY ALL")).rows
    return {table: int(number) for table, number in rows}


async def _purge(
    kafka: str, url: str, database: str, run: str, reason: str | None, wait: float, held: Sequence[str]
) -> None:
    facts = await _append(kafka, run, reason)
    async with await ClickHouse.connect(url, database, timeout=MUTATION_TIMEOUT) as client:
        await _wait_until_stored(client, facts, wait)
        await _wait_for_flushes(kafka, url, database, wait)
        if held:  # again, since another run may name one of them by now
            held = [row[0] for row in (await client.query(_BLOBS, {"run": run})).rows]
        store = open_blobs(Settings.read().blobs) if held else None
        for sha256 in held:  # before the rows that name them: if this breaks off, the next purge finds them again
            if store is not None:
                await asyncio.to_thread(store.remove, sha256)
        conditions = await _conditions(client, run)
        for _ in range(ROUNDS):
            await asyncio.sleep(SETTLE)
            if not (found := await _count(client, run)):
                return
            for table in found:
                delete = f"ALTER TABLE {table} DELETE WHERE {conditions[table]}"
                await client.command(delete, settings={"mutations_sync": 2})
            if not await _count(client, run):
                return
    raise UserError(
        f"rows of {run} still come: is a sink of an older version running? Stop it, then run `claw purge` again"
    )


async def _append(kafka: str, run: str, reason: str | None) -> list[str]:
    """A RunPurged on every partition of the events; their ids."""
    call, at = new_id(), time.time()
    producer = await bus.start_producer(kafka, client_id="claw-purge")
    facts = []
    try:
        for partition in sorted(await producer.partitions_for(EVENTS)):
            fact = RunPurged(fact_id=derived_id("purge", call, partition), run_id=run, at=at, reason=reason)
            record = encode(fact, source="claw/purge")
            await bus.publish(producer, EVENTS, record, partition=partition, deadline=PUBLISH_TIMEOUT)
            facts.append(fact.fact_id)
    finally:
        await bus.stop_producer(producer)
    return facts


async def _wait_for_flushes(kafka: str, url: str, database: str, wait: float) -> None:
    """Wait until what was on the log is stored: then no insert that began before the purge is on its way any more."""
    places = Places(kafka, url, database, SinksSettings.read().group)
    await await_pool(places, (EVENTS, OUTCOMES, TRAJECTORIES), await event_partitions(kafka), wait)


async def _wait_until_stored(client: ClickHouse, facts: Sequence[str], wait: float) -> None:
    deadline = time.monotonic() + wait
    while int(await client.scalar(_STORED, {"facts": list(facts)})) < len(facts):
        if time.monotonic() > deadline:
            raise UserError(
                f"the purge is on the log, but no sink stored it within {wait:g} s, and no row is removed yet. Is one running? "
                "`claw status` tells. Then run `claw purge` again."
            )
        await asyncio.sleep(0.2)
