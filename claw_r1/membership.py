"""What every member of a consumer group does alike: ask where it goes on, seek, poll until told to stop, in bounded time.

aiokafka swallows what fails in a rebalance listener, seeks to offset 0 on its own where nothing is committed, and says that a
partition was taken away by an IllegalStateError from whatever is called next: members resume by hand, in their own loop, and
take Fenced for an answer.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, NoOffsetForPartitionError

from claw_r1 import bus
from claw_r1.errors import RetryableError

BROKER_DEADLINE: Final = 10.0
NEVER_IDLE_MS: Final = 2**31 - 1
"""For max_poll_interval_ms: heartbeats alone say that a member lives, who may poll nothing for as long as its work takes."""


class Fenced(Exception):
    """The group gave a partition to another member, or is about to."""


class Standing(NamedTuple):
    """A partition as its new owner finds it."""

    committed: tuple[int, str] | None
    """The group's next offset, and its metadata."""
    first: int
    """The oldest offset that the log holds."""
    end: int
    """The next offset that will be written."""


@contextlib.asynccontextmanager
async def broker_deadline(what: str) -> AsyncIterator[None]:
    """Raise RetryableError if the broker is away or takes longer than BROKER_DEADLINE for it."""
    try:
        async with asyncio.timeout(BROKER_DEADLINE):
            yield
    except TimeoutError as error:
        raise RetryableError(f"the broker did not answer within {BROKER_DEADLINE:g} s ({what})") from error
    except (CommitFailedError, IllegalStateError):
        raise
    except KafkaError as error:
        if error.retriable:
            raise RetryableError(f"the broker is away ({what}): {error!r}") from error
        raise


async def read_standings(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, Standing]:
    """Where the group and the log are. Raises RetryableError."""
    if not partitions:
        return {}
    async with broker_deadline("offsets"):
        committed = await consumer._coordinator.fetch_committed_offsets(list(partitions))
        starts = await consumer.beginning_offsets(list(partitions))
        ends = await bus.end_offsets(consumer, partitions)
    found = {tp: (at.offset, at.metadata) for tp, at in committed.items()}
    return {tp: Standing(found.get(tp), starts[tp], ends[tp]) for tp in partitions}


def seek(consumer: AIOKafkaConsumer, tp: TopicPartition, offset: int) -> None:
    """Read on from there. Raises Fenced."""
    try:
        consumer.seek(tp, offset)
    except IllegalStateError as error:
        raise Fenced from error


async def commit(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int | tuple[int, str]]) -> None:
    """Commit next offsets, with their metadata if there are any.

    Raises Fenced if a partition is no longer the member's, RetryableError if the broker is away.
    """
    try:
        async with broker_deadline("a commit"):
            await consumer.commit(dict(offsets))
    except (CommitFailedError, IllegalStateError) as error:
        raise Fenced from error


async def find_position(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int | None:
    """The next offset that the consumer gives; None if the partition is being taken away. Raises RetryableError."""
    try:
        async with broker_deadline("a position"):
            position: int = await consumer.position(tp)
    except IllegalStateError:
        return None
    return position


def find_end(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int | None:
    """Where the log ended at the last fetch; None if that is not known, or the partition is being taken away."""
    end: int | None = consumer.last_stable_offset(tp) if tp in consumer.assignment() else None
    return None if end is None or end < 0 else end


async def poll(
    consumer: AIOKafkaConsumer,
    stop: asyncio.Event,
    *,
    seconds: float,
    most: int,
    until: asyncio.Future[None] | None = None,
) -> dict[TopicPartition, list[ConsumerRecord]]:
    """At most so many records that came within so many seconds; none once `stop` is set, or `until` is done.

    Raises OffsetOutOfRangeError if the log no longer has what comes next.
    """
    records = asyncio.ensure_future(consumer.getmany(timeout_ms=int(seconds * 1000), max_records=most))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({records, stopped, *([] if until is None else [until])}, return_when=asyncio.FIRST_COMPLETED)
        return records.result() if records.done() else {}
    except NoOffsetForPartitionError:
        return {}  # fetched before the seek of a new partition
    finally:
        for task in (records, stopped):
            task.cancel()
