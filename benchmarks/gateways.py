"""The gateways that are compared: how each is installed, started, asked, and ended.

Invariants: each runs alone on its core, as one process, with its access log off and otherwise as its makers ship it; what
cannot be installed or started is left out with the reason, and the others are measured.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.shapes import MODEL
from claw_r1.local.ports import find_port

OURS: Final = "claw-r1"
PASS_THROUGH: Final = "pass-through"
START_TIMEOUT: Final = 90.0
INSTALL_TIMEOUT: Final = 600.0
PIN_WARNING: Final = "fewer than two cores: nothing is pinned, and the numbers say little"
_KEY: Final = "sk-benchmark-4f7c2d9a8e1b6035"
"""For a gateway that does not start without a key; it listens on loopback for the length of the run."""


class LeftOut(Exception):
    """A gateway that cannot be measured here; says why."""


@dataclass(frozen=True)
class Cores:
    """One core for the gateway, the other for everything else; none: nothing is pinned."""

    gateway: int | None
    others: int | None

    @classmethod
    def choose(cls) -> "Cores":
        mine = sorted(os.sched_getaffinity(0))
        return cls(mine[0], mine[1]) if len(mine) > 1 else cls(None, None)

    def pin_others(self) -> None:
        """Pin this process; what it starts inherits it."""
        if self.others is not None:
            os.sched_setaffinity(0, {self.others})

    def pin_gateway(self) -> None:
        if self.gateway is not None:
            os.sched_setaffinity(0, {self.gateway})


@dataclass(frozen=True)
class Kind:
    """A gateway as it is installed, started and asked."""

    name: str
    argv: Callable[["Setting"], Sequence[str]]
    ready: str
    """A path that answers 200 once it serves."""
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None
    """Its own environment's requirements, in benchmarks/requirements; None: this project's environment."""
    env: Callable[["Setting"], Mapping[str, str]] = lambda setting: {}


@dataclass(frozen=True)
class Setting:
    """What a gateway is started with."""

    port: int
    upstream: str
    kafka: str
    bin: Path
    """Programs of its environment."""
    folder: Path
    """For its files, for the length of the run."""


def _litellm(setting: Setting) -> Sequence[str]:
    engine = {"model": f"openai/{MODEL}", "api_base": f"{setting.upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": engine}],
        "general_settings": {"master_key": _KEY},
    }
    file = setting.folder / "litellm.yaml"
    file.write_text(json.dumps(config))  # YAML reads JSON
    where = ["--host", "127.0.0.1", "--port", str(setting.port)]
    return [str(setting.bin / "litellm"), "--config", str(file), *where, "--num_workers", "1", "--telemetry", "False"]


def _vllm_router(setting: Setting) -> Sequence[str]:
    where = ["--host", "127.0.0.1", "--port", str(setting.port), "--prometheus-port", str(find_port())]
    how = ["--policy", "consistent_hash", "--log-level", "error", "--max-concurrent-requests", "1024"]
    return [str(setting.bin / "vllm-router"), *where, "--worker-urls", setting.upstream, *how]


def _rllm(setting: Setting) -> Sequence[str]:
    where = ["--host", "127.0.0.1", "--port", str(setting.port), "--worker", f"{setting.upstream}/v1"]
    return [str(setting.bin / "rllm-model-gateway"), *where, "--store", "memory", "--log-level", "warning"]


def _ours(setting: Setting) -> Mapping[str, str]:
    return {
        "CLAW_KAFKA": setting.kafka,
        "CLAW_GATEWAY_PORT": str(setting.port),
        "CLAW_GATEWAY_UPSTREAM": setting.upstream,
        "CLAW_GATEWAY_RUN": "benchmark",
    }


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(
            PASS_THROUGH,
            lambda s: [sys.executable, "-m", "benchmarks.passthrough", str(s.port), s.upstream],
            "/v1/models",
        ),
        Kind("vllm-router", _vllm_router, "/health", package="vllm-router"),
        Kind(
            OURS,
            lambda s: [sys.executable, "-P", "-m", "gateway"],
            "/readyz",
            "/{trajectory}/{prompt}/v1/chat/completions",
            env=_ours,
        ),
        Kind(
            "rllm-model-gateway",
            _rllm,
            "/health",
            "/sessions/{trajectory}/v1/chat/completions",
            package="rllm-model-gateway",
        ),
        Kind(
            "litellm",
            _litellm,
            "/health/liveliness",
            headers={"authorization": f"Bearer {_KEY}"},
            package="litellm",
            env=lambda s: {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        ),
    )
}


# ------------------------------------------------------------------------------------------------------- environments


def cache() -> Path:
    """Where the environments of the others lie."""
    return Path(os.environ.get("CLAW_CACHE") or Path.home() / ".cache" / "claw-r1") / "benchmarks"


def environment(package: str, say: Callable[[str], None]) -> Path:
    """The programs of a package's own environment, made if it is not there. Raises LeftOut."""
    wanted = Path(__file__).parent / "requirements" / f"{package}.txt"
    folder = cache() / package
    made = folder / "made-from.txt"
    if made.is_file() and made.read_bytes() == wanted.read_bytes():
        return folder / "bin"
    say(f"{package}: making its environment in {folder}")
    python = str(folder / "bin" / "python")
    steps = (
        ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        ["pip", "sync", "--quiet", "--python", python, "--require-hashes", str(wanted)],
    )
    for step in steps:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "uv", *step],
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LeftOut(f"{package} cannot be installed: {error}") from error
        if done.returncode:
            raise LeftOut(f"{package} cannot be installed: {done.stderr.strip()[-300:]}")
    made.write_bytes(wanted.read_bytes())
    return folder / "bin"


# ----------------------------------------------------------------------------------------------------------- processes


@dataclass
class Running:
    """A gateway that serves."""

    kind: Kind
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def freeze(self) -> None:
        """Stop it where it stands, so that what it does by itself disturbs no other's measurement."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def metrics(self) -> str:
        """Its /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as response:
            return str(response.read().decode())


@contextlib.contextmanager
def serving(kind: Kind, *, upstream: str, kafka: str, folder: Path, cores: Cores, bin: Path) -> Iterator[Running]:
    """A started gateway, ready or not: ask `wait_ready`."""
    port = find_port()
    setting = Setting(port, upstream, kafka, bin, folder)
    log = folder / f"{kind.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(kind.argv(setting)),
            env={**os.environ, **kind.env(setting)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=cores.pin_gateway,
        )
    running = Running(kind, port, process, log)
    try:
        yield running
    finally:
        running.thaw()
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until it answers 200. Raises LeftOut with the end of its log."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    why = f"ended with exit code {process.returncode}" if process.poll() is not None else "did not become ready"
    raise LeftOut(f"{why}: {log.read_text(errors='replace')[-400:]}")
