"""The client and a real gateway: what was said in a program is on the log, once, whatever happened on the way."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from claw_r1.client.aio import AsyncClient
from claw_r1.client.calls import GatewayAway, NotAllowed, NotKnown, Patience
from claw_r1.client.steps import Step as SampledStep
from claw_r1.client.sync import Client
from claw_r1.codec import restore_prompt, unpack_floats, unpack_ids
from claw_r1.events import Annotation, Decision, GroupOpen, Reward, Step, TrajectoryEnd, TrajectoryOpen
from claw_r1.ids import new_id
from claw_r1.keys import Secrets, mint
from claw_r1.local.ports import find_port
from claw_r1.settings import GatewaySettings
from tests.conftest import Stack
from tests.integration.gateway_stand import Stand, a_gateway, an_engine, an_unready_gateway, replying, wait_for
from tests.integration.test_gateway_rollout import only

pytestmark = pytest.mark.stack

SECRET = "one:0123456789abcdef0123456789abcdef"
COMPLETION: dict[str, Any] = {
    "id": "cmpl-1",
    "model": "tiny",
    "choices": [{"token_ids": [7, 8], "logprobs": {"token_logprobs": [-0.5, -0.25]}, "finish_reason": "stop"}],
}


def with_gateway(stack: Stack, body: Callable[[Stand, str], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        name = new_id()
        async with (
            an_engine(replying(COMPLETION)) as engine,
            a_gateway(stack.kafka, engine.url, run=name, **settings) as stand,
        ):
            await body(stand, name)

    asyncio.run(run())


def play(url: str, run: str, key: str | None) -> list[str]:
    """A white-box agent of two turns, as a program that waits."""
    with Client(url, api_key=key) as client:
        group = client.open_group(size=1, prompt_uid=f"{run}-p", run_id=run, task_id="sum/1")
        with client.trajectory(prompt_uid=group.prompt_uid, run_id=run, metadata={"env": np.int64(3)}) as t:
            prompt, steps = np.array([1, 2, 3]), []
            for _ in range(2):
                found = t.generate(prompt, {"temperature": 1.0, "logprobs": True})
                steps.append(t.submit_step(prompt, found.token_ids, found.log_probs, policy_version=4))
                prompt = np.concatenate([prompt, found.token_ids, [9]])
            t.annotate(steps[0], "values", np.array([0.5, 0.25]))
            t.reward(0.5)
            t.reward(1.0)
            client.feedback(trajectory_uid=t.trajectory_uid, step_id=steps[1], text="fine", author="ann")
            client.decide(
                "quality", value=0.5, prompt_uid=t.prompt_uid, trajectory_uid=t.trajectory_uid, run_id=run, author="ann"
            )
        return steps


async def play_async(url: str, run: str, key: str | None) -> list[str]:
    """The same, as a program that awaits."""
    async with AsyncClient(url, api_key=key) as client:
        group = await client.open_group(size=1, prompt_uid=f"{run}-p", run_id=run, task_id="sum/1")
        async with client.trajectory(prompt_uid=group.prompt_uid, run_id=run, metadata={"env": np.int64(3)}) as t:
            prompt, steps = np.array([1, 2, 3]), []
            for _ in range(2):
                found = await t.generate(prompt, {"temperature": 1.0, "logprobs": True})
                steps.append(await t.submit_step(prompt, found.token_ids, found.log_probs, policy_version=4))
                prompt = np.concatenate([prompt, found.token_ids, [9]])
            await t.annotate(steps[0], "values", np.array([0.5, 0.25]))
            await t.reward(0.5)
            await t.reward(1.0)
            await client.feedback(trajectory_uid=t.trajectory_uid, step_id=steps[1], text="fine", author="ann")
            await client.decide(
                "quality", value=0.5, prompt_uid=t.prompt_uid, trajectory_uid=t.trajectory_uid, run_id=run, author="ann"
            )
        return steps


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("secret", ["", SECRET], ids=["open", "keys"])
def test_a_white_box_agent(stack: Stack, kind: str, secret: str) -> None:
    async def body(stand: Stand, run: str) -> None:
        key = None
        if secret:
            secrets = Secrets.of(GatewaySettings.model_validate({"secret": secret}).secret)
            key = mint(secrets, scope="admin", now=time.time(), lifetime=600)
        player = play_async(stand.url, run, key) if kind == "async" else asyncio.to_thread(play, stand.url, run, key)
        step_ids = await player
        facts = await stand.facts(run)
        first, second = (fact for fact in facts if isinstance(fact, Step))
        assert [first.step_id, second.step_id] == step_ids
        assert [first.step_index, second.step_index] == [0, 1]
        assert first.rollout_log_probs is not None
        assert list(unpack_floats(first.rollout_log_probs)) == [-0.5, -0.25]
        context = restore_prompt(second, first.new_prompt_ids + first.response_ids)
        assert list(unpack_ids(context)) == [1, 2, 3, 7, 8, 9]
        assert (only(facts, GroupOpen).size, only(facts, TrajectoryOpen).metadata) == (1, {"env": 3})
        rewards = [fact for fact in facts if isinstance(fact, Reward)]
        assert [(r.value, r.revision, r.self_reported) for r in rewards] == [(0.5, 0, False), (1.0, 1, False)]
        assert list(unpack_floats(only(facts, Annotation).values)) == [0.5, 0.25]
        decided = [(fact.action, fact.value, fact.author) for fact in facts if isinstance(fact, Decision)]
        assert decided == [("note", "fine", "ann"), ("quality", 0.5, "ann")]
        assert only(facts, TrajectoryEnd).status == "completed"

    with_gateway(stack, body, secret=secret)


def test_an_agent_that_fails_says_so(stack: Stack) -> None:
    def fail(url: str, run: str) -> None:
        with Client(url) as client, client.trajectory(run_id=run):
            raise ValueError("no answer")

    async def body(stand: Stand, run: str) -> None:
        with pytest.raises(ValueError, match="no answer"):
            await asyncio.to_thread(fail, stand.url, run)
        end = only(await stand.facts(run), TrajectoryEnd)
        assert (end.status, end.reason) == ("failed", "ValueError: no answer")

    with_gateway(stack, body)


def test_errors_have_types(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        async with AsyncClient(stand.url) as nobody:
            with pytest.raises(NotAllowed) as refused:
                await nobody.open_group()
            assert refused.value.code == "no_key"
        secrets = Secrets.of(GatewaySettings.model_validate({"secret": SECRET}).secret)
        key = mint(secrets, scope="admin", now=time.time(), lifetime=600)
        async with AsyncClient(stand.url, api_key=key) as client:
            with pytest.raises(NotKnown) as unknown:
                await client.reward(1.0, trajectory_uid="nobody-knows-it")
            assert (unknown.value.code, unknown.value.param) == ("unknown_trajectory", "prompt_uid")

    with_gateway(stack, body, secret=SECRET)


def test_a_gateway_that_comes_late_gets_every_word_once(stack: Stack) -> None:
    """Broken connections, a lost answer and a gateway that is not there yet: each step is one fact in effect."""

    async def run() -> None:
        name, port = new_id(), find_port()
        lost = 0
        inner = f"http://127.0.0.1:{find_port()}"

        async def relay(request: web.Request) -> web.StreamResponse:
            """Loses every second answer after the gateway gave it."""
            nonlocal lost
            async with http.post(
                inner + request.path, data=await request.read(), headers={"content-type": "application/msgpack"}
            ) as response:
                answer = web.Response(body=await response.read(), status=response.status)
            lost += 1
            if lost % 2:
                assert request.transport is not None
                request.transport.abort()
            return answer

        app = web.Application()
        app.router.add_post("/{tail:.*}", relay)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        async with (
            AsyncClient(f"http://127.0.0.1:{port}", patience=Patience(tries=300, first=0.05, longest=0.2)) as client,
            an_unready_gateway(stack.kafka, run=name, port=int(inner.rsplit(":", 1)[1])) as stand,
        ):
            http = stand.http
            playing = asyncio.create_task(client.init_trajectory(prompt_uid="p", trajectory_uid=f"{name}-t"))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            try:
                await playing
                await wait_for(lambda: stand.gateway.ready() is None, "the gateway is ready")
                steps = [SampledStep(prompt_ids=[1] * n, response_ids=[2], log_probs=[-1.0]) for n in range(1, 6)]
                for step in steps:
                    await client.submit_steps([step], trajectory_uid=f"{name}-t", prompt_uid="p")
            finally:
                await runner.cleanup()
            recorded = await stand.steps(name)
            assert len(recorded) > len(steps), "answers were lost"
            assert len({step.step_id for step in recorded}) == len(steps)

    asyncio.run(run())


def test_patience_with_a_gateway_that_is_away_ends() -> None:
    with pytest.raises(GatewayAway), Client(f"http://127.0.0.1:{find_port()}", patience=Patience(2, 0.01)) as client:
        client.open_group()
