"""Messages through the gateway to a real vLLM: translated to chat, answered as vLLM's own Messages endpoint would."""

import json
from typing import Any

import pytest

from tests.conftest import Stack
from tests.vllm.exchange import REAL_ENGINE, Bench, with_bench
from tests.vllm.test_chat import TOOL

pytestmark = REAL_ENGINE

MESSAGES = "/v1/messages"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "system": "You are terse.",
    "messages": [{"role": "user", "content": "Say the marker."}],
    "max_tokens": 24,
    "temperature": 0.0,
}
AS_CHAT = ASKED | {
    "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say the marker."}]
}
AS_CHAT.pop("system")
LOOKUP = {"name": "lookup", "description": "Look up a code.", "input_schema": TOOL["function"]["parameters"]}
# A conversation that called a tool.
CALLED = [
    {"role": "user", "content": [{"type": "text", "text": "Find it."}]},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "toolu_1", "name": "lookup", "input": {"code": "c0de"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "marker-42-c0de"}]},
]


def fold(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream's events as the message that they build."""
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
    message: dict[str, Any] = dict(events[0]["message"])
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            name = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}
            part = name.get(delta["type"])
            if part is not None:
                blocks[event["index"]][part] = blocks[event["index"]].get(part, "") + delta[part]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": message["usage"] | event["usage"]}
    return message | {"content": blocks}


async def say(bench: Bench, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    return fold(await bench.events(MESSAGES, body)) if stream else await bench.ask(MESSAGES, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_message(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        (choice,) = await bench.direct_choices(AS_CHAT)
        native = await bench.direct(MESSAGES, ASKED)
        message = await say(bench, ASKED, stream=stream)
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.dialect == "messages"
        assert [(block["type"], block["text"]) for block in message["content"]] == [
            (block["type"], block["text"]) for block in native["content"]
        ]
        assert message["stop_reason"] == native["stop_reason"]
        for name in ("input_tokens", "output_tokens"):
            assert message["usage"][name] == native["usage"][name]
        assert message["usage"]["output_tokens"] == step.response_len

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_stop_sequence_is_told(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        whole = (await bench.direct(MESSAGES, ASKED))["content"][0]["text"]
        stop = whole[len(whole) // 2 :][:2]
        (choice,) = await bench.direct_choices(AS_CHAT | {"stop": [stop]})
        message = await say(bench, ASKED | {"stop_sequences": [stop]}, stream=stream)
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)
        (step,) = await bench.steps(1)
        choice.check(step)

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_length_is_told(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        message = await say(bench, ASKED | {"max_tokens": 3}, stream=stream)
        assert message["stop_reason"] == "max_tokens"
        (step,) = await bench.steps(1)
        assert (step.response_len, step.finish_reason) == (3, "length")

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_forced_tool_is_called(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        named = {"type": "function", "function": {"name": "lookup"}}
        (choice,) = await bench.direct_choices(AS_CHAT | {"tools": [TOOL], "tool_choice": named, "max_tokens": 300})
        asked = ASKED | {"tools": [LOOKUP], "tool_choice": {"type": "tool", "name": "lookup"}, "max_tokens": 300}
        message = await say(bench, asked, stream=stream)
        assert [(b["type"], b["name"]) for b in message["content"] if b["type"] == "tool_use"] == [
            ("tool_use", "lookup")
        ]
        assert message["stop_reason"] == "tool_use"
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.sampling.guided
        (stored,) = json.loads(step.reply or b"")["tool_calls"]
        assert stored["function"]["name"] == "lookup"

    with_bench(stack, vllm, body)


def test_tool_results_are_rendered_as_the_engine_renders_them(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        asked = ASKED | {"messages": CALLED, "tools": [LOOKUP]}
        native = await bench.direct(MESSAGES, asked)
        message = await bench.ask(MESSAGES, asked)
        assert message["content"] == native["content"]
        assert message["usage"]["input_tokens"] == native["usage"]["input_tokens"]
        (step,) = await bench.steps(1)
        assert (step.capture.ok, step.prompt_len) == (True, native["usage"]["input_tokens"])

    with_bench(stack, vllm, body)


@pytest.mark.parametrize(
    "over", [{}, {"tools": [LOOKUP]}, {"messages": CALLED, "tools": [LOOKUP]}], ids=["text", "tools", "results"]
)
def test_counted_tokens_are_those_of_the_call(stack: Stack, vllm: str, over: dict[str, Any]) -> None:
    async def body(bench: Bench) -> None:
        asked = ASKED | over
        fields = {name: asked[name] for name in asked if name not in ("max_tokens", "temperature")}
        counted = await bench.ask(f"{MESSAGES}/count_tokens", fields)
        message = await bench.ask(MESSAGES, asked)
        assert counted["input_tokens"] == message["usage"]["input_tokens"]
        await bench.steps(1)

    with_bench(stack, vllm, body)


def test_engines_error_is_said_in_the_dialect(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        long = ASKED | {"messages": [{"role": "user", "content": "word " * 3000}]}
        for fields in (long, long | {"stream": True}):
            status, reply = await bench.post(f"{bench.base}{MESSAGES}", fields)
            assert status == 400
            assert (reply["type"], reply["error"]["type"]) == ("error", "invalid_request_error")
            assert "2048" in reply["error"]["message"]

    with_bench(stack, vllm, body)
