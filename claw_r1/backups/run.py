"""A whole system is copied into a folder while it runs, and put into an empty one: topics, offsets of groups, pool, blobs.

The order makes the copy whole: first where the groups are, then where the topics end, what was said of a record before the
record's own topic; the pool only below what the sinks had stored by then. Restored, every process goes on as after a kill at
that moment.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from claw_r1 import bus
from claw_r1.backups import blobs, log, pool
from claw_r1.backups.folder import Folder, Manifest, Plan
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import UserError
from sinks import migrations

Told = Callable[[str, int, int], None]
"""What is being done, how many of it are done, and of how many."""


@dataclass(frozen=True)
class Place:
    """What is copied from, or to."""

    kafka: str
    clickhouse: str
    database: str
    blobs: Path
    sinks: str
    """The sinks' consumer group."""


@dataclass(frozen=True)
class Restored:
    """What was put back."""

    manifest: Manifest
    without: list[str] = field(default_factory=list)
    """A line for each setting of a topic that the target did not get."""


class _Count:
    """Adds up for the one who watches."""

    def __init__(self, told: Told, what: str, total: int) -> None:
        self._told, self._what, self._total, self._done = told, what, total, 0
        told(what, 0, total)

    def __call__(self, more: int) -> None:
        self._done += more
        self._told(self._what, self._done, self._total)


async def back_up(place: Place, path: Path, told: Told) -> Manifest:
    """Copy everything into the folder, or what an earlier call left to copy.

    Raises UserError if the folder holds something else, RetryableError or DependencyUnreachable if a server is away: the same
    call goes on.
    """
    folder = Folder(path)
    plan = folder.begin()
    async with await ClickHouse.connect(place.clickhouse, place.database, timeout=pool.TIMEOUT) as clickhouse:
        if plan is None:
            plan = await _plan(place, clickhouse)
            folder.write_plan(plan)
        elif plan.database != place.database:
            raise UserError(f"{path} was begun for the database {plan.database}, not {place.database}")
        records = sum(span.end - span.start for topic in plan.topics for span in topic.spans)
        await log.copy_topics(place.kafka, plan.topics, folder, _Count(told, "records", records))
        rows = await pool.count_rows(clickhouse, plan.tables)
        await pool.copy_tables(clickhouse, plan, folder, _Count(told, "rows", rows))
    many = sum(1 for _ in blobs.list_blobs(place.blobs))
    blobs.copy_blobs(place.blobs, folder, _Count(told, "blobs", many))
    return folder.finish(plan, _now())


async def _plan(place: Place, clickhouse: ClickHouse) -> Plan:
    await clickhouse.check_schema()
    found = await log.list_topics(place.kafka)
    if not found:
        raise UserError(f"the broker at {place.kafka} has none of the project's topics: is it the one that is meant?")
    groups = await log.read_groups(place.kafka, found)
    topics = await log.plan_topics(place.kafka, found)
    return Plan(
        created=_now(),
        database=place.database,
        topics=topics,
        groups=groups,
        tables=await pool.plan_tables(clickhouse),
        stored=pool.stored_below(topics, groups, place.sinks),
    )


async def restore(
    place: Place, path: Path, told: Told, *, replication: int = bus.AS_BROKERS_CHOOSE, dry_run: bool = False
) -> Restored:
    """Put a backup into brokers and a database without records and rows, and compare all of it.

    Raises UserError, and writes nothing, if the backup is damaged or the target not empty; UserError too if what came out is
    not what the backup has: then the target is to be emptied.
    """
    folder = Folder(path)
    manifest, plan = folder.open()
    checked = _Count(told, "parts to check", manifest.parts)
    for part in folder.each():
        folder.check(part)
        checked(1)
    await log.check_empty(place.kafka, plan.topics)
    async with await ClickHouse.connect(place.clickhouse, place.database, timeout=pool.TIMEOUT) as clickhouse:
        await pool.check_empty(clickhouse)
        if dry_run:
            return Restored(manifest)
        await migrations.apply(place.clickhouse, place.database)
        await pool.check_schema(clickhouse, plan.tables)
        made = await log.make_topics(place.kafka, plan.topics, replication)
        await log.fill_topics(place.kafka, plan.topics, folder, _Count(told, "records", manifest.records))
        await pool.fill_tables(clickhouse, plan.tables, folder, _Count(told, "rows", manifest.rows))
        blobs.restore_blobs(place.blobs, folder, _Count(told, "blobs", manifest.blobs))
        without = await log.settle_topics(place.kafka, plan.topics, made, folder)
        compared = _Count(told, "records to compare", manifest.records)
        wrong = await log.verify_topics(place.kafka, plan.topics, folder, compared)
        wrong += await pool.verify_tables(clickhouse, plan.tables, folder)
        if wrong:
            raise UserError(
                f"what was restored is not what the backup has: {'; '.join(wrong[:5])}. Is another process running? Empty the "
                "target, and restore again"
            )
    await log.commit_groups(place.kafka, plan.groups)
    return Restored(manifest, without)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
