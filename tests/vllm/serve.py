"""A running vLLM: the tiny model behind vLLM's own server on a free port of the loopback."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from claw_r1.local.ports import find_port
from tests.environments import is_made
from tests.vllm.install import cannot, place

MODEL = "tiny"
READY_DEADLINE = 240.0
STOP_DEADLINE = 20.0
ARGUMENTS = (
    "--served-model-name=tiny",
    "--enforce-eager",
    "--dtype=float32",
    "--max-model-len=2048",
    "--max-num-seqs=32",
    "--generation-config=vllm",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--host=127.0.0.1",
)
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # the next start is twice as fast
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # pause and resume, as trainers use them
}


@contextlib.contextmanager
def serving(folder: Path, *, thinks: bool = False) -> Iterator[str]:
    """Make the model in `folder` and serve it; gives the server's URL. One that thinks has a parser for its reasoning.

    Skips the test where the machine cannot.
    """
    reason = cannot()
    if reason is not None:
        pytest.skip(reason)
    assert is_made(place()), f"{place()} is not there: run `make setup-ci`"
    port = find_port()
    make_model(folder / "model", *(["--thinks"] if thinks else []))
    command = server_command(folder / "model", port)
    if thinks:
        command.append("--reasoning-parser=deepseek_r1")
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | server_environment(),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "vllm.log")
        compute_last(process.pid)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def make_model(folder: Path, *options: str) -> None:
    """Write the tiny model and its tokenizer into `folder`."""
    make = [str(place() / "bin" / "python"), str(Path(__file__).with_name("model.py")), str(folder)]
    subprocess.run([*make, *options], check=True, timeout=120)


def server_command(model: Path, port: int) -> list[str]:
    """What serves the model of this folder."""
    server = [str(place() / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, f"--model={model}", f"--port={port}", *ARGUMENTS]


def server_environment() -> dict[str, str]:
    """Variables that it needs, beside those that are there."""
    return ENVIRONMENT | {"PATH": f"{place() / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def compute_last(pid: int) -> None:
    """Let the engine compute when its server needs no processor: else, on few cores, a stream comes when it is over."""
    for child in psutil.Process(pid).children(recursive=True):
        for thread in child.threads():
            os.setpriority(os.PRIO_PROCESS, thread.id, 19)


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_DEADLINE
    while True:
        if is_ready(url):
            return
        ended, late = process.poll() is not None, time.monotonic() > deadline
        if ended or late:
            last = "\n".join(log.read_text("utf-8", "replace").splitlines()[-40:])
            raise AssertionError(f"vLLM {'ended' if ended else 'is not ready'}; its last lines:\n{last}")
        time.sleep(0.2)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server with all the processes that it started: they share its session."""
    process.terminate()
    try:
        process.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
