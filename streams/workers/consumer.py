"""Announced trajectories come in from the log, are worked on many at once, and their offsets are committed behind them.

A member of a consumer group reads `claw.trajectories.v1`. Invariants: the committed offset never passes a trajectory that is
not done, whatever order they are done in; a rebalance stops only the work on partitions that go to another member; work that
is done twice, by this or by another member, writes facts of the same ids; what is unexpected ends the process.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from claw_r1 import bus, membership, metrics
from claw_r1.errors import RetryableError, UserError
from claw_r1.membership import BROKER_DEADLINE, NEVER_IDLE_MS, Fenced, Standing
from claw_r1.settings import WorkersSettings
from claw_r1.topics import TRAJECTORIES
from streams.workers.prefix import Prefix

log = logging.getLogger("claw.workers")

COMMIT_EVERY: Final = 0.5
POLL_SECONDS: Final = 0.5
DRAIN: Final = 5.0
"""Seconds that work in flight may take at the end; what is not done is done again by the next member."""
MAX_SPAN: Final = 10_000
"""Offsets that may be done behind one that is not; then no more is read until it is."""
LONGEST_BACKOFF: Final = 5.0

Work = Callable[[ConsumerRecord], Awaitable[None]]


class LostTrajectories(UserError):
    """The log no longer has what is to be worked on next."""


class Held:
    """An assigned partition: what of it is done, and the work in flight."""

    def __init__(self, start: int, committed: int | None) -> None:
        self.prefix = Prefix(start)
        self.committed = committed
        self.tasks: set[asyncio.Task[None]] = set()

    def drop(self) -> None:
        for task in self.tasks:
            task.cancel()


class TrajectoryConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """One member of the group `settings.group`; `work` returns when its facts are acknowledged."""

    def __init__(self, settings: WorkersSettings, stop: asyncio.Event, work: Work) -> None:
        self._settings = settings
        self._stop = stop
        self._work = work
        self._held: dict[TopicPartition, Held] = {}
        self._joined: set[TopicPartition] | None = None
        """A new assignment that is not resumed yet."""
        self._assigned = False
        self._changed = asyncio.Event()
        """Work ended, partitions were assigned, or something failed."""
        self._failed: BaseException | None = None
        self._commits = asyncio.Lock()
        self._backoff = 0.0
        self._consumer: AIOKafkaConsumer
        self.waiting: str | None = "starting"

    # ------------------------------------------------------------------------------------------------------- membership

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._assigned = False
        with contextlib.suppress(Fenced, RetryableError):
            await self._commit()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        # aiokafka swallows what fails in here, and fetches meanwhile: the loop takes it from here.
        self._joined = set(assigned)
        self._changed.set()

    async def _resume(self, assigned: set[TopicPartition]) -> None:
        """Go on with what stayed, begin with what came, drop what went; aiokafka's own seek would leave out offset 0."""
        standings = await membership.read_standings(self._consumer, assigned)
        if self._joined is not assigned:
            return  # rebalanced meanwhile
        held: dict[TopicPartition, Held] = {}
        for tp, standing in standings.items():
            offset = None if standing.committed is None else standing.committed[0]
            before = self._held.get(tp)
            # Another commit than ours: another member had the partition meanwhile, and went on from there.
            kept = before is not None and before.committed == offset
            held[tp] = before if before is not None and kept else self._begin(tp, standing)
        try:
            for tp, partition in held.items():
                membership.seek(self._consumer, tp, partition.prefix.next)
        except Fenced:
            return  # the next rebalance has begun
        gone = {tp: old for tp, old in self._held.items() if held.get(tp) is not old}
        for tp, old in gone.items():
            old.drop()
            metrics.WORKERS_BACKLOG.remove(str(tp.partition))  # its owner says what is true from now on
        self._held, self._joined = held, None
        self._assigned = True
        log.info("partitions assigned", extra={"partitions": sorted(tp.partition for tp in held), "dropped": len(gone)})

    def _begin(self, tp: TopicPartition, standing: Standing) -> Held:
        first, end = standing.first, standing.end
        if standing.committed is None:
            return Held(end if self._settings.begin == "latest" else first, None)
        committed = standing.committed[0]
        if committed < first and not self._settings.skip_lost:
            raise LostTrajectories(
                f"{tp.topic}[{tp.partition}] begins at {first}, but what comes after {committed} is not done: the topic's "
                "retention took it. Raise the retention; to go on without it, set CLAW_WORKERS_SKIP_LOST=true."
            )
        if committed > end:
            raise LostTrajectories(
                f"{tp.topic}[{tp.partition}] ends at {end}, but was done up to {committed}: the log lost records, or the topic "
                f"was made anew. To go on with what it holds, delete the offsets of group {self._settings.group}."
            )
        return Held(max(committed, first), committed)

    # ------------------------------------------------------------------------------------------------------------- loop

    async def run(self) -> None:
        """Until stopped; then what is in flight has some seconds to end. Raises what must end the process."""
        settings = self._settings
        async with contextlib.AsyncExitStack() as closing:
            self._consumer = await bus.start_consumer(
                settings.kafka,
                client_id="claw-workers",
                group=settings.group,
                group_instance_id=settings.member or None,
                auto_offset_reset="none",
                session_timeout_ms=int(settings.session_timeout * 1000),
                heartbeat_interval_ms=int(settings.session_timeout * 1000 / 4),
                # Heartbeats alone say that a worker lives: with enough in flight it polls nothing for as long as it takes.
                max_poll_interval_ms=NEVER_IDLE_MS,
            )
            closing.push_async_callback(bus.stop_consumer, self._consumer, deadline=BROKER_DEADLINE)
            self.waiting = "waiting for partitions"
            self._consumer.subscribe([TRAJECTORIES], listener=self)
            committing = asyncio.create_task(self._guard(self._keep_committing()))
            try:
                while not self._stop.is_set() and self._failed is None:
                    await self._step()
                if self._failed is not None:
                    raise self._failed
                await self._drain()
            finally:
                committing.cancel()
                for held in self._held.values():
                    held.drop()

    async def _step(self) -> None:
        try:
            if self._joined is not None:
                await self._resume(self._joined)
            room = self._room()
            if room <= 0:
                await self._wait_for_change()
            else:
                for tp, records in (await self._poll(room)).items():
                    self._take(tp, records)
            await self._report()
            self._backoff = 0.0
        except RetryableError as error:
            self._backoff = min(LONGEST_BACKOFF, self._backoff * 2 or 0.2)
            self.waiting = f"retrying: {error}"
            log.warning("the broker is away", extra={"why": str(error), "again_in_s": self._backoff})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._backoff)
        else:
            self.waiting = None if self._assigned and self._joined is None else "waiting for partitions"

    def _room(self) -> int:
        """Trajectories that may be begun."""
        if any(held.prefix.span > MAX_SPAN for held in self._held.values()):
            return 0
        return self._settings.concurrency - sum(len(held.tasks) for held in self._held.values())

    async def _wait_for_change(self) -> None:
        changed = asyncio.ensure_future(self._changed.wait())
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({changed, stop}, return_when=asyncio.FIRST_COMPLETED, timeout=POLL_SECONDS)
        for task in (changed, stop):
            task.cancel()
        self._changed.clear()

    async def _poll(self, room: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        try:
            return await membership.poll(self._consumer, self._stop, seconds=POLL_SECONDS, most=room)
        except OffsetOutOfRangeError as error:
            raise LostTrajectories(f"the log no longer has what is to be worked on next: {error}") from error

    def _take(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        held = self._held.get(tp)
        if held is None or self._joined is not None:
            return  # not resumed: the seek comes and brings them again
        for record in records:
            if held.prefix.take(record.offset):
                task = asyncio.create_task(self._guard(self._one(held, record)))
                held.tasks.add(task)
                task.add_done_callback(held.tasks.discard)

    async def _one(self, held: Held, record: ConsumerRecord) -> None:
        await self._work(record)
        held.prefix.done(record.offset)
        self._changed.set()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the process ends with it
            self._failed = self._failed or error
            self._changed.set()

    async def _drain(self) -> None:
        tasks = {task for held in self._held.values() for task in held.tasks}
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN)
        with contextlib.suppress(Fenced, RetryableError):  # the next member does again what is not committed
            await self._commit()

    # ----------------------------------------------------------------------------------------------------------- commit

    async def _keep_committing(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY)
            with contextlib.suppress(Fenced, RetryableError):  # the next commit says the same and more
                await self._commit()

    async def _commit(self) -> None:
        """Raises Fenced if a partition is no longer ours, RetryableError if the broker is away."""
        async with self._commits:
            offsets = {
                tp: held.prefix.committable
                for tp, held in self._held.items()
                if held.committed is None or held.prefix.committable > held.committed
            }
            if not offsets:
                return
            held = dict(self._held)
            await membership.commit(self._consumer, offsets)
            for tp, offset in offsets.items():
                held[tp].committed = offset

    async def _report(self) -> None:
        metrics.WORKERS_IN_FLIGHT.set(sum(len(held.tasks) for held in self._held.values()))
        for tp in self._consumer.assignment().intersection(self._held):
            end = self._consumer.last_stable_offset(tp)
            if end is None or end < 0 or self._joined is not None:
                continue
            position = await membership.find_position(self._consumer, tp)
            if position is None:
                continue
            behind = len(self._held[tp].prefix) + max(0, end - position)
            metrics.WORKERS_BACKLOG.labels(str(tp.partition)).set(behind)
