"""Records leave the topics for a folder, and come back at the very offsets that they had.

Cuts, outcomes, committed offsets and the pool's rows all name offsets; so offsets are kept, and nothing has to be translated.
What readers never saw (ends of transactions, compacted and expired records) is made up for by aborted transactions, which
readers of this project pass over. Invariants: a partition is written by one hand, from its first offset on, and every
acknowledged offset is compared; what is held is a window of records.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata, RecordMetadata

from claw_r1 import bus, topics
from claw_r1.backups.folder import Committed, Folder, Part, Span, TopicPlan
from claw_r1.backups.frames import Frame, pack, spaced, unpack
from claw_r1.errors import RetryableError, UserError

PREFIX: Final = "claw."
PART_BYTES: Final = 128 * 2**20
"""Of frames, before they are compressed: a part ends with the first record that brings it so far."""
WINDOW_RECORDS: Final = 1000
WINDOW_BYTES: Final = 8 * 2**20
"""So much may be on its way to a partition."""
AT_ONCE: Final = 8
"""Partitions that are written side by side."""
FILLERS: Final = 5000
"""Records of one request that only take up offsets."""
SKIPPED_AT_ONCE: Final = 1_000_000
"""Offsets of one transaction, which the broker gives a few seconds."""
ACK_DEADLINE: Final = 120.0
TRANSACTION_TIMEOUT: Final = 300.0
"""Nobody reads meanwhile, so that a slow one hurts nobody."""
END_PAUSE: Final = 0.002
_CLIENT: Final = "claw-backup"
_KEPT: Final = ("cleanup.policy", "retention.ms", "max.message.bytes", "message.timestamp.type")
_OF_BROKERS: Final = ("leader.replication.throttled.replicas", "follower.replication.throttled.replicas")
"""Name brokers by their numbers: they mean nothing elsewhere."""
_COPIES_WRITTEN: Final = "min.insync.replicas"
_WHILE_WRITTEN: Final = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "message.timestamp.type": "CreateTime",
}
"""So that times stay as they were, and nothing is removed meanwhile."""

Counted = Callable[[int], None]
"""Told how many records, rows or blobs are done since the last call."""

# --------------------------------------------------------------------------------------------------------------- backup


async def list_topics(kafka: str) -> dict[str, int]:
    """The project's topics with their numbers of partitions."""
    async with bus.admin(kafka) as client:
        return {
            topic["topic"]: len(topic["partitions"])
            for topic in await client.describe_topics()
            if topic["error_code"] == 0 and topic["topic"].startswith(PREFIX)
        }


async def read_groups(kafka: str, names: Iterable[str]) -> list[Committed]:
    """Where every consumer group is on these topics, with what it noted there."""
    wanted = set(names)
    async with bus.admin(kafka) as client:
        groups = sorted({group[0] for group in await client.list_consumer_groups()})
        return [
            Committed(group=group, topic=tp.topic, partition=tp.partition, offset=at.offset, metadata=at.metadata)
            for group in groups
            for tp, at in sorted((await client.list_consumer_group_offsets(group)).items())
            if tp.topic in wanted and at.offset >= 0
        ]


def in_order(names: Iterable[str]) -> list[str]:
    """Topics in the order in which their ends are looked up: what was said of a record before the record's own topic.

    So whatever the copy of a topic refers to is in the copy, also while everything runs: a cut's groups, a group's facts.
    """
    ranks = {topics.CUTS: 0, topics.TOKEN_STATS: 1, topics.OUTCOMES: 2, topics.EVENTS: 4}

    def rank(name: str) -> tuple[int, str]:
        between = topics.recipe_of(name) is not None or name in (topics.TRAJECTORIES, topics.RECIPES)
        return ranks.get(name, 3 if between else 5), name

    return sorted(names, key=rank)


