"""Records reach the broker and come back: the one place that configures Kafka clients.

Producers are idempotent with acks=all and linger 0; a send has one deadline over both the hand-over and the acknowledgement,
since an idempotent producer's futures never fail while the broker is away.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import aiokafka.producer.sender
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.partitioner import murmur2
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import RecordMetadata

from claw_r1 import wire
from claw_r1.codec import MAX_RECORD_BYTES, Headers, Record
from claw_r1.errors import DependencyUnreachable, InvalidRecord, RetryableError, UserError
from claw_r1.kafka_requests import SetConfigs
from claw_r1.topics import EVENTS, Topic

log = logging.getLogger("claw.bus")

_NEWEST, _NO_BROKER, _ALL_RECORDS = -1, -1, 0
"""Of ListOffsets: the offset behind the last record; a client asks; also what is not committed."""
_OF_TOPIC = 1
"""Of DescribeConfigs: where a setting comes from."""
_NOT_LED_YET = (UnknownTopicOrPartitionError.errno, LeaderNotAvailableError.errno, NotLeaderForPartitionError.errno)

FETCH_BYTES = MAX_RECORD_BYTES + 65_536
START_DEADLINE = 45.0
"""Seconds for a client's start: longer than a broker takes to end the transaction of a producer that was killed."""
SHOWN_PAUSE = 0.05
"""Seconds until a broker is asked again whether it knows what was changed."""
START_GRACE = 2.0
"""Seconds for a start that is cancelled to get through the request of its first connection."""
STOP_DEADLINE = 5.0
AS_BROKERS_CHOOSE = -1
"""Copies of a new topic: what the brokers' `default.replication.factor` says."""
TRANSACTION_PAUSE = 0.004
"""Seconds until a producer asks again for a transaction that the broker refuses because it still ends the one before."""
aiokafka.producer.sender.BACKOFF_OVERRIDE = TRANSACTION_PAUSE  # aiokafka waits 20 ms, and the broker takes two or three


async def start_producer(
    kafka: str, *, client_id: str, transactional_id: str | None = None, transaction_timeout: float = 15.0
) -> AIOKafkaProducer:
    """A started idempotent producer; with `transactional_id`, it has fenced every earlier one of that id.

    Raises DependencyUnreachable if no broker answers.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka,
        **wire.kafka_options(),
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        max_batch_size=1024 * 1024,
        max_request_size=MAX_RECORD_BYTES,
        transactional_id=transactional_id,
        transaction_timeout_ms=int(transaction_timeout * 1000),
    )
    async with _starting(kafka):
        try:
            await _start(producer)
        except BaseException:
            await stop_producer(producer)
            raise
    return producer


async def start_consumer(
    kafka: str,
    *topics: str,
    client_id: str,
    group: str | None = None,
    committed_only: bool = True,
    **more: object,
) -> AIOKafkaConsumer:
    """A started consumer that commits nothing by itself and begins at the log's start; `more` goes to aiokafka.

    Raises DependencyUnreachable if no broker answers.
    """
    options = {
        "auto_offset_reset": "earliest",
        "max_partition_fetch_bytes": FETCH_BYTES,
        "fetch_max_bytes": 4 * FETCH_BYTES,
    } | more
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=kafka,
        **wire.kafka_options(),
        client_id=client_id,
        group_id=group,
        enable_auto_commit=False,
        isolation_level="read_committed" if committed_only else "read_uncommitted",
        **options,
    )
    async with _starting(kafka):
        try:
            await _start(consumer)
        except BaseException:
            await stop_consumer(consumer)
            raise
    return consumer


async def start_reader(kafka: str, *, client_id: str, auto_offset_reset: str = "earliest") -> AIOKafkaConsumer:
    """A started consumer for what is there now. At a partition's end its fetches wait 10 ms for more, and not half a second: a
    broker answers a connection's requests one by one, and the next partition, or a question, would wait for that."""
    return await start_consumer(kafka, client_id=client_id, auto_offset_reset=auto_offset_reset, fetch_max_wait_ms=10)


