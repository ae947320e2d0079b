"""The wheel, installed plainly into an environment of its own, gives the adapter and the client, and asks for no more; with
the demo's packages it plays the demo, with no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks

pytestmark = pytest.mark.slow
SERVERS = {"fastapi", "uvicorn", "faust-streaming", "clickhouse-connect", "chdb", "typer", "pyarrow", "openai", "jgo"}


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd="/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"claw_r1/events.py", "claw_r1/local/kafka-4.2.0-jars.txt", "trainer_adapter/__init__.py"} <= names
    assert any(n.startswith("sinks/migrations/") and n.endswith(".sql") for n in names)
    assert any(n.startswith("console/static/") for n in names)
    assert "claw_r1/__init__.py" not in names  # a namespace package: upstream has one of this name
    tops = {n.split("/")[0] for n in names}
    assert tops <= {"claw_r1", "gateway", "streams", "sinks", "trainer_adapter", "console", "claw_r1-0.1.0.dist-info"}


def test_a_plain_install_brings_the_adapter_without_servers(wheel: Path, tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    venv = tmp_path / "venv"
    assert _run(uv, "venv", "--quiet", "--python", sys.executable, venv).returncode == 0
    python = venv / "bin" / "python"
    installed = _run(uv, "pip", "install", "--quiet", "--python", python, wheel)
    assert installed.returncode == 0, installed.stderr
    listed = {line.split("==")[0].lower() for line in _run(uv, "pip", "freeze", "--python", python).stdout.split()}
    assert not listed & SERVERS
    assert _run(python, "-c", "import trainer_adapter, claw_r1.events, claw_r1.bus").returncode == 0
    claw = _run(venv / "bin" / "claw", "--help")
    assert claw.returncode != 0
    assert "claw-r1[" in claw.stderr  # says which extra to install


@pytest.mark.timeout(600)
def test_the_command_plays_the_demo_as_the_start_page_says(tmp_path: Path) -> None:
    (text,) = [text for text in blocks("docs/index.md", "bash") if "uv tool install" in text]
    install, demo = text.splitlines()
    places = {"UV_TOOL_DIR": tmp_path / "tools", "UV_TOOL_BIN_DIR": tmp_path / "bin"}
    path = f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CLAW_", "PYTHON", "VIRTUAL_ENV"))
    }
    env = kept | {name: str(place) for name, place in places.items()} | {"PATH": path}
    for line, folder in ((install, ROOT), ("command -v claw", tmp_path), (demo, tmp_path)):
        done = subprocess.run(["bash", "-euc", line], cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if line.startswith("command"):
            assert done.stdout.strip() == str(tmp_path / "bin/claw")
    assert "batches                1" in done.stderr
    python = tmp_path / "tools/claw-r1/bin/python"
    where = _run(python, "-c", "import claw_r1.events; print(claw_r1.events.__file__)").stdout
    assert where.startswith(str(tmp_path)), where