async def plan_topics(kafka: str, found: dict[str, int]) -> list[TopicPlan]:
    """The topics with their settings, and from where to where each is copied. Ends are those of all records: what an open
    transaction holds is waited for."""
    async with bus.admin(kafka) as client:
        configs = await bus.read_configs(client, sorted(found))
        given = await bus.read_configs(client, sorted(found), own=True)
    consumer = await bus.start_consumer(kafka, client_id=_CLIENT, committed_only=False)
    try:
        plans = []
        for name in in_order(found):
            partitions = [TopicPartition(name, number) for number in range(found[name])]
            starts = await consumer.beginning_offsets(partitions)
            ends = await bus.end_offsets(consumer, partitions)
            spans = [Span(start=starts[tp], end=ends[tp]) for tp in partitions]
            config = {key: value for key in _KEPT if (value := configs[name].get(key)) is not None}
            own = {key: value for key, value in sorted(given[name].items()) if key not in (*_KEPT, *_OF_BROKERS)}
            plans.append(TopicPlan(name=name, spans=spans, config=config, own=own))
        return plans
    finally:
        await bus.stop_consumer(consumer)


async def copy_topics(kafka: str, plans: Sequence[TopicPlan], folder: Folder, count: Counted) -> None:
    """Copy every partition, or what an earlier call left of it.

    Raises UserError if retention took records meanwhile, RetryableError if the broker is away.
    """
    consumer = await bus.start_reader(kafka, client_id=_CLIENT, auto_offset_reset="none")
    try:
        for plan in plans:
            for number, span in enumerate(plan.spans):
                await _copy_partition(consumer, TopicPartition(plan.name, number), span, folder, count)
    except OffsetOutOfRangeError as error:
        raise UserError(
            f"retention took records before they were copied ({error}): remove {folder.path}, and start again"
        ) from error
    finally:
        await bus.stop_consumer(consumer)


async def _copy_partition(
    consumer: AIOKafkaConsumer, tp: TopicPartition, span: Span, folder: Folder, count: Counted
) -> None:
    done = folder.under(place(tp))
    start = done[-1].next if done else span.start
    for part in done:
        count(part.count)
    number, more = len(done), start < span.end
    if more:
        consumer.assign([tp])
    records = _frames(consumer, tp, start, span.end)
    while more:
        with folder.writing(f"{place(tp)}{number:06d}.gz") as draft:
            size = written = 0
            digest = hashlib.sha256()
            more, reached = False, span.end
            async for frame in records:
                data = pack(frame)
                draft.zip(data)
                digest.update(data)
                written, size = written + 1, size + len(data)
                if written % WINDOW_RECORDS == 0:
                    count(WINDOW_RECORDS)
                if size >= PART_BYTES:
                    more, reached = frame.offset + 1 < span.end, frame.offset + 1
                    break
            count(written % WINDOW_RECORDS)
            draft.said.update(count=written, content=digest.hexdigest(), next=reached)
        number += 1


def place(tp: TopicPartition) -> str:
    """Where a partition's parts lie in the folder."""
    return f"topics/{tp.topic}/{tp.partition}-"


async def _frames(consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int) -> AsyncIterator[Frame]:
    async for records in bus.read_range(consumer, tp, start, end):
        for record in records:
            yield Frame(record.offset, record.timestamp, record.key, record.value, list(record.headers))


# -------------------------------------------------------------------------------------------------------------- restore


async def check_empty(kafka: str, plans: Sequence[TopicPlan]) -> None:
    """Raise UserError if a topic of the project holds or held records, or has another number of partitions."""
    found = await list_topics(kafka)
    consumer = await bus.start_consumer(kafka, client_id=_CLIENT, committed_only=False)
    try:
        partitions = [TopicPartition(name, number) for name, many in found.items() for number in range(many)]
        ends = await bus.end_offsets(consumer, partitions) if partitions else {}
    finally:
        await bus.stop_consumer(consumer)
    if used := sorted(f"{tp.topic}[{tp.partition}]" for tp, end in ends.items() if end > 0):
        raise UserError(
            f"the target is not empty: {used[0]} and {len(used) - 1} more partitions hold records, or held some. A backup is "
            "restored into brokers without the project's records: delete its topics (claw.*), or start new ones"
        )
    for plan in plans:
        if found.get(plan.name, len(plan.spans)) != len(plan.spans):
            raise UserError(
                f"{plan.name} has {found[plan.name]} partitions there and {len(plan.spans)} in the backup: delete the topic, "
                "and it is made as it was"
            )