async def stop_consumer(consumer: AIOKafkaConsumer, *, deadline: float = STOP_DEADLINE) -> None:
    """Stop a consumer, also while the broker is away.

    aiokafka's own stop then ends in a CancelledError that nobody asked for, with its connections still open.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping], timeout=deadline)
    if not stopping.done():
        stopping.cancel()
    elif not stopping.cancelled() and stopping.exception() is None:
        return
    await consumer._client.close()


async def stop_producer(producer: AIOKafkaProducer, *, deadline: float = STOP_DEADLINE) -> None:
    """Stop a producer; what it could not flush within `deadline` seconds is given up, and not acknowledged to anyone.

    Given up means never sent: neither its sender nor its connections are left behind.
    """
    stopping = asyncio.ensure_future(producer.stop())
    await asyncio.wait([stopping], timeout=deadline)
    if producer._txn_manager is not None:  # its error was raised by what was asked of the transaction
        _take_note([producer._txn_manager._transaction_waiter])
    if not stopping.done():
        log.warning("a producer did not flush in time", extra={"deadline": deadline})
        stopping.cancel()
    elif not stopping.cancelled() and (error := stopping.exception()) is not None:
        log.warning("a producer failed at its stop", extra={"error": repr(error)})
    else:
        return
    # Closing the connections fails what the sender has on the way, failing the batches what waits to be flushed.
    await producer.client.close()
    waiting = producer._message_accumulator
    batches = [*waiting._pending_batches, *itertools.chain.from_iterable(waiting._batches.values())]
    waiting.fail_all(KafkaError("the producer was stopped"))
    _take_note(batch._drain_waiter for batch in batches)
    if (sender := producer._sender.sender_task) is not None and not sender.done():
        sender.cancel()
        await asyncio.wait([sender], timeout=deadline)


def _take_note(futures: Iterable[asyncio.Future[Any] | None]) -> None:
    """Of aiokafka's own futures that nobody waits for any more: else their errors are reported as never retrieved."""
    for future in futures:
        if future is not None and future.done() and not future.cancelled():
            future.exception()


async def _start(client: AIOKafkaProducer | AIOKafkaConsumer | AIOKafkaAdminClient) -> None:
    """Start a client. A cancelled start ends a moment later: the connection by which it asks for the cluster's brokers is known
    to nobody else, and would stay open."""
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting], timeout=START_GRACE)
        starting.cancel()
        await asyncio.wait([starting], timeout=STOP_DEADLINE)
        _take_note([starting])
        raise


@contextlib.asynccontextmanager
async def _starting(kafka: str) -> AsyncIterator[None]:
    """Within START_DEADLINE: aiokafka looks for a transaction's coordinator for ever."""
    try:
        async with asyncio.timeout(START_DEADLINE):
            yield
    except (KafkaConnectionError, TimeoutError) as error:
        if refused := await wire.why_refused(kafka):
            raise DependencyUnreachable(
                f"the Kafka broker at {kafka} does not let this process in: {refused}"
            ) from error
        raise DependencyUnreachable(
            f"no Kafka broker answers at {kafka} ({error!r}). Start one with `claw up`, or say which with --kafka HOST:PORT "
            "or CLAW_KAFKA."
        ) from error


_DENIED = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)


def failure(what: str, error: BaseException) -> RetryableError | UserError:
    """What a failed request is to its caller; `what` says what did not happen. What the brokers' lists forbid is forbidden the
    next time too."""
    if isinstance(error, _DENIED):
        return UserError(
            f"{what}: the brokers do not allow it to this process's user ({error!r}). `claw grants list` shows what each "
            "process needs, `claw grants apply` adds what is missing."
        )
    return RetryableError(f"{what}: {error!r}")


def is_broken(producer: AIOKafkaProducer) -> bool:
    """Whether an error that it cannot get over (fenced, out of order) has ended the producer: each send fails from then on."""
    task = producer._sender.sender_task
    return task is None or bool(task.done())


async def track_topics(producer: AIOKafkaProducer, *topics: str) -> None:
    """Make the producer keep the metadata of these topics; to be called before the first send to each.

    aiokafka learns all topics when it connects but refreshes only those it tracks: once it tracks another topic, records
    that wait for an untracked one have no leader and wait for ever.
    """
    client = producer.client
    for topic in topics:
        if topic not in client._topics:
            await client.add_topic(topic)


