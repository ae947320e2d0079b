"""A group that would begin is let in or asked to come back later, by what trainers want and what is open.

Invariants:
- only the first call of a new group is refused; what belongs to a group that was admitted never is;
- where no live trainer wants a recipe that concerns the group, nothing is refused: sampling does not depend on a trainer;
- every gateway reads the same records of demand, of groups and of their fates, and so answers alike; groups that two of them
  admit within a moment may pass the demand by one each;
- a gateway that cannot read them goes on, and refuses nothing once what it knows has expired.
"""

import asyncio
import logging
import time
from typing import Final, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from claw_r1 import bus, topics
from claw_r1.codec import decode
from claw_r1.errors import ClawError, InvalidRecord
from claw_r1.events import Demand, Event, GroupAdmitted, Outcome
from claw_r1.metrics import GATEWAY_GROUPS, GATEWAY_TABLE_DROPPED
from gateway.limits import RATE_LIMIT
from gateway.places import Session
from gateway.replies import Refusal
from gateway.rollouts.admission import Admissions, Groups, Standing
from gateway.sessions import Sessions

log = logging.getLogger("claw.gateway.gate")

LOOK_BACK: Final = 3600.0
"""Seconds of records that a gateway reads at its start; what it knows of older groups is not worth the reading."""
RETRY_EVERY: Final = 0.5


class Publisher(Protocol):
    """Makes records durable."""

    async def publish(self, *events: Event, topic: str, key: bytes | None) -> None: ...


