"""Faust carries a worker's life (membership, assignment, heartbeats); records pass it by, in batches, to the folds.

What Faust must not do here is done by hand: the seek after a rebalance goes exactly to where the fold stands (its own skips a
seek to offset 0 and loses records), offsets are committed explicitly, no table, no ack, no agent is on the path of a fact.
These are private methods of pinned versions.
"""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

import faust
from aiokafka import TopicPartition
from faust.auth import SASLCredentials, SSLCredentials
from faust.tables import TableManager
from faust.transport.drivers.aiokafka import Consumer, Producer, Transport
from faust.types import TP

from claw_r1 import bus, metrics, wire
from claw_r1.errors import needing
from claw_r1.health import HealthServer
from claw_r1.settings import StreamsSettings
from claw_r1.topics import EVENTS, OUTCOMES, RECIPES, TRAJECTORIES
from streams.partition import PartitionWorker

if TYPE_CHECKING:
    from claw_r1.tracing import Spans

log = logging.getLogger("claw.streams")

COMMIT_EVERY = 1.0
TICK_EVERY = 0.1
LOOK_EVERY = 1.0
COMMIT_DEADLINE = 10.0
START_DEADLINE = 60.0
STOP_DEADLINE = 10.0
GARBAGE = (50_000, 20, 100)
"""Open groups are many objects that live long and make no cycles: Python's own thresholds look through them all the time."""


class BatchConsumer(Consumer):
    """Hands fetched records to the worker in batches per partition, and seeks only where the worker says."""

    async def perform_seek(self) -> None:
        worker: StreamWorker = self.app.claw
        for tp, offset in worker.positions().items():
            await self.seek_wait({tp: offset})

    async def _drain_messages(self, fetcher: Any) -> None:
        worker: StreamWorker = self.app.claw
        try:
            while not (self.should_stop or fetcher.should_stop):
                records, _active = await self._wait_next_records(timeout=1.0)
                generation = self.app.consumer_generation_id
                for tp, batch in (records or {}).items():
                    if not self.flow_active or self.app.consumer_generation_id != generation:
                        break
                    await worker.take(tp.partition, list(batch))
                    await asyncio.sleep(0)  # what other partitions decided goes on its way meanwhile
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the process ends with it
            if not self.should_stop:
                worker.fail(error)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's livelock warnings count acks, which are not used here."""


