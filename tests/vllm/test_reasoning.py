"""Reasoning that a real vLLM's parser sets apart, in every dialect: what the agent sees, and what is captured."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Stack
from tests.vllm.exchange import REAL_ENGINE, Bench, read_events, with_bench
from tests.vllm.serve import serving
from tests.vllm.test_messages import fold

pytestmark = REAL_ENGINE

CHAT = "/v1/chat/completions"
PROMPTS = 16
"""To the first few of so many the model ends its reasoning."""
Said = tuple[str, str]
"""Reasoning and text."""


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an engine that takes everything before `</think>` for reasoning."""
    with serving(tmp_path_factory.mktemp("thinking"), thinks=True) as url:
        yield url


def asked(content: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "messages": messages, "max_tokens": 60, "temperature": 0.0}


def parts(message: dict[str, Any]) -> Said:
    return message.get("reasoning") or message.get("reasoning_content") or "", message.get("content") or ""


def joined(events: list[dict[str, Any]]) -> Said:
    said = [parts(choice["delta"]) for event in events for choice in event["choices"]]
    return "".join(reasoning for reasoning, _ in said), "".join(text for _, text in said)


async def expect(bench: Bench, content: str, *, stream: bool) -> Said:
    """What the engine itself says."""
    if stream:
        return joined(await read_events(bench.stand.http, f"{bench.vllm}{CHAT}", asked(content)))
    return parts((await bench.direct(CHAT, asked(content)))["choices"][0]["message"])


async def find_prompt(bench: Bench, *, stream: bool) -> tuple[str, Said]:
    """A prompt to which the engine reasons and then answers, and both."""
    for prompt in (f"Say marker {number}." for number in range(PROMPTS)):
        said = await expect(bench, prompt, stream=stream)
        if all(said):
            return prompt, said
    raise AssertionError("the engine never ended its reasoning")


async def chat(bench: Bench, content: str, *, stream: bool) -> Said:
    if stream:
        return joined(await bench.events(CHAT, asked(content)))
    return parts((await bench.ask(CHAT, asked(content)))["choices"][0]["message"])


async def message(bench: Bench, content: str, *, stream: bool) -> Said:
    path, body = "/v1/messages", asked(content)
    said = fold(await bench.events(path, body)) if stream else await bench.ask(path, body)
    thought, text = said["content"]
    assert (thought["type"], text["type"]) == ("thinking", "text")
    return thought["thinking"], text["text"]


async def response(bench: Bench, content: str, *, stream: bool) -> Said:
    path = "/v1/responses"
    body = {"model": "tiny", "input": content, "max_output_tokens": 60, "temperature": 0.0, "store": False}
    events = await bench.events(path, body) if stream else []
    said = events[-1]["response"] if stream else await bench.ask(path, body)
    thought, text = said["output"]
    assert (thought["type"], text["type"]) == ("reasoning", "message")
    reasoning = thought["content"][0]["text"]
    if stream:
        assert "".join(e["delta"] for e in events if e["type"] == "response.reasoning_text.delta") == reasoning
    return reasoning, text["content"][0]["text"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("say", [chat, message, response], ids=["chat", "messages", "responses"])
def test_reasoning_stands_apart_and_its_tokens_are_captured(
    stack: Stack, thinking: str, say: Any, stream: bool
) -> None:
    async def body(bench: Bench) -> None:
        prompt, expected = await find_prompt(bench, stream=stream)
        (choice,) = await bench.direct_choices(asked(prompt))
        assert await say(bench, prompt, stream=stream) == expected
        (step,) = await bench.steps(1)
        choice.check(step)
        assert parts(json.loads(step.reply or b"")) == expected

    with_bench(stack, thinking, body)
