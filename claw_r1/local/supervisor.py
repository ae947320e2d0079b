"""One supervisor keeps the processes of a stack running: starts them in order, restarts what died, stops all of them.

Invariants:
- a process counts as up when its readiness was asked and answered, not when it was started;
- a restart waits longer the more often it failed, is counted, and never gives up: what a process needs may come back;
- the supervisor is single-threaded, so a child's parent thread lives as long as the supervisor (see guard.py).
"""

import contextlib
import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from claw_r1 import wire
from claw_r1.errors import ClawError
from claw_r1.local.broker import broker_serves
from claw_r1.local.state import Identity, Phase, ProcessState, StackState, write_state

log = logging.getLogger("claw.supervisor")

GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.1
PROBE_TIMEOUT_S = 2.0
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0
# Alive for this long, a process is taken to be well again: its backoff starts anew.
SETTLED_S = 30.0
# So many deaths in a row, none of them settled, are a crash loop (and end a start that is not yet ready).
CRASH_LOOP = 4
LOG_LIMIT = 64 * 1024 * 1024
LOG_CHECK_S = 10.0
TAIL_LINES = 15
# Readiness is asked of this machine: no proxy that the environment may name.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Process(BaseModel):
    """A process to keep running.  `ready` is "" (started is ready), an http URL that must answer 200, or
    kafka://host:port.  `env` comes on top of the supervisor's environment.  Neighbours with the same `stops_with` are told to
    stop at once."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = {}
    ready: str = ""
    port: int | None = None
    start_timeout: float = 90.0
    stop_timeout: float = 20.0
    stops_with: str = ""


class Task(BaseModel):
    """A command that must succeed once before the stack goes on."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = {}
    timeout: float = 120.0


Wave = Sequence[Process] | Task
Report = Callable[[str], None]


class StartFailed(ClawError):
    """A process or task did not come up; the text names it, why, and the end of its log."""


@dataclass
class _Child:
    spec: Process
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0  # in a row, without settling
    restart_at: float = 0.0
    state: ProcessState = field(default_factory=ProcessState)