async def make_topics(kafka: str, plans: Sequence[TopicPlan], replication: int) -> set[str]:
    """The topics, such that records keep their times; returns the names of those that were not there."""
    there = await list_topics(kafka)
    await bus.apply_topics(
        kafka,
        [topics.Topic(p.name, len(p.spans), "", "", p.config | _WHILE_WRITTEN) for p in plans],
        replication=replication,
    )
    return {plan.name for plan in plans if plan.name not in there}


async def fill_topics(kafka: str, plans: Sequence[TopicPlan], folder: Folder, count: Counted) -> None:
    """Write every partition, up to AT_ONCE side by side. Raises UserError if an offset comes out as another."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def fill(tp: TopicPartition, span: Span) -> None:
        async with gate:
            await _fill_partition(kafka, looking, tp, span, folder, count)

    looking = await bus.start_consumer(kafka, client_id=_CLIENT, committed_only=False)
    tasks = [
        asyncio.create_task(fill(TopicPartition(plan.name, number), span))
        for plan in plans
        for number, span in enumerate(plan.spans)
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bus.stop_consumer(looking)


async def _fill_partition(
    kafka: str, looking: AIOKafkaConsumer, tp: TopicPartition, span: Span, folder: Folder, count: Counted
) -> None:
    if span.end == 0:
        return
    name = f"{_CLIENT}-{tp.topic}-{tp.partition}"
    plain = await bus.start_producer(kafka, client_id=_CLIENT)
    try:
        ending = await bus.start_producer(
            kafka, client_id=_CLIENT, transactional_id=name, transaction_timeout=TRANSACTION_TIMEOUT
        )
        try:
            await _Writer(tp, looking, plain, ending).write(_restored(folder, tp), span, count)
        finally:
            await bus.stop_producer(ending)
    except KafkaError as error:
        raise RetryableError(f"{tp.topic}[{tp.partition}] could not be written: {error!r}") from error
    finally:
        await bus.stop_producer(plain)


async def _restored(folder: Folder, tp: TopicPartition) -> AsyncIterator[Frame]:
    for part in folder.under(place(tp)):
        with folder.unzip(part) as source:
            for frame, _ in unpack(source):
                yield frame


class _Writer:
    """The one hand that writes to a new partition: `plain` for what lies side by side, `ending` for what has gaps behind it."""

    def __init__(
        self, tp: TopicPartition, looking: AIOKafkaConsumer, plain: AIOKafkaProducer, ending: AIOKafkaProducer
    ) -> None:
        self._tp = tp
        self._looking = looking
        self._plain = plain
        self._ending = ending
        self._next = 0
        self._sent: list[asyncio.Future[RecordMetadata]] = []
        self._size = 0
        self._ended = False
        """A transaction was ended, and its end may not be on the partition yet."""

    async def write(self, frames: AsyncIterator[Frame], span: Span, count: Counted) -> None:
        first = True
        async for frame, gap in spaced(frames, span.end):
            if first:
                await self._skip(frame.offset)
                first = False
            if gap == 1:  # the end of its own transaction
                await self._acknowledged()
                async with self._ending.transaction():
                    await self._send(self._ending, frame)
                    await self._acknowledged()
                self._next += 1
                self._ended = True
            else:
                await self._send(self._plain, frame)
                if len(self._sent) >= WINDOW_RECORDS or self._size >= WINDOW_BYTES or gap:
                    await self._acknowledged()
                await self._skip(gap)
            count(1)
        if first:
            await self._skip(span.end)
        await self._acknowledged()
        await self._see_end()

    async def _send(self, producer: AIOKafkaProducer, frame: Frame) -> None:
        if frame.offset != self._next:
            raise UserError(f"{self._name}: the backup goes on at {frame.offset} where {self._next} was to come")
        if producer is self._plain:
            await self._see_end()
        await bus.track_topics(producer, self._tp.topic)
        self._sent.append(
            await producer.send(
                self._tp.topic,
                frame.value,
                key=frame.key,
                partition=self._tp.partition,
                timestamp_ms=frame.timestamp,
                headers=frame.headers,
            )
        )
        self._size += len(frame.value or b"")
        self._next += 1

    async def _acknowledged(self) -> None:
        """Wait for all that was sent, and compare where it lies."""
        sent, self._sent, self._size = self._sent, [], 0
        if not sent:
            return
        try:
            async with asyncio.timeout(ACK_DEADLINE):
                there = await asyncio.gather(*sent)
        except (KafkaError, TimeoutError) as error:
            raise RetryableError(f"the broker did not take records of {self._name}: {error!r}") from error
        for place, offset in zip(there, range(self._next - len(sent), self._next), strict=True):
            self._compare(place, offset)

    async def _see_end(self) -> None:
        """Wait until the end of the last transaction lies on the partition: the broker writes it a moment after it said so, and
        another producer's record would come before it."""
        if not self._ended:
            return
        try:
            async with asyncio.timeout(ACK_DEADLINE):
                while True:
                    if (end := (await bus.end_offsets(self._looking, [self._tp]))[self._tp]) >= self._next:
                        break
                    await asyncio.sleep(END_PAUSE)
        except TimeoutError as error:
            raise RetryableError(f"the broker did not end a transaction on {self._name}") from error
        self._ended = False
        if end > self._next:
            raise UserError(f"{self._name} ends at {end}, not at {self._next}: something else writes to the topic")

    def _compare(self, place: RecordMetadata, offset: int) -> None:
        if place.offset != offset:
            raise UserError(
                f"{self._name}: a record of offset {offset} came to lie at {place.offset}: something else writes to the topic. "
                "Stop it, delete the project's topics, and restore again"
            )

    async def _skip(self, offsets: int) -> None:
        """Take up that many offsets with what nobody sees; one alone only at the log's start, which is removed."""
        if offsets == 0:
            return
        if offsets == 1:
            await self._send(self._plain, Frame(self._next, 0, b"filler", None, []))
            await self._acknowledged()
            return
        while offsets:
            many = min(offsets, SKIPPED_AT_ONCE)
            many -= offsets - many == 1  # one alone could not be skipped
            async with _aborted(self._ending):
                for begin in range(0, many - 1, FILLERS):
                    await self._fill(min(FILLERS, many - 1 - begin))
            self._next += 1
            self._ended = True
            offsets -= many

    async def _fill(self, many: int) -> None:
        await bus.track_topics(self._ending, self._tp.topic)
        batch = self._ending.create_batch()
        for _ in range(many):
            if batch.append(key=b"filler", value=None, timestamp=0) is None:
                raise RuntimeError("a batch of fillers is too large")
        batch.close()
        async with asyncio.timeout(ACK_DEADLINE):
            future = await self._ending.send_batch(batch, self._tp.topic, partition=self._tp.partition)
            self._compare(await future, self._next)
        self._next += many

    @property
    def _name(self) -> str:
        return f"{self._tp.topic}[{self._tp.partition}]"


