"""Reasoning that a real vLLM's parser sets apart, in every dialect: what the agent sees, and what is captured."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Stack
from tests.vllm.exchange import REAL_ENGINE, Bench, with_bench
from tests.vllm.serve import serving
from tests.vllm.test_messages import fold

pytestmark = REAL_ENGINE

PROMPTS = 32
"""Of so many prompts the model of noise ends its reasoning in at least one."""


@pytest.fixture(scope="module")
def thinking(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an engine that takes everything before `</think>` for reasoning. (`vllm` says whether the machine can.)"""
    with serving(tmp_path_factory.mktemp("thinking"), "--reasoning-parser=deepseek_r1") as url:
        yield url


def asked(content: str) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 100,
        "temperature": 0.0,
    }


def parts(message: dict[str, Any]) -> tuple[str, str]:
    """Reasoning and text."""
    return message.get("reasoning") or message.get("reasoning_content") or "", message.get("content") or ""


async def find_prompt(bench: Bench) -> tuple[str, tuple[str, str]]:
    """A prompt to which the engine reasons and then answers, and both."""
    prompts = [f"Say marker {number}." for number in range(PROMPTS)]
    replies = await asyncio.gather(*(bench.direct("/v1/chat/completions", asked(prompt)) for prompt in prompts))
    for prompt, reply in zip(prompts, replies, strict=True):
        said = parts(reply["choices"][0]["message"])
        if all(said):
            return prompt, said
    raise AssertionError("the engine never ended its reasoning")


async def chat(bench: Bench, content: str, *, stream: bool) -> tuple[str, str]:
    if not stream:
        return parts((await bench.ask("/v1/chat/completions", asked(content)))["choices"][0]["message"])
    events = await bench.events("/v1/chat/completions", asked(content))
    said = [parts(choice["delta"]) for event in events for choice in event["choices"]]
    return "".join(reasoning for reasoning, _ in said), "".join(text for _, text in said)


async def message(bench: Bench, content: str, *, stream: bool) -> tuple[str, str]:
    path = "/v1/messages"
    body = asked(content)
    said = fold(await bench.events(path, body)) if stream else await bench.ask(path, body)
    assert [block["type"] for block in said["content"]] == ["thinking", "text"]
    thought, text = said["content"]
    return thought["thinking"], text["text"]


async def response(bench: Bench, content: str, *, stream: bool) -> tuple[str, str]:
    path = "/v1/responses"
    body = {"model": "tiny", "input": content, "max_output_tokens": 100, "temperature": 0.0, "store": False}
    if not stream:
        said = await bench.ask(path, body)
    else:
        events = await bench.events(path, body)
        said = events[-1]["response"]
        deltas = [e["delta"] for e in events if e["type"] == "response.reasoning_text.delta"]
        assert "".join(deltas) == said["output"][0]["content"][0]["text"]
    assert [item["type"] for item in said["output"]] == ["reasoning", "message"]
    thought, text = said["output"]
    return thought["content"][0]["text"], text["content"][0]["text"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("say", [chat, message, response], ids=["chat", "messages", "responses"])
def test_reasoning_stands_apart_and_its_tokens_are_captured(
    stack: Stack, thinking: str, say: Any, stream: bool
) -> None:
    async def body(bench: Bench) -> None:
        prompt, expected = await find_prompt(bench)
        (choice,) = await bench.direct_choices(asked(prompt))
        assert await say(bench, prompt, stream=stream) == expected
        (step,) = await bench.steps(1)
        choice.check(step)
        assert parts(json.loads(step.reply or b"")) == expected

    with_bench(stack, thinking, body)
