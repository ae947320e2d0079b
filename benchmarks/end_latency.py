"""When a step came where: what agents, broker, trainer and pool saw of it, put side by side after a window.

Invariants: the log is read when the window is over, so that reading it costs the window nothing; moments are the wall clock's
of one machine, and the broker's are whole milliseconds, cut off.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import TopicPartition

from benchmarks.end_stand import DATABASE, RECIPE, Stand, ask, positions, since
from benchmarks.gateways import LeftOut
from benchmarks.shapes import Shape, request
from claw_r1 import topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import decode, header
from claw_r1.events import Step

PROBE_EVERY = 0.3
"""Seconds between a probe's end and the next one's begin: no multiple of the sink's flushes."""
LOOK_EVERY = 0.02
FOUND_WITHIN = 60.0
_STEP, _READY = b"claw.step.v1", b"claw.group-ready.v1"


@dataclass
class Stops:
    """Seconds to each stop."""

    acknowledged: list[float] = field(default_factory=list)
    """From a call's first byte out to its answer's last byte in, which the broker's acknowledgement precedes."""
    on_log: list[float] = field(default_factory=list)
    """From a call's first byte out to the moment that the broker gave its step."""
    ready: list[float] = field(default_factory=list)
    """From the end of a group's last trajectory, its first byte out, to the moment that the broker gave its marker."""
    in_hand: list[float] = field(default_factory=list)
    """From the same of the last group of a batch to the batch in the trainer's hand, cut and packed."""
    in_sql: list[float] = field(default_factory=list)
    """From a call's last byte in to the first query that finds its step."""

    def lists(self) -> dict[str, list[float]]:
        return dict(vars(self))

    @staticmethod
    async def begin(stand: Stand) -> Mapping[TopicPartition, int]:
        """Where the log ends before a window."""
        return await positions(stand.backends.kafka, topics.EVENTS, topics.batch_topic(RECIPE))


async def look_back(stand: Stand, name: str, seen: Path, begun: Mapping[TopicPartition, int]) -> Stops:
    """The stops of a window's calls and groups, but for the pool's. Raises LeftOut if one is missing on the log."""
    told = json.loads(await asyncio.to_thread(seen.read_text))
    appended: dict[str, list[float]] = defaultdict(list)
    marked: dict[str, float] = {}
    async for record in since(stand.backends.kafka, begun):
        kind = header(record.headers, "ce_type")
        if kind == _STEP:
            step = decode(record.headers, record.value)
            assert isinstance(step, Step)
            appended[step.trajectory_uid].append(record.timestamp / 1e3)
        elif kind == _READY:
            marked[(record.key or b"").decode().rpartition("/")[2]] = record.timestamp / 1e3
    mine = {group: at for group, at in stand.taken.items() if group.startswith(f"{name}-")}
    return put_together(told["calls"], told["groups"], appended, marked, mine)


def put_together(
    calls: Iterable[tuple[str, float, float]],
    groups: Mapping[str, float],
    appended: Mapping[str, list[float]],
    marked: Mapping[str, float],
    taken: Mapping[str, float],
) -> Stops:
    """Pure. `calls` are (trajectory, out, seconds) in the order of their ends, `groups` when the last end was sent;
    `appended` a trajectory's steps, `marked` groups' markers, both by the broker; `taken` when groups were in hand.
    Raises LeftOut for what is missing."""
    stops = Stops()
    turn: dict[str, int] = defaultdict(int)
    for uid, out, seconds in calls:
        steps = appended.get(uid, [])
        if turn[uid] >= len(steps):
            raise LeftOut(f"the log has {len(steps)} steps of trajectory {uid}, and its agent saw more")
        stops.acknowledged.append(seconds)
        stops.on_log.append(steps[turn[uid]] - out)
        turn[uid] += 1
    batches: dict[float, float] = {}
    for group, ended in groups.items():
        if group not in marked or group not in taken:
            raise LeftOut(f"group {group} is on no topic, or in no batch")
        stops.ready.append(marked[group] - ended)
        batches[taken[group]] = max(ended, batches.get(taken[group], 0.0))
    stops.in_hand += [at - ended for at, ended in batches.items()]
    return stops


async def probe(stand: Stand, pool: ClickHouse, shape: Shape, found: list[float]) -> None:
    """Calls of trajectories of their own, one after the other until it is cancelled: how long after its answer a query finds
    each goes into `found`. Raises LeftOut."""
    body = request(shape, 0)
    while True:
        uid = f"probe-{stand.new_name()}"
        await asyncio.to_thread(ask, stand.gateway, f"/{uid}-t/{uid}/v1/chat/completions", body)
        begun = time.monotonic()
        counted = f"SELECT count() FROM {DATABASE}.steps WHERE run_id = 'default' AND prompt_uid = '{uid}'"
        while not await pool.scalar(counted):
            if time.monotonic() - begun > FOUND_WITHIN:
                raise LeftOut(f"after {FOUND_WITHIN:.0f} s a step is not in the pool")
            await asyncio.sleep(LOOK_EVERY)
        found.append(time.monotonic() - begun)
        await asyncio.sleep(PROBE_EVERY)
