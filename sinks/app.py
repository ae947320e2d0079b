"""A consumer of every topic: records come in, become rows, and are inserted as ranges that were promised before.

The order for a partition is always: buffer, commit the promise (fenced by the group), insert, dead-letter, commit the next
offset. Whatever breaks off in between is done again by the next owner of the partition as the same range with the same
tokens. While one range is inserted the next is read. Invariants: no insert without an acknowledged promise; the group cannot
rebalance in the middle of a flush, since the flush holds the lock that giving up partitions waits for; a partition buffers at
most two ranges, each bounded by the limits plus one poll; where a promise was inherited nothing is read beside its flush.
"""

import asyncio
import contextlib
import gc
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from claw_r1 import bus, membership, metrics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import MOVED, decode, header
from claw_r1.errors import InvalidRecord, RetryableError, UserError, needing
from claw_r1.health import HealthServer
from claw_r1.membership import BROKER_DEADLINE, NEVER_IDLE_MS, Fenced
from claw_r1.settings import SinksSettings
from claw_r1.topics import BATCH_PREFIX, OUTCOMES, all_topics
from sinks import migrations
from sinks.dlq import DeadLetters, InvalidBudget
from sinks.plan import Commit, Dead, Limits, LostRecords, Partition
from sinks.purged import drop_purged, list_purged
from sinks.rows import Place, list_rows
from sinks.writer import insert_promised

if TYPE_CHECKING:
    from sinks.tracing import Tracing

log = logging.getLogger("claw.sinks")

POLL_RECORDS: Final = 1000
POLL_SECONDS: Final = 0.5
METADATA_AGE_MS: Final = 2000
"""A new recipe's topic is found after this."""
FETCH_AHEAD_BYTES: Final = 2 * 2**20
GARBAGE: Final = (50_000, 20, 100)
"""Buffers are many tuples that live for a second and make no cycles: Python's own thresholds look through them all the time."""
PURGES_AGE: Final = 1.0
"""A purge that another sink stored is known after this many seconds."""
BUSIEST: Final = 0.7
"""Under load a flush waits up to this many seconds, so that inserting takes at most a fifth of the time."""
BEHIND: Final = 2.0
"""It waits up to this many while the log is far ahead: rows that are late anyway come in fewer, larger inserts."""


def topic_pattern() -> str:
    """A regular expression of the topics that are stored: all of the list and every recipe's, no dead letters."""
    names = [re.escape(topic.name) for topic in all_topics() if not topic.name.endswith(".dlq")]
    return f"^(?:{'|'.join(names)}|{re.escape(BATCH_PREFIX)}[A-Za-z0-9.-]+\\.v1)$"


