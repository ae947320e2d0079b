"""Programs in the trainers' own environment: checks of tests/trainers, and examples."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.environments import is_made
from tests.trainers.install import cannot, place

ROOT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 360
START: Final = """
import runpy, sys, types
tests = sys.modules["tests"] = types.ModuleType("tests")
tests.__path__ = [sys.argv[1] + "/tests"]  # a package of the environment has one of this name
runpy.run_module("tests.trainers." + sys.argv[2], run_name="__main__")
"""
ENVIRONMENT: Final = {
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # the next start is twice as fast
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def python() -> str:
    """The trainers' Python; skips the test where the machine cannot run it."""
    reason = cannot()
    if reason is not None:
        pytest.skip(reason)
    assert is_made(place()), f"{place()} is not there: run `make setup-ci`"
    return str(place() / "bin" / "python")


def run_python(*arguments: str, folder: Path) -> str:
    """What the trainers' Python printed; it must succeed."""
    env = os.environ | ENVIRONMENT
    command: Sequence[str] = [python(), *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def run_check(name: str, *arguments: str, folder: Path) -> str:
    """Run `check_NAME` of tests/trainers."""
    return run_python("-c", START, str(ROOT), f"check_{name}", *arguments, folder=folder)