async def publish(
    producer: AIOKafkaProducer, topic: str, record: Record, *, deadline: float, partition: int | None = None
) -> RecordMetadata:
    """Send one record and wait until the broker acknowledged it; `deadline` in seconds covers both.

    Raises InvalidRecord("too_large"); UserError if this process may not write there; RetryableError: then the record may still
    arrive, and readers deduplicate by id.
    """
    try:
        async with asyncio.timeout(deadline):
            await track_topics(producer, topic)
            future = await producer.send(
                topic, record.value, key=record.key, headers=record.headers, partition=partition
            )
            return await asyncio.shield(future)
    except MessageSizeTooLargeError as error:
        raise InvalidRecord("too_large", f"the broker refuses a record of {len(record.value)} bytes") from error
    except TimeoutError as error:
        raise RetryableError(f"the broker did not acknowledge a record on {topic} within {deadline:g} s") from error
    except KafkaError as error:
        raise failure(f"the broker refused a record on {topic}", error) from error


async def send(
    producer: AIOKafkaProducer,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Headers = (),
) -> asyncio.Future[RecordMetadata]:
    """Hand one record over, None being a tombstone's value; what is returned is done when the broker acknowledged it.

    Neither has a deadline: both wait for as long as the broker is away. Raises KafkaError.
    """
    await track_topics(producer, topic)
    known = producer.client.cluster.partitions_for_topic(topic)
    partition = None if key is None or not known else partition_of(key, len(known))
    future: asyncio.Future[RecordMetadata] = await producer.send(
        topic, value, key=key, headers=headers, partition=partition
    )
    return future


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Where a key's records lie, as Kafka's clients agree on it; remembered, since aiokafka works it out in Python."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


@dataclass(frozen=True)
class TopicDrift:
    """A difference between a topic on the broker and the list."""

    topic: str
    what: str
    wanted: str
    found: str | None
    fatal: bool = False


@contextlib.asynccontextmanager
async def admin(kafka: str, *, request_timeout: float = 15.0) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client; a broker that hangs is given up after `request_timeout` seconds for the next of the list.

    Raises DependencyUnreachable if no broker answers.
    """
    client = AIOKafkaAdminClient(
        bootstrap_servers=kafka,
        client_id="claw-admin",
        request_timeout_ms=int(request_timeout * 1000),
        **wire.kafka_options(),
    )
    async with _starting(kafka):
        try:
            await _start(client)
        except BaseException:
            await client.close()
            raise
    try:
        yield client
    finally:
        await client.close()


async def diff_topics(kafka: str, wanted: Iterable[Topic]) -> list[TopicDrift]:
    """What differs from the list: missing topics, other partition counts (fatal: a key would move), other settings."""
    wanted = list(wanted)
    drifts: list[TopicDrift] = []
    async with admin(kafka) as client:
        there = {t["topic"]: len(t["partitions"]) for t in await client.describe_topics() if t["error_code"] == 0}
        present = [topic for topic in wanted if topic.name in there]
        configs = await read_configs(client, [topic.name for topic in present])
        for topic in wanted:
            if topic.name not in there:
                drifts.append(TopicDrift(topic.name, "topic", "exists", None))
                continue
            if there[topic.name] != topic.partitions:
                found = str(there[topic.name])
                drifts.append(TopicDrift(topic.name, "partitions", str(topic.partitions), found, fatal=True))
            for key, value in topic.config.items():
                if configs[topic.name].get(key) != value:
                    drifts.append(TopicDrift(topic.name, key, value, configs[topic.name].get(key)))
    return drifts


async def read_configs(
    client: AIOKafkaAdminClient, names: Sequence[str], *, own: bool = False
) -> dict[str, dict[str, str]]:
    """The settings in force of each of the topics, with `own` only those that were given to the topic itself; empty where this
    process may not see them."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for response in await client.describe_configs(resources):
        for _code, _message, _kind, name, entries in response.resources:
            found[name] = {entry[0]: entry[1] for entry in entries if not own or entry[3] == _OF_TOPIC}
    return found


