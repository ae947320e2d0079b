"""Decisions behind emitted groups, on a real broker: applied by the cut, or late with the batch's number, and in the pool."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from claw_r1 import topics
from claw_r1.bus import read_topic
from claw_r1.codec import decode
from claw_r1.errors import UserError
from claw_r1.events import BatchCut, Decision, Event, Outcome, RunPurged
from claw_r1.ids import new_id
from tests.conftest import Stack, wait_until
from tests.integration.adapter_stand import AdapterStand, a_stream, an_adapter_stand
from tests.log import await_visible
from trainer_adapter import NoBatchYet

pytestmark = pytest.mark.stack

E = TypeVar("E", bound=Event)
RULE = {"group": {"size": 2, "min_size": 1}}


def on_stand(stack: Stack, body: Callable[[AdapterStand], Awaitable[None]], **recipe: Any) -> None:
    async def run() -> None:
        async with an_adapter_stand(stack.kafka, **(RULE | recipe)) as stand:
            await body(stand)

    asyncio.run(run())


async def decide(stand: AdapterStand, action: str, prompt: str, uid: str | None = None, **over: Any) -> Decision:
    """A decision as a stream worker forwards it."""
    fields = {"fact_id": new_id(), "run_id": stand.recipe.run_id, "at": 1.0, "author": "ada"} | over
    decision = Decision.model_validate(fields | {"action": action, "prompt_uid": prompt, "trajectory_uid": uid})
    await stand.send(stand.topic, decision, f"{decision.run_id}/{prompt}")
    return decision


async def read(stand: AdapterStand, topic: str, kind: type[E]) -> list[E]:
    """Those on a topic, of the cuts only this recipe's: other tests write there too, also what does not decode."""
    await await_visible(stand.kafka, topic)
    records = await read_topic(stand.kafka, topic, client_id="test")
    mine = [r for r in records if topic != topics.CUTS or r.key == stand.recipe.name.encode()]
    return [e for r in mine if isinstance(e := decode(r.headers, r.value), kind)]


async def fates(stand: AdapterStand) -> list[Outcome]:
    """What the trainer said of decisions, in log order."""
    return [fate for fate in await read(stand, topics.CUTS, Outcome) if fate.recipe == stand.recipe.name]


def test_decisions_before_the_cut_change_the_batch_and_stand_in_it(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2), stand.group(3), stand.group(4))
        async with a_stream(stand) as stream:
            gone = await decide(stand, "veto", "g1")
            out = await decide(stand, "veto", "g2", "g2-t0")
            other = await decide(stand, "override_reward", "g3", "g3-t1", value=3.0)
            batch = await stream.next(30)
            (cut,) = await stand.history()
            assert isinstance(cut, BatchCut)
            assert [(e.group_id, e.reason, [d.fact_id for d in e.decisions]) for e in cut.excluded] == [
                ("g1", "vetoed", [gone.fact_id])
            ]
            first, second = cut.members
            assert ([d.fact_id for d in first.decisions], len(first.sample_ids), len(first.left_out)) == (
                [out.fact_id],
                1,
                1,
            )
            assert [d.fact_id for d in second.decisions] == [other.fact_id]
            assert batch.trajectory_uids == ("g2-t1", "g3-t0", "g3-t1")
            assert batch.reward.tolist() == [0.0, 1.0, 3.0]
            assert batch.groups[0].rewards == {"g2-t0": 1.0, "g2-t1": 0.0}
            assert batch.advantage.tolist() == pytest.approx([-0.7071058, -0.7071063, 0.7071063], abs=1e-6)
            assert await fates(stand) == []

    on_stand(stack, body, batch={"groups": 2})


def test_an_undo_before_the_cut_makes_void(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand) as stream:
            veto = await decide(stand, "veto", "g1")
            with pytest.raises(NoBatchYet) as caught:
                await stream.next(1)
            assert caught.value.waiting.excluded == {"vetoed": 1}
            await decide(stand, "undo", "g1", undoes=veto.fact_id, at=2.0)
            assert len(await stream.next(30)) == 2

    on_stand(stack, body)


def test_a_decision_behind_the_cut_is_late_and_a_replay_knows_nothing_of_it(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand) as stream:
            applied = await decide(stand, "override_reward", "g1", "g1-t0", value=5.0)
            batch = await stream.next(30)
            late = await decide(stand, "veto", "g1", "g1-t0", at=2.0)
            undo = await decide(stand, "undo", "g1", undoes=applied.fact_id, at=3.0)
        async with a_stream(stand) as stream:  # as after a crash: the cut was not trained
            again = await stream.next(30)
            assert (again.digest, again.reward.tolist()) == (batch.digest, [5.0, 0.0])
            assert again.token_ids.tobytes() == batch.token_ids.tobytes()
            await again.commit(policy_version=1)
            said = {(o.fact_id, o.reason, o.batch, o.outcome, o.trajectory_uid) for o in await fates(stand)}
            assert said == {
                (late.fact_id, "in_batch", 1, "late", "g1-t0"),
                (undo.fact_id, "in_batch", 1, "late", None),
            }
            stream.seek(0)
            assert (await stream.next(30)).digest == batch.digest
            assert [g.group_id for g in (await stream.next(30)).groups] == ["g2"]
        assert len({o.outcome_id for o in await fates(stand)}) == 2

    on_stand(stack, body)


def test_a_trainer_that_waits_says_at_once_that_a_decision_is_late(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand) as stream:
            await (await stream.next(30)).commit(policy_version=1)
            waiting = asyncio.create_task(stream.next(60))
            late = await decide(stand, "veto", "g1")
            await asyncio.to_thread(
                wait_until, lambda: bool(asyncio.run(fates(stand))), what="the decision has its fate"
            )
            said = await fates(stand)
            assert [(o.fact_id, o.batch) for o in said] == [(late.fact_id, 1)]
            await stand.publish(stand.group(2))
            assert (await waiting).sequence == 2

    on_stand(stack, body)


def test_decisions_are_applied_to_samples_beyond_the_memory_bound(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        await decide(stand, "veto", "g2", "g2-t1")
        async with a_stream(stand, prefetch_bytes=1) as stream:
            batch = await stream.next(30)
            assert batch.trajectory_uids == ("g1-t0", "g1-t1", "g2-t0")
        async with a_stream(stand) as stream:
            assert (await stream.next(30)).digest == batch.digest

    on_stand(stack, body, batch={"groups": 2})


def test_groups_of_a_purged_run_are_not_trained(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        run = stand.recipe.run_id
        purge = RunPurged(fact_id="purge", run_id=run, at=1.0)
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand) as stream:
            await stream.next(30)
            await stand.send(stand.topic, purge, run)
            await stand.publish(stand.group(3))  # of another partition, whose worker had not read the purge
            with pytest.raises(NoBatchYet, match="left out: 2 run_purged"):
                await stream.next(1)
        async with a_stream(stand) as stream:
            with pytest.raises(UserError, match=f"batch 1 of .* is not handed out again: run {run} was purged"):
                await stream.next(30)
        assert len(await stand.history()) == 1

    on_stand(stack, body)
