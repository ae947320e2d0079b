"""Log, pool and committed offsets are read, at a moment or in the end, and become evidence."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from claw_r1 import bus, topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import decode, header, pack_ids
from claw_r1.errors import ClawError
from claw_r1.events import BatchCut, BatchTrained, Event, Fact, GroupReady, Outcome, Reward, Sample, Step, StepStarted
from sinks.rows import TABLES
from tests.chaos.ledger import Evidence, Lag, Logged, Stored, TableCount, Total, Watermark, digest_of, read_entries

AWAY: Final = (ClawError, KafkaError, TimeoutError, OSError)
"""What says that broker or pool are away just now."""
STREAMS, SINKS, WORKERS = "claw-streams", "claw-sinks", "claw-workers"
"""Consumer groups."""
SEEN_S: Final = 5.0
"""Longest wait for a moment at which a partition has no open transaction."""
LOOKED_AT: Final = 12
"""Trajectories whose contexts the pool's own view puts together; of the others the stored differences are."""


async def read_log(kafka: str, run_id: str, names: Iterable[str]) -> list[Logged]:
    """Every committed record of the run on these topics. Raises InvalidRecord for one that cannot be read."""
    found: list[Logged] = []
    for topic in names:
        for record in await bus.read_topic(kafka, topic, client_id="chaos"):
            if record.value is None:
                continue
            event = decode(record.headers, record.value)
            if isinstance(event, Fact | Outcome | Sample | GroupReady) and event.run_id != run_id:
                continue
            carried = header(record.headers, "claw-carried") is not None
            found.append(Logged(topic, record.partition, record.offset, record.timestamp / 1000, event, carried))
    return found


def topics_of(recipe: str) -> tuple[str, ...]:
    return topics.EVENTS, topics.TRAJECTORIES, topics.batch_topic(recipe), topics.OUTCOMES, topics.CUTS


# ---------------------------------------------------------------------------------------------------------------- offsets


@dataclass
class Watch:
    """Committed offsets, looked at while the faults strike."""

    kafka: str
    clickhouse: str
    database: str = "claw"
    partitions: int = topics.DEFAULT_EVENTS_PARTITIONS
    marks: list[Watermark] = field(default_factory=list)

    async def streams(self) -> None:
        """How far the streams have committed, and what they had said by then.

        A transaction's markers come to its partitions one after the other: that of the offsets may be first. So what had been
        said is looked at when the outcomes' partition has no transaction open; where there is always one, nothing is noted.
        """
        at, committed = time.time(), await self._committed(STREAMS)
        for number, done in (await self._closed_ends()).items():
            if number in committed:
                self.marks.append(Watermark(at, "streams", number, committed[number], done))

    async def _closed_ends(self) -> dict[int, int]:
        """By partition of the outcomes, its end at a moment at which all of it was committed or aborted."""
        found: dict[int, int] = {}
        places = [TopicPartition(topics.OUTCOMES, number) for number in range(self.partitions)]
        whole = await bus.start_consumer(self.kafka, client_id="chaos", committed_only=False)
        try:
            stable = await bus.start_consumer(self.kafka, client_id="chaos")
            try:
                end = time.monotonic() + SEEN_S
                while len(found) < len(places) and time.monotonic() < end:
                    ends = await bus.end_offsets(whole, places)
                    below = await bus.end_offsets(stable, places)
                    found |= {p.partition: below[p] for p in places if below[p] >= ends[p] and p.partition not in found}
                    await asyncio.sleep(0.05)
            finally:
                await bus.stop_consumer(stable)
        finally:
            await bus.stop_consumer(whole)
        return found

    async def sinks(self) -> None:
        """How far the sinks have committed, and what the pool had by then."""
        at, committed = time.time(), await self._committed(SINKS)
        async with await ClickHouse.connect(self.clickhouse, self.database) as pool:
            for number, offset in committed.items():
                where = f"topic = '{topics.EVENTS}' AND partition = {number} AND offset < {offset}"
                # By id: a merge takes all but the lowest offset of a step that the log has twice.
                rows = int(
                    await pool.scalar(f"SELECT uniqExact(step_id) FROM {self.database}.steps WHERE {where}") or 0
                )
                self.marks.append(Watermark(at, "sinks", number, offset, rows))

    async def _committed(self, group: str) -> dict[int, int]:
        places = [TopicPartition(topics.EVENTS, number) for number in range(self.partitions)]
        found = await bus.committed_offsets(self.kafka, group, places, deadline=5.0)
        return {place.partition: offset for place, offset in found.items() if offset is not None}