class IdempotentProducer(Producer):
    def _settings_extra(self) -> dict[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class BatchTransport(Transport):
    Consumer = BatchConsumer
    Producer = IdempotentProducer


class NoTables(TableManager):
    """Faust waits a second for tables that are declared late."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class StatelessApp(faust.App):
    """Without tables nothing of Faust's lies on disk, so it makes no folders in the working directory."""

    def _create_directories(self) -> None:
        return None


class StreamWorker:
    """One process of the group `settings.app`."""

    def __init__(self, settings: StreamsSettings, spans: "Spans | None" = None) -> None:
        """With `spans`, which the caller stops, decisions are told."""
        self.settings = settings
        self._spans = spans
        self.partitions: dict[int, PartitionWorker] = {}
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: str | None = "waiting for an assignment"
        self._finishing = False
        self._joined = asyncio.Event()
        self.app = self._faust_app()

    def _faust_app(self) -> Any:
        settings = self.settings
        app = StatelessApp(
            settings.app,
            broker=[f"kafka://{server}" for server in settings.kafka.split(",")],
            broker_credentials=_credentials(),
            broker_session_timeout=settings.session_timeout,
            broker_heartbeat_interval=min(2.9, settings.session_timeout / 3),
            broker_rebalance_timeout=15,
            broker_request_timeout=max(20.0, settings.session_timeout * 2),
            consumer_group_instance_id=settings.worker,
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=bus.FETCH_BYTES,
            broker_max_poll_records=2000,
            table_standby_replicas=1,
            TableManager=NoTables,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            autodiscover=False,
        )
        app.claw = self
        app.finalize()
        app.transport = BatchTransport(app.conf.broker, app, loop=asyncio.get_running_loop())
        app.topics.add(app.topic(EVENTS, value_serializer="raw", key_serializer="raw"))
        app.on_partitions_revoked.connect(self._on_revoked)
        app.on_rebalance_complete.connect(self._on_rebalanced)
        return app

    # --------------------------------------------------------------------------------------------------------- rebalance

    async def _on_revoked(self, app: Any, revoked: set[TP], **_: Any) -> None:
        self._waiting = "partitions are being assigned"
        await self._release()

    async def _on_rebalanced(self, app: Any, **_: Any) -> None:
        """Faust awaits this before it seeks and lets records flow."""
        self._joined.set()
        try:
            await self._release()
            await self._acquire()
        except Exception as error:
            self.fail(error)
            raise

    async def _acquire(self) -> None:
        generation = self.app.consumer_generation_id
        assigned = sorted(tp.partition for tp in self.app.consumer.assignment() if tp.topic == EVENTS)
        self._waiting = f"rebuilding partitions {assigned}"
        committed = await bus.committed_offsets(
            self.settings.kafka, self.settings.app, [TopicPartition(EVENTS, number) for number in assigned]
        )
        share, spans = len(assigned), self._spans
        workers = {n: PartitionWorker(self.settings, n, share=share, spans=spans) for n in assigned}
        self.partitions = workers
        rebuilt = await asyncio.gather(
            *(worker.rebuild(committed[TopicPartition(EVENTS, number)]) for number, worker in workers.items()),
            return_exceptions=True,
        )
        if self.app.consumer_generation_id != generation or self.partitions is not workers:
            # Also what failed: it may have failed of being fenced, and the next rebuild finds out if not.
            log.info("another rebalance began during the rebuild", extra={"failed": [repr(e) for e in rebuilt if e]})
            if self.partitions is workers:
                self.partitions = {}
            await asyncio.gather(*(worker.stop() for worker in workers.values()))
            return
        if failed := next((error for error in rebuilt if error is not None), None):
            raise failed
        for worker in workers.values():
            self._spawn(worker.emit(), f"emit-{worker.partition}")
            self._spawn(worker.keep_carrying(), f"carry-{worker.partition}")
        self._spawn(self._keep_time(), "time")
        self._spawn(self._keep_committing(), "commit")
        self._waiting = None if workers else "no partition is assigned to this worker"
        log.info("assigned", extra={"partitions": assigned, "generation": generation})

    async def _release(self) -> None:
        """Stop working on the present partitions: what is unwritten is decided again after the next rebuild."""
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        workers, self.partitions = self.partitions, {}
        await asyncio.gather(*(worker.stop() for worker in workers.values()))

    # -------------------------------------------------------------------------------------------------------------- work

    async def take(self, partition: int, records: list[Any]) -> None:
        worker = self.partitions.get(partition)
        if worker is not None and not self._finishing:
            await worker.take(records)

    def positions(self) -> dict[TP, int]:
        return {TP(EVENTS, number): worker.state.position for number, worker in self.partitions.items()}

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_EVERY)
            for number, worker in self.partitions.items():
                end = self.app.consumer.highwater(TP(EVENTS, number))  # None until the first answer to a fetch
                if end is not None and worker.state.position >= end:
                    worker.tick()

    async def _keep_committing(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY)
            await self.commit()

    async def commit(self) -> None:
        """Commit what is safe; the offsets of a partition only rise."""
        rises = {n: w for n, w in self.partitions.items() if w.committed is None or w.safe > w.committed}
        offsets = {TP(EVENTS, number): worker.safe for number, worker in rises.items()}
        if offsets and await self._commit(offsets):
            for number, worker in rises.items():
                worker.committed = offsets[TP(EVENTS, number)]
        for number, worker in self.partitions.items():
            worker.tidy()
            metrics.STREAMS_OPEN_GROUPS.labels(number).set(len(worker.state.groups))
            metrics.STREAMS_POSITION.labels(number).set(worker.state.position)
            metrics.STREAMS_COMMITTED.labels(number).set(worker.committed or 0)
            end = self.app.consumer.highwater(TP(EVENTS, number)) or 0
            metrics.STREAMS_LAG.labels(number).set(max(0, end - worker.state.position))

    async def _commit(self, offsets: dict[TP, int]) -> bool:
        """Whether the broker took them; one that is away gets them with the next commit."""
        try:
            async with asyncio.timeout(COMMIT_DEADLINE):
                return bool(await self.app.consumer._commit(offsets))
        except TimeoutError:
            log.warning("offsets are not committed yet", extra={"deadline": COMMIT_DEADLINE})
            return False

    # -------------------------------------------------------------------------------------------------------------- life

    async def await_topics(self) -> None:
        """Return when there is something to subscribe to: Faust never looks again for a topic that was missing."""
        needed = {EVENTS, OUTCOMES, RECIPES, TRAJECTORIES}
        async with bus.admin(self.settings.kafka) as client:
            while missing := needed - set(await client.list_topics()):
                waiting = f"the broker has no topic {min(missing)}: create it with `claw topics apply`"
                if waiting != self._waiting:
                    log.warning("waiting for topics", extra={"missing": sorted(missing)})
                self._waiting = waiting
                await asyncio.sleep(LOOK_EVERY)
        self._waiting = "waiting for an assignment"

    async def start(self) -> None:
        """Raises DependencyUnreachable if no broker answers, TimeoutError if the group does not let this worker in.

        Faust's start also waits for the first rebuild, which takes as long as it takes.
        """
        await self.await_topics()
        starting = asyncio.ensure_future(self.app.start())
        joined = asyncio.ensure_future(self._joined.wait())
        try:
            async with asyncio.timeout(START_DEADLINE):
                await asyncio.wait({starting, joined}, return_when=asyncio.FIRST_COMPLETED)
            await starting
        finally:
            starting.cancel()
            joined.cancel()

    async def finish(self) -> None:
        """Take in no more, write and commit what is decided, leave."""
        self._finishing = True
        settling = [asyncio.ensure_future(part.settle()) for part in self.partitions.values()]
        if settling:
            _, unwritten = await asyncio.wait(settling, timeout=self.settings.transaction_timeout)
            for task in unwritten:
                task.cancel()
        await self.commit()
        await self._release()
        try:
            async with asyncio.timeout(STOP_DEADLINE):
                await self.app.stop()
        except TimeoutError:
            log.warning("Faust did not stop in time", extra={"deadline": STOP_DEADLINE})

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(self._guard(work), name=name)
        self._tasks.add(task)

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the process ends with it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def why_waiting(self) -> str | None:
        return self._waiting


