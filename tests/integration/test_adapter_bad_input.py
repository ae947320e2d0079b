"""Whatever is wrong, a trainer is told what and where, and nothing is consumed: the same batch is there afterwards."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from claw_r1 import topics
from claw_r1.blobs import open_blobs
from claw_r1.bus import admin, await_shown
from claw_r1.codec import Record, encode
from claw_r1.errors import ClawError, InvalidRecord, UserError
from tests.conftest import Stack
from tests.integration.adapter_stand import AdapterStand, an_adapter_stand
from tests.log import await_visible
from trainer_adapter import AsyncBatchStream
from trainer_adapter.source import Trimmed

pytestmark = pytest.mark.stack

LATER = [("ce_type", b"claw.later.v1")]
Act = Callable[[AdapterStand], Awaitable[None]]
BLOB = {"sha256": "ab" * 32, "bytes": 3, "kind": "image/png"}


def a_stream(stand: AdapterStand, **options: Any) -> AsyncBatchStream:
    return AsyncBatchStream(stand.recipe.name, kafka=stand.kafka, **({"appear": 0.2} | options))


async def write(stand: AdapterStand, topic: str, value: bytes, kind: bytes = b"claw.sample.v1") -> None:
    """A record of the recipe that is not what it says."""
    key, headers = stand.recipe.name.encode(), [("ce_type", kind)]
    async with stand.producer.transaction():
        await stand.producer.send_and_wait(topic, value, key=key, headers=headers, partition=0)
    await await_visible(stand.kafka, topic)


async def ask_for_an_unknown_recipe(stand: AdapterStand) -> None:
    await AsyncBatchStream(f"{stand.recipe.name}x", kafka=stand.kafka, appear=0.2).open()


async def lose_the_topic(stand: AdapterStand) -> None:
    async with admin(stand.kafka) as client:
        await client.delete_topics([stand.topic])

        async def still_shown() -> list[str]:
            return [name for name in await client.list_topics() if name == stand.topic]

        await await_shown("{} is still shown", still_shown)
    await a_stream(stand).open()


async def seek_above(stand: AdapterStand) -> None:
    async with a_stream(stand) as stream:
        stream.seek(2)


async def seek_below(stand: AdapterStand) -> None:
    async with a_stream(stand) as stream:
        stream.seek(-1)


async def read_a_corrupt_record(stand: AdapterStand) -> None:
    await write(stand, stand.topic, b"\xc1")
    await a_stream(stand).open()


async def read_a_record_that_does_not_fit(stand: AdapterStand) -> None:
    await write(stand, stand.topic, b"\x80")
    await a_stream(stand).open()


async def read_a_corrupt_history(stand: AdapterStand) -> None:
    await write(stand, topics.CUTS, b"\x80", b"claw.batch-cut.v1")
    await a_stream(stand).open()


async def commit_a_version_that_falls(stand: AdapterStand) -> None:
    async with a_stream(stand) as stream:
        await (await stream.next(30)).commit(policy_version=0)


async def commit_stats_of_another_length(stand: AdapterStand) -> None:
    async with a_stream(stand) as stream:
        batch = await stream.next(30)
        await batch.commit(policy_version=9, token_stats={"log_probs": np.zeros(batch.tokens + 1)})


async def replay_what_was_trimmed(stand: AdapterStand) -> None:
    async with admin(stand.kafka) as client:
        await client.delete_records({TopicPartition(stand.topic, 0): RecordsToDelete(before_offset=2)})
    async with a_stream(stand) as stream:
        await stream.next(30)


async def fetch_a_missing_blob(stand: AdapterStand) -> None:
    async with a_stream(stand) as stream:
        batch = await stream.next(30)
        blobs = await asyncio.to_thread(open_blobs, str(Path("/nonexistent")))
        await asyncio.to_thread(blobs.get, batch.multi_modal_data[0][0].sha256)


@pytest.mark.parametrize(
    ("act", "error", "said", "heals"),
    [
        (ask_for_an_unknown_recipe, UserError, "no recipe is named .*Did you mean", True),
        (lose_the_topic, UserError, r"the broker has no topic claw\.batch\..*claw topics apply", False),
        (seek_above, UserError, "has no batch 2: a cursor is 0 to 1", True),
        (seek_below, UserError, "has no batch -1: a cursor is 0 to 1", True),
        (read_a_corrupt_record, InvalidRecord, r"the record at claw\.batch\..* offset \d+ cannot be read", False),
        (read_a_record_that_does_not_fit, InvalidRecord, r"the record at claw\.batch\..* offset \d+ cannot", False),
        (read_a_corrupt_history, InvalidRecord, r"the record at claw\.cuts\.v1 offset \d+ cannot be read", False),
        (commit_a_version_that_falls, UserError, "policy version 0 does not rise: run .* has trained up to 5", True),
        (commit_stats_of_another_length, UserError, r"token_stats\['log_probs'\] has the shape", True),
        (replay_what_was_trimmed, Trimmed, "no longer holds what the batch needs.*pool=URL", False),
        (fetch_a_missing_blob, InvalidRecord, "has no blob .*CLAW_BLOBS", True),
    ],
)
def test_bad_input_is_named_and_consumes_nothing(
    stack: Stack, act: Act, error: type[ClawError], said: str, heals: bool
) -> None:
    """`heals`: the fault is the caller's alone, so that the next one has the batch as it was."""

    async def body() -> None:
        async with an_adapter_stand(stack.kafka) as stand:
            await stand.publish(stand.group(1, multi_modal_data=(BLOB,)), stand.group(2))
            async with a_stream(stand) as stream:
                stream_batch = await stream.next(30)
            await stand.trained(5)
            before = await stand.history()
            with pytest.raises(error, match=said):
                await act(stand)
            if act is not read_a_corrupt_history:
                assert await stand.history() == before
            if heals:
                async with a_stream(stand) as stream:
                    assert (await stream.next(30)).digest == stream_batch.digest

    asyncio.run(body())


