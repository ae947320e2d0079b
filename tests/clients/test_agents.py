"""Claude Code and Codex, unmodified and set up as their guides say, run a command for the scripted engine and report what it
printed."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.clients.drivers.task import MODEL, TASK
from tests.clients.play import REPORT, Play, a_play, reported, run_client
from tests.clients.script import Script
from tests.clients.setup import agents, node_home
from tests.conftest import Stack
from tests.documents import blocks

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]


def home_env(stage: Play, home: Path, key: str) -> dict[str, str]:
    """An account of its own, the node of the clients first, and the variables that the guides name."""
    bins = [str(node_home() / "bin"), str(agents() / "node_modules" / ".bin"), os.environ["PATH"]]
    named = {"GATEWAY": stage.stand.url, "BASE": stage.base, "KEY": key, "MODEL": MODEL, "TASK": TASK}
    return named | {"HOME": str(home), "PATH": os.pathsep.join(bins), "SHELL": "/bin/bash"}


async def run_claude(stage: Play, home: Path, *, key: str | None = None) -> str:
    """One headless task by the lines of its guide, with a key by the guide's other address; gives its last words."""
    by_url, by_key, run = blocks("docs/connect/claude-code.md", "bash")
    lines = (by_url if key is None else by_key) + run
    return await run_client(["bash", "-euc", lines], cwd=home, env=home_env(stage, home, key or "none"))


async def run_codex(stage: Play, home: Path, *, key: str | None = None) -> str:
    """The same with the settings and the lines of its guide."""
    (settings,) = blocks("docs/connect/codex.md", "toml")
    (run,) = blocks("docs/connect/codex.md", "bash")
    example, url = "http://127.0.0.1:8100/trajectory-1/prompt-1/v1", stage.base if key is None else stage.stand.url
    assert example in settings
    codex_home = home / ".codex"
    codex_home.mkdir()
    settings = settings.replace(example, f"{url}/v1").replace('"MODEL"', f'"{MODEL}"')
    (codex_home / "config.toml").write_text(settings, "utf-8")
    env = home_env(stage, home, key or "none") | {"CODEX_HOME": str(codex_home)}
    return await run_client(["bash", "-euc", run], cwd=home, env=env)


AGENTS = {"claude": (run_claude, "messages"), "codex": (run_codex, "responses")}


@pytest.mark.parametrize("thinks", [False, True], ids=["plain", "thinking"])
@pytest.mark.parametrize("name", AGENTS)
def test_agent(stack: Stack, tmp_path: Path, name: str, thinks: bool) -> None:
    async def body() -> None:
        run_agent, dialect = AGENTS[name]
        async with a_play(stack.kafka, Script(thinks=thinks)) as stage:
            assert reported(await run_agent(stage, tmp_path)) == REPORT
            steps = await stage.check_steps()
            assert {step.dialect for step in steps} == {dialect}
            assert not any(step.sampling.guided for step in steps), "what a grammar forces is not trained"

    asyncio.run(body())