class Gate:
    """Admission of groups, for one gateway. `refuses`: False lets all groups in; demand is still told."""

    def __init__(
        self, kafka: str, publisher: Publisher, sessions: Sessions, groups: Groups, *, refuses: bool, deadline: float
    ) -> None:
        self._kafka = kafka
        self._publisher = publisher
        self._sessions = sessions
        self._groups = groups
        self._admissions = Admissions(groups)
        self._refuses = refuses
        self._deadline = deadline
        self._positions: dict[TopicPartition, int] = {}
        """Next offsets to be taken."""
        self._tailer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow demand in the background."""
        self._tailer = asyncio.create_task(self._tail(), name="demand")
        self._tailer.add_done_callback(_report)

    async def stop(self) -> None:
        if self._tailer is not None:
            self._tailer.cancel()
            await asyncio.wait([self._tailer])

    # --------------------------------------------------------------------------------------------------------- questions

    def check(self, session: Session, *, admitted: bool) -> None:
        """Let a trajectory in that the index does not have yet. `admitted`: its key says so.

        Raises Refusal(429) if it would begin a new group and none is wanted now. With a provisional prompt it begins none:
        it is let in while any group may be its own, and asked again at the first use of its prompt.
        """
        if not session.provisional:
            self._let_in(session.run_id, session.prompt_uid, session.channel, admitted=admitted)
        elif not admitted:
            self._ask(session.run_id, None, session.channel, time.time())

    async def open(
        self, run_id: str, prompt_uid: str, channel: str | None, *, admitted: bool, size: int | None = None
    ) -> None:
        """Let a group in, and tell every gateway that it is. Raises Refusal(429), or RetryableError."""
        self._let_in(run_id, prompt_uid, channel, admitted=admitted)
        group = self._groups.get(run_id, prompt_uid)
        if group is not None and group.announced:
            return
        at = time.time()
        await self._publisher.publish(
            GroupAdmitted(run_id=run_id, prompt_uid=prompt_uid, channel=channel, size=size, at=at),
            topic=topics.DEMAND,
            key=f"{run_id}/{prompt_uid}".encode(),
        )
        self._groups.announce(run_id, prompt_uid, channel, at, size=size)

    def stand(self, recipe: str) -> Standing | None:
        """How a recipe's demand stands; None if no trainer ever told it, or the last one has ended."""
        return self._admissions.stand(recipe, time.time())

    def all(self) -> list[Standing]:
        """How the demand of every recipe stands, by name."""
        return self._admissions.all(time.time())

    def _let_in(self, run_id: str, prompt_uid: str, channel: str | None, *, admitted: bool) -> None:
        now = time.time()
        if not admitted:
            self._ask(run_id, prompt_uid, channel, now)
        if self._groups.get(run_id, prompt_uid) is None:
            GATEWAY_GROUPS.labels("admitted").inc()
        self._groups.admit(run_id, prompt_uid, channel, now)

    def _ask(self, run_id: str, prompt_uid: str | None, channel: str | None, now: float) -> None:
        """Raise Refusal(429) if a group may not begin now."""
        later = self._admissions.refuse(run_id, prompt_uid, channel, now) if self._refuses else None
        if later is not None:
            GATEWAY_GROUPS.labels("refused").inc()
            raise Refusal(
                429,
                "no trainer of this run wants another group now: come back after Retry-After, or ask GET /demand how many are "
                "wanted. Groups that have begun go on",
                kind=RATE_LIMIT,
                code="no_demand",
                retry_after=later,
            )

    # ----------------------------------------------------------------------------------------------------------- records

    async def _tail(self) -> None:
        told = False
        while True:
            try:
                await self._read()
            except (ClawError, KafkaError, OSError, TimeoutError) as error:
                if not told:
                    log.warning("demand is not read", extra={"error": str(error) or repr(error)})
                told = True
            await asyncio.sleep(RETRY_EVERY)

    async def _read(self) -> None:
        await self._sessions.was_read.wait()  # the fate of a group that is not known yet would be lost
        consumer = None
        try:
            async with asyncio.timeout(self._deadline):
                consumer = await bus.start_consumer(self._kafka, client_id="claw-gateway-demand")
                ends = await self._assign(consumer)
            while True:
                for partition, records in (await consumer.getmany(timeout_ms=500)).items():
                    for record in records:
                        self._take(record, old=record.offset < ends[partition])
                    self._positions[partition] = records[-1].offset + 1
        finally:
            if consumer is not None:
                await bus.stop_consumer(consumer)

    async def _assign(self, consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
        """Go on where this gateway was, or begin LOOK_BACK ago. The ends of the topics as of now."""
        partitions = [
            TopicPartition(topic, number)
            for topic in (topics.DEMAND, topics.OUTCOMES)
            for number in sorted(await bus.partitions_of(consumer, topic))
        ]
        consumer.assign(partitions)
        starts = await consumer.beginning_offsets(partitions)
        ends = await bus.end_offsets(consumer, partitions)
        begin = time.time() - LOOK_BACK
        if not self._positions:
            self._groups.forget(begin)
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, round(begin * 1000)))
        for partition in partitions:
            position = self._positions.get(partition, -1)
            if not starts[partition] <= position <= ends[partition]:
                position = ends[partition] if found[partition] is None else found[partition].offset
            consumer.seek(partition, position)
        return ends

    def _take(self, record: ConsumerRecord, *, old: bool) -> None:
        """`old`: it was there before this gateway looked."""
        if record.value is None:
            return
        appended = record.timestamp / 1000
        try:
            if record.topic == topics.OUTCOMES:
                run_id, _, prompt_uid = (record.key or b"").decode(errors="replace").partition("/")
                if self._groups.get(run_id, prompt_uid) is None:
                    return  # of nobody here: not worth decoding
            event = decode(record.headers, record.value)
        except InvalidRecord as error:
            GATEWAY_TABLE_DROPPED.labels(record.topic).inc()
            log.error(
                "a record is left out",
                extra={"topic": record.topic, "offset": record.offset, "error": str(error), "reason": error.reason},
            )
            return
        if isinstance(event, Outcome):
            self._admissions.end(event, appended)
        elif isinstance(event, Demand):
            now = time.time()
            self._admissions.take(event, appended, min(appended, now) if old else now)
        elif isinstance(event, GroupAdmitted):
            self._groups.announce(event.run_id, event.prompt_uid, event.channel, appended, size=event.size)


def _report(tailer: asyncio.Task[None]) -> None:
    if not tailer.cancelled():
        log.error("demand is not followed any more: groups are let in whatever is wanted", exc_info=tailer.exception())
