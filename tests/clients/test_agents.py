"""Claude Code and Codex, unmodified, run a command for the scripted engine and report what it printed."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.clients.drivers.task import MODEL, TASK
from tests.clients.play import REPORT, Play, a_play, reported, run_client
from tests.clients.script import Script
from tests.clients.setup import agents, node_home
from tests.conftest import Stack

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]


def home_env(home: Path) -> dict[str, str]:
    """An account of its own, and the node of the clients first."""
    bins = [str(node_home() / "bin"), str(agents() / "node_modules" / ".bin"), os.environ["PATH"]]
    return {"HOME": str(home), "PATH": os.pathsep.join(bins), "SHELL": "/bin/bash"}


async def run_claude(stage: Play, home: Path, *, key: str = "none", base: str | None = None) -> str:
    """One headless task; gives its last words."""
    env = home_env(home) | {
        "ANTHROPIC_API_KEY": key,
        "ANTHROPIC_BASE_URL": base or stage.base,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
    }
    asked = ["-p", TASK, "--model", MODEL, "--output-format", "json", "--allowedTools", "Bash"]
    told = json.loads(await run_client(["claude", *asked], cwd=home, env=env))
    assert not told["is_error"], told
    return str(told["result"])


async def run_codex(stage: Play, home: Path, *, key: str = "none", base: str | None = None) -> str:
    """One headless task; gives its last words."""
    (home / ".codex").mkdir()
    (home / ".codex" / "config.toml").write_text(
        f"""
model = "{MODEL}"
model_provider = "gateway"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.gateway]
name = "gateway"
base_url = "{base or stage.base}/v1"
wire_api = "responses"
env_key = "GATEWAY_KEY"
""",
        "utf-8",
    )
    env = home_env(home) | {"CODEX_HOME": str(home / ".codex"), "GATEWAY_KEY": key}
    last = home / "last.txt"
    asked = ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "-o", str(last), TASK]
    await run_client(["codex", *asked], cwd=home, env=env)
    return last.read_text("utf-8")


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

    asyncio.run(body())
