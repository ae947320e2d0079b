"""Clients that know a base URL and an API key, and nothing of trajectories: the key says where their calls belong."""

import asyncio
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from claw_r1.keys import Secrets, mint
from tests.clients.play import REPORT, Play, a_play, reported
from tests.clients.test_agents import run_claude, run_codex
from tests.conftest import Stack

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]

SECRET = "k1:" + "s" * 32


async def begin(stage: Play) -> str:
    """Begin the play's trajectory as a rollout driver does; gives the agent's key."""
    secrets = Secrets.of(SecretStr(SECRET))
    driver = mint(secrets, scope="rollout", run_id=stage.run, now=time.time(), lifetime=60.0)
    ids = {"trajectory_uid": stage.trajectory, "prompt_uid": "p1"}
    headers = {"authorization": f"Bearer {driver}"}
    async with stage.stand.http.post(f"{stage.stand.url}/init_trajectory", json=ids, headers=headers) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["session_key"])


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_sdk_with_a_session_key(stack: Stack, api: str) -> None:
    async def body() -> None:
        async with a_play(stack.kafka, secret=SECRET) as stage:
            key = f"--key={await begin(stage)}"
            if api == "messages":
                told = await stage.drive("anthropic_sdk", key, base=stage.stand.url)
            else:
                told = await stage.drive("openai_sdk", key, f"--api={api}", base=f"{stage.stand.url}/v1")
            assert reported(told["text"]) == REPORT
            await stage.check_steps()

    asyncio.run(body())


@pytest.mark.parametrize("name", ["claude", "codex"])
def test_agent_with_a_session_key(stack: Stack, tmp_path: Path, name: str) -> None:
    async def body() -> None:
        async with a_play(stack.kafka, secret=SECRET) as stage:
            run_agent = run_claude if name == "claude" else run_codex
            told = await run_agent(stage, tmp_path, key=await begin(stage))
            assert reported(told) == REPORT
            await stage.check_steps()

    asyncio.run(body())


@pytest.mark.parametrize("api", ["chat", "messages"])
def test_sdk_with_a_wrong_key_is_told_so(stack: Stack, api: str) -> None:
    async def body() -> None:
        async with a_play(stack.kafka, secret=SECRET) as stage:
            driver, base = ("openai_sdk", "/v1") if api == "chat" else ("anthropic_sdk", "")
            told = await stage.drive(driver, "--key=nonsense", base=stage.stand.url + base)
            assert told == {"text": None, "error": "AuthenticationError", "status": 401}
            assert stage.script.sampled == []
            assert await stage.stand.facts(stage.run) == []

    asyncio.run(body())