class _aborted:
    """A transaction that is never committed."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def __aenter__(self) -> None:
        await self._producer.begin_transaction()

    async def __aexit__(self, *_: Any) -> None:
        await self._producer.abort_transaction()


async def settle_topics(kafka: str, plans: Sequence[TopicPlan], made: set[str], folder: Folder) -> list[str]:
    """Logs begin where they began, and the topics get their settings back, those that were made also what was their own.

    Returns a line for each setting that the backup has and a topic has not.
    """
    async with bus.admin(kafka) as client:
        starts = {
            TopicPartition(plan.name, number): RecordsToDelete(before_offset=begin)
            for plan in plans
            for number, span in enumerate(plan.spans)
            if (begin := _begin(folder, TopicPartition(plan.name, number), span)) > 0
        }
        if starts:
            await client.delete_records(starts)
        await bus.set_configs(client, {plan.name: plan.config for plan in plans})
        return [line for plan in plans for line in await _give(client, plan, plan.name in made)]


async def _give(client: AIOKafkaAdminClient, plan: TopicPlan, made: bool) -> list[str]:
    """Give a topic that was made what was its own, one by one: brokers refuse what their version does not know."""
    if not plan.own:
        return []
    (topic,) = await client.describe_topics([plan.name])
    copies = min(len(partition["replicas"]) for partition in topic["partitions"])
    there = (await bus.read_configs(client, [plan.name]))[plan.name]
    lines = []
    for key, value in plan.own.items():
        if not made:
            why = "" if there.get(key) == value else f"the topic was there before, with {there.get(key)}"
        elif key == _COPIES_WRITTEN and int(value) > copies:
            why = f"a partition has {copies} {'copy' if copies == 1 else 'copies'} here, and would take no writes"
        else:
            why = await _refusal(client, plan.name, key, value)
        if why:
            lines.append(f"{plan.name} is without {key}={value}: {why}")
    return lines


async def _refusal(client: AIOKafkaAdminClient, topic: str, key: str, value: str) -> str:
    """Set it; returns what the brokers have against it."""
    try:
        await bus.set_configs(client, {topic: {key: value}})
    except UserError as error:
        return str(error)
    return ""


async def commit_groups(kafka: str, groups: Sequence[Committed]) -> None:
    """Put the consumer groups where they were. Raises UserError if a group has members."""
    for name in sorted({one.group for one in groups}):
        consumer = await bus.start_consumer(kafka, client_id=_CLIENT, group=name)
        try:
            mine = {
                TopicPartition(one.topic, one.partition): OffsetAndMetadata(one.offset, one.metadata)
                for one in groups
                if one.group == name
            }
            consumer.assign(list(mine))
            await consumer.commit(mine)
        except KafkaError as error:
            raise UserError(
                f"the offsets of group {name} could not be set ({error!r}): is a process of it running? Stop it, "
                "and restore again"
            ) from error
        finally:
            await bus.stop_consumer(consumer)


async def verify_topics(kafka: str, plans: Sequence[TopicPlan], folder: Folder, count: Counted) -> list[str]:
    """What of the topics is not as it was: partitions whose ends or records differ."""
    consumer = await bus.start_reader(kafka, client_id=_CLIENT, auto_offset_reset="none")
    try:
        return [
            wrong
            for plan in plans
            for number, span in enumerate(plan.spans)
            if (wrong := await _verify(consumer, TopicPartition(plan.name, number), span, folder, count))
        ]
    finally:
        await bus.stop_consumer(consumer)


async def _verify(
    consumer: AIOKafkaConsumer, tp: TopicPartition, span: Span, folder: Folder, count: Counted
) -> str | None:
    end = (await bus.end_offsets(consumer, [tp]))[tp]
    if end != span.end:
        return f"{tp.topic}[{tp.partition}] ends at {end}, not at {span.end}"
    start = _begin(folder, tp, span)
    for part in folder.under(place(tp)):
        consumer.assign([tp])
        digest, found = await _digest(consumer, tp, start, part, count)
        if (digest, found) != (part.content, part.count):
            return f"{tp.topic}[{tp.partition}] differs from offset {start} on ({found} records, the backup has {part.count})"
        start = part.next
    return None


async def _digest(
    consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, part: Part, count: Counted
) -> tuple[str, int]:
    digest, found = hashlib.sha256(), 0
    async for frame in _frames(consumer, tp, start, part.next):
        digest.update(pack(frame))
        found += 1
        if found % WINDOW_RECORDS == 0:
            count(WINDOW_RECORDS)
    count(found % WINDOW_RECORDS)
    return digest.hexdigest(), found


def _begin(folder: Folder, tp: TopicPartition, span: Span) -> int:
    """Where the log begins again: one offset later where compaction took the one at 0 alone, for which nothing can stand."""
    if span.start == 0 and (parts := folder.under(place(tp))):
        with folder.unzip(parts[0]) as source:
            first = next((frame.offset for frame, _ in unpack(source)), 0)
        return 1 if first == 1 else 0
    return span.start
