"""The loop with a real vLLM and TRL closes, in a short form of `make demo-vllm`, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import wait_until
from tests.environments import is_made
from tests.trainers import install as trainers
from tests.vllm import install as vllm

pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS = 3
ROW = re.compile(r"^ +(\d+) +([\d.]+) +(\d+) +([\d.e+-]+) +([\d.e+-]+|–) +[\d.]+$", re.MULTILINE)


def test_the_loop_closes(tmp_path: Path) -> None:
    for part in (vllm, trainers):
        if reason := part.cannot():
            pytest.skip(reason)
        assert is_made(part.place()), f"{part.place()} is not there: run `make setup-ci`"
    command = [sys.executable, "-m", "examples.vllm_loop", "--steps", str(STEPS)]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=860, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = ROW.findall(done.stdout)
    assert [int(version) for version, *_ in rows] == list(range(STEPS))
    assert all(0 < float(reward) <= 1 and int(tokens) > 100 for _, reward, tokens, _, _ in rows)
    assert all(float(gap) < 1e-3 for *_, gap, _ in rows)
    assert rows[0][-1] == "–"
    assert all(float(before) > 1e-3 for *_, before in rows[1:])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("claw-vllm-loop-")]
    wait_until(lambda: not left_in(tmp_path), what="its processes end")


def left_in(folder: Path) -> list[list[str]]:
    """The command lines of the processes that have to do with the folder."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(folder) in part for part in line)]
