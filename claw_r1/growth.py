"""The events topic gets more partitions: a new generation of it, that begins where every group of the old one is closed.

With more partitions a key's facts go to another one. So nothing may be open, and nobody may write meanwhile; then no group
has facts in both generations, and the order inside each is kept. What the stream workers said of the groups whose keys move
is written again for the workers of their new partitions, who so know what is closed; the recipes in force begin on each new
partition before its first fact. The events' partitions come last but for that: what broke off before is done again.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaError

from claw_r1 import bus
from claw_r1.codec import MOVED, Record, decode, encode
from claw_r1.errors import RetryableError, UserError
from claw_r1.events import Outcome, RecipeActive, RecipeSet
from claw_r1.ids import derived_id, event_key
from claw_r1.registry import known_recipes
from claw_r1.topics import EVENTS, OUTCOMES, TRAJECTORIES

LEDGER_RECORDS: Final = 50_000
"""As many outcomes of a partition as a stream worker reads back in any case."""
SEND_DEADLINE: Final = 30.0
LOOK_EVERY: Final = 0.5
_CLIENT: Final = "claw-growth"
_SOURCE: Final = "claw/topics"


@dataclass(frozen=True)
class Growth:
    """What was done, or would be."""

    before: int
    after: int
    moved: int
    """Outcomes that were written again for another partition."""
    recipes: int
    """Recipes that were begun on the new partitions."""


class NotQuiet(UserError):
    """Something still writes or is open."""


async def grow(
    kafka: str, partitions: int, *, streams: str, workers: str, wait: float, dry_run: bool = False
) -> Growth:
    """Give events, outcomes and trajectories that many partitions. `streams` and `workers` are these stages' consumer groups.

    Raises UserError if there are more, NotQuiet if after `wait` seconds a worker is a member of its group or a group is open;
    RetryableError if the broker is away: the same call does the rest.
    """
    try:
        async with bus.admin(kafka) as client:
            consumer = await bus.start_reader(kafka, client_id=_CLIENT)
            try:
                return await _grow(kafka, client, consumer, partitions, streams, workers, wait, dry_run)
            finally:
                await bus.stop_consumer(consumer)
    except KafkaError as error:
        raise RetryableError(f"the events topic has not grown: {error!r}") from error


async def _grow(
    kafka: str,
    client: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    partitions: int,
    streams: str,
    workers: str,
    wait: float,
    dry_run: bool,
) -> Growth:
    before = await _count(client, EVENTS)
    if partitions < before:
        raise UserError(f"{EVENTS} has {before} partitions, and a topic never gets fewer")
    ends = await _await_quiet(kafka, client, consumer, before, streams, workers, wait)
    moving = [
        copy
        for number in range(await _count(client, OUTCOMES))
        async for copy in _moving(consumer, number, partitions, ends)
    ]
    recipes = await _recipes_to_begin(kafka, partitions)
    growth = Growth(before, partitions, len(moving), len({fact.name for _, fact in recipes}))
    if dry_run:
        return growth
    for topic in (TRAJECTORIES, OUTCOMES):
        await _add_partitions(client, topic, partitions)
    await _send(kafka, OUTCOMES, moving)
    if await _ends(consumer, before) != ends:
        raise NotQuiet(
            f"facts came to {EVENTS} meanwhile, and it has not grown: stop every gateway, worker, console and command, let "
            "the stream workers read to the end, and start again"
        )
    await _add_partitions(client, EVENTS, partitions)
    await _send(kafka, EVENTS, [(number, encode(fact, source=_SOURCE)) for number, fact in recipes])
    return growth


# ---------------------------------------------------------------------------------------------------------------- quiet


async def _await_quiet(
    kafka: str,
    client: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    partitions: int,
    streams: str,
    workers: str,
    wait: float,
) -> dict[int, int]:
    """Where the events end, once nobody is at work on them and no group is open."""
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        ends = await _ends(consumer, partitions)
        why = await _open(kafka, ends, streams) or await _working(client, [streams, workers])
        if why is None:
            return ends
        if asyncio.get_running_loop().time() >= deadline:
            raise NotQuiet(why)
        await asyncio.sleep(LOOK_EVERY)


async def _ends(consumer: AIOKafkaConsumer, partitions: int) -> dict[int, int]:
    places = [TopicPartition(EVENTS, number) for number in range(partitions)]
    return {tp.partition: end for tp, end in (await bus.end_offsets(consumer, places)).items()}


async def _open(kafka: str, ends: dict[int, int], streams: str) -> str | None:
    """A stream worker commits up to the oldest fact of an open group."""
    places = [TopicPartition(EVENTS, number) for number in ends]
    committed = await bus.committed_offsets(kafka, streams, places)
    for tp in places:
        if ends[tp.partition] > (committed[tp] or 0):
            return (
                f"groups are open: {tp.topic}[{tp.partition}] ends at {ends[tp.partition]}, and facts from "
                f"{committed[tp] or 0} on are still needed. Start no more rollouts, and let the stream workers run until every "
                "group is closed"
            )
    return None


async def _working(client: AIOKafkaAdminClient, groups: Sequence[str]) -> str | None:
    for name in groups:
        # One at a time: aiokafka cannot read an answer about two (it does not know the last field of the first).
        (response,) = await client.describe_consumer_groups([name])
        for _error, group, state, _type, _protocol, members, *_ in response.groups:
            if members:
                return f"{len(members)} processes of the group {group} are at work ({state}): stop all that write facts"
    return None


# ---------------------------------------------------------------------------------------------------------------- steps


async def _add_partitions(client: AIOKafkaAdminClient, topic: str, partitions: int) -> None:
    if await _count(client, topic) >= partitions:
        return
    await client.create_partitions({topic: NewPartitions(partitions)})
    async with asyncio.timeout(SEND_DEADLINE):
        while True:
            if await _count(client, topic) >= partitions:
                return
            await asyncio.sleep(LOOK_EVERY / 5)


async def _count(client: AIOKafkaAdminClient, topic: str) -> int:
    """Partitions of a topic. Raises UserError if the broker does not have it."""
    (found,) = await client.describe_topics([topic])
    if found["error_code"] != 0:
        raise UserError(f"the broker has no topic {topic}: create it with `claw topics apply`")
    return len(found["partitions"])


async def _moving(
    consumer: AIOKafkaConsumer, number: int, partitions: int, ends: dict[int, int]
) -> AsyncIterator[tuple[int, Record]]:
    """What is known of groups whose facts go elsewhere from now on, for the worker of their new partition: it was all said
    before that partition's next fact."""
    place = TopicPartition(OUTCOMES, number)
    consumer.assign([place])
    first = (await consumer.beginning_offsets([place]))[place]
    end = (await bus.end_offsets(consumer, [place]))[place]
    async for records in bus.read_range(consumer, place, max(first, end - LEDGER_RECORDS), end):
        for record in records:
            event = decode(record.headers, record.value)
            if not isinstance(event, Outcome) or event.pos is None:
                continue
            key = event_key(event.run_id, event.prompt_uid)
            target = bus.partition_of(key, partitions)
            if target == event.partition:
                continue
            copy = event.model_copy(update={"partition": target, "pos": ends.get(target, 0)})
            made = encode(copy, source=_SOURCE, key=key)
            yield target, made._replace(headers=[(MOVED, f"{number}/{record.offset}".encode()), *made.headers])


