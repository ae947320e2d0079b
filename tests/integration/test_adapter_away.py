"""A trainer and its broker do not hear of each other for long: who is alone goes on, who is not is told, and nobody guesses."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from claw_r1 import bus, topics
from claw_r1.errors import DependencyUnreachable, RetryableError
from tests.conftest import Stack
from tests.integration.adapter_stand import AdapterStand, a_stream, on_stand
from tests.integration.test_adapter_demand import until
from tests.integration.test_gateway_spool import frozen
from trainer_adapter import Superseded, ledger

pytestmark = pytest.mark.stack


TRANSACTION_S, SPEAKS_S = 0.2, 0.3


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "TRANSACTION_S", TRANSACTION_S)
    monkeypatch.setattr(ledger, "_SPEAKS_S", SPEAKS_S)  # who takes over has spoken before anybody looks


@contextlib.contextmanager
def before_the_end(meanwhile: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """The next transaction of this process ends after what happens meanwhile; its records are at the broker by then."""
    end = AIOKafkaProducer.commit_transaction

    async def late(producer: AIOKafkaProducer) -> None:
        patched.undo()
        await producer.flush()
        await meanwhile()
        await end(producer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AIOKafkaProducer, "commit_transaction", late)
        yield


async def broker_ends_it(kafka: str) -> None:
    """No transaction on the cuts is open any more; the broker looks every second."""
    place = TopicPartition(topics.CUTS, 0)
    async with contextlib.AsyncExitStack() as ending:
        ends = []
        for committed_only in (False, True):
            consumer = await bus.start_consumer(kafka, client_id="test", committed_only=committed_only)
            ending.push_async_callback(bus.stop_consumer, consumer)
            ends.append(partial(bus.end_offsets, consumer, [place]))
        every, stable = ends
        last = (await every())[place]
        async with asyncio.timeout(60):
            while (await stable())[place] < last:  # noqa: ASYNC110  nobody tells of it
                await asyncio.sleep(0.05)


def test_a_trainer_whose_transactions_the_broker_ended_goes_on(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand, holder="alone") as stream:
            with before_the_end(lambda: broker_ends_it(stand.kafka)):
                batch = await stream.next(60)
            with before_the_end(lambda: broker_ends_it(stand.kafka)):
                await batch.commit(policy_version=1)
        assert [(event.TYPE, event.holder) for event in await stand.history()] == [
            ("batch-cut", "alone"),
            ("batch-trained", "alone"),
        ]

    on_stand(stack, body, batch={"groups": 1})


def test_one_that_another_took_over_from_meanwhile_is_told_by_whom(stack: Stack) -> None:
    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1))
        async with a_stream(stand, holder="first") as first, contextlib.AsyncExitStack() as ending:
            batch = await first.next(60)

            async def take_over() -> None:
                await ending.enter_async_context(a_stream(stand, holder="second", take_over=True))
                await until(stand, holder="second")
                await asyncio.sleep(TRANSACTION_S)

            with before_the_end(take_over), pytest.raises(Superseded, match="another trainer, second, opened recipe"):
                await batch.commit(policy_version=1)
        assert [event.holder for event in await stand.history()] == ["first"]

    on_stand(stack, body, batch={"groups": 1})


def test_a_commit_that_no_broker_confirms_says_what_to_do_and_that_is_true(
    spare: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "START_DEADLINE", 2.0)

    async def body(stand: AdapterStand) -> None:
        await stand.publish(stand.group(1), stand.group(2))
        async with a_stream(stand, deadline=2.0) as stream:
            batch = await stream.next(60)
            with frozen(spare), pytest.raises(RetryableError) as caught:
                await batch.commit(policy_version=1)
            assert "batch 1" in str(caught.value)
            assert "call commit again with the same version" in str(caught.value)
            await bus_answers(spare.kafka)
            await batch.commit(policy_version=1)
            await batch.commit(policy_version=1)
            assert (await stream.next(60)).sequence == 2
        assert [(event.TYPE, event.sequence) for event in await stand.history()] == [
            ("batch-cut", 1),
            ("batch-trained", 1),
            ("batch-cut", 2),
        ]

    asyncio.run(bus.apply_topics(spare.kafka, topics.all_topics()))
    on_stand(spare, body, batch={"groups": 1})


async def bus_answers(kafka: str) -> None:
    """A broker that was frozen answers again."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(DependencyUnreachable, KafkaError):  # it may know no broker yet, not even itself
                await bus.count_partitions(kafka, topics.CUTS)
                return
