"""Engines that fail, agents that leave, requests that are wrong: a clear answer, and a Step for every announcement."""

import asyncio
import io
import json
import socket
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI

from claw_r1.codec import unpack_ids
from claw_r1.events import Step
from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from tests.conftest import Stack
from tests.integration.gateway_stand import (
    Engine,
    Stand,
    a_gateway,
    a_reply,
    an_engine,
    chunks,
    replying,
    streaming,
    wait_for,
    with_engine,
)

pytestmark = pytest.mark.stack
JSON = {"content-type": "application/json"}
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


async def post(stand: Stand, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    payload = io.BytesIO(data)
    async with stand.http.post(stand.url + path, data=payload, headers=JSON) as response:
        return response.status, dict(response.headers), await response.read()


def message(body: bytes) -> str:
    error = json.loads(body.removeprefix(b"data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


async def one_step(stand: Stand, run: str) -> Step:
    """The one step of a run; a step of an agent that left comes after it left."""
    async with asyncio.timeout(60):
        while True:
            if steps := await stand.steps(run):
                (step,) = steps
                return step
            await asyncio.sleep(0.05)


def test_an_engine_that_is_down_is_named_with_the_next_step(stack: Stack) -> None:
    async def body() -> None:
        run, url = new_id(), f"http://127.0.0.1:{find_port()}"
        async with a_gateway(stack.kafka, url, run=run) as stand:
            status, headers, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED)
            assert (status, headers["Retry-After"]) == (503, "1")
            assert url in message(reply)
            assert "CLAW_GATEWAY_UPSTREAM" in message(reply)
            step = await one_step(stand, run)
            assert (step.status, step.capture.ok, step.step_id) == ("failed", False, headers["x-claw-step-id"])
            await stand.check_announced(run)
        async with a_gateway(stack.kafka, run=run) as stand:
            status, _, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED)
            assert (status, "no engine is configured" in message(reply)) == (503, True)

    asyncio.run(body())


def test_another_engine_answers_before_the_first_byte(stack: Stack) -> None:
    async def body() -> None:
        run = new_id()
        async with an_engine(replying(a_reply([1], [2]))) as engine:
            down = [f"http://127.0.0.1:{find_port()}" for _ in range(3)]
            async with a_gateway(stack.kafka, *down, engine.url, run=run) as stand:
                for number in range(8):
                    status, _, _ = await post(stand, f"/{run}-{number}/p/v1/chat/completions", ASKED)
                    assert status == 200
                assert {step.engine for step in await stand.steps(run)} == {engine.url}

    asyncio.run(body())


def test_an_engines_refusal_passes_unchanged(stack: Stack) -> None:
    refusal = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED | {"stream": True})
        assert (status, json.loads(reply)) == (400, refusal)
        step = await one_step(stand, run)
        assert (step.status, step.capture.reasons) == ("failed", ("status_400", "failed"))

    with_engine(stack, replying(refusal, status=400), body)


