"""Calls that are sent again, callers that leave, engines that give up: one step for one answer, and no answer lost."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, web
from prometheus_client import REGISTRY

from claw_r1.codec import unpack_ids
from tests.conftest import Stack
from tests.integration.gateway_stand import (
    Engine,
    Handler,
    Stand,
    a_reply,
    chunks,
    replying,
    streaming,
    wait_for,
    with_engine,
)

pytestmark = pytest.mark.stack
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
RETRY = {"x-stainless-retry-count": "1"}
Headers = dict[str, str]


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


async def ask(stand: Stand, run: str, headers: Headers | None = None, **over: Any) -> tuple[int, Headers, bytes]:
    url = f"{stand.url}/{run}/p/v1/chat/completions"
    async with stand.http.post(url, json=ASKED | over, headers=headers) as response:
        return response.status, dict(response.headers), await response.read()


async def leave(stand: Stand, run: str, engine: Engine, **over: Any) -> None:
    """Ask, and hang up when the engine was asked; done when the gateway saw it."""
    asked, left = len(engine.bodies), metric("claw_gateway_callers_left_total")
    async with ClientSession() as http:
        call = asyncio.create_task(_head(http, f"{stand.url}/{run}/p/v1/chat/completions", ASKED | over))
        await wait_for(lambda: len(engine.bodies) > asked, "the engine was asked")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await wait_for(lambda: metric("claw_gateway_callers_left_total") > left, "the gateway saw it leave")


async def _head(http: ClientSession, url: str, body: Any) -> ClientResponse:
    return await http.post(url, json=body)


def held(answer: Handler, hold: asyncio.Event) -> Handler:
    async def wait(request: web.Request) -> web.StreamResponse:
        await hold.wait()
        return await answer(request)

    return wait


@pytest.mark.parametrize("streamed", [False, True])
def test_a_retry_joins_the_call_whose_caller_left(stack: Stack, streamed: bool) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        hold = asyncio.Event()
        engine.answer = held(streaming(chunks([1], [2, 3])) if streamed else replying(a_reply([1], [2, 3])), hold)
        await leave(stand, run, engine, stream=streamed)
        again = asyncio.create_task(ask(stand, run, stream=streamed))
        await wait_for(lambda: metric("claw_gateway_in_flight") == 2, "the retry has come")
        hold.set()
        status, headers, reply = await again
        (step,) = await stand.steps(run)
        assert (status, len(engine.bodies)) == (200, 1)
        assert headers["x-claw-step-id"] == step.step_id
        assert (step.status, step.capture.ok, list(unpack_ids(step.response_ids))) == ("complete", True, [2, 3])
        assert (b"[DONE]" in reply) is streamed

    with_engine(stack, replying({}), body, retry_grace=30.0)


@pytest.mark.parametrize("headers", [RETRY, {"Idempotency-Key": "k"}])
def test_a_retry_gets_the_stored_reply(stack: Stack, headers: Headers) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        first = await ask(stand, run, {} if headers is RETRY else headers)
        again = await ask(stand, run, headers)
        assert (again[0], again[2]) == (200, first[2])
        assert again[1]["x-claw-step-id"] == first[1]["x-claw-step-id"]
        assert len(await stand.steps(run)) == len(engine.bodies) == 1
        other = await ask(stand, f"{run}-2", headers)
        assert (other[0], len(engine.bodies)) == (200, 2), "another trajectory's call is another call"
        if headers is not RETRY:
            assert (await ask(stand, run, headers, temperature=0.5))[0] == 422

    with_engine(stack, replying(a_reply([1], [2])), body)


def test_two_live_identical_calls_are_two_steps(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        found = await asyncio.gather(*(ask(stand, run) for _ in range(4)))
        assert {status for status, _, _ in found} == {200}
        made = await stand.steps(run)
        assert len({step.step_id for step in made}) == len(engine.bodies) == 4
        assert {step.retry_of for step in made} == {None}

    with_engine(stack, replying(a_reply([1], [2])), body)


def test_a_retry_after_a_failure_names_the_first_step(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        _, failed, _ = await ask(stand, run)
        engine.answer = replying(a_reply([1], [2]))
        status, headers, _ = await ask(stand, run, RETRY)
        first, second = await stand.steps(run)
        assert (status, first.status, second.status) == (200, "failed", "complete")
        assert (first.step_id, second.step_id) == (failed["x-claw-step-id"], headers["x-claw-step-id"])
        assert (first.retry_of, second.retry_of) == (None, first.step_id)

    with_engine(stack, replying({"error": {"message": "busy"}}, status=503), body)


def test_a_retry_of_a_call_that_is_not_known_says_so(stack: Stack) -> None:
    """It may have been made by another worker, or been forgotten; the join finds what it repeats."""

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        assert (await ask(stand, run))[0] == (await ask(stand, run, RETRY))[0] == 200
        first, second = await stand.steps(run)
        assert (first.repeats, second.repeats, second.retry_of) == (False, True, None)
        assert len(engine.bodies) == 2

    with_engine(stack, replying(a_reply([1], [2])), body, max_replay_bytes=1)


def test_after_the_grace_the_engine_is_stopped_and_a_retry_is_a_new_step(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        engine.answer = held(replying({}), asyncio.Event())
        await leave(stand, run, engine)
        await wait_for(engine.gone.is_set, "the engine's connection is closed")
        (first,) = await stand.some_steps(run, 1)
        engine.answer = replying(a_reply([1], [2]))
        assert (await ask(stand, run))[0] == 200
        _, second = await stand.steps(run)
        assert (first.status, second.retry_of, second.capture.ok) == ("partial", first.step_id, True)

    with_engine(stack, replying({}), body, retry_grace=0.1)


def test_an_answer_that_nobody_got_is_not_trained_but_kept(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        hold = asyncio.Event()
        engine.answer = held(replying(a_reply([1], [2])), hold)
        await leave(stand, run, engine)
        hold.set()
        (step,) = await stand.some_steps(run, 1)
        assert (step.status, step.capture.reasons) == ("complete", ("hung_up",))
        status, headers, _ = await ask(stand, run)
        assert (status, headers["x-claw-step-id"], len(engine.bodies)) == (200, step.step_id, 1)

    with_engine(stack, replying({}), body, retry_grace=30.0)


def aborting(times: int, then: Handler, *, streamed: bool) -> Handler:
    """Gives calls up as an engine does whose weights change: status 200, what came so far, finish reason abort."""
    left = times

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal left
        if left == 0:
            return await then(request)
        left -= 1
        if not streamed:
            reply = a_reply([1], [2])
            reply["choices"][0]["finish_reason"] = "abort"
            return web.json_response(reply)
        role, *_ = chunks([1], [2])
        end = json.loads(role[6:]) | {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}
        return await streaming([role, b"data: " + json.dumps(end).encode() + b"\n\n", b"data: [DONE]\n\n"])(request)

    return answer


@pytest.mark.parametrize("streamed", [False, True])
def test_an_abort_is_tried_again_and_never_shown(stack: Stack, streamed: bool) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        then = streaming(chunks([1], [5, 6])) if streamed else replying(a_reply([1], [5, 6]))
        engine.answer = aborting(2, then, streamed=streamed)
        status, headers, reply = await ask(stand, run, stream=streamed)
        assert (status, b"abort" in reply) == (200, False)
        made = await stand.steps(run)
        assert [step.status for step in made] == ["partial", "partial", "complete"]
        assert [step.retry_of for step in made] == [None, made[0].step_id, made[1].step_id]
        assert headers["x-claw-step-id"] == made[2].step_id

    with_engine(stack, replying({}), body)


def test_an_engine_that_always_aborts_is_an_error(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, headers, reply = await ask(stand, run)
        assert (status, headers["Retry-After"], b"engine_aborted" in reply) == (503, "1", True)
        assert {step.status for step in await stand.steps(run)} == {"partial"}

    with_engine(stack, aborting(100, replying({}), streamed=False), body)


def test_an_abort_in_the_middle_of_a_stream_is_an_error(stack: Stack) -> None:
    events = chunks([1], [2, 3])
    last = json.loads(events[2][6:])
    last["choices"][0]["finish_reason"] = "abort"
    events[2] = b"data: " + json.dumps(last).encode() + b"\n\n"

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await ask(stand, run, stream=True)
        assert (status, b"[DONE]" in reply, b'"abort"' in reply, b"engine_aborted" in reply) == (
            200,
            False,
            False,
            True,
        )
        (step,) = await stand.steps(run)
        assert (step.status, list(unpack_ids(step.response_ids))) == ("partial", [2, 3])

    with_engine(stack, streaming(events), body)


def test_a_choice_that_was_not_asked_for_is_not_trained(stack: Stack) -> None:
    reply = a_reply([1], [2])
    reply["choices"].append(reply["choices"][0] | {"index": 5, "token_ids": [9]})
    reply["usage"]["completion_tokens"] = 2

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        assert (await ask(stand, run))[0] == 200
        (step,) = await stand.steps(run)
        assert (step.choice, step.capture.ok, step.capture.reasons) == (0, False, ("unexpected_choice",))

    with_engine(stack, replying(reply), body)


def test_a_slow_agent_slows_the_engine_and_not_the_gateways_memory(stack: Stack) -> None:
    written = 0
    event = chunks([1], [2, 3])[1].replace(b"w0 ", b"x" * 60_000)

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(1500):
            await response.write(event)
            written += len(event)
        return response

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        url = f"{stand.url}/{run}/p/v1/chat/completions"
        async with stand.http.post(url, json=ASKED | {"stream": True}) as response:
            await response.content.readany()
            seen = -1
            while seen != written:  # until the engine stands still
                seen = written
                await asyncio.sleep(0.5)
            assert written < 40_000_000, "of 90 MB"
        assert (await stand.some_steps(run, 1))[0].status == "partial"

    with_engine(stack, pour, body, retry_grace=0.01)


@pytest.mark.parametrize("path", ["messages", "responses"])
def test_what_a_given_up_try_said_with_its_end_is_not_said(stack: Stack, path: str) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        spoken = json.loads(chunks([1], [2])[1][6:])
        spoken["choices"][0] |= {"finish_reason": "abort", "delta": {"role": "assistant", "content": "lost"}}
        events = [b"data: " + json.dumps(spoken).encode() + b"\n\n", b"data: [DONE]\n\n"]
        tries = iter([streaming(events), streaming(chunks([1], [2, 3]))])

        async def answer(request: web.Request) -> web.StreamResponse:
            return await next(tries)(request)

        engine.answer = answer
        request = {"messages": ASKED["messages"], "max_tokens": 8} if path == "messages" else {"input": "hi"}
        url = f"{stand.url}/{run}/p/v1/{path}"
        async with stand.http.post(url, json=request | {"model": "tiny", "stream": True}) as response:
            said = await response.read()
        begin = b"event: message_start" if path == "messages" else b"event: response.created"
        assert (said.count(begin), b"lost" in said, b"w1" in said) == (1, False, True)
        assert [step.status for step in await stand.steps(run)] == ["partial", "complete"]

    with_engine(stack, replying({}), body)


def test_a_stream_that_ended_with_an_error_is_not_given_to_a_retry(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        error = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
        engine.answer = streaming([*chunks([1], [2, 3])[:2], error, b"data: [DONE]\n\n"])
        key = {"idempotency-key": "k"}
        _, _, first = await ask(stand, run, key, stream=True)
        engine.answer = streaming(chunks([1], [2, 3]))
        _, _, second = await ask(stand, run, key, stream=True)
        assert (b"out of memory" in first, b"out of memory" in second, b"w1" in second) == (True, False, True)
        steps = await stand.steps(run)
        assert [step.status for step in steps] == ["partial", "complete"]
        assert steps[1].retry_of == steps[0].step_id

    with_engine(stack, replying({}), body)
