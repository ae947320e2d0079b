"""The programs of the connect guides, word for word, by the real clients: they play the task and say that it is over."""

import asyncio
from pathlib import Path

import pytest

from claw_r1.events import Reward, TrajectoryEnd
from tests.clients.drivers.task import MODEL
from tests.clients.play import REPORT, a_play, reported, run_client
from tests.clients.setup import venv
from tests.conftest import Stack
from tests.documents import blocks

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.clients]

PROGRAMS = {
    "openai": ("own-code", 0, "chat"),
    "anthropic": ("own-code", 1, "messages"),
    "openai-agents": ("openai-agents", 0, "chat"),
    "langgraph": ("langgraph", 0, "chat"),
    "smolagents": ("smolagents", 0, "chat"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_of_a_guide(stack: Stack, tmp_path: Path, name: str) -> None:
    page, number, dialect = PROGRAMS[name]
    program = tmp_path / "program.py"
    program.write_text(blocks(f"docs/connect/{page}.md", "python")[number], "utf-8")

    async def body() -> None:
        async with a_play(stack.kafka) as stage:
            env = {"BASE": stage.base, "KEY": "none", "MODEL": MODEL}
            told = await run_client([str(venv("clients") / "bin/python"), str(program)], cwd=tmp_path, env=env)
            assert reported(told) == REPORT
            steps = await stage.check_steps()
            assert {step.dialect for step in steps} == {dialect}
            assert not any(step.sampling.guided for step in steps), "what a grammar forces is not trained"
            facts = await stage.stand.facts(stage.run)
            (end,) = [fact for fact in facts if isinstance(fact, TrajectoryEnd)]
            (reward,) = [fact for fact in facts if isinstance(fact, Reward)]
            assert (end.trajectory_uid, reward.trajectory_uid) == (stage.trajectory, stage.trajectory)
            assert (end.status, reward.value) == ("completed", 1.0)

    asyncio.run(body())