async def _recipes_to_begin(kafka: str, partitions: int) -> list[tuple[int, RecipeSet]]:
    """By partition what it lacks of the recipes in force."""
    known = await known_recipes(kafka)
    newest: dict[str, RecipeActive] = {}
    for one in known:
        if one.name not in newest or newest[one.name].version < one.version:
            newest[one.name] = one
    has = {(one.name, one.version, one.partition) for one in known}
    return [
        (number, _fact(one))
        for one in newest.values()
        if one.recipe is not None
        for number in range(partitions)
        if (one.name, one.version, number) not in has
    ]


def _fact(active: RecipeActive) -> RecipeSet:
    assert active.recipe is not None
    return RecipeSet(
        fact_id=derived_id("recipe-set", active.name, active.version, active.recipe.model_dump_json()),
        run_id=active.run_id,
        at=0.0,
        name=active.name,
        version=active.version,
        recipe=active.recipe,
    )


async def _send(kafka: str, topic: str, records: Sequence[tuple[int, Record]]) -> None:
    producer = await bus.start_producer(kafka, client_id=_CLIENT)
    try:
        for begin in range(0, len(records), 500):
            await asyncio.gather(
                *(
                    bus.publish(producer, topic, record, partition=number, deadline=SEND_DEADLINE)
                    for number, record in records[begin : begin + 500]
                )
            )
    finally:
        await bus.stop_producer(producer)
