"""A client's play: an unmodified program in its own process, through a real gateway and broker, to the scripted engine."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from claw_r1.codec import restore_prompt, unpack_floats, unpack_ids
from claw_r1.events import Step
from claw_r1.ids import new_id
from tests import warm
from tests.clients.script import MARKER, Script
from tests.clients.setup import missing, venv
from tests.integration.gateway_stand import Engine, Stand, a_gateway, an_engine

CLIENT_DEADLINE = 90.0
LITELLM = ["litellm", "litellm.responses.mcp.litellm_proxy_mcp_handler", "openai.resources"]
IMPORTS = {
    "anthropic_sdk": ["anthropic.resources"],
    "langgraph_agent": ["langchain_anthropic", "langchain_openai", "langgraph.prebuilt"],
    "litellm_client": LITELLM,
    "mini_swe": LITELLM,
    "openai_agents": ["agents", "openai.resources"],
    "openai_sdk": ["openai.resources"],
}
"""What a driver's process is spared reading anew: the client in it is as it is everywhere, but was imported before."""
REPORT = {"marker-42-c0de"}
"""What a client reports that was asked for one tool call."""
REPORTS = REPORT | {"marker-42-beef"}
"""The same of two calls at once."""
# Whatever a client asks of the internet ends at a port where nothing listens.
NOWHERE = "http://127.0.0.1:9"


@dataclass
class Play:
    """A gateway before a scripted engine, and one trajectory to play on it."""

    stand: Stand
    engine: Engine
    script: Script
    run: str

    @property
    def trajectory(self) -> str:
        return f"{self.run}-t"

    @property
    def base(self) -> str:
        """For clients that append /v1 themselves."""
        return f"{self.stand.url}/{self.trajectory}/p1"

    async def drive(self, driver: str, *arguments: str, lock: str = "clients", base: str | None = None) -> Any:
        """Run tests/clients/drivers/<driver>.py; gives the JSON that it printed last."""
        start = partial(warm.run, f"tests.clients.drivers.{driver}", base or f"{self.base}/v1", *arguments)
        python = str(venv(lock) / "bin" / "python")
        where: dict[str, Any] = {"env": offline(), "cwd": warm.ROOT, "python": python, "imports": IMPORTS[driver]}
        done = await asyncio.to_thread(start, timeout=CLIENT_DEADLINE, **where)
        assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    async def check_steps(self, *, kinds: Sequence[str] = ("tool", "report")) -> list[Step]:
        """Every whole answer of the engine is one durable step of the one trajectory, token by token.

        Answers of other kinds than `kinds` fail the play. The second turn's step is a child of the first's.
        """
        sampled = self.script.sampled
        assert [one.kind for one in sampled] == list(kinds)
        steps = [step for step in await self.stand.steps(self.run) if step.status == "complete"]
        contexts: dict[str, bytes] = {}
        for one, step in zip(sampled, steps, strict=True):
            prompt = restore_prompt(step, contexts.get(step.parent_step_id or "", b""))
            contexts[step.step_id] = prompt + step.response_ids
            assert (step.trajectory_uid, step.prompt_uid) == (self.trajectory, "p1")
            assert (step.capture.ok, list(step.capture.reasons)) == (True, [])
            assert tuple(unpack_ids(prompt)) == one.prompt
            assert tuple(unpack_ids(step.response_ids)) == one.response
            assert tuple(unpack_floats(step.rollout_log_probs or b"")) == one.log_probs
        first = {one.kind: step for one, step in zip(sampled, steps, strict=True)}
        if "tool" in first and "report" in first:
            assert first["report"].parent_step_id == first["tool"].step_id
        await self.stand.check_announced(self.run)
        return steps


@contextlib.asynccontextmanager
async def a_play(kafka: str, script: Script | None = None, **settings: Any) -> AsyncIterator[Play]:
    """A gateway on the broker `kafka`, before an engine that plays `script`."""
    lacking = missing()
    assert lacking is None, lacking
    script = script or Script()
    run = new_id()
    async with (
        an_engine(script.answer) as engine,
        a_gateway(kafka, engine.url, run=run, **settings) as stand,
    ):
        yield Play(stand, engine, script, run)


def play(
    kafka: str, dialect: str, driver: str, *arguments: str, script: Script | None = None, lock: str = "clients"
) -> Any:
    """Play the task by a driver; the log must hold it token by token. Gives what the driver printed."""

    async def body() -> Any:
        async with a_play(kafka, script) as stage:
            base = stage.base if dialect == "messages" else f"{stage.base}/v1"
            told = await stage.drive(driver, f"--api={dialect}", *arguments, lock=lock, base=base)
            assert {step.dialect for step in await stage.check_steps()} == {dialect}
            return told

    return asyncio.run(body())


async def run_client(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, fails: bool = False
) -> str:
    """Run a client without a way to the internet; gives its stdout."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=offline() | dict(env or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CLIENT_DEADLINE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode != 0) == fails, f"ended with {process.returncode}\n{out.decode()}\n{err.decode()}"
    return out.decode()


def offline() -> dict[str, str]:
    """The environment of a client: no proxy but one that leads nowhere, no keys of this shell, no telemetry."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), NOWHERE)
    direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    quiet = {
        "DO_NOT_TRACK": "1",
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }
    return kept | proxies | direct | quiet


def reported(text: str) -> set[str]:
    """The markers in a client's last words: the engine says them to who gave it the tools' results."""
    return set(MARKER.findall(text))
