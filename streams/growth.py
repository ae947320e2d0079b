"""The events topic gets more partitions: a new generation of it, while nobody writes or reads facts.

With more partitions a key's facts go to another one. So open groups whose keys move are carried to their new partition, as
groups that are open for long are carried to the end of theirs (`streams.carry`): each has all its facts in one partition, in
their order, before and after. What the stream workers said of the groups whose keys move is written again for the workers of
their new partitions, who so know what is closed; the recipes in force begin on each new partition before its first fact.

What breaks off before the events have their partitions left the old generation as it was. What breaks off later is finished by
the same call, before anything starts.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import KafkaError

from claw_r1 import bus
from claw_r1.codec import MOVED, Record, decode, encode
from claw_r1.errors import ClawError, RetryableError, UserError
from claw_r1.events import Outcome, RecipeActive, RecipeSet
from claw_r1.ids import derived_id, event_key, recipe_key
from claw_r1.registry import known_recipes
from claw_r1.settings import StreamsSettings
from claw_r1.topics import EVENTS, OUTCOMES, RECIPES, TRAJECTORIES
from streams.partition import LEDGER_RECORDS, PartitionWorker

SEND_DEADLINE: Final = 30.0
LOOK_EVERY: Final = 0.5
_CLIENT: Final = "claw-growth"
_AGAIN: Final = "Before you start anything, call `claw topics grow` again: it does the rest"
_SOURCE: Final = "claw/topics"


@dataclass(frozen=True)
class Growth:
    """What was done, or would be."""

    before: int
    after: int
    moved: int
    """Outcomes that were written again for another partition."""
    carried: int | None
    """Open groups that were carried to another partition; None: it was not looked at."""
    recipes: int
    """Recipes that were begun on the new partitions."""


class NotQuiet(UserError):
    """Something is still at work."""


async def grow(
    settings: StreamsSettings, partitions: int, *, workers: str, wait: float, dry_run: bool = False
) -> Growth:
    """Give events, outcomes and trajectories that many partitions. `settings`: the stream workers'; `workers`: the consumer
    group of the reward workers.

    Raises UserError if there are more, NotQuiet if after `wait` seconds a worker is a member of its group or facts still come;
    RetryableError if the broker is away or something broke off: the same call does the rest.
    """
    kafka = settings.kafka
    try:
        async with bus.admin(kafka) as client:
            consumer = await bus.start_reader(kafka, client_id=_CLIENT)
            try:
                before = await _count(client, EVENTS)
                if partitions < before:
                    raise UserError(f"{EVENTS} has {before} partitions, and a topic never gets fewer")
                if partitions % before:
                    raise UserError(
                        f"{EVENTS} has {before} partitions: take a multiple of that, such as {2 * before}, so that groups go "
                        "to new partitions alone, whose facts come behind all others'"
                    )
                await _await_quiet(client, [settings.app, workers], wait)
                if dry_run:
                    return await _look(kafka, consumer, before, partitions)
                return await _grow(settings, client, consumer, before, partitions)
            finally:
                await bus.stop_consumer(consumer)
    except KafkaError as error:
        raise RetryableError(f"the events topic has not grown, or not wholly: {error!r}. {_AGAIN}") from error


async def _look(kafka: str, consumer: AIOKafkaConsumer, before: int, partitions: int) -> Growth:
    """What `_grow` would do, as far as it can be seen without a stream worker."""
    ends = await _ends(consumer, before)
    moved = sum([len(await _moving(consumer, number, partitions, ends)) for number in ends])
    recipes = await _recipes_to_begin(kafka, partitions)
    return Growth(before, partitions, moved, None, len({fact.name for _, fact in recipes}))


async def _grow(
    settings: StreamsSettings, client: AIOKafkaAdminClient, consumer: AIOKafkaConsumer, before: int, partitions: int
) -> Growth:
    ends = await _ends(consumer, before)
    async with _owners(settings, ends) as owners:
        recipes = await _recipes_to_begin(settings.kafka, partitions)
        for topic in (TRAJECTORIES, OUTCOMES):
            await _add_partitions(client, topic, partitions)
        moved = 0
        for number in ends:
            moving = await _moving(consumer, number, partitions, ends)
            await _send(settings.kafka, OUTCOMES, moving)
            moved += len(moving)
        if await _ends(consumer, before) != ends:
            raise NotQuiet(
                f"facts came to {EVENTS} meanwhile, and it has not grown: stop every gateway, worker, console and command, and "
                "start again"
            )
        await _add_partitions(client, EVENTS, partitions)
        try:
            await _send(settings.kafka, EVENTS, [(number, encode(fact, source=_SOURCE)) for number, fact in recipes])
            await _send(settings.kafka, RECIPES, await _recipes_to_know(settings.kafka, owners, partitions))
            carried = [await owner.move(partitions, consumer) for owner in owners]
        except (ClawError, TimeoutError) as error:
            raise RetryableError(
                f"{EVENTS} has {partitions} partitions, but not all of its open groups have moved: {error!r}. {_AGAIN}"
            ) from error
    names = {fact.name for _, fact in recipes}
    return Growth(before, partitions, moved, sum(map(len, carried)), len(names))


@contextlib.asynccontextmanager
async def _owners(settings: StreamsSettings, ends: Mapping[int, int]) -> AsyncIterator[list[PartitionWorker]]:
    """A stream worker for each partition with open groups, at the end of its facts, and all that it decided written."""
    places = [TopicPartition(EVENTS, number) for number in ends]
    committed = await bus.committed_offsets(settings.kafka, settings.app, places)
    late = [tp for tp in places if ends[tp.partition] > (committed[tp] or 0)]
    owners: list[PartitionWorker] = []
    with tempfile.TemporaryDirectory(prefix="claw-growth-") as spill:
        mine = settings.model_copy(update={"spill": spill, "worker": _CLIENT})
        try:
            for tp in late:
                owner = PartitionWorker(mine, tp.partition, share=len(late))
                owners.append(owner)
                await owner.rebuild(committed[tp])
                owner.tick()  # what fell due until now is decided at its time: elsewhere it would be at a later one
                await owner.write()
            yield owners
        finally:
            await asyncio.gather(*(owner.stop() for owner in owners))


# ---------------------------------------------------------------------------------------------------------------- quiet


async def _await_quiet(client: AIOKafkaAdminClient, groups: Sequence[str], wait: float) -> None:
    """Until nobody of these groups is at work."""
    deadline = asyncio.get_running_loop().time() + wait
    while (why := await _working(client, groups)) is not None:
        if asyncio.get_running_loop().time() >= deadline:
            raise NotQuiet(why)
        await asyncio.sleep(LOOK_EVERY)


async def _ends(consumer: AIOKafkaConsumer, partitions: int) -> dict[int, int]:
    places = [TopicPartition(EVENTS, number) for number in range(partitions)]
    return {tp.partition: end for tp, end in (await bus.end_offsets(consumer, places)).items()}


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
    consumer: AIOKafkaConsumer, number: int, partitions: int, ends: Mapping[int, int]
) -> list[tuple[int, Record]]:
    """What is known of groups of one partition whose facts go elsewhere from now on, for the worker of their new partition: it
    was all said before that partition's next fact. What stands where a group was before an earlier growth is passed over."""
    copies: list[tuple[int, Record]] = []
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
            if target == number or bus.partition_of(key, len(ends)) != number:
                continue
            copy = event.model_copy(update={"partition": target, "pos": ends.get(target, 0)})
            made = encode(copy, source=_SOURCE, key=key)
            headers = [(MOVED, f"{number}/{record.offset}".encode()), *made.headers]
            copies.append((target, made._replace(headers=headers)))
    return copies


