"""Faults on the way: the clients do as they do before the real APIs, and no call is trained twice."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.clients.play import REPORT, Play, a_play, reported
from tests.clients.script import Script
from tests.clients.test_agents import AGENTS
from tests.conftest import Stack

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]

SDKS = {
    "chat": ("openai_sdk", "--api=chat"),
    "responses": ("openai_sdk", "--api=responses"),
    "messages": ("anthropic_sdk", "--api=messages"),
}


async def drive(stage: Play, api: str, *arguments: str) -> Any:
    base = stage.base if api == "messages" else f"{stage.base}/v1"
    return await stage.drive(*SDKS[api], *arguments, base=base)


async def check_failed_steps(stage: Play, status: Literal["partial", "failed"]) -> None:
    """What failed on the way is on the log as such, besides what was answered."""
    steps = await stage.stand.steps(stage.run)
    assert [step.status for step in steps].count(status) == stage.script.failed == 1
    assert len(steps) == len(stage.script.sampled) + 1


@pytest.mark.parametrize(("fault", "stream"), [(429, ()), (503, ("--stream",))], ids=["429-whole", "503-stream"])
@pytest.mark.parametrize("api", SDKS)
def test_sdk_tries_again_when_it_is_told_to(stack: Stack, api: str, fault: int, stream: tuple[str, ...]) -> None:
    async def body() -> None:
        async with a_play(stack.kafka, Script(faults=[fault])) as stage:
            told = await drive(stage, api, *stream)
            assert reported(told["text"]) == REPORT
            await stage.check_steps()
            await check_failed_steps(stage, "failed")

    asyncio.run(body())


@pytest.mark.parametrize("api", SDKS)
def test_sdk_that_shall_not_try_again_gets_the_error(stack: Stack, api: str) -> None:
    async def body() -> None:
        async with a_play(stack.kafka, Script(faults=[429])) as stage:
            told = await drive(stage, api, "--retries=0")
            assert told == {"text": None, "error": "RateLimitError", "status": 429}
            await stage.check_steps(kinds=())
            await check_failed_steps(stage, "failed")

    asyncio.run(body())


@pytest.mark.parametrize("api", SDKS)
def test_sdk_raises_when_a_stream_is_cut(stack: Stack, api: str) -> None:
    async def body() -> None:
        async with a_play(stack.kafka, Script(faults=["cut"])) as stage:
            told = await drive(stage, api, "--stream")
            assert told["text"] is None
            assert told["error"]
            await stage.check_steps(kinds=())
            await check_failed_steps(stage, "partial")

    asyncio.run(body())


@pytest.mark.parametrize("fault", [429, "cut"])
@pytest.mark.parametrize("name", AGENTS)
def test_agent_tries_again(stack: Stack, tmp_path: Path, name: str, fault: int | str) -> None:
    async def body() -> None:
        run_agent, _ = AGENTS[name]
        async with a_play(stack.kafka, Script(thinks=True, faults=[fault])) as stage:
            assert reported(await run_agent(stage, tmp_path)) == REPORT
            await stage.check_steps()
            await check_failed_steps(stage, "failed" if fault == 429 else "partial")

    asyncio.run(body())