class Sink(ConsumerRebalanceListener):  # type: ignore[misc]
    """One member of the group `settings.group`. `at` is told the points of a flush: promised, inserted, stored."""

    def __init__(
        self,
        settings: SinksSettings,
        stop: asyncio.Event,
        at: Callable[[str], None] = lambda point: None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._settings = settings
        self._tracing = tracing
        self._stop = stop
        self._at = at
        self._partitions: dict[TopicPartition, Partition] = {}
        self._overshot: set[TopicPartition] = set()
        self._lock = asyncio.Lock()
        self._joined: set[TopicPartition] | None = None
        self._waiting: str | None = "starting"
        self._budget = InvalidBudget(settings.max_invalid)
        self._dead_letters = DeadLetters(settings.kafka)
        self._purged: set[str] = set()
        self._purges_read = float("-inf")
        self._last_flush = 0.0
        self._backoff = 0.0
        self._flushing: asyncio.Task[None] | None = None
        """A flush that runs while the next ranges are read."""
        self._again = False
        """A flush failed and is to be repeated before anything else is read."""
        self._consumer: AIOKafkaConsumer
        self._clickhouse: ClickHouse

    def why_not_ready(self) -> str | None:
        return self._waiting

    # ------------------------------------------------------------------------------------------------------- membership

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        async with self._lock:
            self._forget()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        # aiokafka swallows what fails in here, and fetches meanwhile: the loop takes it from here.
        self._joined = set(assigned)

    def _forget(self) -> None:
        for tp in self._partitions:
            metrics.SINKS_LAG.remove(tp.topic, str(tp.partition))  # its next owner says what is true from now on
        self._partitions = {}
        self._overshot.clear()
        self._joined = None
        self._again = False
        self._waiting = "waiting for partitions"

    async def _resume(self, assigned: set[TopicPartition]) -> None:
        """Go on exactly where the pool ends; aiokafka's own seek would leave out offset 0."""
        standings = await membership.read_standings(self._consumer, assigned)
        if self._joined is not assigned:
            return  # rebalanced meanwhile
        partitions: dict[TopicPartition, Partition] = {}
        for tp, (committed, first, end) in standings.items():
            partition = Partition.resume(
                f"{tp.topic}/{tp.partition}",
                None if committed is None else Commit(*committed),
                first,
                end,
                fresh=os.urandom(6).hex(),
                skip_lost=self._settings.skip_lost,
            )
            partitions[tp] = partition
        try:
            for tp, partition in partitions.items():
                membership.seek(self._consumer, tp, partition.first)
        except Fenced:
            return  # the next rebalance has begun
        self._partitions = partitions
        self._joined = None
        self._waiting = None
        log.info("partitions assigned", extra={"partitions": len(assigned)})

    # ------------------------------------------------------------------------------------------------------------- loop

    async def run(self) -> None:
        """Until stopped; then what is buffered is stored. Raises what must end the process."""
        settings = self._settings
        async with contextlib.AsyncExitStack() as closing:
            self._clickhouse = await closing.enter_async_context(
                await ClickHouse.connect(settings.clickhouse, settings.database, timeout=settings.insert_timeout)
            )
            await self._check_schema()
            closing.push_async_callback(self._dead_letters.close)
            self._consumer = await bus.start_consumer(
                settings.kafka,
                client_id="claw-sinks",
                group=settings.group,
                auto_offset_reset="none",
                metadata_max_age_ms=METADATA_AGE_MS,
                session_timeout_ms=int(settings.session_timeout * 1000),
                heartbeat_interval_ms=int(settings.session_timeout * 1000 / 4),
                # Heartbeats alone say that a sink lives: while ClickHouse is away it polls nothing for as long as it takes.
                max_poll_interval_ms=NEVER_IDLE_MS,
                # Bounds what is fetched ahead; a larger record still comes, alone.
                max_partition_fetch_bytes=FETCH_AHEAD_BYTES,
            )
            closing.push_async_callback(self._leave)
            closing.push_async_callback(self._give_up)
            self._waiting = "waiting for partitions"
            self._consumer.subscribe(pattern=topic_pattern(), listener=self)
            while not self._stop.is_set():
                await self._step()
            with contextlib.suppress(RetryableError):  # promised by then, and stored by the next start
                await self._settle()
                # Of an inherited promise that was not read to its end the next owner stores the whole range.
                whole = {tp: p for tp, p in self._partitions.items() if p.range.count and not p.inherited}
                await self._flush(whole)

    async def _give_up(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])

    async def _leave(self) -> None:
        await bus.stop_consumer(self._consumer, deadline=BROKER_DEADLINE)

    async def _check_schema(self) -> None:
        settings = self._settings
        if pending := await migrations.list_pending(settings.clickhouse, settings.database):
            raise UserError(
                f"the database {settings.database} at {self._clickhouse.url} lacks {len(pending)} migrations, the first is "
                f"{pending[0].name}: run `claw migrate`"
            )

    async def _step(self) -> None:
        try:
            if self._flushing is not None and (self._flushing.done() or self._is_full()):
                await self._settle()
            if self._joined is not None:
                await self._resume(self._joined)
            for tp, records in (await self._poll()).items():
                self._take(tp, records)
            if self._flushing is None:
                await self._begin_flush()
        except RetryableError as error:
            await self._wait_for_return(error)
        self._report_lag()

    async def _begin_flush(self) -> None:
        due = await self._list_due()
        if not due:
            self._again = False  # what failed is stored, or not ours any more
            return
        alone = self._again or any(partition.inherited for partition in due.values())
        for partition in due.values():
            partition.promise()  # before anything can fail: from here on the range does not grow
        self._flushing = asyncio.create_task(self._flush(due))
        if alone:
            await self._settle()

    async def _settle(self) -> None:
        """Wait for the flush that runs, if there is one. Raises what it raises."""
        flushing, self._flushing = self._flushing, None
        if flushing is not None:
            await flushing
            self._again = False
            self._backoff = 0.0
            self._waiting = None if self._partitions else self._waiting

    def _is_full(self) -> bool:
        return any(partition.pending.fills(self._limits(tp, partition)) for tp, partition in self._partitions.items())

    async def _list_due(self) -> dict[TopicPartition, Partition]:
        now = time.monotonic()
        due = {}
        for tp, partition in list(self._partitions.items()):
            reached = await membership.find_position(self._consumer, tp) if partition.promised else None
            if partition.due(now, self._limits(tp, partition), reached or 0):
                due[tp] = partition
        return due

    async def _poll(self) -> dict[TopicPartition, list[ConsumerRecord]]:
        """Records that came, none if it is time to flush or to stop. Nothing is fetched while a flush must be repeated."""
        if self._again:
            return {}
        try:
            return await membership.poll(
                self._consumer, self._stop, seconds=self._poll_seconds(), most=POLL_RECORDS, until=self._flushing
            )
        except OffsetOutOfRangeError as error:
            raise LostRecords(f"the log no longer has what is to be stored next: {error}") from error

    def _poll_seconds(self) -> float:
        if self._flushing is not None:
            return POLL_SECONDS
        now = time.monotonic()
        waits = [p.range.since + self._limits(tp, p).age - now for tp, p in self._partitions.items() if p.range.count]
        return min(POLL_SECONDS, max(0.0, min(waits, default=POLL_SECONDS)))

    def _limits(self, tp: TopicPartition, partition: Partition) -> Limits:
        settings = self._settings
        behind = partition.is_behind(membership.find_end(self._consumer, tp), POLL_RECORDS)
        age = max(settings.flush_age, BEHIND if behind else min(BUSIEST, 4 * self._last_flush))
        return Limits(settings.flush_rows, settings.flush_bytes, age)

    def _take(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        partition = self._partitions.get(tp)
        if partition is None:
            return  # not ours, or not resumed: the seek comes and brings them again
        now = time.monotonic()
        for record in records:
            if partition.wants(record.offset):
                rows, dead = self._convert(record)
                partition.take(record.offset, len(record.value or b"") + 200, now, rows, dead)
                if self._tracing is not None and (trace := header(record.headers, "traceparent")) is not None:
                    partition.pending.traces[trace] = None
            elif record.offset >= partition.next:
                self._overshot.add(tp)

    def _convert(self, record: ConsumerRecord) -> tuple[list[tuple[str, tuple[Any, ...]]], Dead | None]:
        """The record's rows, or why it has none. Raises TooManyInvalid."""
        if record.value is None:
            metrics.SINKS_DROPPED.labels("tombstone").inc()
            return [], None
        if record.topic == OUTCOMES and header(record.headers, MOVED) is not None:
            metrics.SINKS_DROPPED.labels("moved").inc()
            return [], None
        place = Place(record.topic, record.partition, record.offset, record.timestamp)
        try:
            event = decode(record.headers, record.value)
            rows = list_rows(event, place)
        except InvalidRecord as error:
            log.warning(
                "a record cannot be stored", extra={**place._asdict(), "reason": error.reason, "why": str(error)[:300]}
            )
            self._budget.invalid(record.topic, error)
            return [], Dead(record, error)
        if not rows:
            metrics.SINKS_DROPPED.labels("not_stored").inc()
        self._budget.valid(record.topic)
        return rows, None

    # ------------------------------------------------------------------------------------------------------------ flush

    async def _flush(self, due: dict[TopicPartition, Partition]) -> None:
        """Store what these partitions hold. Raises RetryableError: then the promise stands, and it is to be called again."""
        async with self._lock:
            partitions = {tp: partition for tp, partition in due.items() if self._partitions.get(tp) is partition}
            if not partitions:
                return
            started = time.monotonic()
            await self._learn_purges()
            try:
                promises = {tp: partition.promise() for tp, partition in partitions.items()}
                self._drop_purged(partitions.values())
                with contextlib.nullcontext() if self._tracing is None else self._tracing.flush(partitions):
                    await self._store(partitions, promises)
            except Fenced:
                log.warning("lost the partitions during a flush; their next owner repeats it")
                self._forget()
                return
            self._last_flush = time.monotonic() - started

    async def _store(self, partitions: dict[TopicPartition, Partition], promises: dict[TopicPartition, Commit]) -> None:
        """The promise, the inserts, the dead letters, the next offset. Raises Fenced and RetryableError."""
        await membership.commit(self._consumer, promises)
        self._at("promised")
        await insert_promised(self._clickhouse, partitions.values(), self._at)
        await self._bury([dead for partition in partitions.values() for dead in partition.range.dead])
        for tp, partition in partitions.items():
            metrics.SINKS_RECORDS.labels(tp.topic).inc(partition.range.count)
        commits = {tp: partition.stored() for tp, partition in partitions.items()}
        # Before anything else is read: what came past a promised range was not taken.
        for tp in self._overshot.intersection(partitions):
            membership.seek(self._consumer, tp, partitions[tp].first)
            self._overshot.discard(tp)
        self._at("inserted all")
        # If only this fails, the next promise commits the same offset, or the next owner's insert adds nothing.
        await membership.commit(self._consumer, commits)
        self._at("stored")

    async def _learn_purges(self) -> None:
        if (now := time.monotonic()) - self._purges_read > PURGES_AGE:
            told = await self._clickhouse.query(f"SELECT DISTINCT run_id FROM {self._settings.database}.purges")
            self._purged.update(str(run) for (run,) in told.rows)
            self._purges_read = now

    def _drop_purged(self, partitions: Iterable[Partition]) -> None:
        """Drop rows of purged runs from promised ranges. A range that is tried again keeps its token, whatever it has lost."""
        buffers = [partition.range.rows for partition in partitions]
        self._purged.update(*map(list_purged, buffers))
        for rows in buffers:
            if dropped := drop_purged(rows, self._purged):
                metrics.SINKS_DROPPED.labels("run_purged").inc(dropped)

    async def _bury(self, dead: list[Dead]) -> None:
        await self._dead_letters.publish(dead)
        for _record, error in dead:
            metrics.SINKS_DROPPED.labels(error.reason).inc()

    async def _wait_for_return(self, error: RetryableError) -> None:
        """Back off: 0.2 s, doubling up to 5 s."""
        self._again = any(partition.promised and partition.range.count for partition in self._partitions.values())
        self._backoff = min(5.0, self._backoff * 2 or 0.2)
        self._waiting = f"retrying: {error}"
        metrics.SINKS_RETRIES.labels("unavailable").inc()
        log.warning("not stored yet", extra={"why": str(error), "again_in_s": self._backoff})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self._backoff)

    def _report_lag(self) -> None:
        for tp, partition in self._partitions.items():
            if (end := membership.find_end(self._consumer, tp)) is not None:
                lag = max(0, end - partition.first) if partition.range.count or partition.promised else 0
                metrics.SINKS_LAG.labels(tp.topic, str(tp.partition)).set(lag)


async def run(settings: SinksSettings, stop: asyncio.Event) -> None:
    """A sink with its health pages, until `stop`."""
    gc.freeze()  # what was made at the start lives as long as the process
    gc.set_threshold(*GARBAGE)
    tracing = _open_tracing(settings) if settings.trace else None
    sink = Sink(settings, stop, tracing=tracing)
    health = HealthServer(settings.host, settings.port, sink.why_not_ready)
    await health.start()
    try:
        await sink.run()
    finally:
        await health.stop()
        if tracing is not None:
            await tracing.stop()


def _open_tracing(settings: SinksSettings) -> "Tracing":
    with needing("otel", "CLAW_SINKS_TRACE"):
        from sinks.tracing import open_tracing
    return open_tracing(settings.group, settings.database)
