"""What a run says of its calls, on real parts: models, sampling, versions, media, routed experts, held tokens."""

import asyncio
import base64
import functools
import io
import json
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from claw_r1.blobs import open_blobs
from claw_r1.codec import unpack_ids
from claw_r1.events import Reward
from tests.conftest import Stack
from tests.integration import gateway_stand
from tests.integration.gateway_stand import (
    Engine,
    Stand,
    a_reply,
    chunks,
    replying,
    streaming,
    wait_for,
)

pytestmark = pytest.mark.stack
USER = {"role": "user", "content": "hi"}
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()


with_engine = functools.partial(gateway_stand.with_engine, version="0.33.0")


async def send(stand: Stand, path: str, body: Any) -> tuple[int, Any]:
    async with stand.http.post(stand.url + path, json=body) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text


async def ask(stand: Stand, run: str, *messages: Any, **over: Any) -> tuple[int, Any]:
    said = {"model": "tiny", "messages": messages or [USER]}
    return await send(stand, f"/{run}/p/v1/chat/completions", said | over)


async def set_up(stand: Stand, run: str, **config: Any) -> None:
    status, _ = await send(stand, f"/runs/{run}", config)
    assert status == 200


def test_a_frozen_models_steps_are_marked_and_unknown_models_refused(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        await set_up(stand, run, models={"user": {"role": "frozen"}, "tiny": {}})
        assert (await ask(stand, run))[0] == 200
        assert (await ask(stand, run, model="user"))[0] == 200
        status, refused = await ask(stand, run, model="gpt")
        assert (status, refused["error"]["code"]) == (404, "model_not_found")
        assert [step.role for step in await stand.steps(run)] == ["policy", "frozen"]

    with_engine(stack, replying(a_reply([1], [2])), body)


def test_a_runs_sampling_goes_before_the_agents(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        await set_up(stand, run, sampling={"temperature": 1.0, "top_p": 1.0})
        assert (await ask(stand, run, temperature=0.2, top_k=5))[0] == 200
        asked = engine.asked[0]
        assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (1.0, 1.0, 5)
        (step,) = await stand.steps(run)
        assert (step.sampling.temperature, step.sampling.top_p, step.sampling.top_k) == (1.0, 1.0, 5)

    with_engine(stack, replying(a_reply([1], [2])), body)


def test_tokens_get_the_version_that_the_engine_served_all_along(stack: Stack) -> None:
    reply = a_reply([1], [2])
    del reply["choices"][0]["weight_versions"]

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        assert (await ask(stand, run))[0] == 200

        async def change(request: web.Request) -> web.StreamResponse:
            assert (await send(stand, "/policy", {"version": 8, "run_id": run}))[0] == 200
            return web.json_response(reply)

        assert (await send(stand, "/policy", {"version": 7, "run_id": run}))[0] == 200
        assert (await ask(stand, run))[0] == 200
        engine.answer = change
        assert (await ask(stand, run))[0] == 200
        engine.answer = streaming(chunks([1], [2, 3]))
        assert (await ask(stand, run, stream=True))[0] == 200
        assert [step.policy_version for step in await stand.steps(run)] == [None, 7, None, 8]

    with_engine(stack, replying(reply), body)


def test_routed_experts_are_stored_and_the_stream_is_made(stack: Stack, tmp_path: Any) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(12, dtype=np.uint8).reshape(2, 3, 2))
    reply = a_reply([1], [2, 3])
    reply["choices"][0]["routed_experts"] = base64.b64encode(file.getvalue()).decode()

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        await set_up(stand, run, routed_experts=True)
        status, stream = await ask(stand, run, stream=True)
        assert (status, "data: [DONE]" in stream, '"content":"hello"' in stream) == (200, True, True)
        assert (engine.asked[0]["stream"], engine.asked[0]["return_routed_experts"]) == (False, True)
        status, events = await send(
            stand, f"/{run}/p/v1/messages", {"model": "tiny", "max_tokens": 5, "messages": [USER], "stream": True}
        )
        assert (status, "event: message_stop" in events, '"text":"hello"' in events) == (200, True, True)
        for step in await stand.steps(run):
            assert step.capture.ok
            assert step.routed_experts is not None
            assert open_blobs(str(tmp_path)).get(step.routed_experts.sha256) == file.getvalue()

    with_engine(stack, replying(reply), body, blobs=str(tmp_path))


def test_a_step_whose_experts_cannot_be_stored_is_answered_all_the_same(stack: Stack, tmp_path: Any) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(4, dtype=np.int16).reshape(2, 2, 1))
    reply = a_reply([1, 2], [3])
    reply["choices"][0]["routed_experts"] = base64.b64encode(file.getvalue()).decode()

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        (tmp_path / "blobs").write_text("where the folder should be")
        status, refused = await ask(stand, run)
        assert (status, refused["error"]["code"]) == (503, "not_recorded")
        (step,) = await stand.steps(run)
        assert (step.status, step.capture.reasons) == ("failed", ("not_recorded", "failed"))
        await stand.check_announced(run)

    with_engine(stack, replying(reply), body, blobs=str(tmp_path / "blobs"))