async def apply_topics(
    kafka: str, wanted: Iterable[Topic], *, replication: int = AS_BROKERS_CHOOSE
) -> list[TopicDrift]:
    """Create what is missing, with `replication` copies, and mend settings; returns what was changed, once the broker shows it.

    A topic that was just deleted is made anew, though brokers still show it for a moment. Raises UserError, and changes
    nothing, if a partition count differs: growth is another command.
    """
    wanted = list(wanted)
    drifts = await diff_topics(kafka, wanted)
    if fatal := [d for d in drifts if d.fatal]:
        first = fatal[0]
        raise UserError(
            f"{first.topic} has {first.found} partitions, not {first.wanted}: changing that would move keys. Keep the number "
            "that it has (leave --partitions out), or let the topic grow: `claw topics grow`."
        )
    by_name = {topic.name: topic for topic in wanted}
    async with admin(kafka) as client:
        missing = {d.topic for d in drifts if d.what == "topic"}
        made = await _create(client, wanted, replication, seen=by_name.keys() - missing)
        mended = {d.topic: by_name[d.topic].config for d in drifts if d.what != "topic"}
        await set_configs(client, mended)
        await await_shown("the settings of {} are changed, but not shown yet", lambda: _not_shown(client, mended))
    return [*drifts, *(TopicDrift(name, "topic", "exists", None) for name in made if name not in missing)]


async def await_shown(what: str, lacking: Callable[[], Awaitable[Sequence[object]]]) -> None:
    """Return when the brokers lack nothing of a change: one node takes it, and the others know of it a moment later.

    Raises RetryableError if that takes longer than a start may: `what`, with what is lacking in the place of {}.
    """
    missing: Sequence[object] = ()
    try:
        async with asyncio.timeout(START_DEADLINE):
            while True:
                if not (missing := await lacking()):
                    return
                await asyncio.sleep(SHOWN_PAUSE)
    except TimeoutError as error:
        raise RetryableError(what.format(", ".join(map(str, missing[:5])))) from error


