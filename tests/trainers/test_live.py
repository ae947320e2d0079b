"""Loops that close: real trainers before a whole stack, whose gateway, streams and sinks are at work."""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from claw_r1.demo.run import MODEL, RECIPE
from claw_r1.local.ports import find_port
from claw_r1.local.stack import RunningStack, python_module, running_stack
from claw_r1.local.supervisor import GUARD, Process
from claw_r1.registry import apply_recipe
from tests.conftest import wait_until
from tests.trainers.running import ENVIRONMENT, ROOT, python, run_check, run_python

pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.timeout(400)]

PARTS = ("kafka", "clickhouse", "streams", "sinks", "gateway")
GRPO_STEPS, GAIN = 10, 0.3


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack with the demo's engine behind its gateway."""
    python()
    port = find_port()
    serve = [*python_module("claw_r1.demo.engine"), "--port", str(port), "--seed", "1"]
    engine = Process(name="engine", argv=serve, ready=f"http://127.0.0.1:{port}/health", port=port)
    data, url = tmp_path_factory.mktemp("live"), f"http://127.0.0.1:{port}"
    with running_stack(data, processes=PARTS, upstreams=[url], extra=[engine], env={"CLAW_GATEWAY_RUN": "demo"}) as up:
        yield up


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model; each test takes a copy."""
    folder = tmp_path_factory.mktemp("tiny")
    run_python(str(ROOT / "tests/vllm/model.py"), str(folder / "model"), folder=folder)
    return folder / "model"


def engine_of(live: RunningStack) -> str:
    """The URL of the engine behind the gateway."""
    with urllib.request.urlopen(f"{live.urls['gateway']}/engines", timeout=30) as answer:
        (engine,) = json.load(answer)["engines"]
    return str(engine["url"])


def test_trl_learns_from_a_live_stream(live: RunningStack, tmp_path: Path) -> None:
    run_check("trl", str(tmp_path), live.kafka, live.urls["gateway"], folder=tmp_path)


class Agents:
    """The demo's agents, who begin as many groups as they are told."""

    def __init__(self, gateway: str, session: str, size: int, folder: Path) -> None:
        self._log = folder / f"{session}.log"
        self._ledger = folder / f"{session}.jsonl"
        self._size = size
        guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid())]
        command = [*guard, *python_module("claw_r1.demo.driver"), "--gateway", gateway, "--model", MODEL]
        command += ["--session", session, "--size", str(size), "--ledger", str(self._ledger)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def __enter__(self) -> "Agents":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def allow(self, groups: int) -> None:
        """So many in all."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % groups)
        self._process.stdin.flush()

    def finish(self, groups: int) -> None:
        """Wait until so many have ended."""
        wanted = groups * self._size

        def ended() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            return self._ledger.exists() and self._ledger.read_bytes().count(b'"event":"ended"') >= wanted

        wait_until(ended, what=f"{wanted} trajectories ended", timeout=180)
        self._process.communicate(b"stop\n", timeout=60)
        assert self._process.returncode == 0, self._log.read_text()


def export(live: RunningStack, form: str, folder: Path) -> None:
    claw = str(Path(sys.executable).with_name("claw"))
    chosen = "SELECT run_id, trajectory_uid FROM trajectories FINAL WHERE startsWith(prompt_uid, 'exported-')"
    command = [claw, "export", "--sql", chosen, "--form", form, "--format", "hf", "--to", str(folder / form)]
    command += ["--clickhouse", live.clickhouse, "--kafka", live.kafka]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sft_and_dpo_take_exports(live: RunningStack, model: Path, tmp_path: Path) -> None:
    with Agents(live.urls["gateway"], "exported", 6, tmp_path) as agents:
        agents.allow(4)
        agents.finish(4)
    for form in ("sft", "tokens", "preference"):
        export(live, form, tmp_path)
    shutil.copytree(model, tmp_path / "model")
    run_check("exports", folder=tmp_path)


def learn(live: RunningStack, recipe: str, steps: int, *options: str, folder: Path) -> list[float]:
    """Rewards by step of examples/grpo.py, with agents that are at most two batches ahead of it."""
    asyncio.run(apply_recipe(live.kafka, RECIPE.model_copy(update={"name": recipe}), deadline=60.0))
    command = [python(), str(ROOT / "examples/grpo.py"), "--kafka", live.kafka, "--engine", engine_of(live)]
    command += ["--recipe", recipe, "--steps", str(steps), *options]
    rewards: list[float] = []
    with (
        (folder / f"{recipe}.txt").open("w") as errors,
        subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as trainer,
        Agents(live.urls["gateway"], recipe, RECIPE.group.size, folder) as agents,
    ):
        assert trainer.stdout is not None
        for line in trainer.stdout:  # its own waits have deadlines
            print(line, end="")
            rewards += [float(line.split()[5])] if line.startswith("step ") else []
            agents.allow(min(steps, len(rewards) + 2) * RECIPE.batch.groups)
        assert trainer.wait(60) == 0, Path(errors.name).read_text()[-4000:]
        agents.finish(steps * RECIPE.batch.groups)
    assert len(rewards) == steps
    return rewards


def gain(rewards: list[float]) -> float:
    """Of the mean reward, from the first three steps to the last three."""
    return statistics.fmean(rewards[-3:]) - statistics.fmean(rewards[:3])


def test_plain_grpo_learns_from_a_live_stream(live: RunningStack, tmp_path: Path) -> None:
    """A gain of 0.3 is no chance: three batches are 144 games, so where nothing is learnt a gain has a standard error of 0.06
    at most. A trainer that is blind to the advantages, and else the same, plays on as it began, and stays below."""
    assert gain(learn(live, "blind", GRPO_STEPS, "--blind", folder=tmp_path)) < GAIN
    assert gain(learn(live, "seeing", GRPO_STEPS, folder=tmp_path)) > GAIN


def test_what_trl_samples_is_pooled(live: RunningStack, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    run_check("trl_rollout", live.kafka, live.urls["gateway"], folder=tmp_path)


def test_what_verl_samples_is_pooled(live: RunningStack, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    run_check("verl_loop", live.kafka, live.urls["gateway"], folder=tmp_path)
