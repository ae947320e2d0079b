"""Unmodified clients of chat completions play a two-turn tool task through the gateway."""

import pytest

from tests.clients.play import REPORT, REPORTS, play, reported
from tests.clients.script import Script
from tests.conftest import Stack

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", [(), ("--asynchronous",)], ids=["sync", "async"])
def test_openai_sdk(stack: Stack, kind: tuple[str, ...], stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "chat", "openai_sdk", *kind, *stream)
    assert reported(told["text"]) == REPORT
    if not kind:
        assert told["usage"] == [6, 5], "the usage that the client saw is the engine's"


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_openai_sdk_with_parallel_tools_and_reasoning(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "chat", "openai_sdk", *stream, script=Script(parallel=True, thinks=True))
    assert reported(told["text"]) == REPORTS


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_openai_agents(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "chat", "openai_agents", *stream)
    assert reported(told["text"]) == REPORT


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_langgraph(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "chat", "langgraph_agent", *stream, script=Script(parallel=True))
    assert reported(told["text"]) == REPORTS


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_litellm(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "chat", "litellm_client", *stream, lock="clients-litellm")
    assert reported(told["text"]) == REPORT


def test_mini_swe_agent(stack: Stack) -> None:
    told = play(stack.kafka, "chat", "mini_swe", script=Script(submits=True), lock="clients-litellm")
    assert reported(told["text"]) == REPORT
