"""Recipe versions on a real broker: one number is one recipe, whoever applies it and whether or not a worker runs."""

import asyncio
import gc
from pathlib import Path

import pytest
from aiokafka.protocol.offset import OffsetRequest

from claw_r1 import bus, registry, topics
from claw_r1.errors import UserError
from claw_r1.events import RecipeSet
from tests.conftest import Stack
from tests.factories import a_recipe
from tests.log import read
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


@pytest.fixture
def kafka(spare: Stack) -> str:
    asyncio.run(bus.apply_topics(spare.kafka, topics.all_topics()))
    return spare.kafka


def test_topics_that_were_just_made_answer(spare: Stack) -> None:
    """A broker tells who leads a new partition before that one knows it, and calls of the first moment would fail."""
    made = topics.Topic("claw.many.v1", 128, "", "", {})

    async def play() -> list[int]:
        await bus.apply_topics(spare.kafka, [made])
        async with bus.admin(spare.kafka) as client:
            asked = OffsetRequest(-1, 0, [(made.name, [(number, -1) for number in range(made.partitions)])])
            ((_name, partitions),) = (await client._send_request(asked)).topics
            return [code for _number, code, *_ in partitions]

    assert asyncio.run(play()) == [0] * made.partitions


def test_a_topic_that_was_just_deleted_is_made_anew(spare: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks a broker which topics there are is told of it for a moment more."""
    gone = topics.Topic("claw.gone.v1", 3, "", "", {})

    async def all_is_well(kafka: str, wanted: object) -> list[bus.TopicDrift]:
        return []

    async def play() -> list[bus.TopicDrift]:
        await bus.apply_topics(spare.kafka, [gone])
        async with bus.admin(spare.kafka) as client:
            await client.delete_topics([gone.name])
        monkeypatch.setattr(bus, "diff_topics", all_is_well)
        return await bus.apply_topics(spare.kafka, [gone])

    assert asyncio.run(play()) == [bus.TopicDrift(gone.name, "topic", "exists", None)]
    assert asyncio.run(bus.count_partitions(spare.kafka, gone.name)) == gone.partitions


def test_a_version_number_is_taken_once(
    kafka: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Applied at once by several, and again while no worker runs; then a worker starts and knows the last."""
    wait_until_taken = registry._wait_until_taken

    async def wait_a_second(kafka: str, name: str, version: int, partitions: set[int], deadline: float) -> None:
        await wait_until_taken(kafka, name, version, partitions, 1.0)  # nobody takes it in

    async def play() -> tuple[list[str], list[RecipeSet]]:
        with monkeypatch.context() as patched:
            patched.setattr(registry, "_wait_until_taken", wait_a_second)
            sizes = range(2, 7)
            several = (registry.apply_recipe(kafka, a_recipe(group={"size": size}), deadline=15) for size in sizes)
            said = await asyncio.gather(*several, return_exceptions=True)
            assert all(isinstance(each, UserError) for each in said), (
                said
            )  # refused, or on the log and not yet taken in
            with pytest.raises(UserError, match="on the log"):
                await registry.apply_recipe(kafka, a_recipe(group={"size": 9}), deadline=15)
        worker = Worker("streams", tmp_path / "w0.log", kafka=kafka, streams_port=0, streams_worker="w0")
        with workers(worker):
            last = await registry.apply_recipe(kafka, a_recipe(group={"size": 16}), deadline=60)
        (active,) = await registry.active_recipes(kafka)
        assert active.version == last
        assert active.recipe is not None
        assert active.recipe.group.size == 16
        return [str(each) for each in said], [e for e in await read(kafka, topics.EVENTS) if isinstance(e, RecipeSet)]

    said, facts = asyncio.run(play())
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
    appended = sum("on the log" in each for each in said)
    assert appended >= 1
    sizes_of: dict[int, set[int]] = {}
    for fact in facts:
        assert fact.recipe is not None
        sizes_of.setdefault(fact.version, set()).add(fact.recipe.group.size)
    assert [len(sizes) for sizes in sizes_of.values()] == [1] * (appended + 2)
