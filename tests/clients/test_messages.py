"""Unmodified clients of Anthropic's Messages API play a two-turn tool task through the gateway."""

import asyncio

import pytest

from tests.clients.play import REPORT, REPORTS, a_play, play, reported
from tests.clients.script import FIRST_PROMPT, Script
from tests.conftest import Stack

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", [(), ("--asynchronous",)], ids=["sync", "async"])
def test_anthropic_sdk(stack: Stack, kind: tuple[str, ...], stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "messages", "anthropic_sdk", *kind, *stream)
    assert reported(told["text"]) == REPORT
    assert told["stop_reasons"] == ["tool_use", "end_turn"]
    assert told["blocks"] == [["tool_use"], ["text"]]
    assert told["output_tokens"] == [6, 5], "the usage that the client saw is the engine's"


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_anthropic_sdk_with_parallel_tools_and_thinking(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(
        stack.kafka, "messages", "anthropic_sdk", "--thinking", *stream, script=Script(parallel=True, thinks=True)
    )
    assert reported(told["text"]) == REPORTS
    assert told["blocks"] == [["thinking", "tool_use", "tool_use"], ["text"]]


def test_anthropic_sdk_counts_tokens(stack: Stack) -> None:
    async def body() -> None:
        async with a_play(stack.kafka) as stage:
            told = await stage.drive("anthropic_sdk", "--api=count", base=stage.base)
            assert told["input_tokens"] == len(FIRST_PROMPT)
            assert await stage.stand.facts(stage.run) == [], "nothing was sampled"

    asyncio.run(body())


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_langgraph(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "messages", "langgraph_agent", *stream, script=Script(parallel=True))
    assert reported(told["text"]) == REPORTS


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_litellm(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "messages", "litellm_client", *stream, lock="clients-litellm")
    assert reported(told["text"]) == REPORT
