"""A trajectory that ended is given to every source, and what they say is published as facts before its offset is done.

Invariants: a source that has nothing to say, or fails, holds back no other; every reward and annotation that could not be made
is counted with its reason; nothing is given up because the broker or the pool is away.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaProducer, ConsumerRecord

from claw_r1 import bus, metrics
from claw_r1.codec import Headers, decode, encode
from claw_r1.dlq import dead_letter
from claw_r1.errors import ClawError, InvalidRecord, RetryableError, WrongUse, needing
from claw_r1.events import Annotation, Reward, Trajectory
from claw_r1.health import HealthServer
from claw_r1.rewards.finding import load_functions
from claw_r1.rewards.rollout import Missing, StepView
from claw_r1.rewards.running import Runner
from claw_r1.settings import WorkersSettings
from claw_r1.topics import EVENTS, TRAJECTORIES, dlq_topic, dlq_topic_spec
from streams.workers.consumer import LONGEST_BACKOFF, TrajectoryConsumer
from streams.workers.pool import StepStore
from streams.workers.sources import LogProbSource, RewardSource, Source, Steps

if TYPE_CHECKING:
    from streams.workers.tracing import Tracing

log = logging.getLogger("claw.workers")

SEND_DEADLINE: Final = 15.0
Send = Callable[[], Awaitable[object]]


class Desk:
    """Where trajectories meet the sources."""

    def __init__(
        self,
        settings: WorkersSettings,
        sources: Sequence[Source],
        store: StepStore,
        producer: AIOKafkaProducer,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._settings = settings
        self._sources = sources
        self._store = store
        self._producer = producer
        self._tracing = tracing
        self._invalid_run = 0

    async def work(self, record: ConsumerRecord) -> None:
        """Returns when every fact about the record's trajectory is acknowledged, and what is missing is counted."""
        try:
            event = decode(record.headers, record.value)
        except InvalidRecord as error:
            await self._bury(record, error)
            return
        self._invalid_run = 0
        if not isinstance(event, Trajectory) or not self._wants(event):
            metrics.WORKERS_DROPPED.labels("not_wanted").inc()
            return
        if await self._store.is_purged(event.run_id):
            metrics.WORKERS_DROPPED.labels("run_purged").inc()
            return
        async with contextlib.AsyncExitStack() as closing:
            steps = self._steps_once(event, closing)
            async with asyncio.TaskGroup() as group:
                for source in self._sources:
                    group.create_task(self._ask(source, event, steps, record.headers))

    def _wants(self, trajectory: Trajectory) -> bool:
        runs, channels = self._settings.runs, self._settings.channels
        return (not runs or trajectory.run_id in runs) and (not channels or trajectory.channel in channels)

    def _steps_once(self, trajectory: Trajectory, closing: contextlib.AsyncExitStack) -> Steps:
        reading: asyncio.Task[list[StepView]] | None = None

        async def steps() -> Sequence[StepView]:
            nonlocal reading
            if reading is None:
                reading = asyncio.create_task(self._store.steps_of(trajectory))
                closing.callback(reading.cancel)
            return await asyncio.shield(reading)

        return steps

    async def _ask(self, source: Source, trajectory: Trajectory, steps: Steps, headers: Headers) -> None:
        asked = None if self._tracing is None else self._tracing.begin(source.name, trajectory, headers)
        facts: Sequence[Reward | Annotation] = ()
        published, missing = 0, None
        try:
            facts = await source.facts(trajectory, steps)
        except Missing as error:
            missing = error.reason
            self._count_missing(source, trajectory, missing, error)
        for fact in facts:
            try:
                await self._publish(fact, trajectory.partition, None if asked is None else asked.traceparent)
            except InvalidRecord as error:
                missing = error.reason
                self._count_missing(source, trajectory, missing, error)
            else:
                published += 1
                metrics.WORKERS_FACTS.labels(source.name).inc()
        if asked is not None:
            asked.end(published, missing)

    def _count_missing(self, source: Source, trajectory: Trajectory, reason: str, error: ClawError) -> None:
        metrics.WORKERS_MISSING.labels(source.name, metrics.bounded(reason)).inc()
        about = {"run_id": trajectory.run_id, "trajectory_uid": trajectory.trajectory_uid, "source": source.name}
        log.warning("nothing could be said", extra={**about, "reason": reason, "why": str(error)[:500]})

    async def _publish(self, fact: Reward | Annotation, partition: int, traceparent: str | None) -> None:
        """To the partition that has the group's facts; while the broker is away, again and again. Raises InvalidRecord."""
        record = encode(fact, source="workers", traceparent=traceparent)
        await self._send(
            lambda: bus.publish(self._producer, EVENTS, record, deadline=SEND_DEADLINE, partition=partition)
        )

    async def _bury(self, record: ConsumerRecord, error: InvalidRecord) -> None:
        self._invalid_run += 1
        if self._invalid_run >= self._settings.max_invalid:
            raise ClawError(f"{self._invalid_run} undecodable records in a row on {TRAJECTORIES}: {error}")
        log.warning("undecodable record", extra={"offset": record.offset, "why": str(error)[:300]})
        letter = dead_letter(record, error, stage="workers")
        topic = dlq_topic(TRAJECTORIES)

        async def send() -> object:
            await bus.ensure_topic(self._settings.kafka, dlq_topic_spec(TRAJECTORIES))
            return await bus.publish(self._producer, topic, letter, deadline=SEND_DEADLINE)

        await self._send(send)
        metrics.WORKERS_DROPPED.labels(error.reason).inc()

    async def _send(self, send: Send) -> None:
        backoff = 0.0
        while True:
            try:
                await send()
                return
            except RetryableError as error:
                if bus.is_broken(self._producer):
                    raise ClawError(f"the producer is broken: {error}") from error
                backoff = min(LONGEST_BACKOFF, backoff * 2 or 0.2)
                log.warning("a fact is not acknowledged yet", extra={"why": str(error), "again_in_s": backoff})
            await asyncio.sleep(backoff)


