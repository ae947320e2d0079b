"""Real trainers take our batches: each check runs in the trainers' own environment."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Stack
from tests.environments import is_made
from tests.trainers.install import cannot, place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parent.parent.parent
START = """
import runpy, sys, types
tests = sys.modules["tests"] = types.ModuleType("tests")
tests.__path__ = [sys.argv[1] + "/tests"]  # a package of the environment has one of this name
runpy.run_module("tests.trainers." + sys.argv[2], run_name="__main__")
"""
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def run_check(name: str, *arguments: str, folder: Path) -> None:
    reason = cannot()
    if reason is not None:
        pytest.skip(reason)
    assert is_made(place()), f"{place()} is not there: run `make setup-ci`"
    command = [str(place() / "bin" / "python"), "-c", START, str(ROOT), f"check_{name}", *arguments]
    env = os.environ | ENVIRONMENT
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=360, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("name", ["torch", "verl"])
def test_a_trainer_takes_our_batches(name: str, tmp_path: Path) -> None:
    run_check(name, folder=tmp_path)


@pytest.mark.stack
def test_trl_learns_from_a_live_stream(stack: Stack, tmp_path: Path) -> None:
    run_check("trl", str(tmp_path), stack.kafka, folder=tmp_path)
