"""Responses through the gateway to a real vLLM: translated to chat, answered as vLLM's own Responses endpoint would."""

import json
from typing import Any

import pytest

from tests.conftest import Stack
from tests.vllm.exchange import REAL_ENGINE, Bench, with_bench
from tests.vllm.test_chat import TOOL

pytestmark = REAL_ENGINE

RESPONSES = "/v1/responses"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "instructions": "You are terse.",
    "input": [{"role": "user", "content": "Say the marker."}],
    "max_output_tokens": 24,
    "temperature": 0.0,
    "store": False,
}
AS_CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Say the marker."}],
    "max_tokens": 24,
    "temperature": 0.0,
}
LOOKUP = {"type": "function"} | TOOL["function"]


async def say(bench: Bench, body: dict[str, Any], *, stream: bool, last: str = "completed") -> dict[str, Any]:
    """The response; a stream's is that of its last event, and its deltas must add up to it."""
    if not stream:
        return await bench.ask(RESPONSES, body)
    events = await bench.events(RESPONSES, body)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", f"response.{last}")
    response: dict[str, Any] = events[-1]["response"]
    for index, item in enumerate(response["output"]):
        whole = item["content"][0]["text"] if item["type"] == "message" else item.get("arguments")
        kind = {"message": "response.output_text.delta", "function_call": "response.function_call_arguments.delta"}
        deltas = [e["delta"] for e in events if e["type"] == kind[item["type"]] and e["output_index"] == index]
        assert "".join(deltas) == whole
    return response


def texts(response: dict[str, Any]) -> list[str]:
    return [part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_response(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        (choice,) = await bench.direct_choices(AS_CHAT)
        native = await bench.direct(RESPONSES, ASKED)
        response = await say(bench, ASKED, stream=stream, last=native["status"])
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.dialect == "responses"
        assert texts(response) == texts(native)
        assert (response["status"], response["incomplete_details"]) == (
            native["status"],
            native["incomplete_details"],
        )
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            assert response["usage"][name] == native["usage"][name]

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_length_is_told(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        response = await say(bench, ASKED | {"max_output_tokens": 3}, stream=stream, last="incomplete")
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        (step,) = await bench.steps(1)
        assert (step.response_len, step.finish_reason) == (3, "length")

    with_bench(stack, vllm, body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_forced_tool_is_called(stack: Stack, vllm: str, stream: bool) -> None:
    async def body(bench: Bench) -> None:
        named = {"type": "function", "function": {"name": "lookup"}}
        (choice,) = await bench.direct_choices(AS_CHAT | {"tools": [TOOL], "tool_choice": named, "max_tokens": 300})
        tools = {"tools": [LOOKUP], "tool_choice": {"type": "function", "name": "lookup"}, "max_output_tokens": 300}
        response = await say(bench, ASKED | tools, stream=stream)
        (call,) = [item for item in response["output"] if item["type"] == "function_call"]
        assert call["name"] == "lookup"
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.sampling.guided
        (stored,) = json.loads(step.reply or b"")["tool_calls"]
        assert stored["function"] == {"name": "lookup", "arguments": call["arguments"]}

    with_bench(stack, vllm, body)


def test_tool_results_go_on(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        items = [
            {"role": "user", "content": [{"type": "input_text", "text": "Find it."}]},
            {"type": "function_call", "call_id": "call_1", "name": "lookup", "arguments": '{"code": "c0de"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "marker-42-c0de"},
        ]
        chat: list[Any] = [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "Find it."},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "lookup", "arguments": '{"code": "c0de"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "marker-42-c0de"},
        ]
        (choice,) = await bench.direct_choices(AS_CHAT | {"messages": chat, "tools": [TOOL]})
        await bench.ask(RESPONSES, ASKED | {"input": items, "tools": [LOOKUP]})
        (step,) = await bench.steps(1)
        choice.check(step)
        assert step.dialect == "responses"

    with_bench(stack, vllm, body)


def test_engines_error_is_said_in_the_dialect(stack: Stack, vllm: str) -> None:
    async def body(bench: Bench) -> None:
        for stream in (False, True):
            fields = ASKED | {"input": "word " * 3000, "stream": stream}
            status, reply = await bench.post(f"{bench.base}{RESPONSES}", fields)
            assert status == 400
            assert "2048" in reply["error"]["message"]

    with_bench(stack, vllm, body)