def test_an_engine_without_token_ids_is_recorded_and_named(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    reply = a_reply([1, 2], [3])
    del reply["prompt_token_ids"], reply["choices"][0]["token_ids"]

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        for _ in range(2):
            status, _, found = await post(stand, f"/{run}/p/v1/chat/completions", ASKED)
            assert (status, json.loads(found)) == (200, reply), "the agent is not to suffer"
        for step in await stand.steps(run):
            assert (step.status, step.capture.reasons) == ("complete", ("no_prompt_ids", "no_token_ids"))
        warned = [record for record in caplog.records if record.message == "a step cannot be trained"]
        assert [vars(record)["reason"] for record in warned] == ["no_prompt_ids", "no_token_ids"], "once a run"
        assert "vLLM" in vars(warned[0])["mend"]

    with_engine(stack, replying(reply), body)


async def break_off(request: web.Request, events: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(event)
    assert request.transport is not None
    request.transport.abort()
    return response


def test_a_stream_that_breaks_off_ends_with_an_error_and_a_partial_step(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        path = f"/{run}/p/v1/chat/completions"
        status, _, reply = await post(stand, path, ASKED | {"stream": True})
        assert status == 200
        assert reply.count(b"data: ") == 4
        assert b"[DONE]" not in reply
        assert engine.url in message(reply.split(b"\n\n")[-2])
        step = await one_step(stand, run)
        assert (step.status, list(unpack_ids(step.response_ids))) == ("partial", [4, 5])

    with_engine(stack, lambda request: break_off(request, chunks([1, 2], [4, 5, 6])[:3]), body)


def test_a_stream_that_stops_short_without_a_word_is_partial(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED | {"stream": True})
        assert (status, b"[DONE]" in reply, b'"error"' in reply) == (200, False, True)
        assert (await one_step(stand, run)).capture.reasons == ("stream_broken", "partial")

    with_engine(stack, streaming(chunks([1, 2], [4, 5, 6])[:3]), body)


def test_an_engines_error_within_a_stream_passes(stack: Stack) -> None:
    events = [*chunks([1], [2, 3])[:2], b'data: {"error": {"message": "out of memory"}}\n\n', b"data: [DONE]\n\n"]

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED | {"stream": True})
        assert (status, reply) == (200, b"".join(events))
        assert (await one_step(stand, run)).capture.reasons == ("engine_error", "partial")

    with_engine(stack, streaming(events), body)


def test_an_agent_that_leaves_stops_the_engine(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        hold = asyncio.Event()
        engine.answer = streaming(chunks([1, 2], [4, 5, 6, 7]), hold)
        async with AsyncOpenAI(base_url=f"{stand.url}/{run}/p/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            await stream.__anext__()
            await stream.close()
        await wait_for(engine.gone.is_set, "the engine's connection is closed")
        step = await one_step(stand, run)
        assert (step.status, step.capture.reasons) == ("partial", ("hung_up", "partial"))
        assert list(unpack_ids(step.response_ids)) == [4, 5]

    with_engine(stack, replying({}), body)


def test_an_agent_that_leaves_before_a_whole_reply_stops_the_engine(stack: Stack) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        call = asyncio.create_task(post(stand, f"/{run}/p/v1/chat/completions", ASKED))
        await wait_for(lambda: bool(engine.bodies), "the engine was asked")
        call.cancel()
        await wait_for(engine.gone.is_set, "the engine's connection is closed")
        assert (await one_step(stand, run)).status == "partial"

    with_engine(stack, never, body)


def test_a_silent_engine_is_not_waited_for_for_ever(stack: Stack) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED)
        assert status == 504
        assert "CLAW_GATEWAY_READ_TIMEOUT" in message(reply)
        assert (await one_step(stand, run)).status == "failed"

    with_engine(stack, never, body, read_timeout=0.3)


def test_calls_in_flight_are_bounded(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        hold = asyncio.Event()
        engine.answer = streaming(chunks([1], [2]), hold)
        path = f"/{run}/p/v1/chat/completions"
        first = asyncio.create_task(post(stand, path, ASKED | {"stream": True}))
        await wait_for(lambda: bool(engine.bodies), "the engine was asked")
        status, headers, reply = await post(stand, path, ASKED)
        assert (status, headers["Retry-After"], "1 calls" in message(reply)) == (503, "1", True)
        hold.set()
        assert (await first)[0] == 200

    with_engine(stack, replying({}), body, max_in_flight=1)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/t/p/v1/chat/completions", b"{", 400, "not JSON"),
        ("/t/p/v1/chat/completions", b"[]", 400, "object"),
        ("/t/p/v1/chat/completions", {"messages": "x"}, 400, "messages"),
        ("/-t/p/v1/chat/completions", ASKED, 400, "trajectory_uid"),
        ("/t/p%20p/v1/chat/completions", ASKED, 400, "prompt_uid"),
        (f"/t/{'p' * 129}/v1/chat/completions", ASKED, 400, "128"),
        ("/t/p/v1/chat/completions", b" " * 5000, 413, "CLAW_GATEWAY_MAX_BODY_BYTES"),
        ("/rewards", b" " * 5000, 413, "CLAW_GATEWAY_MAX_BODY_BYTES"),
        ("/t/p/v1/../../etc", ASKED, 404, "entry points"),
    ],
)
def test_wrong_requests_reach_no_engine(stack: Stack, path: str, body: Any, status: int, word: str) -> None:
    async def check(stand: Stand, engine: Engine, run: str) -> None:
        found, _, reply = await post(stand, path, body)
        assert (found, word in message(reply)) == (status, True), reply
        assert engine.bodies == []
        assert await stand.facts(run) == []

    with_engine(stack, replying(a_reply([1], [2])), check, max_body_bytes=4096)


def test_a_body_that_is_not_said_to_be_json_is_refused(stack: Stack) -> None:
    async def check(stand: Stand, engine: Engine, run: str) -> None:
        url = f"{stand.url}/{run}/p/v1/chat/completions"
        async with stand.http.post(url, data=json.dumps(ASKED), headers={"content-type": "text/plain"}) as response:
            assert (response.status, "application/json" in message(await response.read())) == (415, True)
        assert engine.bodies == []

    with_engine(stack, replying(a_reply([1], [2])), check)


def test_a_body_that_never_says_its_length_is_bounded_too(stack: Stack) -> None:
    async def check(stand: Stand, engine: Engine, run: str) -> None:
        async def parts() -> Any:
            for _ in range(100):
                yield b" " * 1000

        for path in ("/t/p/v1/chat/completions", "/rewards"):
            async with stand.http.post(stand.url + path, data=parts(), headers=JSON) as response:
                assert response.status == 413
        assert engine.bodies == []

    with_engine(stack, replying({}), check, max_body_bytes=4096)


def test_a_step_that_no_record_holds_is_refused_and_answered(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await post(stand, f"/{run}/p/v1/chat/completions", {"messages": ["x" * 9_000_000]})
        assert (status, "too large" in message(reply)) == (413, True)
        step = await one_step(stand, run)
        assert (step.status, step.capture.reasons) == ("failed", ("too_large", "failed"))

    with_engine(stack, replying(a_reply([1], [2])), body)


@pytest.mark.parametrize("text", ["<html>hello</html>", "", '{"choices": ['])
def test_a_reply_that_is_no_completion_is_refused_and_recorded(stack: Stack, text: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="text/html")

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        status, _, reply = await post(stand, f"/{run}/p/v1/chat/completions", ASKED)
        assert (status, engine.url in message(reply), "base URL" in message(reply)) == (502, True, True)
        step = await one_step(stand, run)
        assert (step.status, step.capture.reasons[0]) == ("failed", "unparsable_reply")

    with_engine(stack, answer, body)


def test_what_no_record_can_hold_of_a_reply_is_left_out(stack: Stack) -> None:
    reply = a_reply([1], [2], usage={"prompt_tokens": 10**30, "completion_tokens": 1})
    reply["choices"][0] |= {
        "weight_versions": [{"version": 10**30, "start": -1, "end": 10**20}],
        "stop_reason": 10**30,
    }

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        assert (await post(stand, f"/{run}/p/v1/chat/completions", ASKED))[0] == 200
        step = await one_step(stand, run)
        assert (step.capture.reasons, step.policy_version, step.stop_reason) == (("no_usage",), None, str(10**30))

    with_engine(stack, replying(reply), body)


def test_garbage_on_the_wire_harms_nobody(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        host, port = stand.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert (await post(stand, f"/{run}/p/v1/chat/completions", ASKED))[0] == 200

    with_engine(stack, replying(a_reply([1], [2])), body)


def test_choices_of_one_call_are_steps_of_their_own(stack: Stack) -> None:
    reply = a_reply([1, 2], [3])
    reply["choices"].append(reply["choices"][0] | {"index": 1, "token_ids": [4]})
    reply["usage"]["completion_tokens"] = 2

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        _, headers, _ = await post(stand, f"/{run}/p/v1/chat/completions", ASKED | {"n": 2})
        call = headers["x-claw-step-id"]
        steps = await stand.steps(run)
        assert [(s.step_id, s.choice, list(unpack_ids(s.response_ids)), s.capture.ok) for s in steps] == [
            (call, 0, [3], True),
            (f"{call}.1", 1, [4], True),
        ]

    with_engine(stack, replying(reply), body)
