"""`claw up`, `down` and `status` as a person or a script runs them."""

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claw_r1.local.ports import find_port
from claw_r1.local.stack import stop
from claw_r1.local.state import read_state
from tests import warm
from tests.conftest import Stack, wait_until

pytestmark = pytest.mark.stack

CLAW = [sys.executable, "-P", "-m", "claw_r1.cli.entry"]


def claw(*arguments: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    return warm.claw(*arguments, *(["--data", str(data)] if data else []))


def document(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def up(data: Path) -> Iterator[Any]:
    """What `claw up --detach --json` printed, for an engine alone."""
    done = claw("up", "--only", "clickhouse", "--detach", "--json", data=data)
    assert done.returncode == 0, done.stderr
    yield document(done)
    assert claw("down", data=data).returncode == 0
    assert not read_state(data).alive


def test_up_prints_urls_and_processes_once_everything_is_ready(up: Any) -> None:
    assert set(up) == {"urls", "processes"}
    assert isinstance(up["processes"]["clickhouse"], int)
    with urllib.request.urlopen(up["urls"]["clickhouse"] + "/ping", timeout=10) as answer:
        assert answer.read() == b"Ok.\n"


def test_a_second_up_says_so_and_prints_the_same(up: Any, data: Path) -> None:
    again = claw("up", "--only", "clickhouse", "--detach", "--json", data=data)
    assert again.returncode == 0
    assert document(again) == up
    assert "already up" in again.stderr


def test_status_shows_every_process(up: Any, data: Path) -> None:
    done = claw("status", "--json", data=data)
    assert done.returncode == 0
    found = document(done)
    assert found["phase"] == "ready"
    assert found["urls"] == up["urls"]
    row = found["processes"]["clickhouse"]
    assert (row["pid"], row["up"], row["ready"], row["restarts"]) == (up["processes"]["clickhouse"], True, True, 0)
    assert up["urls"]["clickhouse"].endswith(f":{row['port']}")
    assert "ready" in claw("status", data=data).stdout


def test_status_of_nothing_is_a_failure(tmp_path: Path) -> None:
    done = claw("status", "--json", data=tmp_path)
    assert done.returncode == 1
    assert document(done)["phase"] == "down"
    assert claw("down", data=tmp_path).returncode == 0


def test_up_in_the_foreground_stops_cleanly_at_ctrl_c(tmp_path: Path) -> None:
    command = [*CLAW, "up", "--only", "clickhouse", "--json", "--data", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped" in talk
    assert "Traceback" not in talk
    assert read_state(tmp_path).phase == "down"
    assert printed["urls"].keys() == {"clickhouse"}


def test_given_servers_are_used_instead_of_local_ones(stack: Stack, tmp_path: Path) -> None:
    given = ["--kafka", stack.kafka, "--clickhouse", stack.clickhouse, "--only", "kafka", "--only", "clickhouse"]
    done = claw("up", "--detach", "--json", *given, data=tmp_path)
    assert done.returncode == 0, done.stderr
    try:
        assert document(done) == {"urls": {"kafka": stack.kafka, "clickhouse": stack.clickhouse}, "processes": {}}
    finally:
        assert claw("down", data=tmp_path).returncode == 0
    wait_until(lambda: not read_state(tmp_path).alive, what="the empty stack stopped")


def test_two_starts_at_once_are_one_stack(tmp_path: Path) -> None:
    command = [*CLAW, "up", "--only", "clickhouse", "--detach", "--json", "--data", str(tmp_path)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        said = [start.communicate(timeout=120)[0] for start in starts]
        assert [start.returncode for start in starts] == [0, 0]
        assert json.loads(said[0]) == json.loads(said[1])
    finally:
        assert claw("down", data=tmp_path).returncode == 0


def hear_ctrl_c() -> None:
    """In the child: whoever started the tests in the background made them deaf to it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_during_a_detached_start_leaves_nothing_running(tmp_path: Path) -> None:
    command = [*CLAW, "up", "--only", "kafka", "--detach", "--data", str(tmp_path)]
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c) as start:
            wait_until(lambda: read_state(tmp_path).alive, what="the supervisor runs")
            start.send_signal(signal.SIGINT)
            _, said = start.communicate(timeout=60)
        assert (start.returncode, "Traceback" in said, "stopped before" in said) == (130, False, True)
        assert not read_state(tmp_path).alive
    finally:
        stop(tmp_path)


@pytest.mark.parametrize("option", ["--kafka", "--clickhouse"])
def test_a_given_server_that_does_not_answer_is_exit_code_3(tmp_path: Path, option: str) -> None:
    address = f"127.0.0.1:{find_port()}"
    done = claw("up", "--detach", option, address if option == "--kafka" else f"http://{address}", data=tmp_path)
    assert done.returncode == 3
    assert address in done.stderr
    assert f"Check {option}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--only", "nothing"],
        ["no-such-command"],
        ["up", "--no-such-option"],
        ["up", "--detach", "--upstream", "nonsense"],
        ["recipes", "list", "--kafka", "host:port"],
        ["migrate", "--clickhouse", "nonsense"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = claw(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_help_imports_no_part_of_the_commands() -> None:
    program = (
        "import sys\nfrom claw_r1.cli import entry\nsys.argv = ['claw', '--help']\n"
        "try:\n    entry.main()\nexcept SystemExit:\n    pass\n"
        "heavy = [name for name in ('aiokafka', 'chdb', 'uvicorn', 'psutil', 'numpy') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout


def test_without_the_extra_the_command_says_what_to_install() -> None:
    program = "import sys\nsys.modules['typer'] = None\nfrom claw_r1.cli import entry"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'claw-r1[local]'" in done.stderr
    assert "Traceback" not in done.stderr
