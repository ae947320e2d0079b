"""An engine gives an answer up in the middle: an engine that takes tokens goes on, and the agent sees one answer."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from claw_r1.codec import unpack_floats, unpack_ids
from claw_r1.events import Step
from tests.conftest import Stack
from tests.integration.gateway_stand import (
    Engine,
    Handler,
    Stand,
    a_gateway,
    an_engine,
    replying,
    wait_for,
    with_engine,
)

pytestmark = pytest.mark.stack
TAKES_TOKENS = "0.32.0"
PROMPT = [1, 2, 3]
WORDS = ["The ", "answer ", "is ", "four", ", ", "I ", "think."]
RESPONSE = list(range(10, 10 + len(WORDS)))
TEXT = "".join(WORDS)
MESSAGES = [{"role": "user", "content": "hi"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "tiny", "messages": MESSAGES, "max_tokens": 20},
    "messages": {"model": "tiny", "messages": MESSAGES, "max_tokens": 20},
    "responses": {"model": "tiny", "input": "hi", "max_output_tokens": 20},
}
STOPS: list[tuple[int | None, ...]] = [(3, None), (2, 0, 3, None), (0, 4, None)]
"""Tokens of each try before it is given up; None: it is not."""
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def a_model(*stops: int | None, takes_tokens: bool = True) -> Handler:
    """An engine that says WORDS, each a token; each try ends with an abort after so many tokens, None: not at all."""
    tries: Iterator[int | None] = iter(stops)

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        number = next(tries)
        given = (asked.get("kv_transfer_params") or {}).get("prompt_token_ids")
        prompt = given if given and takes_tokens else PROMPT
        done = len(prompt) - len(PROMPT)
        end = len(WORDS) if number is None else done + number
        finish = "stop" if number is None else "abort"
        if asked.get("stream"):
            return await stream(request, prompt, done, end, finish)
        return web.json_response(whole(prompt, done, end, finish))

    return answer


def whole(prompt: list[int], done: int, end: int, finish: str) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(WORDS[done:end])},
        "logprobs": {"content": [entry(number) for number in range(done, end)]},
        "finish_reason": finish,
        "token_ids": RESPONSE[done:end],
    }
    base = {"id": f"chatcmpl-{done}", "object": "chat.completion", "created": done, "model": "tiny"}
    return base | {"choices": [choice], "prompt_token_ids": prompt, "usage": counts(prompt, end - done)}


async def stream(request: web.Request, prompt: list[int], done: int, end: int, finish: str) -> web.StreamResponse:
    base = {"id": f"chatcmpl-{done}", "object": "chat.completion.chunk", "created": done, "model": "tiny"}
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events: list[dict[str, Any]] = [base | {"choices": [role], "prompt_token_ids": prompt}]
    for number in range(done, end):
        said = {"delta": {"content": WORDS[number]}, "token_ids": [RESPONSE[number]], "finish_reason": None}
        events.append(base | {"choices": [{"index": 0, "logprobs": {"content": [entry(number)]}} | said]})
    events.append(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish, "token_ids": []}]})
    events.append(base | {"choices": [], "usage": counts(prompt, end - done)})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


def entry(number: int) -> dict[str, Any]:
    return {"token": WORDS[number], "logprob": -float(number), "bytes": [], "top_logprobs": []}


def counts(prompt: list[int], tokens: int) -> dict[str, int]:
    return {"prompt_tokens": len(prompt), "completion_tokens": tokens, "total_tokens": len(prompt) + tokens}


async def ask(stand: Stand, trajectory: str, path: str, **over: Any) -> tuple[int, dict[str, str], bytes]:
    async with stand.http.post(f"{stand.url}/{trajectory}/p/v1/{path}", json=REQUESTS[path] | over) as response:
        return response.status, dict(response.headers), await response.read()


async def steps_of(stand: Stand, run: str, trajectory: str) -> list[Step]:
    return [step for step in await stand.steps(run) if step.trajectory_uid == trajectory]


def read(path: str, streamed: bool, said: bytes) -> tuple[str, dict[str, int]]:
    """The text and the usage that an agent gets, by how it reads them."""
    if not streamed:
        reply = json.loads(said)
        match path:
            case "messages":
                return reply["content"][0]["text"], reply["usage"]
            case "responses":
                return reply["output"][0]["content"][0]["text"], reply["usage"]
            case _:
                return reply["choices"][0]["message"]["content"], reply["usage"]
    events = [json.loads(line[6:]) for line in said.decode().splitlines() if line.startswith("data: {")]
    match path:
        case "messages":
            assert [e["type"] for e in events].count("message_start") == 1
            deltas = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
            return "".join(deltas), events[-2]["usage"]
        case "responses":
            deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
            assert events[-1]["response"]["output"][0]["content"][0]["text"] == "".join(deltas)
            return "".join(deltas), events[-1]["response"]["usage"]
        case _:
            assert len({e["id"] for e in events}) == 1
            deltas = [c["delta"].get("content") or "" for e in events for c in e["choices"]]
            return "".join(deltas), events[-1].get("usage") or {}


@pytest.mark.parametrize("path", list(REQUESTS))
def test_an_answer_that_was_given_up_is_one_answer_and_one_step(stack: Stack, path: str) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        for number, (streamed, stops) in enumerate(itertools.product((False, True), STOPS)):
            engine.answer = a_model(*stops)
            engine.bodies.clear()
            await check_one_answer(stand, engine, run, f"{run}-{number}", path, streamed, stops)
        complete = [step.trajectory_uid for step in await stand.steps(run) if step.status == "complete"]
        assert sorted(complete) == sorted(f"{run}-{n}" for n in range(number + 1))

    with_engine(stack, replying({}), body, version=TAKES_TOKENS)


async def check_one_answer(
    stand: Stand, engine: Engine, run: str, trajectory: str, path: str, streamed: bool, stops: tuple[int | None, ...]
) -> None:
    over: dict[str, Any] = {"stream": streamed}
    if path == "chat/completions" and streamed:
        over["stream_options"] = {"include_usage": True}
    status, headers, said = await ask(stand, trajectory, path, **over)
    text, usage = read(path, streamed, said)
    assert (status, text, b"abort" in said) == (200, TEXT, False)
    names = ("prompt_tokens", "completion_tokens") if path == "chat/completions" else ("input_tokens", "output_tokens")
    assert [usage[name] for name in names] == [3, 7]
    *before, step = await steps_of(stand, run, trajectory)
    assert [other.status for other in before] == ["partial"] * (stops[0] == 0), "what had no tokens is tried anew"
    assert headers["x-claw-step-id"] == step.step_id
    assert (step.status, step.capture.ok, step.capture.reasons) == ("complete", True, ())
    assert unpack_ids(step.new_prompt_ids).tolist() == PROMPT
    assert unpack_ids(step.response_ids).tolist() == RESPONSE
    assert unpack_floats(step.rollout_log_probs or b"").tolist() == [-float(number) for number in range(7)]
    assert json.loads(step.reply or b"")["content"] == TEXT
    assert (step.finish_reason, (step.usage or {})["completion_tokens"]) == ("stop", 7)
    assert [part["tokens"] for part in step.metadata["continued"]] == parts_of(stops)
    assert len(engine.bodies) == len(stops)
    last = engine.asked[-1]
    so_far = last["kv_transfer_params"]["prompt_token_ids"]
    assert so_far == PROMPT + RESPONSE[: len(so_far) - 3]
    assert last.get("max_tokens", last.get("max_completion_tokens")) == 20 - (len(so_far) - 3)


def parts_of(stops: tuple[int | None, ...]) -> list[int]:
    came = [number for number in stops if number]
    return [*came, len(WORDS) - sum(came)]


def test_each_part_has_its_own_policy_version(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        async def policy(version: int) -> None:
            said = {"run_id": run, "version": version}
            async with stand.http.post(f"{stand.url}/policy", json=said) as response:
                assert response.status == 200

        for streamed, version in ((False, 4), (True, 6)):
            engine.bodies.clear()
            model = a_model(3, 2, None)

            async def answer(
                request: web.Request, model: Handler = model, version: int = version
            ) -> web.StreamResponse:
                if len(engine.bodies) == 2:
                    await policy(version + 1)
                return await model(request)

            engine.answer = answer
            await policy(version)
            trajectory = f"{run}-{version}"
            assert (await ask(stand, trajectory, "chat/completions", stream=streamed))[0] == 200
            (step,) = await steps_of(stand, run, trajectory)
            assert step.policy_version is None
            # The second part's version was said while its call was on its way: it is not known.
            assert [(span.version, span.start, span.end) for span in step.version_spans] == [
                (version, 0, 3),
                (None, 3, 5),
                (version + 1, 5, 7),
            ]

    with_engine(stack, replying({}), body, version=TAKES_TOKENS)


def test_an_engine_that_is_busy_is_asked_again(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        for streamed in (False, True):
            engine.bodies.clear()
            engine.answer = busy_at(2, 3, a_model(3, None), engine)
            status, _, said = await ask(stand, f"{run}-{streamed}", "chat/completions", stream=streamed)
            assert (status, read_text(said, streamed)) == (200, TEXT)
            (step,) = await steps_of(stand, run, f"{run}-{streamed}")
            assert unpack_ids(step.response_ids).tolist() == RESPONSE
            assert len(engine.bodies) == 4

    with_engine(stack, replying({}), body, version=TAKES_TOKENS)


def busy_at(first: int, last: int, then: Handler, engine: Engine) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        if first <= len(engine.bodies) <= last:
            return web.json_response({"error": {"message": "paused"}}, status=503)
        return await then(request)

    return answer


def read_text(said: bytes, streamed: bool) -> str:
    return read("chat/completions", streamed, said)[0]


@pytest.mark.parametrize("why", ["no engine takes tokens", "the tokens are passed over", "an open tool call"])
def test_a_whole_answer_that_cannot_be_gone_on_with_is_tried_anew(stack: Stack, why: str) -> None:
    model = a_model(3, *([None] * (1 + (why == "the tokens are passed over"))), takes_tokens=False)
    if why == "an open tool call":
        model = opening_a_tool_call(a_model(None))

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, headers, said = await ask(stand, run, "chat/completions", tools=TOOLS)
        assert (status, read_text(said, False)) == (200, TEXT)
        first, second = await stand.steps(run)
        assert (first.status, second.status, second.retry_of) == ("partial", "complete", first.step_id)
        assert headers["x-claw-step-id"] == second.step_id
        assert unpack_ids(second.response_ids).tolist() == RESPONSE

    with_engine(stack, model, body, version=None if why == "no engine takes tokens" else TAKES_TOKENS)


def opening_a_tool_call(then: Handler) -> Handler:
    first = True

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal first
        if not first:
            return await then(request)
        first = False
        reply = whole(PROMPT, 0, 3, "abort")
        reply["choices"][0]["message"]["content"] = '<tool_call>{"name":'
        return web.json_response(reply)

    return answer


@pytest.mark.parametrize(
    ("why", "stops"),
    [("no engine takes tokens", (3,)), ("the tokens are passed over", (3, None)), ("five tries", (1, 1, 1, 1, 1))],
)
def test_a_stream_that_cannot_be_gone_on_with_is_an_error(
    stack: Stack, why: str, stops: tuple[int | None, ...]
) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        for path in REQUESTS:
            engine.answer = a_model(*stops, takes_tokens=why == "five tries")
            engine.bodies.clear()
            trajectory = f"{run}-{path.split('/')[0]}"
            status, _, said = await ask(stand, trajectory, path, stream=True)
            assert (status, b"engine_aborted" in said) == (200, True)
            assert not any(end in said for end in (b"[DONE]", b"message_stop", b"response.completed"))
            (step,) = await steps_of(stand, run, trajectory)
            assert (step.status, step.finish_reason) == ("partial", "abort")
            assert unpack_ids(step.response_ids).tolist() == RESPONSE[: 5 if why == "five tries" else 3]
            assert len(engine.bodies) == len(stops)

    with_engine(stack, replying({}), body, version=None if why == "no engine takes tokens" else TAKES_TOKENS)


def test_an_engine_that_breaks_off_after_it_gave_up_is_gone_on_from(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        model = a_model(3, None)

        async def answer(request: web.Request) -> web.StreamResponse:
            response = await model(request)
            if len(engine.bodies) == 1 and request.transport is not None:
                request.transport.abort()
            return response

        engine.answer = answer
        status, _, said = await ask(stand, run, "chat/completions", stream=True)
        assert (status, read_text(said, True)) == (200, TEXT)
        (step,) = await stand.steps(run)
        assert (step.status, step.capture.ok) == ("complete", True)

    with_engine(stack, replying({}), body, version=TAKES_TOKENS)


def test_all_engines_that_may_take_the_call_must_take_tokens(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        async with an_engine(replying({}, status=503)) as other:
            async with a_gateway(stack.kafka, engine.url, other.url, run=f"{run}-2") as both:
                _, _, said = await ask(both, f"{run}-2", "chat/completions", stream=True)
            assert b"engine_aborted" in said

    with_engine(stack, a_model(3, None), body, version=TAKES_TOKENS)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_that_leaves_while_its_answer_is_gone_on_with_leaves_what_came(stack: Stack, streamed: bool) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        model = a_model(3, None)

        async def answer(request: web.Request) -> web.StreamResponse:
            if len(engine.bodies) == 2:
                await asyncio.Event().wait()
            return await model(request)

        engine.answer = answer
        call = asyncio.create_task(ask(stand, run, "chat/completions", stream=streamed))
        await wait_for(lambda: len(engine.bodies) == 2, "an engine is asked for the rest")
        call.cancel()
        await wait_for(engine.gone.is_set, "the engine's connection is closed")
        (step,) = await stand.some_steps(run, 1)
        assert (step.status, step.capture.reasons) == ("partial", ("hung_up", "partial"))
        assert unpack_ids(step.response_ids).tolist() == RESPONSE[:3]

    with_engine(stack, replying({}), body, version=TAKES_TOKENS, retry_grace=0.05)
