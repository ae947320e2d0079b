"""Facts as a gateway writes them, made fast: one whole group is encoded once, and every other is it with another name.

`python -m benchmarks.stream_log PLAN` (JSON of a Plan) writes groups at a steady rate, each when its turn comes, until it is
ended. Invariants: all names have one length, so a body with another name in it is as well-formed as before; a group's facts go
to one partition.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from claw_r1 import bus, topics
from claw_r1.codec import encode, pack_floats, pack_ids, prefix_hash
from claw_r1.events import (
    Capture,
    GroupFact,
    Reward,
    Sampling,
    Step,
    StepStarted,
    Timings,
    TrajectoryEnd,
)

RUN = "default"
TRAJECTORIES = 4
STEPS = 5
_NAME = "X00000000"
_TAIL, _RESPONSE = 100, 300
_IN_FLIGHT = 4_000


class Raw(NamedTuple):
    """A record without a place."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Plan:
    """What a load process does."""

    kafka: str
    series: str
    """A letter: the first of its groups' names."""
    groups_per_s: float
    partitions: int


def name_of(series: str, number: int) -> str:
    """A group's name; `series` is one letter."""
    return f"{series}{number:08d}"


def a_step(rng: random.Random, uid: str, number: int, prompt: list[int], parent: str | None) -> tuple[Step, list[int]]:
    """A step of about 4 KB, and the context that it leaves."""
    tail = [rng.randrange(150_000) for _ in range(_TAIL)]
    response = [rng.randrange(150_000) for _ in range(_RESPONSE)]
    words = " ".join(str(token) for token in response[:120])
    step = Step(
        fact_id=f"{uid}-s{number}",
        step_id=f"{uid}-s{number}",
        run_id=RUN,
        prompt_uid=_NAME,
        trajectory_uid=uid,
        at=1.0,
        parent_step_id=parent,
        prefix_len=len(prompt),
        prefix_hash=prefix_hash(pack_ids(prompt)) if prompt else None,
        depth=number,
        new_prompt_ids=pack_ids(tail),
        response_ids=pack_ids(response),
        rollout_log_probs=pack_floats(rng.random() - 1.0 for _ in response),
        finish_reason="stop",
        policy_version=1,
        engine="engine-0",
        model="policy",
        sampling=Sampling(temperature=1.0, max_tokens=512),
        usage={"prompt_tokens": len(prompt) + _TAIL, "completion_tokens": _RESPONSE},
        timings=Timings(received=float(number), first_byte=number + 0.1, done=number + 0.9),
        messages_kept=2 * number,
        new_messages=json.dumps([{"role": "user", "content": "go on"}]).encode(),
        reply=json.dumps({"role": "assistant", "content": words}).encode(),
        capture=Capture(ok=True),
    )
    return step, [*prompt, *tail, *response]


def a_group() -> list[GroupFact]:
    """A group's facts, its trajectories side by side, each with a reward and an end."""
    rng = random.Random(4)
    facts: list[GroupFact] = []
    uids = [f"{_NAME}-t{number}" for number in range(TRAJECTORIES)]
    contexts: dict[str, list[int]] = {uid: [] for uid in uids}
    for number in range(STEPS):
        for uid in uids:
            about = {"run_id": RUN, "prompt_uid": _NAME, "trajectory_uid": uid, "at": 1.0}
            step_id = f"{uid}-s{number}"
            facts.append(StepStarted.model_validate({"fact_id": f"started-{step_id}", "step_id": step_id, **about}))
            parent = f"{uid}-s{number - 1}" if number else None
            step, contexts[uid] = a_step(rng, uid, number, contexts[uid], parent)
            facts.append(step)
    for place, uid in enumerate(uids):
        about = {"run_id": RUN, "prompt_uid": _NAME, "trajectory_uid": uid, "at": 1.0}
        facts.append(Reward.model_validate({"fact_id": f"reward-{uid}", "value": float(place % 2), **about}))
        facts.append(TrajectoryEnd.model_validate({"fact_id": f"end-{uid}", **about}))
    return facts


class Template:
    """A group's records, named anew for every group."""

    def __init__(self, facts: Iterable[GroupFact]) -> None:
        self._records = [encode(fact, source="benchmark") for fact in facts]
        self.bytes = sum(len(record.value) for record in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def records(self, name: str) -> list[Raw]:
        old, new = _NAME.encode(), name.encode()
        return [
            Raw(
                (key or b"").replace(old, new),
                value.replace(old, new),
                [
                    (field, what.replace(old, new) if field in ("ce_id", "ce_partitionkey") else what)
                    for field, what in h
                ],
            )
            for key, value, h in self._records
        ]


def whole() -> Template:
    """Groups that become ready with their last fact."""
    return Template(a_group())


def unfinished() -> Template:
    """Groups that stay open: their last end is missing."""
    return Template(a_group()[:-1])


def announced() -> Template:
    """Groups of one announced call: as small as an open group gets."""
    return Template(a_group()[:1])


def batches(template: Template, series: str, groups: int, *, side_by_side: int = 50) -> Iterator[tuple[int, Raw]]:
    """(group's number, record) of many groups, so many of them open at a time."""
    for first in range(0, groups, side_by_side):
        many = [(n, template.records(name_of(series, n))) for n in range(first, min(groups, first + side_by_side))]
        for place in range(len(template)):
            for number, records in many:
                yield number, records[place]


async def write(producer: AIOKafkaProducer, records: Iterable[tuple[int, Raw]], partitions: int) -> int:
    """Send and wait until all are acknowledged; how many."""
    await bus.track_topics(producer, topics.EVENTS)
    waiting: deque[asyncio.Future[object]] = deque()
    count = 0
    for number, (key, value, headers) in records:
        place = number % partitions
        waiting.append(await producer.send(topics.EVENTS, value, key=key, headers=headers, partition=place))
        count += 1
        while len(waiting) > _IN_FLIGHT:
            await waiting.popleft()
    while waiting:
        await waiting.popleft()
    return count


async def load(plan: Plan) -> None:
    """Groups at a steady rate, for ever. What the broker does not take in time is not made up for."""
    template = whole()
    producer = await bus.start_producer(plan.kafka, client_id="benchmark-load")
    await bus.track_topics(producer, topics.EVENTS)
    loop = asyncio.get_running_loop()
    begun, number = loop.time(), 0
    try:
        while True:
            await asyncio.sleep(max(0.0, begun + number / plan.groups_per_s - loop.time()))
            records = ((number, record) for record in template.records(name_of(plan.series, number)))
            await write(producer, records, plan.partitions)
            number += 1
    finally:
        await bus.stop_producer(producer)


@contextlib.contextmanager
def loading(plan: Plan) -> Iterator[None]:
    """A process of its own that writes by the plan."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.stream_log", json.dumps(asdict(plan))])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(load(Plan(**json.loads(sys.argv[1]))))
