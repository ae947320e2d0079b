"""The whole system in numbers: what each consumer group has not taken yet, what lies in dead letters, what the pool holds, and
what each process that was named says of itself."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from pydantic import BaseModel

from claw_r1 import bus, probes, topics
from claw_r1.checks.broker import PATIENCE, read_copies
from claw_r1.checks.copies import Copies
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import ClawError
from claw_r1.probe_answers import Process
from claw_r1.settings import SinksSettings, StreamsSettings, WorkersSettings

DEADLINE: Final = 15.0
GROUPS: Final = {
    "streams": (StreamsSettings.model_fields["app"].default, (topics.EVENTS,)),
    "workers": (WorkersSettings.model_fields["group"].default, (topics.TRAJECTORIES,)),
    "sinks": (
        SinksSettings.model_fields["group"].default,
        (topics.EVENTS, topics.TRAJECTORIES, topics.OUTCOMES, topics.CUTS, topics.TOKEN_STATS),
    ),
}
"""Part → its consumer group, and the topics whose records it takes."""
_POOL: Final = """
SELECT (SELECT count() FROM {db}.steps) AS steps, (SELECT count() FROM {db}.trajectories) AS trajectories,
       (SELECT count() FROM {db}.cuts) AS batches, (SELECT maxOrNull(append_time) FROM {db}.steps) AS newest
"""


class System(BaseModel):
    """None: it could not be asked, and `errors` says why."""

    brokers: Copies | None = None
    behind: dict[str, int | None] = {}
    """Part → records after its committed offsets; None: it never committed. Of streams also what open groups hold back."""
    dead_letters: dict[str, int] | None = None
    """Topic → letters in its dead-letter topic, those sent back counted too."""
    pool: dict[str, Any] | None = None
    """Rows of steps, trajectories and batches (before merges), and the newest step's time."""
    processes: list[Process] = []
    """What was asked by its health URL."""
    passed_over: dict[str, int] = {}
    """Stage → processes beyond the first probes.MOST, which were not asked."""
    errors: dict[str, str] = {}


async def look(kafka: str, clickhouse: str, database: str, stages: Mapping[str, Sequence[str]]) -> System:
    """Ask the brokers, the pool, and the processes behind the health URLs of each stage; what cannot be asked is told, and
    never raised."""
    system = System()
    await asyncio.gather(
        _ask(system, "kafka", _kafka(system, kafka)),
        _ask(system, "pool", _pool(system, clickhouse, database)),
        _processes(system, stages),
    )
    return system


async def _processes(system: System, stages: Mapping[str, Sequence[str]]) -> None:
    found = await probes.find_processes(stages)
    async with probes.session() as http:
        answers = await asyncio.gather(*(probes.ask_process(http, *place) for place in found.places.items()))
    system.processes = [process for process, _ in answers]
    system.passed_over = found.passed_over


async def _ask(system: System, name: str, asking: Any) -> None:
    try:
        async with asyncio.timeout(DEADLINE):
            await asking
    except TimeoutError:
        system.errors[name] = f"no answer within {DEADLINE:g} s"
    except ClawError as error:
        system.errors[name] = str(error)
    except KafkaError as error:
        system.errors[name] = f"a broker that the others name does not answer: {error!r}"


async def _kafka(system: System, kafka: str) -> None:
    async with bus.admin(kafka, request_timeout=PATIENCE) as client:
        system.brokers = await read_copies(client)
    consumer = await bus.start_consumer(kafka, client_id="claw-status", request_timeout_ms=int(1000 * PATIENCE))
    try:
        there = await consumer.topics()
        letters = sorted(topic for topic in there if topic.endswith(topics.dlq_topic("")))
        watched = {topic for _, taken in GROUPS.values() for topic in taken} & there
        places = [
            TopicPartition(t, n) for t in sorted({*watched, *letters}) for n in await bus.partitions_of(consumer, t)
        ]
        ends = await bus.end_offsets(consumer, places)
        starts = await consumer.beginning_offsets(places)
    finally:
        await bus.stop_consumer(consumer)
    system.dead_letters = {
        topic.removesuffix(topics.dlq_topic("")): sum(ends[p] - starts[p] for p in places if p.topic == topic)
        for topic in letters
    }

    async def count(group: str, taken: Sequence[str]) -> int | None:
        own = [place for place in places if place.topic in taken]
        committed = await bus.committed_offsets(kafka, group, own, request_timeout=PATIENCE) if own else {}
        known = {place: offset for place, offset in committed.items() if offset is not None}
        waiting = sum(ends[p] - max(known.get(p, 0), starts[p]) for p in own)
        return waiting if known else None

    waiting = await asyncio.gather(*(count(group, taken) for group, taken in GROUPS.values()))
    system.behind = dict(zip(GROUPS, waiting, strict=True))


async def _pool(system: System, url: str, database: str) -> None:
    async with await ClickHouse.connect(url, database, timeout=DEADLINE) as client:
        await client.check_schema()
        (found,) = (await client.query(_POOL.format(db=database))).dicts()
    newest = found.pop("newest")
    system.pool = {name: int(value) for name, value in found.items()}
    system.pool["newest"] = None if newest is None else str(newest)
