"""One call made twice: to the engine itself, and through the gateway; and what became durable of the second."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession

from claw_r1.codec import restore_prompt, unpack_floats, unpack_ids
from claw_r1.events import Step
from claw_r1.ids import new_id
from tests.conftest import Stack
from tests.integration.gateway_stand import DEADLINE, Stand, a_gateway

# The engine's start counts to the first test's time.
REAL_ENGINE = [pytest.mark.stack, pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]
CAPTURE = {"return_token_ids": True, "logprobs": True}
# What sums of float32 in another order may differ by.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Choice:
    """One sampled answer, as ids and log-probs."""

    prompt: list[int]
    response: list[int]
    log_probs: list[float]
    finish_reason: str | None

    def check(self, step: Step, prompt: bytes | None = None) -> None:
        """The step holds exactly this."""
        ids = unpack_ids(step.new_prompt_ids if prompt is None else prompt)
        assert (step.status, step.capture.ok, step.capture.reasons) == ("complete", True, ())
        assert ids.tolist() == self.prompt
        assert unpack_ids(step.response_ids).tolist() == self.response
        stored = unpack_floats(step.rollout_log_probs or b"")
        assert stored.shape == (len(self.response),)
        np.testing.assert_allclose(stored, self.log_probs, atol=TOLERANCE)


@dataclass
class Bench:
    """A gateway before the real engine, and one trajectory."""

    stand: Stand
    vllm: str
    run: str

    @property
    def base(self) -> str:
        return f"{self.stand.url}/{self.run}-t/p1"

    async def direct(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the engine itself answers."""
        status, reply = await self.post(f"{self.vllm}{path}", body)
        assert status == 200, reply
        assert isinstance(reply, dict)
        return reply

    async def direct_choices(self, body: dict[str, Any]) -> list[Choice]:
        """What the engine samples for a chat."""
        reply = await self.direct("/v1/chat/completions", body | CAPTURE)
        return [
            Choice(
                reply["prompt_token_ids"],
                choice["token_ids"],
                [entry["logprob"] for entry in choice["logprobs"]["content"]],
                choice["finish_reason"],
            )
            for choice in reply["choices"]
        ]

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the gateway answers."""
        status, reply = await self.post(f"{self.base}{path}", body)
        assert status == 200, reply
        assert isinstance(reply, dict)
        return reply

    async def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The JSON events that the gateway streams, without the terminal one of chats."""
        return await read_events(self.stand.http, f"{self.base}{path}", body)

    async def post(self, url: str, body: dict[str, Any]) -> tuple[int, Any]:
        async with self.stand.http.post(url, json=body) as response:
            return response.status, await response.json()

    async def steps(self, count: int) -> list[Step]:
        """The run's steps; there must be `count`, and each was announced."""
        steps = await self.stand.steps(self.run)
        assert len(steps) == count
        await self.stand.check_announced(self.run)
        return steps

    async def metric(self, name: str) -> float:
        """The sum of an engine metric."""
        async with self.stand.http.get(f"{self.vllm}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    async def wait_for_steps(self, count: int) -> list[Step]:
        """Steps that are written after the caller is gone."""
        end = asyncio.get_running_loop().time() + DEADLINE
        while len(steps := await self.stand.steps(self.run)) < count:
            assert asyncio.get_running_loop().time() < end, f"{len(steps)} of {count} steps are on the log"
            await asyncio.sleep(0.05)
        return await self.steps(count)

    async def wait_idle(self) -> None:
        """Until the engine runs and queues nothing."""
        end = asyncio.get_running_loop().time() + DEADLINE
        while await self.metric("vllm:num_requests_running") + await self.metric("vllm:num_requests_waiting"):
            assert asyncio.get_running_loop().time() < end, "the engine still runs what nobody waits for"
            await asyncio.sleep(0.02)


async def read_events(http: ClientSession, url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON events of a stream, without the terminal one of chats."""
    async with http.post(url, json=body | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        text = (await response.read()).decode()
    datas = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(data) for data in datas if data != "[DONE]"]


def with_bench(stack: Stack, vllm: str, body: Callable[[Bench], Awaitable[None]], **settings: Any) -> None:
    """Run `body` on a gateway before the engine."""

    async def run() -> None:
        async with a_bench(stack.kafka, vllm, **settings) as bench:
            await body(bench)

    asyncio.run(run())


@contextlib.asynccontextmanager
async def a_bench(kafka: str, vllm: str, **settings: Any) -> AsyncIterator[Bench]:
    run = new_id()
    async with a_gateway(kafka, vllm, run=run, **settings) as stand:
        yield Bench(stand, vllm, run)


def context(step: Step, parent: Step | None = None) -> bytes:
    """A step's full prompt, packed."""
    return restore_prompt(step, None if parent is None else parent.new_prompt_ids + parent.response_ids)
