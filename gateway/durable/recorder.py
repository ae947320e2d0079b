"""A fact becomes durable: encoded, then acknowledged by the broker or, while the broker is away, on the disk of the spool.

Invariants:
- with `before_finish` nothing returns before its facts are durable, or raises; one deadline covers hand-over and
  acknowledgement, since an idempotent producer's futures never fail while the broker is away;
- while the spool holds anything, every fact queues behind it: so all partitions keep the order in which facts were published;
- at the first sign that the broker is away, all that is on its way goes to the spool, in order, before anything newer. It may
  arrive from the producer too: then the log has it twice, first in the right order, and readers go by its id;
- the process starts without a broker and keeps trying; `reason` says what is missing;
- without a spool, callers learn at once that the broker is known to be away, instead of waiting for the deadline.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Sequence
from typing import Final, Literal

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from prometheus_client import Counter

from claw_r1 import bus, topics, wire
from claw_r1.codec import encode
from claw_r1.errors import ClawError, InvalidRecord, RetryableError
from claw_r1.events import Event, Step
from claw_r1.metrics import GATEWAY_ACK_SECONDS, GATEWAY_DROPPED, GATEWAY_FACTS, GATEWAY_STEPS
from gateway.durable.drain import Drain
from gateway.durable.frames import Entry
from gateway.durable.spool import Spool
from gateway.replies import Refusal, unavailable

log = logging.getLogger("claw.gateway.recorder")

SOURCE: Final = "claw-gateway"
PROBE_EVERY: Final = 0.5
"""Seconds between looks for a broker that is away."""
PROBE_TIMEOUT: Final = 1.0
SLOW: Final = 1.0
"""Seconds without an acknowledgement after which, with a spool, the broker is looked for."""
MAX_UNWAITED_BYTES: Final = 64 * 2**20
"""Bytes on their way to the broker beyond which a call waits for its facts even with `async`."""
STOP_WITHIN: Final = 0.5
"""Seconds for a producer's end once what can be flushed is."""
NEEDED: Final = (topics.EVENTS, topics.TRAJECTORY_INDEX)

Ack = Literal["before_finish", "async"]


class _Batch:
    """Facts that are published together and become durable together."""

    __slots__ = (
        "broken_off",
        "counters",
        "deadline",
        "done",
        "entries",
        "left",
        "sending",
        "size",
        "started",
        "waited",
    )

    def __init__(self, entries: list[Entry], counters: list[Counter], deadline: float, waited: bool) -> None:
        self.entries = entries
        self.counters = counters
        self.deadline = deadline
        self.waited = waited
        self.started = time.perf_counter()
        self.size = sum(len(entry.value or b"") for entry in entries)
        self.left = len(entries)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sending: asyncio.Task[object] | None = None
        """Who hands it to the producer, for as long as that takes."""
        self.broken_off = False
        """Its hand-over took too long."""

    def break_off(self) -> None:
        """End its hand-over, if that is what its sender waits for."""
        if self.sending is not None and not self.broken_off:
            self.broken_off = True
            self.sending.cancel()


