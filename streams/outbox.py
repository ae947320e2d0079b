"""What a fold put out becomes records of transactions: each whole or not at all, of a bounded size, in order.

Invariant: no transaction ends inside what was decided of one group.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from claw_r1 import bus
from claw_r1.codec import Record, encode
from claw_r1.errors import RetryableError
from claw_r1.events import GroupReady
from streams.state import Output

TRANSACTION_RECORDS = 2_000
TRANSACTION_BYTES = 16 * 2**20
"""A transaction that reached one of these ends with the group it is at: it must commit within its time-out."""


class Sending(NamedTuple):
    """A record and where it goes; `partition` None lets the key decide."""

    topic: str
    partition: int | None
    record: Record


def address(output: Output, *, source: str, traceparent: str | None = None) -> Sending:
    """The record of an output; a ready group gets the clock's time. Raises InvalidRecord if it does not fit into one."""
    event = output.event
    if isinstance(event, GroupReady):
        event = event.model_copy(update={"decided_at": time.time()})
    record = encode(event, source=source, key=output.key, traceparent=traceparent)
    return Sending(output.topic, output.partition, record)


def cut(sendings: Iterable[Sending], *, most: int | None = None) -> Iterator[list[Sending]]:
    """The records in order, as transactions of about `most` records (None: TRANSACTION_RECORDS)."""
    limit = TRANSACTION_RECORDS if most is None else most
    records: list[Sending] = []
    size = 0
    for sending in sendings:
        full = len(records) >= limit or size >= TRANSACTION_BYTES
        if full and sending.record.key != records[-1].record.key:
            yield records
            records, size = [], 0
        records.append(sending)
        size += len(sending.record.value)
    if records:
        yield records


async def write(producer: AIOKafkaProducer, records: Sequence[Sending], *, timeout: float) -> None:
    """One transaction: all of them, or, if this raises, none once the producer's id is taken over. `timeout` in seconds.

    Raises KafkaError, or RetryableError where it was not done in time.
    """
    topics = {topic for topic, _, _ in records}
    try:
        async with asyncio.timeout(timeout):
            await bus.track_topics(producer, *topics)
            await producer.begin_transaction()
            futures = [
                await producer.send(topic, record.value, key=record.key, headers=record.headers, partition=partition)
                for topic, partition, record in records
            ]
            await asyncio.gather(*futures)
            await producer.commit_transaction()
    except TimeoutError as error:
        why = "the broker is away or slow"
        if missing := topics - producer.client.cluster.topics():
            why = (
                f"the broker has no topic {min(missing)}, or no leader for it: `claw topics apply` creates those of the list, "
                "and `claw recipes apply` its recipe's"
            )
        raise RetryableError(f"decisions were not written within {timeout:g} s: {why}") from error
