"""Recipe versions on a real broker: one number is one recipe, whoever applies it and whether or not a worker runs."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from claw_r1 import bus, registry, topics
from claw_r1.errors import UserError
from claw_r1.events import RecipeSet
from claw_r1.local.stack import running_stack
from tests.factories import a_recipe
from tests.log import read
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[str]:
    with running_stack(tmp_path / "stack", processes=("kafka",)) as stack:
        asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
        yield stack.kafka


def test_a_version_number_is_taken_once(kafka: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Applied at once by several, and again while no worker runs; then a worker starts and knows the last."""

    async def play() -> tuple[list[str], list[RecipeSet]]:
        sizes = range(2, 7)
        several = (registry.apply_recipe(kafka, a_recipe(group={"size": size}), deadline=5) for size in sizes)
        said = await asyncio.gather(*several, return_exceptions=True)
        assert all(isinstance(each, UserError) for each in said), said  # refused, or on the log and not yet taken in
        with pytest.raises(UserError, match="on the log"):
            await registry.apply_recipe(kafka, a_recipe(group={"size": 9}), deadline=5)
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
