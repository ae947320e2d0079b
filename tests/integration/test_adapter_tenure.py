"""A second trainer of a recipe is refused with the first one's name; one that follows a dead one goes on."""

import asyncio
import logging
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from claw_r1 import topics
from claw_r1.errors import UserError
from tests.conftest import Stack
from tests.factories import a_demand
from tests.integration.adapter_stand import AdapterStand, a_stream, on_stand
from tests.integration.test_adapter_demand import until
from trainer_adapter import RecipeHeld, Superseded, tenure
from trainer_adapter.demand import TTL_S

pytestmark = pytest.mark.stack

TRAINER = """
import sys, time
from trainer_adapter import BatchStream

with BatchStream(sys.argv[1], kafka=sys.argv[2]):
    print("open", flush=True)
    time.sleep(60)
"""


def test_the_second_is_refused_with_the_name_of_the_first_and_changes_nothing(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand, holder="first") as first:
            await until(stand, holder="first")
            with pytest.raises(
                RecipeHeld, match=r"held by first, which opened it at .* UTC and is alive.*take_over=True"
            ):
                await a_stream(stand, holder="second").open()
            await (await first.next(30)).commit(policy_version=1)  # it was not fenced
            async with a_stream(stand, holder="second", take_over=True) as second:
                with pytest.raises(Superseded):
                    await first.next(30)
                assert (await second.next(30)).sequence == 2
        assert [event.holder for event in await stand.history()] == ["first", "first", "second"]

    on_stand(stack, body)


def test_after_a_clean_end_the_next_goes_on_at_once(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        async with a_stream(stand, holder="first"):
            await until(stand, holder="first")
        began = time.monotonic()
        async with a_stream(stand, holder="second"):
            assert time.monotonic() - began < TTL_S  # it would have waited for as long

    on_stand(stack, body)


def test_after_a_kill_on_this_machine_the_next_goes_on_at_once(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        command = [sys.executable, "-c", TRAINER, stand.recipe.name, stand.kafka]
        trainer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert trainer.stdout is not None
        assert await trainer.stdout.readline() == b"open\n"
        said = await until(stand, closed=False)
        with pytest.raises(RecipeHeld, match=said.holder):
            await a_stream(stand).open()
        trainer.kill()
        await trainer.wait()
        began = time.monotonic()
        async with a_stream(stand):
            assert time.monotonic() - began < TTL_S  # it would have waited for as long

    on_stand(stack, body)


def test_one_that_was_elsewhere_and_is_silent_is_waited_for_as_long_as_its_word_counts(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        name = stand.recipe.name
        said = a_demand(recipe=name, holder="elsewhere", process="elsewhere//1", ttl=3.0, since=time.time())
        await stand.send(topics.DEMAND, said, name)
        began = time.monotonic()
        async with a_stream(stand):
            assert 1.0 < time.monotonic() - began < TTL_S

    on_stand(stack, body)


def test_a_clock_that_is_wrong_makes_nobody_wait_longer_and_the_log_says_for_whom(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    behind = SimpleNamespace(time=lambda: time.time() - 600, monotonic=time.monotonic)
    monkeypatch.setattr(tenure, "time", behind)
    caplog.set_level(logging.INFO, "claw.trainer")

    async def body(stand: AdapterStand) -> None:
        name = stand.recipe.name
        said = a_demand(recipe=name, holder="elsewhere", process="elsewhere//1", ttl=2.0, since=time.time())
        await stand.send(topics.DEMAND, said, name)
        async with asyncio.timeout(20):
            await tenure.await_free(stand.kafka, name, "me")
        (told,) = [record for record in caplog.records if getattr(record, "recipe", None) == name]
        assert (told.__dict__["holder"], told.__dict__["seconds"]) == ("elsewhere", 2.0)

    on_stand(stack, body)


def test_a_trainer_that_still_reads_a_long_topic_is_heard_of(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        first = a_stream(stand, holder="first")
        read = asyncio.Event()
        catch_up = first._source.catch_up

        async def read_long() -> None:
            await read.wait()
            await catch_up()

        first._source.catch_up = read_long  # type: ignore[method-assign]
        opening = asyncio.create_task(first.open())
        try:
            await until(stand, holder="first")
            with pytest.raises(RecipeHeld, match="held by first"):
                await a_stream(stand, holder="second").open()
        finally:
            read.set()
            await opening
            await first.close()

    on_stand(stack, body)


@pytest.mark.parametrize("cuts", [False, True])
def test_one_that_was_away_fences_nobody_who_came_after_it(stack: Stack, cuts: bool) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand, holder="first") as first:
            batch = await first.next(30)
            await first._ledger._drop_producer()  # as after a transaction whose end is not known
            async with a_stream(stand, holder="second", take_over=True) as second:
                await until(stand, holder="second")
                if cuts:
                    await (await second.next(30)).commit(policy_version=1)
                with pytest.raises(Superseded, match="second, opened recipe"):
                    await batch.commit(policy_version=1)
                with pytest.raises(Superseded):
                    await first.next(30)
                await (await second.next(30)).commit(policy_version=2)
        assert [event.holder for event in (await stand.history())[1:]] == ["second"] * (3 if cuts else 1)

    on_stand(stack, body)


def test_a_stream_that_was_closed_takes_nothing_from_the_next(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand, holder="first") as first:
            batch = await first.next(30)
        async with a_stream(stand, holder="second") as second:
            for late in (batch.commit(policy_version=1), first.next(30)):
                with pytest.raises(UserError, match="is closed") as caught:
                    await late
                assert not isinstance(caught.value, Superseded)
            await (await second.next(30)).commit(policy_version=1)

    on_stand(stack, body)
