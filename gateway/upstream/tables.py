"""Compacted topics become tables in this process: what one gateway is told, every gateway of the cluster knows.

Invariants:
- the gateway is ready only after every table was read up to its end; later the tables follow the topics for ever;
- a change is made by writing it to its topic and waiting until it has come back, so that all gateways see one order;
- a record that cannot be taken in is counted and said, and changes nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from claw_r1 import bus
from claw_r1.codec import decode
from claw_r1.errors import ClawError, InvalidRecord, RetryableError
from claw_r1.events import Event
from claw_r1.metrics import GATEWAY_TABLE_DROPPED

log = logging.getLogger("claw.gateway.tables")

RETRY_EVERY: Final = 0.5

Take = Callable[[str, Event | None, int], None]
"""A record's key, its event (None: a tombstone), and its offset. Raises InvalidRecord for what the table cannot hold."""


class Tables:
    """The tail of several topics."""

    def __init__(self, kafka: str, takes: Mapping[str, Take], *, deadline: float) -> None:
        self._kafka = kafka
        self._takes = takes
        self._deadline = deadline
        self._partitions = [TopicPartition(topic, 0) for topic in takes]
        self._positions: dict[TopicPartition, int] = {}
        """Next offsets to be taken."""
        self._awaited: dict[asyncio.Future[None], tuple[str, str, float | None]] = {}
        self._tailer: asyncio.Task[None] | None = None
        self.reason: str | None = "reading how engines and runs are set up"
        """Why the tables may lack something; None while they are followed."""
        self.was_read = False
        """They were read up to their end once: what is known may be old, and is not nothing."""

    def start(self) -> None:
        """Follow the topics in the background."""
        self._tailer = asyncio.create_task(self._tail(), name="tables")
        self._tailer.add_done_callback(self._ended)

    async def stop(self) -> None:
        if self._tailer is not None:
            self._tailer.cancel()
            await asyncio.wait([self._tailer])

    def _ended(self, tailer: asyncio.Task[None]) -> None:
        if not tailer.cancelled():
            self.reason = "the gateway failed at reading how engines and runs are set up: its log says why"
            log.error("the tables are not followed any more", exc_info=tailer.exception())

    async def write(self, topic: str, key: str, at: float | None, publish: Callable[[], Awaitable[None]]) -> None:
        """Publish a record (`at` is its event's, None: a tombstone) and return when this table has it.

        Raises RetryableError: then it may still come.
        """
        if self.reason is not None:
            raise RetryableError(self.reason)
        come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited[come] = (topic, key, at)
        try:
            await publish()
            async with asyncio.timeout(self._deadline):
                await come
        except TimeoutError as error:
            raise RetryableError(f"a record on {topic} did not come back within {self._deadline:g} s") from error
        finally:
            del self._awaited[come]

    async def _tail(self) -> None:
        while True:
            try:
                await self._read()
            except (ClawError, KafkaError, OSError, TimeoutError) as error:
                if self.reason is None:
                    log.warning("the tables are not read", extra={"error": repr(error)})
                self.reason = f"engines and runs cannot be read: {str(error) or repr(error)}"
            await asyncio.sleep(RETRY_EVERY)

    async def _read(self) -> None:
        consumer = None
        try:
            async with asyncio.timeout(self._deadline):
                consumer = await bus.start_consumer(self._kafka, client_id="claw-gateway-tables")
                ends = await self._assign(consumer)
            while True:
                if self.reason is not None and self._passed(ends):
                    self.reason = None
                    self.was_read = True
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        self._take(record)
                for partition in self._partitions:  # not the last record's: a log may end in what no reader gets
                    self._positions[partition] = await consumer.position(partition)
        finally:
            if consumer is not None:
                await bus.stop_consumer(consumer)

    async def _assign(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
        """Go on where the tables are, or begin anew where that is not in the log. The ends of the topics as of now."""
        for topic in self._takes:
            await bus.partitions_of(consumer, topic)
        consumer.assign(self._partitions)
        starts = await consumer.beginning_offsets(self._partitions)
        ends = await bus.end_offsets(consumer, self._partitions)
        for partition in self._partitions:
            position = self._positions.get(partition, -1)
            if not starts[partition] <= position <= ends[partition]:
                position = self._positions[partition] = starts[partition]
            consumer.seek(partition, position)
        return ends

    def _passed(self, ends: Mapping[TopicPartition, int]) -> bool:
        return all(self._positions[partition] >= end for partition, end in ends.items())

    def _take(self, record: ConsumerRecord) -> None:
        key = (record.key or b"").decode(errors="replace")
        event = None
        try:
            event = None if record.value is None else decode(record.headers, record.value)
            self._takes[record.topic](key, event, record.offset)
        except InvalidRecord as error:
            GATEWAY_TABLE_DROPPED.labels(record.topic).inc()
            log.error(
                "a record is left out",
                extra={"topic": record.topic, "offset": record.offset, "error": str(error), "reason": error.reason},
            )
        taken = (record.topic, key, getattr(event, "at", None))
        for come, awaited in self._awaited.items():
            if awaited == taken and not come.done():
                come.set_result(None)