def _credentials() -> Any:
    """What Faust's own clients show to the brokers: the same as all others; None: nothing is asked."""
    options = wire.kafka_options()
    context = options.get("ssl_context")
    if "sasl_mechanism" in options:
        return SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)


async def run(settings: StreamsSettings, stop: asyncio.Event) -> None:
    """Work until `stop` is set. Raises what made the worker fail."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    spans = _open_spans() if settings.trace else None
    worker = StreamWorker(settings, spans)
    health = HealthServer(settings.host, settings.port, worker.why_waiting)
    await health.start()
    stopping = asyncio.create_task(stop.wait())
    living = asyncio.create_task(_live(worker))
    try:
        waiting: set[asyncio.Future[Any]] = {stopping, living, worker.failed}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if worker.failed.done():
            worker.failed.result()
        if living.done():
            living.result()
        living.cancel()
        await worker.finish()
    finally:
        for task in (stopping, living):
            task.cancel()
        await health.stop()
        if spans is not None:
            await spans.stop()


def _open_spans() -> "Spans":
    with needing("otel", "CLAW_STREAMS_TRACE"):
        from streams.tracing import open_tracing
    return open_tracing()


async def _live(worker: StreamWorker) -> None:
    """Start Faust and wait until it ends, which it should not."""
    await worker.start()
    await worker.app.wait_until_stopped()
    raise worker.app.crash_reason or RuntimeError("Faust stopped")