async def read_lags(kafka: str, recipe: str, records: Sequence[Logged]) -> list[Lag]:
    """Records that consumer groups have not done with: control records of transactions are none."""
    consumed = {STREAMS: (topics.EVENTS,), WORKERS: (topics.TRAJECTORIES,), SINKS: topics_of(recipe)}
    lags = []
    for group, names in consumed.items():
        offsets: dict[tuple[str, int], list[int]] = defaultdict(list)
        for record in records:
            if record.topic in names:
                offsets[record.topic, record.partition].append(record.offset)
        places = [TopicPartition(*place) for place in offsets]
        committed = await bus.committed_offsets(kafka, group, places)
        for place in places:
            behind = sum(offset >= (committed[place] or 0) for offset in offsets[place.topic, place.partition])
            lags.append(Lag(group, place.topic, place.partition, behind))
    return lags


# --------------------------------------------------------------------------------------------------------------- the pool


async def read_steps(pool: ClickHouse, run_id: str) -> list[Stored]:
    """The pool's steps, with the digests of contexts that are put together from the stored differences."""
    sql = (
        "SELECT s.step_id AS step_id, s.trajectory_uid AS trajectory_uid, s.status AS status, s.parent_step_id AS parent, "
        "s.prefix_len AS prefix_len, t.new_prompt_ids AS new_prompt_ids, t.response_ids AS response_ids "
        f"FROM (SELECT * FROM {pool.database}.steps FINAL WHERE run_id = {{run:String}}) AS s "
        f"LEFT JOIN (SELECT * FROM {pool.database}.step_tokens FINAL WHERE run_id = {{run:String}}) AS t "
        "ON s.step_id = t.step_id"
    )
    rows = {row["step_id"]: row for row in (await pool.query(sql, {"run": run_id})).dicts()}
    contexts: dict[str, list[int] | None] = {}
    return [
        Stored(step_id, row["trajectory_uid"], row["status"], _pool_digest(step_id, rows, contexts))
        for step_id, row in rows.items()
    ]


def _pool_digest(step_id: str, rows: Mapping[str, dict[str, Any]], known: dict[str, list[int] | None]) -> str | None:
    prompt = _pool_prompt(step_id, rows, known)
    return None if prompt is None else digest_of(pack_ids(prompt), pack_ids(rows[step_id]["response_ids"]))


def _pool_prompt(
    step_id: str, rows: Mapping[str, dict[str, Any]], known: dict[str, list[int] | None]
) -> list[int] | None:
    if step_id not in known:
        row = rows.get(step_id)
        prompt: list[int] | None = None
        if row is not None and row["parent"] is None:
            prompt = list(row["new_prompt_ids"])
        elif row is not None and (above := _pool_prompt(row["parent"], rows, known)) is not None:
            whole = [*above, *rows[row["parent"]]["response_ids"]]
            prompt = [*whole[: row["prefix_len"]], *row["new_prompt_ids"]]
        known[step_id] = prompt
    return known[step_id]


async def count_tables(pool: ClickHouse) -> list[TableCount]:
    """Every table of the pool."""
    counts = []
    for table in TABLES:
        taken = ", position, taken" if table == "cut_members" else ""
        name = f"{pool.database}.{table}"
        raw, places = await _pair(pool, f"SELECT count(), uniqExact((topic, partition, offset{taken})) FROM {name}")
        where = f"database = '{pool.database}' AND name = '{table}'"
        key = await pool.scalar(f"SELECT sorting_key FROM system.tables WHERE {where}")
        final, keys = await _pair(pool, f"SELECT count(), uniqExact(({key})) FROM {name} FINAL")
        counts.append(TableCount(table, raw, places, final, keys))
    return counts


async def _pair(pool: ClickHouse, sql: str) -> tuple[int, int]:
    first, second = (await pool.query(sql)).rows[0]
    return int(first), int(second)


async def read_totals(pool: ClickHouse, run_id: str, recipe: str, records: Sequence[Logged]) -> list[Total]:
    """What views add up, beside the same from the log."""
    log = _totals_of_log(recipe, [record.event for record in records if not record.carried])
    run, database = {"run": run_id, "recipe": recipe}, pool.database
    mine = "run_id = {run:String}"
    questions = {
        "fates of trajectories": f"SELECT sum(outcomes) FROM {database}.outcome_funnel WHERE {mine} AND about = 'trajectory'",
        "late facts": f"SELECT sum(outcomes) FROM {database}.outcome_funnel WHERE {mine} AND outcome = 'late'",
        "steps in cuts": f"SELECT count() FROM {database}.lineage WHERE recipe = {{recipe:String}}",
        "rewards in force": f"SELECT sum(value) FROM {database}.effective_rewards WHERE {mine}",
        "trained tokens": f"SELECT sum(trained_tokens) FROM {database}.merging WHERE {mine}",
        "lost calls": f"SELECT count() FROM {database}.lost_calls WHERE {mine}",
    }
    return [Total(name, float(await pool.scalar(sql, run) or 0), log[name]) for name, sql in questions.items()]


