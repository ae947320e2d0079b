"""What a trainer says it wants: what is ready and may be trained, what is cut and not trained, and when it ends."""

import asyncio
import time
from typing import Any

import pytest

from claw_r1.bus import read_topic
from claw_r1.codec import decode
from claw_r1.events import Demand
from claw_r1.topics import DEMAND
from tests.conftest import Stack
from tests.integration.adapter_stand import AdapterStand, on_stand
from trainer_adapter import AsyncBatchStream, demand

pytestmark = pytest.mark.stack

SOON = 60.0


async def said(stand: AdapterStand) -> list[Demand]:
    """All that was said of the recipe."""
    records = [
        r for r in await read_topic(stand.kafka, DEMAND, client_id="test") if r.key == stand.recipe.name.encode()
    ]
    return [event for r in records if isinstance(event := decode(r.headers, r.value), Demand)]


async def until(stand: AdapterStand, **wanted: Any) -> Demand:
    """Wait until the newest record has these values."""
    end = time.monotonic() + SOON
    while True:
        records = await said(stand)
        if records and all(getattr(records[-1], name) == value for name, value in wanted.items()):
            return records[-1]
        assert time.monotonic() < end, (wanted, records[-1:])


def test_a_trainer_says_what_it_has_and_that_it_ends(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        async with AsyncBatchStream(stand.recipe.name, kafka=stand.kafka, holder="me") as stream:
            first = await until(stand, ready=0, cut=0)
            assert (first.run_id, first.channel, first.holder) == (stand.recipe.run_id, "train", "me")
            assert (first.batch_groups, first.group_size, first.max_versions) == (2, 2, 1)
            assert (first.max_age, first.closed, first.ttl) == (3600.0, False, demand.TTL_S)
            await stand.publish(*(stand.group(number) for number in range(5)))
            await until(stand, ready=5, cut=0)
            batch = await stream.next(30)
            await until(stand, ready=3, cut=2)
            second = await stream.next(30)
            await until(stand, ready=1, cut=4)
            await batch.commit(policy_version=1)
            await until(stand, ready=1, cut=2)
            await stand.set_recipe(batch={"groups": 3})
            await until(stand, batch_groups=3, recipe_version=2)
            assert second.sequence == 2
        last = await until(stand, closed=True)
        async with AsyncBatchStream(stand.recipe.name, kafka=stand.kafka):
            again = await until(stand, closed=False, cut=2)  # the batch that was cut and not trained comes again
            assert again.since > last.since

    on_stand(stack, body, batch={"groups": 2}, staleness={"max_versions": 1})


def test_groups_that_are_too_old_are_not_counted(stack: Stack) -> None:
    """All are of version 1. Nothing will ever take an old one: counted, it would keep demand shut for ever."""

    async def body(stand: AdapterStand) -> None:
        async with AsyncBatchStream(stand.recipe.name, kafka=stand.kafka) as stream:
            await stand.publish(stand.group(1))
            await (await stream.next(30)).commit(policy_version=1)
            await stand.publish(stand.group(2))
            await until(stand, ready=1)
            await (await stream.next(30)).commit(policy_version=2)
            await stand.publish(stand.group(3))
            end = time.monotonic() + SOON
            while stream.waiting().excluded != {"stale": 1}:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            await until(stand, ready=0, cut=0)

    on_stand(stack, body, staleness={"max_versions": 0})


def test_it_is_said_again_after_its_producer_ended_for_good(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "HEARTBEAT_S", 0.5)
    monkeypatch.setattr(demand, "_DEADLINE_S", 1.0)

    async def body(stand: AdapterStand) -> None:
        async with AsyncBatchStream(stand.recipe.name, kafka=stand.kafka) as stream:
            await until(stand, closed=False)
            producer = stream._demander._producer
            assert producer is not None
            producer._sender.sender_task.cancel()
            await asyncio.wait([producer._sender.sender_task])
            ended = time.time()
            end = time.monotonic() + SOON
            while (await said(stand))[-1].at < ended + demand._DEADLINE_S:
                assert time.monotonic() < end

    on_stand(stack, body)


def test_it_is_said_again_while_nothing_changes(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "HEARTBEAT_S", 0.5)

    async def body(stand: AdapterStand) -> None:
        async with AsyncBatchStream(stand.recipe.name, kafka=stand.kafka):
            end = time.monotonic() + SOON
            while len(await said(stand)) < 3:
                assert time.monotonic() < end
        records = await said(stand)
        assert len({record.at for record in records}) == len(records)
        assert [record.closed for record in records] == [False] * (len(records) - 1) + [True]

    on_stand(stack, body)