class Supervisor:
    """Runs waves of processes.  `state` is written to `data` at every change; `report` gets lines for people."""

    def __init__(self, data: Path, state: StackState, report: Report) -> None:
        self._data = data
        self._logs = data.resolve() / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._state = state
        self._report = report
        self._children: list[_Child] = []
        self._stop = threading.Event()
        self._logs_checked = 0.0

    def request_stop(self) -> None:
        self._stop.set()

    def run(self, waves: Sequence[Wave], *, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start the waves one after the other, keep everything running until stopped, stop in reverse order.

        Raises StartFailed, after everything was stopped again, if a wave does not come up.
        """
        with self._signals():
            try:
                for wave in waves:
                    if isinstance(wave, Task):
                        self._run_task(wave)
                    else:
                        self._start_wave(wave)
                if not self._stop.is_set():
                    self._save("ready")
                    on_ready()
                while not self._stop.wait(POLL_S):
                    self._watch()
            except StartFailed as failure:
                self._state.error = str(failure)
                raise
            finally:
                self._stop_all()
                self._save("failed" if self._state.error else "down")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = [signal.signal(number, lambda number, frame: self._stop.set()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _start_wave(self, wave: Sequence[Process]) -> None:
        children = [self._adopt(spec) for spec in wave]
        for child in children:
            self._launch(child)
        waiting = list(children)
        deadline = {child.spec.name: time.monotonic() + child.spec.start_timeout for child in children}
        while waiting and not self._stop.wait(POLL_S):
            self._watch()
            for child in list(waiting):
                if child.deaths >= CRASH_LOOP:
                    raise StartFailed(
                        self._explain(child, f"ended {child.deaths} times (exit {child.state.last_exit})")
                    )
                if child.popen is not None and answers(child.spec.ready):
                    waiting.remove(child)
                    self._report(f"{child.spec.name} is ready ({time.monotonic() - child.started:.1f} s)")
                elif time.monotonic() > deadline[child.spec.name]:
                    reason = why_not_ready(child.spec.ready)
                    raise StartFailed(self._explain(child, f"not ready in {child.spec.start_timeout:.0f} s: {reason}"))

    def _adopt(self, spec: Process) -> _Child:
        path = self._logs / f"{spec.name}.log"
        child = _Child(spec, path, state=ProcessState(ready=spec.ready, port=spec.port, log=str(path)))
        self._children.append(child)
        self._state.processes[spec.name] = child.state
        return child

    def _launch(self, child: _Child) -> None:
        command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *child.spec.argv]
        with child.log.open("ab") as output:
            # A session of its own: Ctrl-C reaches the supervisor, which stops the others in order.
            child.popen = subprocess.Popen(
                command,
                env={**os.environ, **child.spec.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child.started = time.monotonic()
        child.state.identity = Identity.of(child.popen.pid)
        self._save()

    def _watch(self) -> None:
        """Notice deaths, restart what is due, keep the logs within their bound."""
        now = time.monotonic()
        for child in self._children:
            if child.popen is None:
                if now >= child.restart_at:
                    self._launch(child)
            elif child.popen.poll() is not None:
                self._note_death(child, now)
            elif child.deaths and now - child.started > SETTLED_S:
                child.deaths = 0
                child.state.crash_looping = False
                self._save()
        if now - self._logs_checked > LOG_CHECK_S:
            self._logs_checked = now
            for child in self._children:
                bound_log(child.log)

    def _note_death(self, child: _Child, now: float) -> None:
        assert child.popen is not None
        child.state.last_exit = child.popen.returncode
        child.popen = None
        child.state.identity = None
        child.state.restarts += 1
        child.deaths += 1
        backoff = min(FIRST_BACKOFF_S * 2 ** (child.deaths - 1), LONGEST_BACKOFF_S)
        child.restart_at = now + backoff
        child.state.crash_looping = child.deaths >= CRASH_LOOP
        again = " again and again" if child.state.crash_looping else ""
        self._report(
            f"{child.spec.name} ended{again} ({_exit_text(child.state.last_exit)}), restart in {backoff:.1f} s; "
            f"log: {child.log}"
        )
        self._save()

    def _run_task(self, task: Task) -> None:
        if self._stop.is_set():
            return
        path = self._logs / f"{task.name}.log"
        command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *task.argv]
        with path.open("ab") as output:
            popen = subprocess.Popen(
                command,
                env={**os.environ, **task.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + task.timeout
        while popen.poll() is None:
            if self._stop.wait(POLL_S) or time.monotonic() > deadline:
                popen.kill()
                popen.wait()
                break
            self._watch()
        if self._stop.is_set():
            return
        if popen.returncode != 0:
            raise StartFailed(f"{task.name} failed ({_exit_text(popen.returncode)}):\n{tail(path)}\nlog: {path}")
        self._report(f"{task.name} done")

    def _stop_all(self) -> None:
        self._save("stopping")
        for _, together in itertools.groupby(
            reversed(self._children), key=lambda child: child.spec.stops_with or child.spec.name
        ):
            self._stop_together(list(together))

    def _stop_together(self, children: Sequence[_Child]) -> None:
        living = [child.popen for child in children if child.popen is not None and child.popen.poll() is None]
        for popen in living:
            popen.terminate()
        told = time.monotonic()
        for child in children:
            if child.popen in living:
                try:
                    child.popen.wait(max(0.0, told + child.spec.stop_timeout - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self._report(f"{child.spec.name} did not stop in {child.spec.stop_timeout:.0f} s: killed")
                    child.popen.kill()
                    child.popen.wait()
            child.state.identity = None
            self._save()

    def _explain(self, child: _Child, what: str) -> str:
        return f"{child.spec.name} {what}. The end of {child.log}:\n{tail(child.log)}"

    def _save(self, phase: Phase | None = None) -> None:
        if phase is not None:
            self._state.phase = phase
        try:
            write_state(self._data, self._state)
        except OSError as error:  # a full disk must not keep processes from being watched and stopped
            self._report(f"the state of the stack cannot be written: {error}")


def answers(ready: str) -> bool:
    """Whether the thing behind a readiness address is ready now."""
    return why_not_ready(ready) == ""


def why_not_ready(ready: str) -> str:
    """Empty if ready, else the reason: what a readiness URL says, or what the connection failed of."""
    if not ready:
        return ""
    if ready.startswith("kafka://"):
        address = ready.removeprefix("kafka://")
        host, _, port = address.rpartition(":")
        if broker_serves(host, int(port), PROBE_TIMEOUT_S):
            return ""
        return f"no broker answers at {address} as a member of its cluster"
    try:
        with _opener(ready).open(_without_user(ready), timeout=PROBE_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return f"HTTP {error.code} {error.read(2000).decode(errors='replace').strip()}"
    except OSError as error:  # includes URLError and time-outs
        return str(error)


def _opener(url: str) -> urllib.request.OpenerDirector:
    if not url.startswith("https://"):
        return _DIRECT
    tls = urllib.request.HTTPSHandler(context=wire.tls_of_clickhouse())
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)


def _without_user(url: str) -> str:
    """A health path is open to everybody, and urllib knows no users in a URL."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def bound_log(path: Path, limit: int = LOG_LIMIT) -> None:
    """Move a log that grew over its limit to `.1` and begin anew; the process keeps its open (appending) file."""
    if path.exists() and path.stat().st_size > limit:
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.truncate(path, 0)


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit {code}"
