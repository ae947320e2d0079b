"""Unmodified clients of the Responses API play a two-turn tool task through the gateway."""

import pytest

from tests.clients.play import REPORT, REPORTS, play, reported
from tests.clients.script import Script
from tests.conftest import Stack

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", [(), ("--asynchronous",)], ids=["sync", "async"])
def test_openai_sdk(stack: Stack, kind: tuple[str, ...], stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "responses", "openai_sdk", *kind, *stream)
    assert reported(told["text"]) == REPORT
    if not kind:
        assert told["usage"] == [6, 5], "the usage that the client saw is the engine's"


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_openai_sdk_with_parallel_tools_and_reasoning(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "responses", "openai_sdk", *stream, script=Script(parallel=True, thinks=True))
    assert reported(told["text"]) == REPORTS
    if stream:
        for kinds in told["events"]:
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        assert "response.function_call_arguments.delta" in told["events"][0]
        assert "response.output_text.delta" in told["events"][1]


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_openai_agents(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "responses", "openai_agents", *stream)
    assert reported(told["text"]) == REPORT


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_langgraph(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "responses", "langgraph_agent", *stream, script=Script(parallel=True))
    assert reported(told["text"]) == REPORTS


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_litellm(stack: Stack, stream: tuple[str, ...]) -> None:
    told = play(stack.kafka, "responses", "litellm_client", *stream, lock="clients-litellm")
    assert reported(told["text"]) == REPORT
