"""What the adapter's tests stand on: a recipe of its own on the real broker, and groups published as a stream worker does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.protocol.offset import OffsetRequest

from claw_r1 import topics
from claw_r1.bus import apply_topics, publish, read_topic, start_producer
from claw_r1.codec import Record, decode, encode
from claw_r1.events import BatchCut, BatchTrained, Event, GroupReady, Outcome, Policy, RecipeActive, Sample
from claw_r1.ids import new_id
from claw_r1.recipes import Recipe
from tests.conftest import Stack
from tests.factories import a_ready_group, a_recipe
from tests.forms import todays
from tests.log import await_visible
from trainer_adapter import AsyncBatchStream


@dataclass
class AdapterStand:
    """A recipe with its topic."""

    kafka: str
    recipe: Recipe
    producer: AIOKafkaProducer
    version: int = 1
    form: Callable[[Record], Record] = todays
    """Of the version that writes."""
    topic: str = field(init=False)

    def __post_init__(self) -> None:
        self.topic = topics.batch_topic(self.recipe.name)

    async def set_recipe(self, **over: Any) -> None:
        """Apply the recipe, with changes from the second time on."""
        self.recipe = Recipe.model_validate(self.recipe.model_dump() | over)
        active = RecipeActive(
            name=self.recipe.name,
            version=self.version,
            recipe=self.recipe,
            run_id=self.recipe.run_id,
            partition=0,
            begins=0,
        )
        self.version += 1
        await self.send(topics.RECIPES, active, f"{active.name}@{active.version}/0")

    async def send(self, topic: str, event: Event, key: str) -> None:
        """One record in a transaction of its own; done when readers see it."""
        async with self.producer.transaction():
            record = self.form(encode(event, source="test", key=key.encode()))
            place = await publish(self.producer, topic, record, deadline=30, partition=0)
        await self._await_visible(topic, place.offset)

    async def publish(self, *groups: tuple[Sequence[Sample], GroupReady], visible: bool = True) -> None:
        """Ready groups in one transaction; done when readers see them, unless somebody else's transaction is open before it."""
        async with self.producer.transaction():
            for samples, marker in groups:
                for event in (*samples, marker):
                    record = encode(event, source="test", key=f"{marker.run_id}/{marker.prompt_uid}".encode())
                    record = self.form(record)
                    place = await publish(self.producer, self.topic, record, deadline=30, partition=0)
        if visible:
            await self._await_visible(self.topic, place.offset)

    async def _await_visible(self, topic: str, offset: int) -> None:
        """A transaction is visible a little after its end."""
        client = self.producer.client
        asked = OffsetRequest(-1, 1, [(topic, [(0, -1)])])
        async with asyncio.timeout(60):
            while True:
                answer = await client.send(client.cluster.leader_for_partition(TopicPartition(topic, 0)), asked)
                ((_, ((_, _, _, end, *_),)),) = answer.topics
                if end > offset:
                    return
                await asyncio.sleep(0.005)

    async def trained(self, version: int) -> None:
        """Some trainer of the run has made this policy version."""
        policy = Policy(run_id=self.recipe.run_id, version=version, at=1.0)
        await self.send(topics.POLICY, policy, self.recipe.run_id)

    def group(self, number: int, rewards: Sequence[float | None] = (1.0, 0.0), **over: Any) -> Any:
        """The ready group `g<number>` of the recipe's run, different in content from every other."""
        run = {"run_id": self.recipe.run_id}
        return a_ready_group(f"g{number}", rewards, **(run | {"metadata": {"number": number}} | over))

    async def history(self) -> list[BatchCut | BatchTrained]:
        """The recipe's cuts and commits, as a read_committed reader sees them."""
        return [event for event in await self._cuts() if isinstance(event, BatchCut | BatchTrained)]

    async def outcomes(self) -> list[Outcome]:
        """What trainers of the recipe said of decisions."""
        return [event for event in await self._cuts() if isinstance(event, Outcome)]

    async def _cuts(self) -> list[Event]:
        await await_visible(self.kafka, topics.CUTS)
        records = await read_topic(self.kafka, topics.CUTS, client_id="test")
        return [decode(r.headers, r.value) for r in records if r.key == self.recipe.name.encode()]

    async def policies(self) -> list[Policy]:
        await await_visible(self.kafka, topics.POLICY)
        records = await read_topic(self.kafka, topics.POLICY, client_id="test")
        events = [decode(r.headers, r.value) for r in records if r.key == self.recipe.run_id.encode()]
        return [event for event in events if isinstance(event, Policy)]


@contextlib.asynccontextmanager
async def an_adapter_stand(kafka: str, *, topic: bool = True, **recipe: Any) -> AsyncIterator[AdapterStand]:
    """A new recipe on the broker, with a topic unless told otherwise."""
    name = f"r{new_id()}"
    wanted = topics.all_topics() + ([topics.batch_topic_spec(name)] if topic else [])
    await apply_topics(kafka, wanted)
    producer = await start_producer(kafka, client_id="test", transactional_id=f"test-{name}")
    try:
        stand = AdapterStand(kafka, a_recipe(**{"name": name, "run_id": f"run-{name}"} | recipe), producer)
        await stand.set_recipe()
        yield stand
    finally:
        await producer.stop()


def on_stand(stack: Stack, body: Callable[[AdapterStand], Awaitable[None]], **recipe: Any) -> None:
    """Play `body` on a stand of its own."""

    async def run() -> None:
        async with an_adapter_stand(stack.kafka, **recipe) as stand:
            await body(stand)

    asyncio.run(run())


def a_stream(stand: AdapterStand, **options: Any) -> AsyncBatchStream:
    return AsyncBatchStream(stand.recipe.name, kafka=stand.kafka, **options)
