"""Stream workers are killed, paused and left without their broker: each group of each recipe has one fate all the same."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from claw_r1 import bus, registry, topics
from claw_r1.local.stack import RunningStack, running_stack
from claw_r1.local.state import Identity
from tests.conftest import wait_until
from tests.factories import a_group, a_recipe
from tests.kill.form import LONG, SEED, show
from tests.kill.streams.chaos import Chaos, Shape, check
from tests.log import Emitted, read_emitted, send, wait_for_groups
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.kill]

SHORT_FORM = Shape(groups=60, facts_per_s=1_500, kills=2, pauses=0, broker_kills=0, wait=120)
LONG_FORM = Shape(groups=3_000, facts_per_s=1_200, kills=16, pauses=2, broker_kills=2, wait=300)
SETTINGS: dict[str, object] = {"streams_carry_after": "1s", "streams_memory_bytes": 400_000}
"""So that groups are carried and steps lie on disk."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    """A broker of the test's own, since stream workers own whole topics."""
    with running_stack(tmp_path / "stack", processes=("kafka",)) as running:
        asyncio.run(bus.apply_topics(running.kafka, topics.all_topics()))
        yield running


@pytest.mark.timeout(1500 if LONG else 300)
def test_every_group_has_one_fate_whatever_strikes(stack: RunningStack, tmp_path: Path) -> None:
    show()
    shape = LONG_FORM if LONG else SHORT_FORM
    chaos = Chaos(stack, tmp_path, SEED, shape, **SETTINGS, streams_spill=tmp_path / "spill")
    with workers(*chaos.workers):
        asyncio.run(chaos.play())
    assert chaos.struck == Counter(kill=shape.kills, pause=shape.pauses, broker=shape.broker_kills)
    asyncio.run(check(stack.kafka, chaos.log))
    print(f"{len(chaos.log.items)} records, struck {dict(chaos.struck)}, starts {[w.starts for w in chaos.workers]}")


@pytest.mark.slow
def test_a_zombie_that_wakes_between_samples_and_commit_writes_nothing(stack: RunningStack, tmp_path: Path) -> None:
    """The worst moment: its samples are sent, and it sleeps for longer than its session before it commits them."""
    settings = {"kafka": stack.kafka, "streams_port": 0, "streams_session_timeout": "6s"}
    zombie = Worker("tests.kill.streams.stoppable", tmp_path / "w0.log", streams_worker="w0", **settings)
    heir = Worker("streams", tmp_path / "w1.log", streams_worker="w1", **settings)
    groups = [f"g{number}" for number in range(40)]

    async def play() -> Emitted:
        await registry.apply_recipe(stack.kafka, a_recipe(), deadline=60)
        await send(stack.kafka, [fact for group in groups for fact in a_group(prompt_uid=group)])
        await asyncio.to_thread(wait_until, lambda: _is_stopped(zombie), what="the worker stops itself")
        await asyncio.to_thread(heir.start)
        await wait_for_groups(stack.kafka, "test", len(groups))
        zombie.signal(signal.SIGCONT)
        await asyncio.to_thread(wait_until, lambda: not zombie.alive, what="the zombie is fenced and ends")
        await send(stack.kafka, a_group(prompt_uid="after"))
        await wait_for_groups(stack.kafka, "test", len(groups) + 1)
        return await read_emitted(stack.kafka, "test")

    with workers(zombie):
        try:
            emitted = asyncio.run(play())
        finally:
            heir.kill()
    emitted.check_once()
    assert {ready.group_id for ready in emitted.ready} == {*groups, "after"}


def _is_stopped(worker: Worker) -> bool:
    process = Identity.of(worker.pid).find()
    return process is not None and process.status() == "stopped"
