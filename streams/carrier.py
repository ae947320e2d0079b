"""Facts of open groups are copied from the log to its end, or another partition's, byte for byte; and read back for a replay.

A copy has its original's key, value and headers behind one more header. A group of which a fact is not found is not carried.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from claw_r1 import bus, metrics
from claw_r1.codec import Record, decode, header
from claw_r1.errors import DependencyUnreachable, InvalidRecord, RetryableError
from claw_r1.events import GroupCarried, GroupFact
from claw_r1.ids import event_key
from claw_r1.topics import EVENTS
from streams.carry import CARRIED, Copied, read_place

log = logging.getLogger("claw.streams")

SEND_DEADLINE = 60.0


@dataclass
class Wanted:
    """A group whose facts are to be copied."""

    draft: GroupCarried
    fact_ids: frozenset[str]
    first_offset: int
    """Of its oldest fact, or of what was copied last."""
    found: set[str] = field(default_factory=set)
    offsets: list[int] = field(default_factory=list)
    """Of the copies."""


async def copy_groups(
    kafka: str, wanted: Sequence[Wanted], partition: int, end: int, *, target: int | None = None
) -> list[GroupCarried]:
    """Append copies of the wanted groups' facts below `end`; what of them is durable, with its place. They go to the end of
    their partition, or to that of `target`: their places are then counted from `end`.

    While the broker is away nothing is carried: what was copied by then is a copy too many.
    """
    to, before = (partition, 0) if target is None else (target, end)
    place = TopicPartition(EVENTS, partition)
    groups = {event_key(w.draft.run_id, w.draft.prompt_uid): w for w in wanted}
    start = min(w.first_offset for w in wanted)
    try:
        consumer = await bus.start_consumer(kafka, client_id=f"claw-streams-carry-{partition}")
        try:
            consumer.assign([place])
            producer = await bus.start_producer(kafka, client_id=f"claw-streams-carry-{partition}")
            try:
                async for records in bus.read_range(consumer, place, start, end):
                    await _copy(producer, to, before, groups, records)
            finally:
                await bus.stop_producer(producer)
        finally:
            await bus.stop_consumer(consumer)
    except (DependencyUnreachable, RetryableError) as error:
        metrics.STREAMS_NOT_CARRIED.labels("broker_away").inc()
        log.warning("groups are not carried yet", extra={"partition": partition, "why": str(error)})
        return []
    return [_placed(w) for w in wanted if _is_whole(w)]


async def _copy(
    producer: AIOKafkaProducer,
    partition: int,
    before: int,
    groups: dict[bytes, Wanted],
    records: Sequence[ConsumerRecord],
) -> None:
    """To `partition`, with places that are `before` less than they were."""
    copies: list[tuple[Wanted, Record]] = []
    for record in records:
        group = groups.get(record.key or b"")
        if group is None or record.offset < group.first_offset:
            continue
        fact_id = _fact_id(record)
        if fact_id is None or fact_id not in group.fact_ids or fact_id in group.found:
            continue
        first, rest = (record.headers[0][1], record.headers[1:]) if is_copy(record) else (None, record.headers)
        offset, timestamp = (record.offset, record.timestamp) if first is None else read_place(first)
        headers = [(CARRIED, f"{offset - before}/{timestamp}".encode()), *rest]
        copies.append((group, Record(record.key, record.value, headers)))
        group.found.add(fact_id)
    there = await asyncio.gather(
        *(bus.publish(producer, EVENTS, copy, partition=partition, deadline=SEND_DEADLINE) for _, copy in copies)
    )
    for (group, _), place in zip(copies, there, strict=True):
        group.offsets.append(place.offset)


def _fact_id(record: ConsumerRecord) -> str | None:
    named = header(record.headers, "ce_id")
    if named is not None:
        return named.decode(errors="replace")
    try:
        event = decode(record.headers, record.value)
    except InvalidRecord:
        return None
    return event.fact_id if isinstance(event, GroupFact) else None


def _is_whole(group: Wanted) -> bool:
    missing = group.fact_ids - group.found
    if missing:
        metrics.STREAMS_NOT_CARRIED.labels("facts_missing").inc()
        log.error(
            "a group is not carried: the log does not hold its facts",
            extra={"run_id": group.draft.run_id, "group_id": group.draft.group_id, "missing": len(missing)},
        )
    return not missing


def _placed(group: Wanted) -> GroupCarried:
    pos = group.draft.pos  # of a group without a fact, of which one cannot be read
    first, last = min(group.offsets, default=pos), max(group.offsets, default=pos - 1)
    return group.draft.model_copy(update={"first": first, "last": last})


def is_copy(record: ConsumerRecord) -> bool:
    """Whether a record of the log is no fact of its own."""
    return bool(record.headers) and record.headers[0][0] == CARRIED


async def read_copies(
    consumer: AIOKafkaConsumer, place: TopicPartition, carried: Sequence[GroupCarried]
) -> AsyncIterator[tuple[GroupCarried, list[Copied]]]:
    """The copies of each group's facts; the log is read once, for all of them."""
    if not carried:
        return
    copies: dict[bytes, list[Copied]] = {event_key(c.run_id, c.prompt_uid): [] for c in carried}
    first, end = min(c.first for c in carried), max(c.last for c in carried) + 1
    async for records in bus.read_range(consumer, place, first, end):
        for record in records:
            if is_copy(record) and (mine := copies.get(record.key or b"")) is not None:
                offset, timestamp = read_place(record.headers[0][1])
                fact = decode(record.headers, record.value)
                assert isinstance(fact, GroupFact)
                trace = header(record.headers, "traceparent")
                mine.append(Copied(offset, timestamp / 1000, fact, trace))
    for one in carried:
        mine = copies[event_key(one.run_id, one.prompt_uid)]
        yield one, [copied for copied in mine if copied.offset < one.pos]
