"""One partition of `claw.events.v1` at work: state rebuilt by replay, records folded, decisions written, offsets committed.

Per partition one transactional producer, which fences its predecessor before the ledger is read. Every decision's outputs
are in one transaction; outputs that pile up while one commits go out in the next. The committed offset only moves to where
the fold's state said that nothing older is needed, at a moment whose decisions are all durable. Anything unexpected ends the
process: replay is the one recovery path.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from claw_r1 import bus, metrics
from claw_r1.codec import Record, decode
from claw_r1.dlq import dead_letter
from claw_r1.errors import ClawError, InvalidRecord, RetryableError
from claw_r1.events import Event, GroupCarried, GroupReady, Outcome, RecipeActive, Sample, Step, Trajectory
from claw_r1.ids import event_key
from claw_r1.settings import StreamsSettings
from claw_r1.topics import EVENTS, OUTCOMES, RECIPES, dlq_topic
from streams import outbox
from streams.carrier import Wanted, copy_groups, is_copy, read_copies
from streams.carry import draft, elsewhere, hold, is_due, open_groups, settle
from streams.outbox import Sending
from streams.readiness import GroupState
from streams.spill import STEP_BYTES, Budget
from streams.state import Key, Output, PartitionState

if TYPE_CHECKING:
    from claw_r1.tracing import Spans
    from streams.tracing import Telling

log = logging.getLogger("claw.streams")

MAX_PENDING = 20_000
"""Outputs that may wait for a transaction; beyond it no more records are taken in."""
MAX_PENDING_BYTES = 128 * 2**20
"""About so much of samples and conversations may wait."""
MAX_INVALID_RUN = 100
"""So many undecodable records in a row stop the worker: the topic is not what it should be."""
_GAUGES = (
    metrics.STREAMS_OPEN_GROUPS,
    metrics.STREAMS_POSITION,
    metrics.STREAMS_COMMITTED,
    metrics.STREAMS_LAG,
    metrics.STREAMS_SPILLED_STEPS,
)
_LEDGER_SLACK_MS = 60_000
LEDGER_RECORDS = 50_000
"""So many outcomes are read back in any case: about those of CLOSED_KEPT groups."""


class RetentionPassed(ClawError):
    """The log no longer holds facts that open groups need."""


class LogTruncated(ClawError):
    """The log ends before what was already decided: it lost records, or it is another topic of the same name."""


class PartitionWorker:
    """The shell around one PartitionState."""

    def __init__(
        self, settings: StreamsSettings, partition: int, *, share: int = 1, spans: "Spans | None" = None
    ) -> None:
        """One of `share` partitions that share this worker's memory; with `spans` decisions are told."""
        self.settings = settings
        self.partition = partition
        self.state = PartitionState(partition)
        folder = Path(settings.spill) / settings.app / settings.worker / str(partition)
        self._budget = Budget(settings.memory_bytes // share, folder)
        self.committed: int | None = None
        self.safe = 0
        """May be committed: everything below is decided and durable."""
        self._source = f"streams/{settings.worker}"
        self._producer: AIOKafkaProducer | None = None
        self._pending: list[Output | Record] = []
        self._pending_bytes = 0
        self._stopped = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._anchor = (0.0, 0.0)
        self._invalid_run = 0
        self._told = (0, 0, 0)
        """Duplicates, conflicts and reused prompts that the metrics have."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._traces = None
        if spans is not None:
            from streams.tracing import GroupTraces

            self._traces = GroupTraces(spans, partition, settings.app)

    # ------------------------------------------------------------------------------------------------------------- start

    async def rebuild(self, committed: int | None) -> None:
        """Fence the earlier owner, read the ledger, replay the log from the committed offset to its end."""
        settings = self.settings
        self._producer = await bus.start_producer(
            settings.kafka,
            client_id=f"claw-streams-{self.partition}",
            transactional_id=f"{settings.app}-{self.partition}",
            transaction_timeout=settings.transaction_timeout,
        )
        recipes = await bus.read_topic(settings.kafka, RECIPES, client_id="claw-streams-recipes")
        consumer = await bus.start_reader(settings.kafka, client_id=f"claw-streams-replay-{self.partition}")
        try:
            await self._replay(consumer, committed, recipes)
        finally:
            await bus.stop_consumer(consumer)

    async def _replay(
        self, consumer: AIOKafkaConsumer, committed: int | None, recipes: Sequence[ConsumerRecord]
    ) -> None:
        events = TopicPartition(EVENTS, self.partition)
        outcomes = TopicPartition(OUTCOMES, self.partition)
        consumer.assign([events, outcomes])
        first = (await consumer.beginning_offsets([events]))[events]
        end = (await bus.end_offsets(consumer, [events]))[events]
        start = first if committed is None else committed
        if start < first:
            raise RetentionPassed(
                f"{EVENTS}[{self.partition}] begins at {first}, but facts from {start} on are still needed: retention is "
                "shorter than the longest open group. Raise the topic's retention; to go on without those facts, set the "
                f"committed offset of group {self.settings.app} to {first}."
            )
        if start > end:
            raise LogTruncated(
                f"{EVENTS}[{self.partition}] ends at {end}, but was decided up to {start}: the log lost records, or the topic "
                f"was made anew. To go on with what it holds, delete the offsets of group {self.settings.app}."
            )
        state = self.state
        state.position = self.safe = start
        self.committed = committed
        active = [e for r in recipes if isinstance(e := decode(r.headers, r.value), RecipeActive)]
        state.load_recipes(active, before=start)
        ledger = await self._read_ledger(consumer, events, outcomes, start if start < end else None)
        state.load_ledger(ledger)
        consumer.pause(outcomes)
        known = {(a.name, a.version): a for a in active if a.partition == self.partition}
        async for carried, copies in read_copies(consumer, events, open_groups(ledger, self.partition)):
            hold(state, carried, copies, known)
            if self._traces is not None:
                self._traces.hold(carried, copies)
        async for records in bus.read_range(consumer, events, start, end):
            metrics.STREAMS_REPLAYED.inc(len(records))
            self.fold(records)
            if not self._room.is_set():
                await self.write()  # decisions that no earlier owner wrote: it is fenced, and the ledger was read
        self._queue(state.end_replay())
        self._anchor = (max(state.now, time.time()), time.monotonic())
        log.info(
            "partition rebuilt",
            extra={"partition": self.partition, "start": start, "end": end, "open_groups": len(state.groups)},
        )

    async def _read_ledger(
        self, consumer: AIOKafkaConsumer, events: TopicPartition, outcomes: TopicPartition, start: int | None
    ) -> list[Outcome | GroupCarried]:
        """What was written to the ledger since the fact at `start` was appended: what concerns groups that were open then;
        and its newest records in any case, so that facts about groups that closed before are late and open nothing."""
        consumer.pause(outcomes)
        oldest = None
        if start is not None:
            async for records in bus.read_range(consumer, events, start, start + 1):
                oldest = records[0].timestamp
        consumer.resume(outcomes)
        consumer.pause(events)
        first = (await consumer.beginning_offsets([outcomes]))[outcomes]
        end = (await bus.end_offsets(consumer, [outcomes]))[outcomes]
        low = max(first, end - LEDGER_RECORDS)
        if oldest is not None:
            found = (await consumer.offsets_for_times({outcomes: max(0, oldest - _LEDGER_SLACK_MS)}))[outcomes]
            low = low if found is None else min(low, max(first, found.offset))
        ledger: list[Outcome | GroupCarried] = []
        async for records in bus.read_range(consumer, outcomes, low, end):
            ledger += [e for r in records if isinstance(e := decode(r.headers, r.value), Outcome | GroupCarried)]
        consumer.resume(events)
        return ledger

    # -------------------------------------------------------------------------------------------------------------- fold

    async def take(self, records: Sequence[ConsumerRecord]) -> None:
        """Fold a batch of records in offset order; waits while too many outputs are unwritten."""
        await self._room.wait()
        if self._stopped:
            return  # given up meanwhile: the next owner reads them
        self.fold(records)
        self._anchor = (self.state.now, time.monotonic())

    def fold(self, records: Sequence[ConsumerRecord]) -> None:
        """Records below the expected offset were seen; one above it means that some were skipped, which must not happen."""
        state = self.state
        outputs: list[Output | Record] = []
        taken: dict[str, int] = {}
        size = 0
        for record in records:
            if record.offset < state.position:
                continue
            if record.offset > state.position:
                raise ClawError(f"{EVENTS}[{self.partition}]: expected offset {state.position}, got {record.offset}")
            if is_copy(record):
                outputs += state.skip(record.offset, record.timestamp / 1000)
                continue
            try:
                event = decode(record.headers, record.value)
            except InvalidRecord as error:
                outputs += self._spoil(record, error)
                continue
            self._invalid_run = 0
            made = state.apply(event, record.offset, record.timestamp / 1000)
            outputs += made
            if self._traces is not None and isinstance(event, Step):
                self._traces.follow(event, record, state, made)
            taken[event.TYPE] = taken.get(event.TYPE, 0) + 1
            if isinstance(event, Step):
                size += STEP_BYTES + len(record.value)
        if spilled := self._budget.keep(state, size):
            metrics.STREAMS_SPILLED_BYTES.inc(spilled)
        for kind, number in taken.items():
            metrics.STREAMS_FACTS.labels(kind).inc(number)
        self._queue(outputs)

    def _spoil(self, record: ConsumerRecord, error: InvalidRecord) -> list[Output | Record]:
        self._invalid_run += 1
        if self._invalid_run > MAX_INVALID_RUN:
            raise ClawError(f"{MAX_INVALID_RUN} undecodable records in a row on {EVENTS}[{self.partition}]: {error}")
        metrics.STREAMS_DROPPED.labels(error.reason).inc()
        log.warning(
            "undecodable record", extra={"partition": self.partition, "offset": record.offset, "why": str(error)}
        )
        outputs = self.state.spoil(_key_of(record), record.offset, record.timestamp / 1000, error.reason)
        dead = dead_letter(record, error, stage="streams")
        return [*outputs, dead]

    def tidy(self) -> None:
        """Forget on disk what closed, and tell what was counted."""
        metrics.STREAMS_SPILLED_STEPS.labels(self.partition).set(self._budget.tidy(self.state))
        state, (duplicates, conflicts, reused) = self.state, self._told
        metrics.STREAMS_DUPLICATES.inc(state.duplicates - duplicates)
        metrics.STREAMS_CONFLICTS.inc(state.conflicts - conflicts)
        metrics.STREAMS_REUSED_PROMPTS.inc(state.reused_prompts - reused)
        self._told = state.duplicates, state.conflicts, state.reused_prompts

    def tick(self) -> None:
        """Stream time passes by the monotonic clock while no records come; only once the log's end was reached."""
        at, since = self._anchor
        self._queue(self.state.tick(at + time.monotonic() - since))

    def _queue(self, outputs: Sequence[Output | Record]) -> None:
        if not outputs:
            if not self._pending and self._idle.is_set():
                self.safe = self.state.committable
            return
        self._pending += outputs
        self._pending_bytes += sum(map(_size, outputs))
        self._idle.clear()
        self._wake.set()
        if len(self._pending) > MAX_PENDING or self._pending_bytes > MAX_PENDING_BYTES:
            self._room.clear()

    # ------------------------------------------------------------------------------------------------------------- carry

    async def keep_carrying(self) -> None:
        """Carry what is open for long, for ever: not at once, but many groups with one look through the log."""
        while True:
            await asyncio.sleep(self.settings.carry_after / 2)
            await self.carry()

    async def carry(self) -> None:
        """Write the facts of the groups that are due to the log again, and then that they were."""
        state = self.state
        due = [g for g in state.groups.values() if is_due(g, state.now, self.settings.carry_after)]
        if not due:
            return
        wanted = [Wanted(draft(state, group), frozenset(group.seen), group.first_offset) for group in due]
        for carried in await copy_groups(self.settings.kafka, wanted, self.partition, state.position):
            key = event_key(carried.run_id, carried.prompt_uid)
            self._queue([Output(OUTCOMES, carried, key, self.partition)])

    def leaving(self, partitions: int) -> dict[int, list[GroupState]]:
        """By partition the open groups whose facts go there, and not to this one, if the events have so many partitions."""
        found: dict[int, list[GroupState]] = {}
        for group in self.state.groups.values():
            target = bus.partition_of(event_key(group.run_id, group.prompt_uid), partitions)
            if target != self.partition:
                found.setdefault(target, []).append(group)
        return found

    async def move(self, partitions: int, consumer: AIOKafkaConsumer) -> list[GroupCarried]:
        """As the events get so many partitions, and nobody reads or writes them: carry each open group whose facts go to
        another one there; `consumer` says where that ends. All that was decided must be durable (`write`). Raises
        RetryableError if not all are carried: a worker that begins anew carries the others."""
        state = self.state
        moved: list[GroupCarried] = []
        for target, groups in self.leaving(partitions).items():
            (end,) = (await bus.end_offsets(consumer, [TopicPartition(EVENTS, target)])).values()
            there = {"partition": target, "pos": end}
            drafts = [(draft(state, group).model_copy(update=there), group) for group in groups]
            wanted = [Wanted(one, frozenset(group.seen), group.first_offset) for one, group in drafts]
            carried = await copy_groups(self.settings.kafka, wanted, self.partition, state.position, target=target)
            if len(carried) < len(wanted):
                raise RetryableError(
                    f"{len(wanted) - len(carried)} open groups of {EVENTS}[{self.partition}] are not carried to "
                    f"{EVENTS}[{target}]: the log says why"
                )
            moved += carried
        told = [one for carried in moved for one in (carried, elsewhere(carried, state))]
        said = (Output(OUTCOMES, one, event_key(one.run_id, one.prompt_uid), one.partition) for one in told)
        for records in outbox.cut(self._record(output, None) for output in said):
            await self._write(records)
        return moved

    # -------------------------------------------------------------------------------------------------------------- emit

    async def emit(self) -> None:
        """Write what is decided, one transaction after another, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.write()

    async def write(self) -> None:
        """Write what is decided so far; then what lies below the oldest open group may be committed."""
        outputs, self._pending, self._pending_bytes = self._pending, [], 0
        safe = self.state.committable
        telling = None if self._traces is None else self._traces.begin(outputs)
        for records in outbox.cut(self._record(output, telling) for output in outputs):
            with metrics.STREAMS_TRANSACTION_SECONDS.time():
                await self._write(records)
        for output in outputs:
            if isinstance(output, Output):
                count_output(output.event)
                if isinstance(output.event, GroupCarried):
                    metrics.STREAMS_CARRIED.inc(settle(self.state, output.event))
        if telling is not None:
            telling.end()
        self.safe = safe
        if len(self._pending) <= MAX_PENDING and self._pending_bytes <= MAX_PENDING_BYTES:
            self._room.set()
        if not self._pending:
            self._idle.set()

    async def _write(self, records: Sequence[Sending]) -> None:
        """All of them, or none: a failure ends the process, and its successor's fence aborts what was begun."""
        assert self._producer is not None
        await outbox.write(self._producer, records, timeout=self.settings.transaction_timeout)

    def _record(self, output: Output | Record, telling: "Telling | None") -> Sending:
        if isinstance(output, Record):
            return Sending(dlq_topic(EVENTS), None, output)
        trace = None if telling is None else telling.trace_of(output.event)
        return outbox.address(output, source=self._source, traceparent=trace)

    async def settle(self) -> None:
        """Wait until every output so far is durable."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Give the partition up; what is unwritten is decided again by its next owner."""
        self._stopped = True
        self._room.set()  # who waits for it would wait for ever
        self._budget.close()
        for gauge in _GAUGES:
            gauge.remove(self.partition)  # its next owner says what is true from now on
        if self._producer is not None:
            await bus.stop_producer(self._producer)
            self._producer = None


def count_output(event: Event) -> None:
    """What a durable output says, as metrics."""
    match event:
        case Outcome():
            metrics.STREAMS_OUTCOMES.labels(event.outcome).inc()
        case GroupReady():
            metrics.STREAMS_TOKENS.labels("samples").inc(event.tokens)
            metrics.STREAMS_TOKENS.labels("trained").inc(event.trained_tokens)
            for member in event.members:
                metrics.STREAMS_TOKENS.labels("steps").inc(member.step_tokens or 0)
                metrics.STREAMS_HOLES.inc(member.holes or 0)
                for kind, steps in member.links.items():
                    metrics.STREAMS_LINKS.labels(kind).inc(steps)
                for reason, tokens in member.mask_reasons.items():
                    metrics.STREAMS_MASKED.labels(reason).inc(tokens)
                for reason, arrays in member.unused.items():
                    metrics.STREAMS_ANNOTATIONS_UNUSED.labels(reason).inc(arrays)


def _key_of(record: ConsumerRecord) -> Key | None:
    run_id, slash, prompt_uid = (record.key or b"").decode(errors="replace").partition("/")
    return (run_id, prompt_uid) if slash else None


def _size(output: Output | Record) -> int:
    """About the bytes that an output holds in memory."""
    if isinstance(output, Record):
        return len(output.value)
    match output.event:
        case Sample(loss_mask=mask, annotations=arrays):
            return 1000 + (9 + 4 * len(arrays)) * len(mask)
        case Trajectory(messages=messages):
            return 1000 + len(messages or b"")
    return 1000