def test_a_record_of_a_later_version_is_passed_over(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with an_adapter_stand(stack.kafka) as stand:
            await stand.publish(stand.group(1))
            for topic in (topics.CUTS, stand.topic):
                await write(stand, topic, b"\x80", b"claw.of-the-future.v1")
            async with a_stream(stand) as stream:
                assert (await stream.next(30)).sequence == 1
                assert stream.counts["unknown_type"] == 1

    asyncio.run(body())
    passed = [getattr(record, "where", "") for record in caplog.records if "passed over" in record.message]
    assert any(where.startswith(topics.CUTS) for where in passed)


def test_records_of_a_later_version_stop_no_replay(stack: Stack) -> None:
    async def body() -> None:
        async with an_adapter_stand(stack.kafka) as stand:
            samples, marker = stand.group(1)
            async with stand.producer.transaction():
                for event in (*samples, None, marker):
                    record = Record(None, b"\xc1", LATER) if event is None else encode(event, source="test", key=b"k")
                    await stand.producer.send(stand.topic, record.value, headers=record.headers, partition=0)
            async with a_stream(stand) as stream:
                first = await stream.next(30)
            async with a_stream(stand) as stream:
                assert (await stream.next(30)).digest == first.digest

    asyncio.run(body())


def test_a_sample_that_cannot_be_read_again_is_named_by_its_offset(stack: Stack) -> None:
    async def body() -> None:
        async with an_adapter_stand(stack.kafka) as stand, a_stream(stand) as stream:
            await write(stand, stand.topic, b"\xc1")
            with pytest.raises(InvalidRecord, match=rf"{stand.topic}\[0\] offset 0 cannot be read"):
                await stream._source.load(0, 1, samples={"one"})

    asyncio.run(body())