async def _not_shown(client: AIOKafkaAdminClient, configs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Topics that have other settings than these, as far as this process may see them."""
    found = await read_configs(client, list(configs))
    return [name for name, shown in found.items() if shown and not configs[name].items() <= shown.items()]


async def set_configs(client: AIOKafkaAdminClient, configs: Mapping[str, Mapping[str, str]]) -> None:
    """By topic, set what is named; what else a topic has of its own, such as `min.insync.replicas`, stays.

    Raises UserError if the brokers refuse one.
    """
    if not configs:
        return
    answer = await client._send_request(SetConfigs(configs))
    for code, message, _kind, name in answer.responses:
        if code:
            raise UserError(
                f"the broker did not change the settings of {name}: {for_code(code).__name__} {message or ''}"
            )


async def _create(
    client: AIOKafkaAdminClient, topics: Sequence[Topic], replication: int, *, seen: Collection[str] = ()
) -> list[str]:
    """The names of those that were made. Those that were `seen` are asked for too, and may be refused."""
    if not topics:
        return []
    # aiokafka knows -1 for assignments by hand only; with none of them it is Kafka's own word for the brokers' choice.
    by_hand: dict[int, list[int]] | None = {} if replication == AS_BROKERS_CHOOSE else None
    new = [
        NewTopic(t.name, t.partitions, replication, replica_assignments=by_hand, topic_configs=t.config) for t in topics
    ]
    response = await client.create_topics(new)
    for name, code, *message in response.topic_errors:
        if code and name not in seen and for_code(code) is not TopicAlreadyExistsError:
            raise UserError(f"the broker did not create {name}: {for_code(code).__name__} {message}")
    made = [name for name, code, *_ in response.topic_errors if not code]
    if awaited := [topic.name for topic in topics if topic.name in made or topic.name not in seen]:
        # Who asks a partition earlier hears that it has no leader.
        await await_shown("the topics are made, but no broker leads {} yet", lambda: _without_leader(client, awaited))
    return made


async def _without_leader(client: AIOKafkaAdminClient, names: Sequence[str]) -> list[str]:
    """Partitions whose leader does not answer for them; a broker tells who leads before that one knows it."""
    missing: list[str] = []
    led: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for topic in await client.describe_topics(list(names)):
        if topic["error_code"]:
            missing.append(topic["topic"])
        for partition in topic["partitions"]:
            if partition["leader"] < 0:
                missing.append(f"{topic['topic']}[{partition['partition']}]")
            else:
                places = led.setdefault(partition["leader"], {}).setdefault(topic["topic"], [])
                places.append((partition["partition"], _NEWEST))
    for leader, of_topic in led.items():
        try:
            answer = await client._send_request(OffsetRequest(_NO_BROKER, _ALL_RECORDS, list(of_topic.items())), leader)
        except KafkaError:  # it is away: another one will lead
            missing += of_topic
            continue
        for name, partitions in answer.topics:
            missing += [f"{name}[{number}]" for number, code, *_ in partitions if code in _NOT_LED_YET]
    return missing


async def count_partitions(kafka: str, topic: str) -> int | None:
    """Partitions of a topic; None if the broker does not have it."""
    async with admin(kafka) as client:
        found = {t["topic"]: len(t["partitions"]) for t in await client.describe_topics() if t["error_code"] == 0}
    return found.get(topic)


async def ensure_topic(kafka: str, topic: Topic) -> None:
    """Create a topic unless it is there, with as many copies as the events have."""
    async with admin(kafka) as client:
        await _create(client, [topic], await _copies_of_events(client))


async def _copies_of_events(client: AIOKafkaAdminClient) -> int:
    for described in await client.describe_topics():
        if described["topic"] == EVENTS and described["partitions"]:
            return max(len(partition["replicas"]) for partition in described["partitions"])
    return AS_BROKERS_CHOOSE


async def committed_offsets(
    kafka: str,
    group: str,
    partitions: Sequence[TopicPartition],
    *,
    deadline: float = 30.0,
    request_timeout: float = 15.0,
) -> dict[TopicPartition, int | None]:
    """The offsets that a group has committed, None where it has none; also on a broker that only just came up.

    Raises DependencyUnreachable, or RetryableError if the group's coordinator stays away for `deadline` seconds.
    """
    try:
        async with asyncio.timeout(deadline), admin(kafka, request_timeout=request_timeout) as client:
            while True:
                try:
                    found = await client.list_consumer_group_offsets(group, partitions=list(partitions))
                    break
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    await asyncio.sleep(0.2)
    except (KafkaError, TimeoutError) as error:
        raise RetryableError(f"the broker does not tell the offsets of group {group}: {error!r}") from error
    offsets = {partition: found[partition].offset for partition in partitions if partition in found}
    return {partition: None if (offset := offsets.get(partition, -1)) < 0 else offset for partition in partitions}


async def learn_leaders(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> None:
    """Learn who leads these topics, before something is asked of partitions that are not assigned yet.

    aiokafka finds out that it does not know when it is asked, and then waits for 100 ms.
    """
    client = consumer._client
    await client.set_topics({*client._topics, *topics})


async def end_offsets(consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """Next offset to be written, per partition; with read_committed, the last stable offset."""
    ends: dict[TopicPartition, int] = await consumer.end_offsets(list(partitions))
    return ends


async def read_range(
    consumer: AIOKafkaConsumer, partition: TopicPartition, start: int, end: int, *, stall: float = 30.0
) -> AsyncIterator[list[ConsumerRecord]]:
    """The records of one assigned partition in [start, end), in lists; offsets may have gaps (compaction, transactions).

    Raises RetryableError if nothing comes for `stall` seconds.
    """
    if start >= end:
        return
    consumer.seek(partition, start)
    loop = asyncio.get_running_loop()
    last = loop.time()
    while await consumer.position(partition) < end:
        records = (await consumer.getmany(partition, timeout_ms=200)).get(partition, [])
        wanted = [record for record in records if record.offset < end]
        if wanted:
            yield wanted
        if records:
            last = loop.time()
        elif loop.time() - last > stall and await consumer.position(partition) < end:
            raise RetryableError(f"{partition.topic}[{partition.partition}] gave nothing for {stall:g} s below {end}")


async def read_topic(kafka: str, topic: str, *, client_id: str) -> list[ConsumerRecord]:
    """Every committed record that a (small) topic holds now, partition by partition. Raises UserError if it is missing."""
    consumer = await start_reader(kafka, client_id=client_id)
    try:
        numbers = await partitions_of(consumer, topic)
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        starts = await consumer.beginning_offsets(partitions)
        ends = await end_offsets(consumer, partitions)
        return [
            record
            for partition in partitions
            async for records in read_range(consumer, partition, starts[partition], ends[partition])
            for record in records
        ]
    finally:
        await stop_consumer(consumer)


async def partitions_of(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    """The numbers of a topic's partitions. Raises UserError if the broker does not have it."""
    with contextlib.suppress(IllegalStateError):
        await consumer._client.force_metadata_update()
    await consumer._client.fetch_all_metadata()
    numbers = consumer._client.cluster.partitions_for_topic(topic)
    if not numbers:
        raise UserError(f"the broker has no topic {topic}: create it with `claw topics apply`")
    return set(numbers)