def _totals_of_log(recipe: str, events: Sequence[Event]) -> dict[str, float]:
    outcomes = {e.outcome_id: e for e in events if isinstance(e, Outcome)}
    samples = {e.sample_id: e for e in events if isinstance(e, Sample)}
    cut = {name for e in events if isinstance(e, BatchCut) for member in e.members for name in member.sample_ids}
    rewards: dict[tuple[str | None, ...], Reward] = {}
    for event in events:
        if isinstance(event, Reward):
            key = (event.prompt_uid, event.trajectory_uid, event.step_id, event.source)
            if key not in rewards or rewards[key].revision < event.revision:
                rewards[key] = event
    started = {e.step_id for e in events if isinstance(e, StepStarted)}
    return {
        "fates of trajectories": sum(o.fact_id is None and o.trajectory_uid is not None for o in outcomes.values()),
        "late facts": sum(o.outcome == "late" for o in outcomes.values()),
        "steps in cuts": sum(len(samples[name].spans) for name in cut if name in samples),
        "rewards in force": sum(r.value or 0.0 for r in rewards.values()),
        "trained tokens": sum({e.group_id: e.trained_tokens for e in events if isinstance(e, GroupReady)}.values()),
        "lost calls": len(started - {e.step_id for e in events if isinstance(e, Step)}),
    }


async def look_at_contexts(pool: ClickHouse, stored: Sequence[Stored]) -> list[Total]:
    """Tokens of some trajectories' contexts as the pool's view puts them together: as many have the right ids as there are."""
    digests = {step.step_id: step.digest for step in stored}
    uids = list(dict.fromkeys(step.trajectory_uid for step in stored))[:: max(1, len(stored) // LOOKED_AT)]
    right: Counter[str] = Counter()
    for uid in uids[:LOOKED_AT]:
        sql = f"SELECT step_id, prompt_ids, response_ids FROM {pool.database}.contexts(trajectory_uid = {{uid:String}})"
        for step_id, prompt, response in (await pool.query(sql, {"uid": uid})).rows:
            right[uid] += digest_of(pack_ids(prompt), pack_ids(response)) == digests.get(step_id)
    of_log = Counter(step.trajectory_uid for step in stored)
    return [Total(f"contexts of {uid}", right[uid], of_log[uid]) for uid in uids[:LOOKED_AT]]


# --------------------------------------------------------------------------------------------------------------- together


@dataclass(frozen=True)
class Places:
    """Where evidence of a run lies."""

    kafka: str
    clickhouse: str
    run_id: str
    recipe: str
    books: Path
    """Folder of the clients' `.book` files."""
    database: str = "claw"
    required: tuple[str, ...] = ("reward",)


async def gather(places: Places, *, watermarks: Sequence[Watermark] = (), looks: Sequence[int] = ()) -> Evidence:
    """Everything that is there now. Raises ClawError."""
    records = await read_log(places.kafka, places.run_id, topics_of(places.recipe))
    async with await ClickHouse.connect(places.clickhouse, places.database) as pool:
        stored = await read_steps(pool, places.run_id)
        tables = await count_tables(pool)
        totals = await read_totals(pool, places.run_id, places.recipe, records)
        totals += await look_at_contexts(pool, stored)
    lines = (
        line for book in sorted(places.books.glob("*.book")) for line in book.read_bytes().splitlines(keepends=True)
    )
    return Evidence(
        run_id=places.run_id,
        recipe=places.recipe,
        entries=read_entries(lines),
        records=records,
        stored=stored,
        tables=tables,
        totals=totals,
        watermarks=watermarks,
        lags=await read_lags(places.kafka, places.recipe, records),
        looks=looks,
        required=places.required,
    )


async def is_settled(places: Places) -> str | None:
    """None once every begun trajectory's group is closed, cut batches are trained, the pool has all, and nobody is behind; else
    what is missing."""
    try:
        records = await read_log(places.kafka, places.run_id, topics_of(places.recipe))
        events = [record.event for record in records]
        begun = {e.trajectory_uid for e in events if isinstance(e, Step | StepStarted)}
        ended = {uid for e in events if isinstance(e, Outcome) and e.outcome == "closed" for uid in e.trajectories}
        if open_ := begun - ended:
            return f"{len(open_)} trajectories are open"
        cuts = {e.sequence for e in events if isinstance(e, BatchCut)}
        trained = {e.sequence for e in events if isinstance(e, BatchTrained)}
        if cuts - trained:
            return f"{len(cuts - trained)} batches are not trained"
        behind = [lag for lag in await read_lags(places.kafka, places.recipe, records) if lag.behind]
        return f"{behind[0]}" if behind else None
    except AWAY as error:
        return str(error).partition("\n")[0]
