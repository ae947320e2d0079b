"""Batches by tokens and mixed ones come off a real broker, the same after a restart; a full shelf hides nothing."""

import asyncio
import time
from typing import Any

import pytest

from claw_r1 import topics
from claw_r1.events import BatchCut, Decision, Policy
from tests.conftest import Stack
from tests.integration.adapter_stand import AdapterStand, a_stream, on_stand
from trainer_adapter import NoBatchYet, source

pytestmark = pytest.mark.stack

MIX = {"by": "metadata.env", "weights": {"web": 1, "shell": 1}}


def test_a_batch_by_tokens_is_cut_before_the_group_that_does_not_fit(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        sizes = {1: (1.0, 0.0), 2: (1.0, 0.0), 3: (1.0, 0.0, 0.5), 4: (1.0,) * 6, 5: (1.0, 0.0)}  # of 4 tokens each
        await stand.publish(*(stand.group(number, rewards) for number, rewards in sizes.items()))
        async with a_stream(stand) as stream:
            first, second = await stream.next(30), await stream.next(30)
            assert [g.group_id for g in first.groups] == ["g1", "g2"]
            assert [g.group_id for g in second.groups] == ["g3", "g5"]
            assert (first.tokens, second.tokens, first.cut.cursor) == (16, 20, second.cut.start)
            assert [(e.group_id, e.reason) for e in second.cut.excluded] == [("g4", "above_batch_tokens")]
            await first.commit(policy_version=1)
            with pytest.raises(NoBatchYet, match="0 groups are ready, with 0 of at most 20 tokens"):
                await stream.next(2)
        async with a_stream(stand) as stream:
            again = await stream.next(30)
            assert again.digest == second.digest

    on_stand(stack, body, batch={"tokens": 20})


def test_a_mixed_batch_waits_for_its_share_and_leaves_the_rest_in_its_place(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        def env(number: int, kind: str) -> Any:
            return stand.group(number, metadata={"env": kind, "number": number})

        await stand.publish(*(env(number, "web") for number in range(4)), env(4, "chess"))
        async with a_stream(stand) as stream:
            with pytest.raises(NoBatchYet, match="short of shell: 0 of 2 groups") as caught:
                await stream.next(2)
            assert caught.value.waiting.excluded == {"outside_mix": 1}
            await stand.publish(env(5, "shell"), env(6, "shell"))
            batch = await stream.next(30)
            assert [g.group_id for g in batch.groups] == ["g0", "g1", "g5", "g6"]
            await batch.commit(policy_version=1)
        await stand.publish(env(7, "shell"), env(8, "shell"))
        async with a_stream(stand, prefetch_bytes=1) as stream:
            batch = await stream.next(30)
            assert [g.group_id for g in batch.groups] == ["g2", "g3", "g7", "g8"]
            assert not stream.counts.total()
        first, second = [event for event in await stand.history() if isinstance(event, BatchCut)]
        assert [e.group_id for e in first.excluded] == ["g4"]
        assert second.excluded == ()
        assert first.cursor == next(m.offset for m in second.members if m.group_id == "g2")

    on_stand(stack, body, batch={"groups": 4, "mix": MIX})


def test_groups_of_which_no_batch_can_be_made_do_not_hide_what_lies_behind(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MAX_READY", 4)
    monkeypatch.setattr(source, "MOST_READY", 32)
    monkeypatch.setattr(source, "_CHUNK", 1)

    async def body(stand: AdapterStand) -> None:
        old = ({"version": 1, "start": 0, "end": 4},)
        await stand.send(topics.POLICY, Policy(run_id=stand.recipe.run_id, version=9, at=1.0), stand.recipe.run_id)
        new = ({"version": 9, "start": 0, "end": 4},)
        await stand.publish(*(stand.group(number, version_spans=old) for number in range(20)))
        await stand.publish(stand.group(20, version_spans=new))
        async with a_stream(stand) as stream:
            batch = await stream.next(30)
            assert [g.group_id for g in batch.groups] == ["g20"]
            assert len(batch.cut.excluded) == 20
            await stand.publish(*(stand.group(number, version_spans=old) for number in range(21, 61)))
            end = time.monotonic() + 30
            while not stream.waiting().full:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            assert stream.waiting().excluded["stale"] <= 33
            assert "no more is read" in stream.waiting().describe(0.0)

    on_stand(stack, body, staleness={"max_versions": 1})


def test_late_decisions_are_bounded_and_each_is_answered(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_LATE", 3)
    monkeypatch.setattr(source, "_CHUNK", 1)

    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand) as stream:
            batch = await stream.next(30)
            run = stand.recipe.run_id
            for number in range(8):
                veto = Decision(fact_id=f"d{number}", run_id=run, at=1.0, prompt_uid="g1", action="veto", author="ada")
                await stand.send(stand.topic, veto, f"{run}/g1")
            end = time.monotonic() + 30
            while not stream._source.late_is_full:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            assert len(stream._outlook.shelf.too_late) <= 4  # what a chunk brings beyond
            await stand.publish(stand.group(2))
            second = await stream.next(30)  # the decisions are answered, and the group behind them is reached
            assert [g.group_id for g in second.groups] == ["g2"]
            await batch.commit(policy_version=1)
        outcomes = [event.fact_id for event in await stand.outcomes()]
        assert sorted(name for name in outcomes if name) == [f"d{number}" for number in range(8)]

    on_stand(stack, body)
