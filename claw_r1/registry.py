"""Recipes go onto the log and come back: a version is appended to every events partition, workers say what they know.

Invariant: no two recipes get one version number, whoever applies them and whenever, so that all partitions agree on what a
version says. The number is claimed before anything is appended: the transactional id, one per recipe, admits one claimant
(the newest fences the others), and the claim is an offset that is committed in its transaction.
"""

import asyncio
import time

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced

from claw_r1 import bus
from claw_r1.codec import decode, encode
from claw_r1.errors import RetryableError, UserError
from claw_r1.events import RecipeActive, RecipeSet
from claw_r1.ids import derived_id
from claw_r1.recipes import Recipe, list_unhonoured
from claw_r1.topics import EVENTS, RECIPES, batch_topic_spec


async def known_recipes(kafka: str) -> list[RecipeActive]:
    """The newest version of every recipe and partition, deleted ones included, ordered by name and partition."""
    newest: dict[tuple[str, int], RecipeActive] = {}
    for record in await bus.read_topic(kafka, RECIPES, client_id="claw-recipes"):
        event = decode(record.headers, record.value)
        if isinstance(event, RecipeActive):
            key = (event.name, event.partition)
            if key not in newest or newest[key].version < event.version:
                newest[key] = event
    return [newest[key] for key in sorted(newest)]


async def active_recipes(kafka: str) -> list[RecipeActive]:
    """One entry per recipe that is in force: its newest version."""
    newest: dict[str, RecipeActive] = {}
    for known in await known_recipes(kafka):
        if known.name not in newest or newest[known.name].version < known.version:
            newest[known.name] = known
    return [known for known in newest.values() if known.recipe is not None]


async def apply_recipe(kafka: str, recipe: Recipe, *, deadline: float = 30.0) -> int:
    """Append a recipe as a new version; it judges the groups whose first fact follows. Returns the version.

    Returns once every partition's stream worker has taken it, or a newer version, in. Raises UserError if that takes longer
    than `deadline` seconds: the recipe is on the log then, and takes effect as soon as a worker runs. Raises UserError, and
    changes nothing, if somebody else applies the recipe at the same moment, or if it asks for what no trainer adapter does.
    """
    if unhonoured := list_unhonoured(recipe):
        raise UserError(f"recipe {recipe.name} asks for what is not done yet: {'; '.join(unhonoured)}")
    await bus.ensure_topic(kafka, batch_topic_spec(recipe.name))
    version = await _claim_version(kafka, recipe.name, deadline)
    return await _append(kafka, recipe.name, version, recipe.run_id, recipe, deadline)


async def delete_recipe(kafka: str, name: str, *, deadline: float = 30.0) -> int:
    """End a recipe: groups that begin later are no longer judged by it. Its topic stays. Returns the version that ends it."""
    found = [known for known in await known_recipes(kafka) if known.name == name]
    if not found or found[0].recipe is None:
        raise UserError(f"there is no recipe {name}: `claw recipes list` shows those there are")
    version = await _claim_version(kafka, name, deadline)
    return await _append(kafka, name, version, found[0].run_id, None, deadline)


async def _claim_version(kafka: str, name: str, deadline: float) -> int:
    """The next version of a recipe, ours alone: above all that workers took in and all that were ever claimed."""
    claims, group = TopicPartition(RECIPES, 0), f"claw-recipes-{name}"
    producer = await bus.start_producer(kafka, client_id="claw-recipes", transactional_id=group)
    try:
        known = [known.version for known in await known_recipes(kafka) if known.name == name]
        claimed = (await bus.committed_offsets(kafka, group, [claims], deadline=deadline))[claims]
        version = max([claimed or 0, *known]) + 1
        async with asyncio.timeout(deadline):
            await producer.begin_transaction()
            await producer.send_offsets_to_transaction({claims: version}, group)
            await producer.commit_transaction()
    except ProducerFenced as error:
        raise UserError(
            f"somebody else applies or deletes recipe {name} at this moment, and nothing was changed here: look at "
            "`claw recipes list`, then try again"
        ) from error
    except (KafkaError, TimeoutError) as error:
        raise RetryableError(f"the broker did not confirm a new version of recipe {name}: {error!r}") from error
    finally:
        await bus.stop_producer(producer)
    return version


async def _append(kafka: str, name: str, version: int, run_id: str, recipe: Recipe | None, deadline: float) -> int:
    fact_id = derived_id("recipe-set", name, version, recipe.model_dump_json() if recipe is not None else None)
    fact = RecipeSet(fact_id=fact_id, run_id=run_id, at=time.time(), name=name, version=version, recipe=recipe)
    producer = await bus.start_producer(kafka, client_id="claw-recipes")
    try:
        partitions = await producer.partitions_for(EVENTS)
        record = encode(fact, source="claw/recipes")
        for partition in sorted(partitions):
            await bus.publish(producer, EVENTS, record, partition=partition, deadline=deadline)
    finally:
        await bus.stop_producer(producer)
    await _wait_until_taken(kafka, name, version, partitions, deadline)
    return version


async def _wait_until_taken(kafka: str, name: str, version: int, partitions: set[int], deadline: float) -> None:
    consumer = await bus.start_consumer(kafka, client_id="claw-recipes")
    missing = set(partitions)
    try:
        consumer.assign([TopicPartition(RECIPES, 0)])
        await consumer.seek_to_beginning()
        async with asyncio.timeout(deadline):
            while missing:
                event = decode((record := await consumer.getone()).headers, record.value)
                if isinstance(event, RecipeActive) and event.name == name and event.version >= version:
                    missing.discard(event.partition)
    except TimeoutError as error:
        raise UserError(
            f"recipe {name} version {version} is on the log, but no stream worker took it in on partitions {sorted(missing)} "
            f"within {deadline:g} s. Is one running? `claw status` tells. It takes effect as soon as one reads it."
        ) from error
    finally:
        await bus.stop_consumer(consumer)
