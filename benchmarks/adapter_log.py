"""Ready groups as stream workers write them, made fast: one of each shape is encoded, and every other is it with another name.

Invariants: all names have one length, so a body with another name in it is as well-formed as before; a group's samples and its
marker are one transaction.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaProducer

from benchmarks.stream_log import Raw, name_of
from claw_r1 import bus, topics
from claw_r1.codec import encode, pack_floats, pack_ids
from claw_r1.events import Event, GroupReady, Member, RecipeActive, Sample, StepSpan, VersionSpan
from claw_r1.recipes import Recipe

RUN: Final = "default"
TRAJECTORIES: Final = 4
NAME: Final = "X00000000"
VOCABULARY: Final = 150_000
TOKEN_BYTES: Final = 9
"""Of a token's id, mask and log-prob."""
_TOGETHER: Final = 8 * 2**20
"""Bytes of a transaction that fills the log."""


@dataclass(frozen=True)
class Shape:
    """What a sample is: a first prompt and a response, then turns of new prompt tokens and a response."""

    prompt: int
    response: int
    steps: int = 1
    turn: int = 100

    @property
    def tokens(self) -> int:
        return self.prompt + self.response + (self.steps - 1) * (self.turn + self.response)

    @property
    def row_bytes(self) -> int:
        """Of a sample's token columns."""
        return TOKEN_BYTES * self.tokens


STEP: Final = Shape(512, 128)
TURNS: Final = Shape(512, 128, steps=5)
LONG: Final = Shape(1_024, 31 * 1_024)


def a_sample(shape: Shape, number: int, rng: random.Random) -> Sample:
    """The only sample of the group's trajectory of that number."""
    uid = f"{NAME}-t{number}"
    spans: list[StepSpan] = []
    mask = bytearray()
    for step in range(shape.steps):
        mask += bytes(shape.turn if step else shape.prompt)
        first = len(mask)
        mask += b"\1" * shape.response
        link = "exact" if step else "root"
        about = {"step_id": f"{uid}-s{step}-0123456789abcdef", "step_index": step, "link": link}
        spans.append(StepSpan.model_validate({**about, "start": first, "end": len(mask)}))
    return Sample(
        sample_id=f"{uid}-0123456789abcdef01",
        recipe="benchmark",
        recipe_version=1,
        run_id=RUN,
        prompt_uid=NAME,
        group_id=NAME,
        trajectory_uid=uid,
        channel="train",
        task_id="task-7",
        sample_index=0,
        n_samples=1,
        spans=tuple(spans),
        token_ids=pack_ids(rng.choices(range(VOCABULARY), k=shape.tokens)),
        loss_mask=bytes(mask),
        rollout_log_probs=pack_floats(-rng.random() if trained else 0.0 for trained in mask),
        version_spans=tuple(VersionSpan(version=0, start=span.start, end=span.end) for span in spans),
        links={"root": 1} | ({"exact": shape.steps - 1} if shape.steps > 1 else {}),
        holes=0,
        reward=float(number % 2),
        reward_components={"reward": float(number % 2)},
        metadata={"env": "benchmark", "level": 3},
    )


class Template:
    """A ready group's records, named anew for every group."""

    def __init__(self, shape: Shape) -> None:
        rng = random.Random(4)
        samples = [a_sample(shape, number, rng) for number in range(TRAJECTORIES)]
        members = tuple(
            Member(
                trajectory_uid=sample.trajectory_uid,
                outcome="emitted",
                reason="complete",
                reward=sample.reward,
                samples=(sample.sample_id,),
            )
            for sample in samples
        )
        marker = GroupReady(
            recipe="benchmark",
            recipe_version=1,
            run_id=RUN,
            prompt_uid=NAME,
            group_id=NAME,
            channel="train",
            task_id="task-7",
            reason="size",
            members=members,
            sample_ids=tuple(sample.sample_id for sample in samples),
            tokens=TRAJECTORIES * shape.tokens,
            trained_tokens=TRAJECTORIES * shape.steps * shape.response,
            partition=0,
            pos=1,
            at=1.0,
        )
        key = f"{RUN}/{NAME}".encode()
        self._records = [encode(event, source="streams/benchmark", key=key) for event in (*samples, marker)]
        self.bytes = sum(len(record.value) for record in self._records)

    def records(self, name: str) -> list[Raw]:
        old, new = NAME.encode(), name.encode()
        return [
            Raw((key or b"").replace(old, new), value.replace(old, new), [(h, v.replace(old, new)) for h, v in headers])
            for key, value, headers in self._records
        ]


class Writer:
    """Writes ready groups to a recipe's topic."""

    def __init__(self, kafka: str, recipe: str, producer: AIOKafkaProducer) -> None:
        self.kafka = kafka
        self.recipe = recipe
        self._producer = producer
        self._topic = topics.batch_topic(recipe)

    async def announce(self, groups: int) -> None:
        """The recipe becomes active: batches of so many groups."""
        fields = {"name": self.recipe, "run_id": RUN, "group": {"size": TRAJECTORIES}, "batch": {"groups": groups}}
        recipe = Recipe.model_validate(fields)
        active = RecipeActive(name=recipe.name, version=1, recipe=recipe, run_id=RUN, partition=0, begins=0)
        await bus.track_topics(self._producer, topics.RECIPES)
        await self._write(topics.RECIPES, [_raw(active, f"{recipe.name}@1/0")])

    async def write(self, groups: Iterable[list[Raw]]) -> None:
        """These groups in one transaction; returns when it is acknowledged."""
        await bus.track_topics(self._producer, self._topic)
        await self._write(self._topic, [record for group in groups for record in group])

    async def _write(self, topic: str, records: Iterable[Raw]) -> None:
        async with self._producer.transaction():
            for key, value, headers in records:
                await self._producer.send(topic, value, key=key, headers=headers, partition=0)

    async def fill(self, template: Template, series: str, groups: int) -> None:
        """Many groups, as fast as the broker takes them."""
        together = max(1, _TOGETHER // template.bytes)
        for first in range(0, groups, together):
            last = min(groups, first + together)
            await self.write(template.records(name_of(series, number)) for number in range(first, last))


def _raw(event: Event, key: str) -> Raw:
    record = encode(event, source="benchmark", key=key.encode())
    return Raw(key.encode(), record.value, record.headers)


@contextlib.asynccontextmanager
async def a_writer(kafka: str, recipe: str) -> AsyncIterator[Writer]:
    """Makes the recipe's topic. The writer has a producer of its own."""
    await bus.apply_topics(kafka, [*topics.all_topics(), topics.batch_topic_spec(recipe)])
    producer = await bus.start_producer(kafka, client_id="benchmark", transactional_id=f"benchmark-{recipe}")
    try:
        yield Writer(kafka, recipe, producer)
    finally:
        await bus.stop_producer(producer)