def test_a_models_name_that_no_record_can_hold_is_refused(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        said = io.BytesIO(json.dumps({"model": "m" * 9 * 2**20, "messages": [USER]}).encode())
        url = f"{stand.url}/{run}/p/v1/chat/completions"
        async with stand.http.post(url, data=said, headers={"content-type": "application/json"}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (413, "step_too_large")
        await stand.check_announced(run)

    with_engine(stack, replying(a_reply([1], [2])), body)


def test_an_sglang_is_asked_whole_and_the_agent_gets_its_stream(stack: Stack) -> None:
    """SGLang refuses a streamed chat that asks for token ids."""

    async def sglang(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if asked["stream"] or not (asked["return_meta_info"] and asked["return_prompt_token_ids"]):
            return web.json_response({"message": "not supported with streaming"}, status=400)
        reply = a_reply([], [2, 3])
        del reply["prompt_token_ids"], reply["choices"][0]["token_ids"], reply["choices"][0]["weight_versions"]
        meta = {"output_token_logprobs": [[-0.5, 2, None], [-0.5, 3, None]], "weight_version": "4"}
        reply["choices"][0] |= {"prompt_token_ids": [1], "meta_info": meta}
        reply["usage"]["prompt_tokens"] = 1
        return web.json_response(reply)

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        (name,) = [known.id for known in stand.gateway.fleet.roster.here]
        async with stand.http.patch(f"{stand.url}/engines/{name}", json={"kind": "sglang"}) as response:
            assert response.status == 200
        status, stream = await ask(stand, run, stream=True)
        assert (status, '"content":"hello"' in stream, "[DONE]" in stream) == (200, True, True)
        (step,) = await stand.steps(run)
        assert (step.capture.ok, step.policy_version, list(unpack_ids(step.response_ids))) == (True, 4, [2, 3])

    with_engine(stack, sglang, body)


def test_media_are_stored_and_referred_to(stack: Stack, tmp_path: Any) -> None:
    url = f"data:image/png;base64,{PIXEL}"
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        assert (await ask(stand, run, picture))[0] == 200
        assert engine.asked[0]["messages"] == [picture]
        (step,) = await stand.steps(run)
        (ref,) = step.multi_modal_data
        assert open_blobs(str(tmp_path)).get(ref.sha256) == base64.b64decode(PIXEL)
        assert PIXEL.encode() not in (step.new_messages or b"")
        assert ref.sha256.encode() in (step.new_messages or b"")
        private = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": engine.url + "/x.png"}}]}
        status, refused = await ask(stand, run, private)
        assert (status, refused["error"]["code"]) == (400, "media_refused")
        assert len(engine.bodies) == 1

    with_engine(stack, replying(a_reply([1], [2])), body, blobs=str(tmp_path))


END = 9


def conversation(request: dict[str, Any]) -> list[int]:
    """A chat template: a role's number, a token a character, END; replies are spelt otherwise than they are sampled."""
    tokens = []
    for message in request["messages"]:
        tokens += [{"user": 100, "assistant": 200}[message["role"]], *map(ord, message["content"]), END]
    return [*tokens, 200] if request.get("add_generation_prompt", True) else tokens


async def rendering(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    if request.path == "/tokenize":
        return web.json_response({"tokens": conversation(asked)})
    given = (asked.get("kv_transfer_params") or {}).get("prompt_token_ids")
    return web.json_response(a_reply(given or conversation(asked), [7, 8, END], text="yes"))


def test_a_conversation_goes_on_with_the_tokens_that_were_sampled(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        await set_up(stand, run, tito=True)
        await wait_for(lambda: all(e.capabilities for e in stand.gateway.fleet.roster.here), "the engine is known")
        said: list[Any] = [USER]
        for text in ("and", "so"):
            status, reply = await ask(stand, run, *said)
            assert status == 200
            said += [reply["choices"][0]["message"], {"role": "user", "content": text}]
        assert (await ask(stand, run, *said))[0] == 200
        assert (await ask(stand, run, *said[:2], {"role": "user", "content": "other"}))[0] == 200
        assert (await ask(stand, run, {"role": "user", "content": "new"}, *said[1:]))[0] == 200
        first, second, third, branch, rewritten = await stand.steps(run)
        assert list(unpack_ids(first.new_prompt_ids)) == conversation({"messages": said[:1]})
        assert list(unpack_ids(second.new_prompt_ids)) == conversation({"messages": said[2:3]})
        assert (second.parent_step_id, third.parent_step_id) == (first.step_id, second.step_id)
        assert (branch.parent_step_id, rewritten.parent_step_id) == (first.step_id, None)
        assert {step.capture.ok for step in (first, second, third, branch, rewritten)} == {True}

    with_engine(stack, rendering, body)


def test_a_long_conversation_goes_on_too_and_one_with_other_tools_does_not(stack: Stack) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if request.path != "/tokenize":
            return await rendering(request)
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        body = json.dumps({"tokens": conversation(asked)}).encode()
        for start in range(0, len(body), 1000):  # as a large body comes: in parts
            await response.write(body[start : start + 1000])
            await asyncio.sleep(0)
        await response.write_eof()
        return response

    async def body(stand: Stand, engine: Engine, run: str) -> None:
        await set_up(stand, run, tito=True)
        await wait_for(lambda: all(e.capabilities for e in stand.gateway.fleet.roster.here), "the engine is known")
        said: list[Any] = [{"role": "user", "content": "x" * 50_000}]
        _, reply = await ask(stand, run, *said)
        said += [reply["choices"][0]["message"], {"role": "user", "content": "and"}]
        assert (await ask(stand, run, *said))[0] == 200
        assert "kv_transfer_params" in engine.asked[-1]
        for over in ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {"continue_final_message": True}):
            url = f"/{run}/p/v1/chat/completions"
            assert (await send(stand, url, {"model": "tiny", "messages": said} | over))[0] == 200
            assert "kv_transfer_params" not in engine.asked[-1], "the engine has to see what is new beside the messages"

    with_engine(stack, answer, body)


def test_feedback_finds_the_step_by_the_replys_id(stack: Stack) -> None:
    async def body(stand: Stand, engine: Engine, run: str) -> None:
        _, chat = await ask(stand, f"{run}-1")
        _, message = await send(
            stand, f"/{run}-2/p/v1/messages", {"model": "tiny", "max_tokens": 5, "messages": [USER]}
        )
        _, response = await send(stand, f"/{run}-3/p/v1/responses", {"model": "tiny", "input": "hi"})
        for reply in (chat, message, response):
            status, _ = await send(stand, "/feedback", {"response_id": reply["id"], "value": 1.0})
            assert status == 200
        assert (await send(stand, "/feedback", {"response_id": "nobody", "value": 1.0}))[0] == 404
        facts = await stand.facts(run)
        steps = {step.trajectory_uid: step.step_id for step in await stand.steps(run)}
        assert {f.trajectory_uid: f.step_id for f in facts if isinstance(f, Reward)} == steps
        assert len(steps) == 3

    with_engine(stack, replying(a_reply([1], [2])), body)