class Recorder:
    """The gateway's one producer, and its spool."""

    def __init__(
        self, kafka: str, ack_timeout: float, *, ack: Ack = "before_finish", spool: Spool | None = None
    ) -> None:
        self._kafka = kafka
        self._ack_timeout = ack_timeout
        self._waits = ack == "before_finish"
        self._spool = spool
        self._drain = Drain(spool, ack_timeout) if spool is not None else None
        self._producer: AIOKafkaProducer | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unacknowledged: dict[_Batch, None] = {}
        """On their way to the broker, in the order in which they were published."""
        self._unacknowledged_bytes = 0
        self._away: str | None = f"connecting to Kafka at {kafka}"
        self._spoiled = False
        """The producer has counted a record that the broker did not take: what comes after it is out of order for ever."""
        self._looked = False
        """The spool was read and the broker was looked for."""
        self._looking = asyncio.Lock()
        self._missed = False
        """That the broker is away was logged."""
        self._failed: str | None = None
        """The watch has ended, which it should not: nobody looks for a broker that is away, or empties the spool."""

    # --------------------------------------------------------------------------------------------------- begin and end

    def start(self) -> None:
        """Connect in the background. Raises WrongUse if the spool cannot be used."""
        if self._spool is not None:
            self._spool.open()
        self._watcher = asyncio.create_task(self._watch(), name="recorder")
        self._watcher.add_done_callback(self._ended)

    def _ended(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled():
            self._failed = "the gateway failed at watching the broker: its log says why. Start it again"
            log.error("the broker is not watched any more", exc_info=watcher.exception())

    async def stop(self) -> None:
        """Flush what is on its way, within the deadline, and disconnect; what stays in the spool is for the next start."""
        end = asyncio.get_running_loop().time() + self._ack_timeout
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        try:
            async with asyncio.timeout_at(end):
                await self._flush()
        except (ClawError, KafkaError, TimeoutError) as error:
            log.error("the broker did not take all", extra={"error": str(error) or repr(error)})
        if self._timer is not None:
            self._timer.cancel()
        if self._spool is not None:
            if self._unacknowledged:
                self._leave("it did not take all before the stop")
            await self._spool.close()
        elif lost := sum(batch.left for batch in self._unacknowledged):
            self._unacknowledged.clear()
            GATEWAY_DROPPED.labels("not_acknowledged").inc(lost)
            log.error("facts were not acknowledged at the stop", extra={"facts": lost})
        if self._producer is not None:
            await bus.stop_producer(self._producer, deadline=STOP_WITHIN)

    async def _flush(self) -> None:
        if self._producer is None:
            return
        if self._away is not None and await answers(self._kafka):
            self._away = None
        if self._away is None or self._spool is None:
            await self._producer.flush()
            await asyncio.sleep(0)  # the acknowledgements are told
        if self._away is None and self._drain is not None:
            await self._drain.run(self._producer)

    # ---------------------------------------------------------------------------------------------------------- status

    @property
    def reason(self) -> str | None:
        """Why nothing can be recorded now; None if all is well, or the spool takes what the broker cannot."""
        if self._failed is not None:
            return self._failed
        if self._spool is None or not self._looked:
            return self._away
        try:
            self.check()
        except Refusal as refusal:
            return refusal.message
        return None

    @property
    def spooling(self) -> bool:
        """The broker is away and facts go to the spool."""
        return self._spool is not None and (self._away is not None or (self._drain is not None and self._drain.silent))

    @property
    def has_spool(self) -> bool:
        return self._spool is not None

    async def look(self) -> bool:
        """For who misses the broker: look for it now; whether facts go to the spool."""
        async with self._looking:
            if self._spool is not None and self._direct and not await answers(self._kafka):
                self._leave("it does not answer")
        return self.spooling

    def check(self) -> None:
        """Raise Refusal(503) while nothing can be recorded."""
        if self._direct:
            return
        if self._spool is not None and self._looked:
            self._spool.check()
        elif self._away is not None:
            raise unavailable(
                f"nothing can be recorded now, so no call is served: {self._away}", code="broker_unavailable"
            )

    @property
    def _direct(self) -> bool:
        """Facts go straight to the broker."""
        return self._away is None and self._producer is not None and (self._spool is None or self._spool.empty)

    # --------------------------------------------------------------------------------------------------------- publish

    async def publish(
        self, *events: Event, topic: str = topics.EVENTS, key: bytes | None = None, traceparent: str | None = None
    ) -> None:
        """Return when all events are durable, each partition's in their order; with `async`, when they are on their way.

        `traceparent` is of the call that they tell of.

        Raises InvalidRecord("too_large"), Refusal(503) if the spool is full, or RetryableError: then any of them may
        still arrive.
        """
        durable = await self.hand_over(*events, topic=topic, key=key, traceparent=traceparent)
        if durable is not None:
            await durable

    async def hand_over(
        self, *events: Event, topic: str = topics.EVENTS, key: bytes | None = None, traceparent: str | None = None
    ) -> asyncio.Future[None] | None:
        """Return when all events are on their way, with what is done once they are durable; None: nobody waits for that.

        What is handed over later comes after them, in each partition. Raises what `publish` does, as does the future.
        """
        entries = [Entry(topic, *encode(event, source=SOURCE, key=key, traceparent=traceparent)) for event in events]
        return await self._record(entries, [_counter(event) for event in events]) if entries else None

    async def erase(self, topic: str, key: bytes) -> None:
        """Write a tombstone to a compacted topic. Raises RetryableError."""
        try:
            durable = await self._record([Entry(topic, key, None, [])], [])
            if durable is not None:
                await durable
        except Refusal as refusal:
            raise RetryableError(refusal.message) from refusal

    async def _record(self, entries: list[Entry], counters: list[Counter]) -> asyncio.Future[None] | None:
        deadline = asyncio.get_running_loop().time() + self._ack_timeout
        if self._drain is not None and not self._drain.gate.is_set():
            await self._drain.pass_gate(deadline)
        waited = self._waits or self._unacknowledged_bytes > MAX_UNWAITED_BYTES
        batch = _Batch(entries, counters, deadline, waited)
        if self._spool is None or self._direct:
            await self._send(batch)
        elif self._looked:
            self._spool.append(entries).add_done_callback(functools.partial(self._on_spooled, batch))
        else:
            raise RetryableError(self._away or "the spool is not read yet")
        return batch.done if batch.waited else None

    async def _send(self, batch: _Batch) -> None:
        """Hand a batch to the producer."""
        if self._producer is None:
            raise RetryableError(self._away or "the producer has stopped")
        self._unacknowledged[batch] = None
        self._unacknowledged_bytes += batch.size
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(batch.deadline, self._expire)
        batch.sending = asyncio.current_task()
        told = functools.partial(self._on_answer, batch)
        try:
            for topic, key, value, headers in batch.entries:
                future = await bus.send(self._producer, topic, key, value, headers)
                future.add_done_callback(told)
        except MessageSizeTooLargeError as error:
            self._forget(batch)
            raise InvalidRecord("too_large", f"the broker refuses a record of {batch.size} bytes") from error
        except KafkaError as error:
            self._not_sent(batch, f"the broker refused a record: {error!r}", error)
        except asyncio.CancelledError as error:
            sending = batch.sending
            if sending is None or not batch.broken_off or sending.uncancel() > 0:
                self._forget(batch)  # who published it is gone: it waits for no acknowledgement
                raise
            self._not_sent(batch, self._silence, error)
        finally:
            batch.sending = None

    def _not_sent(self, batch: _Batch, why: str, error: BaseException) -> None:
        """The producer did not take a batch in time, or at all. Raises RetryableError if there is no spool."""
        batch.sending = None
        if self._spool is None:
            self._forget(batch)
            self._away = why
            raise RetryableError(why) from error
        if batch in self._unacknowledged:
            self._leave(why)

    @property
    def _silence(self) -> str:
        return f"the broker did not acknowledge a record within {self._ack_timeout:g} s"

    # ---------------------------------------------------------------------------------------------------- what comes of it

    def _on_answer(self, batch: _Batch, future: asyncio.Future[object]) -> None:
        error = KafkaError("given up") if future.cancelled() else future.exception()
        if batch not in self._unacknowledged:
            return  # it went to the spool, or its caller was told
        if isinstance(error, KafkaError) and not error.retriable:
            self._spoiled = True
        if error is None:
            batch.left -= 1
            if batch.left == 0:
                self._forget(batch)
                if self._spool is None:
                    self._away = None
                GATEWAY_ACK_SECONDS.observe(time.perf_counter() - batch.started)
                self._finish(batch)
        elif isinstance(error, MessageSizeTooLargeError):
            self._forget(batch)
            self._fail(batch, InvalidRecord("too_large", f"the broker refuses a record of {batch.size} bytes"))
        elif self._spool is not None:
            self._leave(f"the broker refused a record: {error!r}")
        else:
            self._forget(batch)
            self._away = f"the broker refused a record: {error!r}"
            self._fail(batch, RetryableError(self._away))

    def _expire(self) -> None:
        """The oldest batch may have reached its deadline."""
        loop = asyncio.get_running_loop()
        self._timer = None
        late = [batch for batch in self._unacknowledged if batch.deadline <= loop.time()]
        if late and self._spool is not None:
            self._leave(self._silence)
        elif late:
            self._away = self._silence
            for batch in late:
                batch.break_off()
                if batch.waited and batch.sending is None:  # else the producer keeps it, or its sender is told
                    self._forget(batch)
                    self._fail(batch, RetryableError(self._silence))
        waiting = next((batch for batch in self._unacknowledged if batch.deadline > loop.time()), None)
        if waiting is not None:
            self._timer = loop.call_at(waiting.deadline, self._expire)

    def _leave(self, why: str) -> None:
        """The broker is away: all that is on its way goes to the spool, in order, before anything newer."""
        self._miss(why)
        batches = list(self._unacknowledged)
        self._unacknowledged.clear()
        self._unacknowledged_bytes = 0
        for batch in batches:
            batch.break_off()
        assert self._spool is not None
        for batch in batches:
            try:
                written = self._spool.append(batch.entries)
            except Refusal as refusal:
                self._fail(batch, refusal)
            else:
                written.add_done_callback(functools.partial(self._on_spooled, batch))

    def _miss(self, why: str) -> None:
        if self._spool is not None and not self._missed:
            log.warning("the broker is away: facts go to the spool", extra={"kafka": self._kafka, "why": why})
        self._missed = True
        self._away = why

    def _on_spooled(self, batch: _Batch, written: asyncio.Future[None]) -> None:
        error = written.exception()
        if error is None:
            self._finish(batch)
        else:
            self._fail(batch, error)

    def _forget(self, batch: _Batch) -> None:
        if batch in self._unacknowledged:
            del self._unacknowledged[batch]
            self._unacknowledged_bytes -= batch.size

    def _finish(self, batch: _Batch) -> None:
        for counter in batch.counters:
            counter.inc()
        if not batch.done.done():
            batch.done.set_result(None)

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        """Tell the caller; a caller that is gone, or does not wait, is not told: then it is counted here."""
        if batch.waited and not batch.done.done():
            batch.done.set_exception(error)
            batch.done.exception()  # whether or not it is still awaited
            return
        reason = (error.code if isinstance(error, Refusal) else getattr(error, "reason", None)) or "not_acknowledged"
        GATEWAY_DROPPED.labels(reason).inc(len(batch.entries))
        log.error("facts were given up", extra={"facts": len(batch.entries), "reason": reason, "error": str(error)})

    # ----------------------------------------------------------------------------------------------------------- watch

    async def _watch(self) -> None:
        """Connect, then look for the broker whenever a record was not acknowledged, and empty the spool."""
        while self._spool is not None:
            try:
                await self._spool.load()
                break
            except OSError as error:
                self._away = f"the spool cannot be read: {error}"
                log.error("the spool cannot be read", extra={"error": str(error)})
                await asyncio.sleep(PROBE_EVERY)
        while True:
            await self._look()
            if self._spool is not None:
                self._spool.tell()
            await asyncio.sleep(PROBE_EVERY)

    async def _look(self) -> None:
        if self._producer is not None and (self._spoiled or bus.is_broken(self._producer)):
            log.error("the producer cannot go on: it is made anew")
            if self._spool is not None:
                self._leave("the producer ended")
            ended, self._producer = self._producer, None
            await bus.stop_producer(ended, deadline=STOP_WITHIN)
            self._spoiled = False
        if self._producer is None:
            await self._connect()
        elif self._away is not None:
            if await answers(self._kafka):
                log.info("the broker is back", extra={"kafka": self._kafka})
                self._away, self._missed = None, False
        elif self._is_slow():
            await self.look()
        self._looked = True
        if self._drain is not None and self._producer is not None and self._away is None:
            try:
                await self._drain.run(self._producer)
            except RetryableError as error:
                log.warning("the spool is not empty yet", extra={"why": str(error)})
                self._away, self._spoiled = str(error), True

    def _is_slow(self) -> bool:
        """Whether the oldest batch waits for long."""
        oldest = next(iter(self._unacknowledged), None)
        return oldest is not None and time.perf_counter() - oldest.started > SLOW

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._ack_timeout):
                if missing := await missing_topics(self._kafka):
                    self._miss(f"the broker has no topic {', '.join(missing)}: run `claw topics apply`")
                    return
                producer = await bus.start_producer(self._kafka, client_id=SOURCE)
                try:
                    await bus.track_topics(producer, *NEEDED)  # so that the first call need not wait for it
                except BaseException:
                    await bus.stop_producer(producer, deadline=STOP_WITHIN)
                    raise
                self._producer = producer
        except (ClawError, KafkaError, OSError, TimeoutError) as error:
            self._miss(str(error) or f"no Kafka broker answers at {self._kafka}")
            return
        self._away, self._missed = None, False
        log.info("connected to the broker", extra={"kafka": self._kafka})


def _counter(event: Event) -> Counter:
    return _step_counter(event.status) if isinstance(event, Step) else _fact_counter(event.TYPE)


@functools.cache
def _step_counter(status: str) -> Counter:
    return GATEWAY_STEPS.labels(status)


@functools.cache
def _fact_counter(kind: str) -> Counter:
    return GATEWAY_FACTS.labels(kind)


async def missing_topics(kafka: str) -> Sequence[str]:
    """Which of the topics that the gateway writes are not there."""
    wanted = [topic for topic in topics.all_topics() if topic.name in NEEDED]
    return [drift.topic for drift in await bus.diff_topics(kafka, wanted) if drift.what == "topic"]


async def answers(kafka: str) -> bool:
    """Whether a broker answers a request, and not only takes a connection, as a broker that hangs does."""
    client = AIOKafkaClient(
        bootstrap_servers=kafka, request_timeout_ms=int(1000 * PROBE_TIMEOUT), **wire.kafka_options()
    )
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            await client.bootstrap()
        return True
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await client.close()