def make_sources(settings: WorkersSettings) -> list[Source]:
    """Raises WrongUse for a function that cannot be loaded, for two functions of one name, and if there is no source."""
    timeout, attempts, calls = settings.timeout, settings.attempts, settings.calls
    functions = load_functions(settings.rewards, setting="CLAW_WORKERS_REWARDS")
    if not functions and not settings.annotations:
        raise WrongUse("this worker has nothing to do: set CLAW_WORKERS_REWARDS or CLAW_WORKERS_ANNOTATIONS")
    return [
        *(RewardSource(Runner(f, timeout=timeout, attempts=attempts, calls=calls)) for f in functions),
        *(LogProbSource(spec, timeout=timeout, attempts=attempts, calls=calls) for spec in settings.annotations),
    ]


async def run(settings: WorkersSettings, stop: asyncio.Event) -> None:
    """A worker with its health pages, until `stop`."""
    pool_away: str | None = None

    def tell(why: str | None) -> None:
        nonlocal pool_away
        pool_away = why

    sources = make_sources(settings)
    store = StepStore(settings.clickhouse, settings.database, settings.steps_timeout, tell)
    async with contextlib.AsyncExitStack() as closing:
        for source in sources:
            closing.push_async_callback(source.close)
        closing.push_async_callback(store.close)
        tracing = _open_tracing(settings) if settings.trace else None
        if tracing is not None:
            closing.push_async_callback(tracing.stop)
        producer = await bus.start_producer(settings.kafka, client_id="claw-workers")
        closing.push_async_callback(bus.stop_producer, producer)
        desk = Desk(settings, sources, store, producer, tracing)
        consumer = TrajectoryConsumer(settings, stop, desk.work)
        health = HealthServer(settings.host, settings.port, lambda: consumer.waiting or pool_away)
        await health.start()
        closing.push_async_callback(health.stop)
        log.info("a worker begins", extra={"sources": [source.name for source in sources], "group": settings.group})
        await consumer.run()


def _open_tracing(settings: WorkersSettings) -> "Tracing":
    with needing("otel", "CLAW_WORKERS_TRACE"):
        from streams.workers.tracing import open_tracing
    return open_tracing(settings.group)
