"""Keys at a real gateway: every path with every scope, plain paths, limits, and what engine and log get to see."""

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from openai import AsyncOpenAI, AuthenticationError, RateLimitError
from pydantic import SecretStr

from claw_r1.events import Reward
from claw_r1.ids import new_id
from claw_r1.keys import SCOPES, Secrets, mint
from gateway.routes import ENTRY_POINTS
from tests.conftest import Stack
from tests.integration.gateway_stand import Engine, Stand, a_gateway, a_reply, an_engine, replying, wait_for

pytestmark = pytest.mark.stack

SECRET = f"a:{'s' * 32}"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def a_key(run: str | None, secret: str = SECRET, **over: Any) -> str:
    fields: dict[str, Any] = {"scope": "rollout", "now": time.time(), "lifetime": 600.0} | over
    return mint(Secrets.of(SecretStr(secret)), run_id=run, **fields)


def with_gateway(
    stack: Stack, body: Callable[[Stand, str, Engine], Awaitable[None]], secret: str = SECRET, **settings: Any
) -> None:
    async def run() -> None:
        name = new_id()
        async with (
            an_engine(replying(a_reply([1, 2, 3], [4, 5]))) as engine,
            a_gateway(stack.kafka, engine.url, run=name, secret=secret, **settings) as stand,
        ):
            await body(stand, name, engine)

    asyncio.run(run())


