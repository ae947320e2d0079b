"""What a test writes to the log and reads back from it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.offset import OffsetRequest

from claw_r1 import bus, topics
from claw_r1.codec import Record, decode, encode
from claw_r1.events import Event, Fact, GroupReady, Outcome, Sample
from tests.conftest import wait_until
from tests.forms import todays

STREAMS_GROUP = "claw-streams"


def forget_all(kafka: str) -> None:
    """Make a broker as new for stream workers, who own whole topics: it keeps no topic, and no offset of one.

    A member of their group that was killed is still waited for, unless one of the same name comes.
    """

    async def left() -> list[str] | None:
        """Topics that a client still sees, having asked for their end; one that is only asked for would pass for made."""
        try:
            async with bus.admin(kafka) as client:
                if names := [name for name in await client.list_topics() if not name.startswith("__")]:
                    await client.delete_topics(names)
                return names
        except KafkaError:  # it is only just back, and knows no broker yet, not even itself
            return None

    def is_clean() -> bool:  # offsets go a little after their topic
        return not any(asyncio.run(bus.committed_offsets(kafka, STREAMS_GROUP, places)).values())

    places = [TopicPartition(topics.EVENTS, number) for number in range(topics.DEFAULT_EVENTS_PARTITIONS)]
    wait_until(lambda: asyncio.run(left()) == [], what="no topic is left")
    wait_until(is_clean, what="no offset is left")


def forget_topic(kafka: str, name: str) -> None:
    """The broker has no such topic any more."""

    async def is_gone() -> bool:
        async with bus.admin(kafka) as client:
            if there := name in await client.list_topics():
                await client.delete_topics([name])
            return not there

    wait_until(lambda: asyncio.run(is_gone()), what=f"{name} is gone")


async def send(
    kafka: str,
    facts: Iterable[Fact],
    *,
    partition: int | None = None,
    form: Callable[[Record], Record] = todays,
) -> None:
    """Publish facts in order and wait until all are acknowledged."""
    producer = await bus.start_producer(kafka, client_id="test")
    try:
        futures = []
        for fact in facts:
            record = form(encode(fact, source="test"))
            futures.append(
                await producer.send(
                    topics.EVENTS, record.value, key=record.key, headers=record.headers, partition=partition
                )
            )
        await asyncio.wait_for(asyncio.gather(*futures), 60)
    finally:
        await producer.stop()


async def await_visible(kafka: str, *names: str) -> None:
    """Wait until readers see what these topics hold now: a transaction is visible a little after its end, topic by topic."""
    async with bus.admin(kafka) as client, asyncio.timeout(60):
        written = await _ends(client, names, committed=False)
        while True:
            visible = await _ends(client, names, committed=True)
            if all(visible.get(place, 0) >= end for place, end in written.items()):
                return
            await asyncio.sleep(0.02)


async def _ends(client: AIOKafkaAdminClient, names: Sequence[str], *, committed: bool) -> dict[tuple[str, int], int]:
    """The next offset of each partition, or the first that a read_committed reader does not see."""
    led: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for topic in await client.describe_topics(list(names)):
        for partition in topic["partitions"]:
            led.setdefault(partition["leader"], {}).setdefault(topic["topic"], []).append((partition["partition"], -1))
    ends: dict[tuple[str, int], int] = {}
    for leader, of_topic in led.items():
        answer = await client._send_request(OffsetRequest(-1, int(committed), list(of_topic.items())), leader)
        ends |= {(name, number): end for name, found in answer.topics for number, _code, _time, end, *_ in found}
    return ends


async def read(kafka: str, topic: str) -> list[Event]:
    """Every committed event of a topic."""
    return [decode(r.headers, r.value) for r in await bus.read_topic(kafka, topic, client_id="test")]


async def facts_of(kafka: str, run_id: str) -> list[Fact]:
    """A run's facts, each partition in its order; what other tests write to the topic is not even decoded."""
    records = await bus.read_topic(kafka, topics.EVENTS, client_id="test")
    mine = [record for record in records if (record.key or b"").startswith(f"{run_id}/".encode())]
    return [event for event in (decode(r.headers, r.value) for r in mine) if isinstance(event, Fact)]


@dataclass(frozen=True)
class Emitted:
    """What stream workers wrote for one recipe."""

    ready: list[GroupReady]
    samples: list[Sample]
    outcomes: list[Outcome]

    def check_once(self) -> None:
        """No marker twice, no sample twice, none without its marker, one fate for each trajectory and group."""
        assert [g for g, n in Counter(r.group_id for r in self.ready).items() if n > 1] == []
        assert [s for s, n in Counter(s.sample_id for s in self.samples).items() if n > 1] == []
        assert {s for r in self.ready for s in r.sample_ids} == {s.sample_id for s in self.samples}
        fates = Counter(
            (o.group_id, o.trajectory_uid) for o in self.outcomes if o.recipe and o.outcome in ("emitted", "discarded")
        )
        assert [f for f, n in fates.items() if n > 1] == []


async def read_emitted(kafka: str, recipe: str) -> Emitted:
    """What is written for the recipe by now."""
    await await_visible(kafka, topics.batch_topic(recipe), topics.OUTCOMES)
    events = await read(kafka, topics.batch_topic(recipe))
    outcomes = [e for e in await read(kafka, topics.OUTCOMES) if isinstance(e, Outcome)]
    return Emitted(
        [e for e in events if isinstance(e, GroupReady)],
        [e for e in events if isinstance(e, Sample)],
        [o for o in outcomes if o.recipe in (None, recipe)],
    )


async def wait_for_groups(kafka: str, recipe: str, wanted: int, *, timeout: float = 90.0) -> None:
    """Wait until that many ready groups are visible to a read_committed reader."""
    consumer = await bus.start_consumer(kafka, topics.batch_topic(recipe), client_id="test")
    seen: set[str] = set()
    try:
        async with asyncio.timeout(timeout):
            while len(seen) < wanted:
                record = await consumer.getone()
                event = decode(record.headers, record.value)
                if isinstance(event, GroupReady):
                    seen.add(event.group_id)
    except TimeoutError:
        raise AssertionError(f"after {timeout:.0f} s {len(seen)} of {wanted} groups are ready") from None
    finally:
        await consumer.stop()
