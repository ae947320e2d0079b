"""A trainer's batches are told whatever becomes of them: committed, given back, come again, taken by another trainer."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from claw_r1.codec import Record
from tests.conftest import Stack
from tests.integration.adapter_stand import AdapterStand, an_adapter_stand
from tests.integration.collector import Collector, a_collector, values
from trainer_adapter import AsyncBatchStream, BatchStream, Superseded

pytestmark = pytest.mark.stack


def a_trace(number: int) -> bytes:
    return f"00-{number:032x}-{number:016x}-01".encode()


def told(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, body: Callable[[AdapterStand, Collector], Awaitable[None]]
) -> list[Span]:
    """What a collector got of batches of one group each; the records of group n name the trace n."""

    async def run() -> list[Span]:
        async with a_collector(monkeypatch) as collector, an_adapter_stand(stack.kafka) as stand:
            for number in (1, 2):

                def named(record: Record, number: int = number) -> Record:
                    return record._replace(headers=[*record.headers, ("traceparent", a_trace(number))])

                stand.form = named
                await stand.publish(stand.group(number))
            await body(stand, collector)
            return collector.spans

    return asyncio.run(run())


def links(span: Span) -> list[int]:
    return [int.from_bytes(link.span_id) for link in span.links]


def test_a_batch_that_comes_again_is_another_span_with_the_same_links(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(stand: AdapterStand, collector: Collector) -> None:
        name = stand.recipe.name
        async with AsyncBatchStream(name, kafka=stand.kafka, holder="me", trace=True) as stream:
            first = await stream.next(30)
            second = await stream.next(30)
            assert first.traceparent != second.traceparent
        async with AsyncBatchStream(name, kafka=stand.kafka, holder="me", trace=True) as stream:
            again = await stream.next(30)
            assert again.digest == first.digest
            await again.commit(policy_version=1)
            await again.commit(policy_version=1)
            await stream.next(30)
            going = asyncio.create_task(stream.next(30))  # there is no third, until the seek brings the first
            await asyncio.sleep(0.2)
            stream.seek(0)
            await (await going).commit(policy_version=2)

    spans = told(stack, monkeypatch, body)
    fates = sorted((values(s)["claw.sequence"], links(s), values(s).get("error.type", "")) for s in spans)
    assert fates == [
        (1, [1], ""),
        (1, [1], ""),
        (1, [1], "not_committed"),
        (2, [2], "not_committed"),
        (2, [2], "seek"),
    ]


def test_a_trainer_that_another_one_took_the_recipe_from_says_so(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(stand: AdapterStand, collector: Collector) -> None:
        name = stand.recipe.name
        async with AsyncBatchStream(name, kafka=stand.kafka, holder="old", trace=True) as old:
            batch = await old.next(30)
            async with AsyncBatchStream(name, kafka=stand.kafka, holder="new", take_over=True):
                with pytest.raises(Superseded):
                    await batch.commit(policy_version=1)

    (span,) = told(stack, monkeypatch, body)
    assert (links(span), values(span)["error.type"]) == ([1], "superseded")


def test_a_trainer_without_an_event_loop_names_its_batch_too(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str | None] = []

    async def body(stand: AdapterStand, collector: Collector) -> None:
        def train(trace: bool) -> None:
            with BatchStream(stand.recipe.name, kafka=stand.kafka, holder="me", trace=trace) as stream:
                batch = stream.next(30)
                named.append(batch.traceparent)
                batch.commit(policy_version=1 if trace else 2)

        await asyncio.to_thread(train, True)
        await asyncio.to_thread(train, False)

    (span,) = told(stack, monkeypatch, body)
    assert named[0] is not None
    assert named[0][3:52] == f"{span.trace_id.hex()}-{span.span_id.hex()}"
    assert named[1] is None