async def ask(
    stand: Stand,
    method: str,
    path: str,
    key: str | None = None,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    sent = (headers or {}) | ({"authorization": f"Bearer {key}"} if key else {})
    async with stand.http.request(
        method, stand.url + path, json=None if method == "GET" else body or {}, headers=sent
    ) as response:
        raw = await response.read()
        return response.status, json.loads(raw) if response.content_type == "application/json" else raw


def test_every_path_is_refused_to_the_scopes_that_are_not_its_own(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        for entry, scopes in ENTRY_POINTS.items():
            if not scopes or entry == "GET /metrics":
                continue
            method, path = entry.split(" ")
            path = re.sub(r"\{[a-z_]+\}", run, path)
            assert (await ask(stand, method, path))[0] == 401, entry
            assert (await ask(stand, method, path, a_key(run, f"a:{'x' * 32}")))[0] == 401, entry
            for scope in SCOPES:
                status, found = await ask(stand, method, path, a_key(run, scope=scope))
                if scope in scopes:
                    assert status not in (401, 403), (entry, scope, found)
                else:
                    assert status == 403, (entry, scope)
                    assert f"a {scope} key may not use {entry}" in found["error"]["message"]

    with_gateway(stack, check)


def test_a_plain_path_takes_its_place_from_the_key(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        key = a_key(f"{run}-x", trajectory_uid=f"{run}-t", prompt_uid="p", channel="val")
        async with AsyncOpenAI(base_url=f"{stand.url}/v1", api_key=key) as client:
            reply = await client.chat.completions.create(**CHAT)
        assert reply.choices[0].message.content == "hello"
        (step,) = await stand.steps(f"{run}-x")
        assert (step.trajectory_uid, step.prompt_uid, step.channel) == (f"{run}-t", "p", "val")
        other = a_key(f"{run}-y")
        status, found = await ask(stand, "POST", f"/{run}-t/p/v1/chat/completions", other, CHAT)
        assert (status, found["error"]["code"]) == (403, "other_run")
        assert len(engine.bodies) == 1

    with_gateway(stack, check)


def test_a_known_trajectory_needs_no_prompt_in_its_key(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        key = a_key(run, trajectory_uid=f"{run}-t")
        status, found = await ask(stand, "POST", "/v1/chat/completions", key, CHAT)
        assert (status, found["error"]["code"]) == (404, "no_prompt")
        assert (await ask(stand, "POST", f"/{run}-t/p/v1/register_trajectory", key))[0] == 200
        assert (await ask(stand, "POST", "/v1/chat/completions", key, CHAT))[0] == 200
        assert [step.prompt_uid for step in await stand.steps(run)] == ["p"]

    with_gateway(stack, check)


@pytest.mark.parametrize("secret", [SECRET, ""])
def test_the_session_key_of_init_serves_the_plain_path(stack: Stack, secret: str) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        driver = a_key(run) if secret else None
        status, begun = await ask(stand, "POST", "/init_trajectory", driver, {"prompt_uid": "p"})
        assert status == 200, begun
        for base in (f"{stand.url}/v1", begun["base_url"]):
            async with AsyncOpenAI(base_url=base, api_key=begun["session_key"]) as client:
                await client.chat.completions.create(**CHAT)
        assert {step.trajectory_uid for step in await stand.steps(run)} == {begun["trajectory_uid"]}
        reward = {"trajectory_uid": begun["trajectory_uid"], "value": 1.0}
        assert (await ask(stand, "POST", "/rewards", begun["session_key"], reward))[0] == 200
        judge = a_key(run, scope="reward") if secret else None
        assert (await ask(stand, "POST", "/rewards", judge, reward | {"source": "judge"}))[0] == 200
        found = {fact.source: fact.self_reported for fact in await stand.facts(run) if isinstance(fact, Reward)}
        assert found == {"reward": True, "judge": False}

    with_gateway(stack, check, secret)


def test_a_key_of_another_run_or_trajectory_changes_nothing(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        mine, theirs = f"{run}-mine", f"{run}-theirs"
        assert (await ask(stand, "POST", f"/{theirs}/p/v1/register_trajectory", a_key(f"{run}-b")))[0] == 200
        before = await stand.facts(f"{run}-b")
        bound = {"trajectory_uid": mine, "prompt_uid": "p"}
        target = {"trajectory_uid": theirs, "prompt_uid": "p"}
        calls = [
            ("/rewards", target | {"value": 1.0}),
            ("/rewards", [bound | {"value": 1.0}, target | {"value": 1.0}]),
            ("/rewards", target | {"value": 1.0, "run_id": f"{run}-b"}),
            ("/v1/register_trajectory", target),
            ("/v1/complete_trajectory", target),
            (f"/complete_trajectory/{theirs}", {}),
            (f"/{theirs}/p/v1/complete_trajectory", {}),
            (f"/{theirs}/p/v1/chat/completions", CHAT),
            ("/submit_steps", {"steps": [target | {"prompt_ids": [1], "response_ids": [2]}]}),
        ]
        for key in (a_key(run), a_key(run, **bound), a_key(f"{run}-b", **bound)):
            for path, body in calls:
                status, found = await ask(stand, "POST", path, key, body)
                assert status in (403, 409), (path, found)
                assert found["error"]["code"] in ("other_run", "other_trajectory")
        assert await stand.facts(f"{run}-b") == before
        assert await stand.facts(run) == []
        assert engine.bodies == []

    with_gateway(stack, check)


def test_an_engine_never_sees_a_key(stack: Stack) -> None:
    seen: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response(a_reply([1], [2]))

    async def check(stand: Stand, run: str, engine: Engine) -> None:
        engine.answer = answer
        ours = mint(Secrets.of(SecretStr("")), scope="rollout", run_id=run, now=time.time(), lifetime=60.0)
        for number, value in enumerate((f"Bearer {ours}", "Bearer of-the-engine")):
            path = f"/{run}-{number}/p/v1/chat/completions"
            assert (await ask(stand, "POST", path, None, CHAT, {"authorization": value, "x-api-key": ours}))[0] == 200
        assert [headers.get("authorization") for headers in seen] == [None, "Bearer of-the-engine"]
        assert not any("x-api-key" in headers for headers in seen)

    with_gateway(stack, check, "")


def test_refusals_come_in_the_callers_words(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        async with AsyncOpenAI(base_url=f"{stand.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(AuthenticationError, match="init_trajectory"):
                await client.chat.completions.create(**CHAT)
        status, found = await ask(stand, "POST", "/v1/messages", None, CHAT, {"x-api-key": "none"})
        assert (status, found["type"], found["error"]["type"]) == (401, "error", "authentication_error")
        status, found = await ask(stand, "POST", "/v1/messages?beta=true", a_key(run, scope="reward"), CHAT)
        assert (status, found["type"], found["error"]["type"]) == (403, "error", "permission_error")
        status, found = await ask(stand, "GET", "/v1/messages", None)
        assert (status, found["type"]) == (405, "error")

    with_gateway(stack, check)


def test_a_large_body_without_a_key_is_answered(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        large = b'{"messages": ["' + b"y" * 20_000_000 + b'"]}'
        for path in ("/v1/chat/completions", "/rewards"):
            async with stand.http.post(
                stand.url + path, data=io.BytesIO(large), headers={"content-type": "application/json"}
            ) as response:
                assert response.status == 401

    with_gateway(stack, check)


def test_a_trainer_of_one_run_pauses_the_engines_of_its_policies_alone(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        mine, judge = engine.url.removeprefix("http://").replace(":", "-"), "127.0.0.1-1"
        operator, trainer = a_key(None, scope="admin"), a_key(run, scope="trainer")

        async def paused() -> dict[str, Any]:
            _, found = await ask(stand, "GET", "/engines", operator)
            return {entry["id"]: entry["paused"] for entry in found["engines"]}

        assert (await ask(stand, "POST", "/engines", operator, {"url": "http://127.0.0.1:1"}))[0] == 200
        assert (await ask(stand, "POST", "/engines/pause", trainer))[0] == 200
        assert await paused() == {mine: "hold", judge: "hold"}, "a run without a map is served by any"
        assert (await ask(stand, "POST", "/engines/resume", trainer))[0] == 200
        models = {"*": {"engines": [mine]}, "judge": {"engines": [judge], "role": "frozen"}}
        assert (await ask(stand, "POST", f"/runs/{run}", trainer, {"models": models}))[0] == 200
        assert (await ask(stand, "POST", "/engines/pause", trainer))[0] == 200
        assert await paused() == {mine: "hold", judge: None}
        for deed in ("pause", "resume"):
            status, found = await ask(stand, "POST", f"/engines/{deed}", trainer, {"engines": [mine, judge]})
            assert (status, found["error"]["code"], judge in found["error"]["message"]) == (403, "other_engine", True)
        assert (await ask(stand, "POST", "/engines/resume", trainer, {"engines": [mine]}))[0] == 200
        for key in (operator, a_key(run, scope="admin")):
            assert (await ask(stand, "POST", "/engines/pause", key, {"engines": [judge]}))[0] == 200
            assert await paused() == {mine: None, judge: "hold"}
            assert (await ask(stand, "POST", "/engines/resume", key))[0] == 200

    with_gateway(stack, check)


def test_a_keys_calls_are_limited_and_others_go_on(stack: Stack) -> None:
    go = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return web.json_response(a_reply([1], [2]))

    async def check(stand: Stand, run: str, engine: Engine) -> None:
        engine.answer = answer
        key, other = (a_key(run, trajectory_uid=f"{run}-{n}", prompt_uid="p") for n in "ab")
        first = asyncio.create_task(ask(stand, "POST", "/v1/chat/completions", key, CHAT))
        await wait_for(lambda: len(engine.bodies) == 1, "the first call is at the engine")
        async with AsyncOpenAI(base_url=f"{stand.url}/v1", api_key=key, max_retries=0) as client:
            with pytest.raises(RateLimitError, match="CLAW_GATEWAY_KEY_CALLS") as limited:
                await client.chat.completions.create(**CHAT)
            assert limited.value.response.headers["retry-after"] == "1"
        second = asyncio.create_task(ask(stand, "POST", "/v1/chat/completions", other, CHAT))
        await wait_for(lambda: len(engine.bodies) == 2, "the other key's call is at the engine")
        go.set()
        assert [(await task)[0] for task in (first, second)] == [200, 200]
        assert (await ask(stand, "POST", "/v1/chat/completions", key, CHAT | {"user": "x"}))[0] == 200

    with_gateway(stack, check, key_calls=1)


def test_a_keys_tokens_and_bodies_are_limited(stack: Stack) -> None:
    async def check(stand: Stand, run: str, engine: Engine) -> None:
        key = a_key(run, trajectory_uid=f"{run}-t", prompt_uid="p")
        status, found = await ask(stand, "POST", "/v1/chat/completions", key, CHAT | {"max_tokens": 101})
        assert (status, found["error"]["param"], found["error"]["code"]) == (400, "max_tokens", "key_max_tokens")
        assert (await ask(stand, "POST", "/v1/chat/completions", key, CHAT | {"max_tokens": 100}))[0] == 200
        for path in ("/v1/chat/completions", "/rewards"):
            status, found = await ask(stand, "POST", path, key, CHAT | {"x": "y" * 3000})
            assert (status, found["error"]["code"]) == (413, "key_body_too_large")
        assert len(engine.bodies) == 1

    with_gateway(stack, check, key_max_tokens=100, key_body_bytes=2000)


def test_off_loopback_the_process_ends_with_what_to_do(stack: Stack) -> None:
    command = [sys.executable, "-m", "gateway"]
    env = {"CLAW_GATEWAY_HOST": "0.0.0.0", "CLAW_GATEWAY_PORT": "0", "CLAW_KAFKA": stack.kafka}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "CLAW_SECRET=ID:SECRET" in done.stderr
