"""Responses and Messages through a real gateway on a real broker: native answers, and the same steps as chat gives."""

import json
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI, BadRequestError

from claw_r1.codec import unpack_ids
from tests.conftest import Stack
from tests.integration.gateway_stand import (
    Engine,
    Stand,
    a_reply,
    chunks,
    replying,
    streaming,
    with_engine,
)

pytestmark = pytest.mark.stack
MESSAGES: dict[str, Any] = {"model": "tiny", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}


async def ask(stand: Stand, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    async with stand.http.post(stand.url + path, json=body) as response:
        return response.status, dict(response.headers), await response.read()


def events(stream: bytes) -> list[tuple[str, Any]]:
    found = []
    for event in filter(None, stream.decode().split("\n\n")):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_response_is_a_step(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        async with AsyncOpenAI(base_url=f"{stand.url}/{run}/p/v1", api_key="none") as client:
            response = await client.responses.create(model="tiny", input="hi", instructions="be kind")
            assert response.output_text == "hello"
            engine.answer = streaming(chunks([1, 2, 3, 4, 5], [6, 7]))
            text = ""
            said: list[Any] = [{"role": "user", "content": "hi"}, *response.output, {"role": "user", "content": "on"}]
            async with client.responses.stream(model="tiny", input=said) as stream:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        text += event.delta
                final = await stream.get_final_response()
            assert (text, final.output_text, final.status) == ("w0 w1 ", "w0 w1 ", "completed")
            with pytest.raises(BadRequestError, match="nothing is stored"):
                await client.responses.create(model="tiny", input="hi", previous_response_id="resp_1")
        first, second = await stand.steps(run)
        assert engine.paths == ["/v1/chat/completions"] * 2
        assert engine.asked[0]["messages"][0] == {"role": "system", "content": "be kind"}
        assert (first.dialect, first.capture.ok, second.dialect, second.capture.ok) == ("responses", True) * 2
        assert (second.parent_step_id, list(unpack_ids(second.new_prompt_ids))) == (first.step_id, [4, 5])

    with_engine(stack, replying(a_reply([1, 2], [3])), body)


def test_a_message_is_a_step(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, headers, reply = await ask(stand, f"/{run}/p/v1/messages?beta=true", MESSAGES)
        message = json.loads(reply)
        assert (status, message["type"], message["stop_reason"]) == (200, "message", "end_turn")
        assert message["content"] == [{"type": "text", "text": "hello"}]
        assert message["usage"]["input_tokens"] == 2
        engine.answer = streaming(chunks([1, 2, 3, 4, 5], [6, 7]))
        said = [*MESSAGES["messages"], {"role": "assistant", "content": message["content"]}]
        longer = MESSAGES | {"messages": [*said, {"role": "user", "content": "on"}], "stream": True}
        status, _, stream = await ask(stand, f"/{run}/p/v1/messages", longer)
        names = [name for name, _ in events(stream)]
        assert (status, names[0], names[-2:]) == (200, "message_start", ["message_delta", "message_stop"])
        text = "".join(data["delta"].get("text", "") for name, data in events(stream) if name == "content_block_delta")
        assert text == "w0 w1 "
        first, second = await stand.steps(run)
        assert headers["x-claw-step-id"] == first.step_id
        assert (first.dialect, first.capture.ok, second.capture.ok) == ("messages", True, True)
        assert (second.parent_step_id, second.messages_kept) == (first.step_id, 2)

    with_engine(stack, replying(a_reply([1, 2], [3])), body)


def test_errors_come_in_the_dialects_shape(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await ask(stand, f"/{run}/p/v1/messages", MESSAGES)
        error = json.loads(reply)
        assert (status, error["type"], error["error"]["type"]) == (429, "error", "rate_limit_error")
        assert "slow down" in error["error"]["message"]
        status, _, reply = await ask(stand, f"/{run}/p/v1/messages", {"model": "tiny"})
        assert (status, json.loads(reply)["error"]["type"]) == (400, "invalid_request_error")
        status, _, reply = await ask(stand, "/v1/messages", MESSAGES)
        assert (status, json.loads(reply)["error"]["type"]) == (401, "authentication_error")
        engine.answer = streaming(chunks([1], [2, 3])[:2])
        status, _, stream = await ask(stand, f"/{run}/p/v1/messages", MESSAGES | {"stream": True})
        assert (status, [name for name, _ in events(stream)][-1]) == (200, "error")
        assert b"message_stop" not in stream

    with_engine(stack, replying({"error": {"message": "slow down", "code": 429}}, status=429), body)


def test_tokens_are_counted_by_the_engine(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await ask(stand, f"/{run}/p/v1/messages/count_tokens", MESSAGES)
        assert (status, json.loads(reply)) == (200, {"input_tokens": 7})
        assert engine.paths == ["/tokenize"]
        assert engine.asked[0]["messages"] == MESSAGES["messages"]
        engine.answer = replying({"error": {"message": "no such model", "code": 404}}, status=404)
        status, _, reply = await ask(stand, f"/{run}/p/v1/messages/count_tokens", MESSAGES)
        assert (status, json.loads(reply)["error"]["type"]) == (404, "not_found_error")
        assert await stand.facts(run) == []

    async def tokenize(request: web.Request) -> web.StreamResponse:
        return web.json_response({"count": 7, "tokens": list(range(7))})

    with_engine(stack, tokenize, body)


def test_an_error_that_is_said_anew_is_json(stack: Stack) -> None:
    async def shout(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, text="out of memory")

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, headers, reply = await ask(stand, f"/{run}/p/v1/messages", MESSAGES)
        assert (status, headers["Content-Type"], b"out of memory" in reply) == (500, "application/json", True)
        status, headers, reply = await ask(stand, f"/{run}/p/v1/chat/completions", MESSAGES)
        assert (status, headers["Content-Type"], reply) == (500, "text/plain; charset=utf-8", b"out of memory")

    with_engine(stack, shout, body)


def test_a_completion_that_an_engine_does_not_stream_passes_whole(stack: Stack) -> None:
    choice = {"index": 0, "text": "hello", "finish_reason": "stop", "token_ids": [2], "prompt_token_ids": [1]}
    choice["logprobs"] = {"token_logprobs": [-0.5]}
    reply = {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        asked = {"model": "tiny", "prompt": "hi", "stream": True}
        status, _, said = await ask(stand, f"/{run}/p/v1/completions", asked)
        assert (status, json.loads(said)) == (200, reply)
        assert [step.capture.ok for step in await stand.steps(run)] == [True]

    with_engine(stack, replying(reply), body)