async def _recipes_to_begin(kafka: str, partitions: int) -> list[tuple[int, RecipeSet]]:
    """By partition what it lacks of the newest versions of the recipes, ended ones too: an open group may know an older one."""
    known = await known_recipes(kafka)
    newest: dict[str, RecipeActive] = {}
    for one in known:
        if one.name not in newest or newest[one.name].version < one.version:
            newest[one.name] = one
    has = {(one.name, one.version, one.partition) for one in known}
    return [
        (number, _fact(one))
        for one in newest.values()
        for number in range(partitions)
        if (one.name, one.version, number) not in has
    ]


def _fact(active: RecipeActive) -> RecipeSet:
    recipe = active.recipe.model_dump_json() if active.recipe is not None else None
    return RecipeSet(
        fact_id=derived_id("recipe-set", active.name, active.version, recipe),
        run_id=active.run_id,
        at=0.0,
        name=active.name,
        version=active.version,
        recipe=active.recipe,
    )


async def _recipes_to_know(kafka: str, owners: Iterable[PartitionWorker], partitions: int) -> list[tuple[int, Record]]:
    """The versions that judge open groups, for the partitions that these go to: as if they had begun before all facts there."""
    records = await bus.read_topic(kafka, RECIPES, client_id=_CLIENT)
    known = [event for r in records if isinstance(event := decode(r.headers, r.value), RecipeActive)]
    by_place = {(one.name, one.version, one.partition): one for one in known}
    missing: dict[tuple[str, int, int], RecipeActive] = {}
    for owner in owners:
        for target, groups in owner.leaving(partitions).items():
            for active in (recipe for group in groups for recipe in group.recipes):
                place = (active.name, active.version, target)
                if place not in by_place:
                    mine = by_place[(active.name, active.version, owner.partition)]
                    missing[place] = mine.model_copy(update={"partition": target, "begins": -1})
    return [(0, encode(one, source=_SOURCE, key=recipe_key(*place))) for place, one in missing.items()]


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
