"""Stream workers on a real broker: a group's facts become a ready group, once, whoever joins or dies."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from claw_r1 import bus, registry, topics
from claw_r1.codec import Record, encode, unpack_ids, unpack_mask
from claw_r1.events import GroupFact
from claw_r1.local.stack import running_stack
from tests.conftest import wait_until
from tests.factories import a_group, a_recipe, a_reward, a_step
from tests.forms import by_turns, newer, older, todays
from tests.log import Emitted, forget_all, read, read_emitted, send, wait_for_groups
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_stack(tmp_path_factory.mktemp("stack"), processes=("kafka",)) as stack:
        yield stack.kafka


@pytest.fixture
def kafka(broker: str) -> str:
    """The broker as if it were new; each test's first worker has the name of the one before, and takes its place."""
    forget_all(broker)
    asyncio.run(bus.apply_topics(broker, topics.all_topics()))
    return broker


def a_worker(kafka: str, tmp_path: Path, name: str = "w0") -> Worker:
    return Worker("streams", tmp_path / f"{name}.log", kafka=kafka, streams_port=0, streams_worker=name)


def test_a_group_becomes_ready_with_the_tokens_that_were_sampled(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever version of a gateway or of a command wrote its facts and its recipe."""
    versions: dict[str, Callable[[Record], Record]]
    versions = {"today": todays, "old": older, "new": newer, "mixed": by_turns()}

    async def play() -> Emitted:
        for wrote in (older, newer):
            monkeypatch.setattr(registry, "encode", lambda fact, wrote=wrote, **more: wrote(encode(fact, **more)))
            await registry.apply_recipe(kafka, a_recipe(), deadline=60)
        for prompt, form in versions.items():
            await send(kafka, a_group(rewards=(1.0, 0.0), steps=2, prompt_uid=prompt), form=form)
        await wait_for_groups(kafka, "test", len(versions))
        return await read_emitted(kafka, "test")

    with workers(a_worker(kafka, tmp_path)):
        emitted = asyncio.run(play())
    emitted.check_once()
    assert {ready.group_id for ready in emitted.ready} == versions.keys()
    assert {ready.recipe_version for ready in emitted.ready} == {2}
    for ready in emitted.ready:
        assert [m.reward for m in ready.members] == [1.0, 0.0]
        assert (ready.reward_mean, ready.reward_std) == (0.5, 0.5)
    assert len(emitted.samples) == 2 * len(versions)
    for sample in emitted.samples:
        assert unpack_ids(sample.token_ids).tolist() == [1, 2, 3, 10, 11, 21, 22, 11, 12]
        assert unpack_mask(sample.loss_mask).tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1]


def test_a_late_reward_gets_an_outcome_and_blocks_nothing(kafka: str, tmp_path: Path) -> None:
    async def play() -> Emitted:
        await registry.apply_recipe(kafka, a_recipe(), deadline=60)
        await send(kafka, a_group(prompt_uid="p1"))
        await wait_for_groups(kafka, "test", 1)
        await send(kafka, [a_reward(0.5, prompt_uid="p1", trajectory_uid="p1-t0", revision=1)])
        await send(kafka, a_group(prompt_uid="p2"))
        await wait_for_groups(kafka, "test", 2)
        await send(kafka, a_group(prompt_uid="p3"))  # behind the late fact, whatever its partition
        await wait_for_groups(kafka, "test", 3)
        return await read_emitted(kafka, "test")

    with workers(a_worker(kafka, tmp_path)):
        emitted = asyncio.run(play())
    emitted.check_once()
    late = [o for o in emitted.outcomes if o.outcome == "late"]
    assert [(o.group_id, o.reason) for o in late] == [("p1", "reward")]


def test_a_killed_worker_goes_on_where_it_stood(kafka: str, tmp_path: Path) -> None:
    groups = [f"g{n}" for n in range(120)]
    worker = a_worker(kafka, tmp_path)

    async def play() -> Emitted:
        await registry.apply_recipe(kafka, a_recipe(), deadline=60)
        for n in range(0, len(groups), 10):
            await send(kafka, _facts(groups[n : n + 10]))
            if n in (30, 70):
                await asyncio.to_thread(worker.kill)
                await asyncio.to_thread(worker.start)
        await wait_for_groups(kafka, "test", len(groups))
        return await read_emitted(kafka, "test")

    with workers(worker):
        emitted = asyncio.run(play())
        assert worker.end() == 0
    emitted.check_once()
    assert {r.group_id for r in emitted.ready} == set(groups)
    assert [o for o in emitted.outcomes if o.outcome == "late"] == []


def test_an_undecodable_record_is_dead_lettered_and_its_group_discarded(kafka: str, tmp_path: Path) -> None:
    async def play() -> tuple[Emitted, list[object]]:
        await registry.apply_recipe(kafka, a_recipe(group={"size": 2, "idle": "2s"}), deadline=60)
        facts = a_group(prompt_uid="bad")
        await send(kafka, facts[:3])
        producer = await bus.start_producer(kafka, client_id="test")
        headers = [("ce_type", b"claw.step.v1")]
        await producer.send_and_wait(topics.EVENTS, b"\xc1 not msgpack", key=b"default/bad", headers=headers)
        await producer.stop()
        await send(kafka, facts[3:])
        await send(kafka, a_group(prompt_uid="good"))
        await wait_for_groups(kafka, "test", 1)
        dead = await bus.read_topic(kafka, topics.dlq_topic(topics.EVENTS), client_id="test")
        return await read_emitted(kafka, "test"), dead

    with workers(a_worker(kafka, tmp_path)):
        emitted, dead = asyncio.run(play())
    assert [r.group_id for r in emitted.ready] == ["good"]
    (letter,) = dead
    assert letter.value == b"\xc1 not msgpack"  # type: ignore[attr-defined]
    assert dict(letter.headers)["claw-dlq-reason"] == b"undecodable"  # type: ignore[attr-defined]
    whole = [o for o in emitted.outcomes if o.group_id == "bad" and o.trajectory_uid is None and o.recipe == "test"]
    assert [(o.outcome, o.reason) for o in whole] == [("discarded", "undecodable")]


def test_recipe_versions_reach_every_partition(kafka: str, tmp_path: Path) -> None:
    async def play() -> None:
        assert await registry.apply_recipe(kafka, a_recipe(), deadline=60) == 1
        assert await registry.apply_recipe(kafka, a_recipe(group={"size": 4}), deadline=60) == 2
        (active,) = await registry.active_recipes(kafka)
        assert active.version == 2
        assert active.recipe is not None
        assert active.recipe.group.size == 4
        assert await registry.delete_recipe(kafka, "test") == 3
        assert await registry.active_recipes(kafka) == []
        assert len(await read(kafka, topics.RECIPES)) >= 4

    with workers(a_worker(kafka, tmp_path)):
        asyncio.run(play())


def _facts(groups: list[str]) -> list[GroupFact]:
    """The facts of many groups, round robin, so that all are open at once."""
    each = [a_group(prompt_uid=g) for g in groups]
    return [fact for row in zip(*each, strict=True) for fact in row]


def test_the_first_group_of_a_new_recipe_is_not_held_up_by_the_topics_that_came_before(
    kafka: str, tmp_path: Path
) -> None:
    """A transaction to an old topic, then at once one to it and to a topic that the producer has not met."""

    async def play() -> Emitted:
        await registry.apply_recipe(kafka, a_recipe(), deadline=60)
        facts = a_group()
        await send(kafka, facts[: len(facts) // 2])  # the first trajectory ends: a record on the trajectories topic
        await asyncio.to_thread(
            wait_until, lambda: asyncio.run(_announced(kafka)) == 1, what="a trajectory is announced"
        )
        await send(kafka, facts[len(facts) // 2 :])
        await wait_for_groups(kafka, "test", 1)
        return await read_emitted(kafka, "test")

    with workers(a_worker(kafka, tmp_path)):
        emitted = asyncio.run(play())
    emitted.check_once()
    assert len(emitted.ready) == 1


async def _announced(kafka: str) -> int:
    return len(await read(kafka, topics.TRAJECTORIES))


# With a second worker, and so at the end: where it ended, another test's first would wait for the end of its session.


def test_a_second_worker_that_joins_before_the_first_commit_loses_nothing(kafka: str, tmp_path: Path) -> None:
    """Faust's own seek skips records when the committed offset is 0 or absent; an open group in each partition keeps it so."""
    groups = [f"g{n}" for n in range(240)]

    async def play(second: Worker) -> Emitted:
        await registry.apply_recipe(kafka, a_recipe(group={"size": 2, "idle": "10m"}), deadline=60)
        for partition in range(4):
            await send(kafka, [a_step(prompt_uid=f"open-{partition}")], partition=partition)
        third = len(groups) // 3
        await send(kafka, _facts(groups[:third]))
        await wait_for_groups(kafka, "test", third)
        joining = asyncio.create_task(asyncio.to_thread(second.start))
        await send(kafka, _facts(groups[third : 2 * third]))
        await joining
        await wait_for_groups(kafka, "test", 2 * third)
        await send(kafka, _facts(groups[2 * third :]))
        await wait_for_groups(kafka, "test", len(groups))
        return await read_emitted(kafka, "test")

    first, second = a_worker(kafka, tmp_path, "w0"), a_worker(kafka, tmp_path, "w1")
    try:
        with workers(first):
            emitted = asyncio.run(play(second))
            assert first.alive
            assert second.alive
    finally:
        second.kill()
    emitted.check_once()
    assert {r.group_id for r in emitted.ready} == set(groups)
    assert [o for o in emitted.outcomes if o.outcome == "late"] == []


def test_a_worker_that_was_paused_past_its_session_is_fenced(kafka: str, tmp_path: Path) -> None:
    """A zombie that wakes up after its partitions moved must not write a second marker."""
    groups = [f"g{n}" for n in range(60)]
    session = {"kafka": kafka, "streams_port": 0, "streams_session_timeout": "6s"}
    first = Worker("streams", tmp_path / "w0.log", streams_worker="w0", **session)
    second = Worker("streams", tmp_path / "w1.log", streams_worker="w1", **session)

    async def play() -> Emitted:
        await registry.apply_recipe(kafka, a_recipe(), deadline=60)
        facts = _facts(groups)
        half = len(facts) // 2
        await send(kafka, facts[:half])
        first.signal(signal.SIGSTOP)
        await send(kafka, facts[half:])
        await asyncio.to_thread(second.start)
        await wait_for_groups(kafka, "test", len(groups))
        first.signal(signal.SIGCONT)
        await send(kafka, _facts(["after"]))
        await wait_for_groups(kafka, "test", len(groups) + 1)
        return await read_emitted(kafka, "test")

    try:
        with workers(first):
            emitted = asyncio.run(play())
    finally:
        second.kill()
    emitted.check_once()
    assert {r.group_id for r in emitted.ready} == {*groups, "after"}
