"""Programs in the trainers' own environment: checks of tests/trainers, and examples."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests import warm
from tests.environments import is_made
from tests.trainers.install import cannot, place

ROOT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 360
TRL: Final = [f"trl.trainer.{name}_trainer" for name in ("dpo", "grpo", "kto", "sft")]
VERL: Final = ["verl.trainer.ppo.ray_trainer", "verl.experimental.agent_loop.agent_loop"]
IMPORTS: Final = {
    "datasets": TRL,
    "exports": TRL,
    "queue": ["ray", *VERL],
    "trl": TRL,
    "trl_rollout": TRL,
    "verl": VERL,
    "verl_loop": VERL,
}
"""What checks are spared reading anew, beside torch."""
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
    return _succeeded(done)


def _succeeded(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def run_check(name: str, *arguments: str, folder: Path) -> str:
    """What `check_NAME` of tests/trainers printed; it must succeed."""
    where: dict[str, Any] = {"env": os.environ | ENVIRONMENT, "cwd": folder, "python": python()}
    imports = ["torch", *IMPORTS.get(name, ())]
    done = warm.run(f"tests.trainers.check_{name}", *arguments, imports=imports, timeout=DEADLINE_S, **where)
    return _succeeded(done)
