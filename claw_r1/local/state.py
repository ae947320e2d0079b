"""What runs on a data directory: DATA/stack.json, written by the supervisor alone, and the lock that makes it alone.

Invariants:
- the file is replaced as a whole, so a reader sees one moment;
- a process is named by its id and its time of birth, so an id that the system gave to somebody else is never killed.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ValidationError

from claw_r1.errors import UserError

Phase = Literal["starting", "ready", "stopping", "down", "failed"]
STATE_FILE = "stack.json"
LOCK_FILE = "stack.lock"
# The system computes times of birth from its clock, which may be set; ids are not given anew this fast.
CLOCK_STEP_S = 2.0
KILL_TIMEOUT_S = 10.0


class Identity(BaseModel):
    """A process of this machine: its id, and when it was born (seconds since the epoch)."""

    pid: int
    born: float

    @classmethod
    def of(cls, pid: int) -> "Identity":
        return cls(pid=pid, born=psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process, if it is alive (a zombie is not)."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.born) < CLOCK_STEP_S and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.NoSuchProcess:
            return None
        return None


class ProcessState(BaseModel):
    """One supervised process.  `ready` is where its readiness is asked (a URL, or kafka://host:port)."""

    identity: Identity | None = None
    ready: str = ""
    port: int | None = None
    log: str = ""
    restarts: int = 0
    last_exit: int | None = None
    crash_looping: bool = False


class StackState(BaseModel):
    """The whole stack on one data directory; kept after it stopped, for its ports."""

    phase: Phase = "down"
    error: str = ""
    supervisor: Identity | None = None
    urls: dict[str, str] = {}
    ports: dict[str, int] = {}
    many: dict[str, int] = {}
    """How many processes there are of a stage."""
    processes: dict[str, ProcessState] = {}

    @property
    def alive(self) -> bool:
        return self.supervisor is not None and self.supervisor.find() is not None

    @property
    def pids(self) -> Mapping[str, int]:
        return {name: process.identity.pid for name, process in self.processes.items() if process.identity}


def read_state(data: Path) -> StackState:
    """What is written of the stack on `data`; an empty state if nothing is.  Raises UserError if it cannot be read."""
    file = data / STATE_FILE
    try:
        return StackState.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return StackState()
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}\nName a folder that can be read with --data DIR."
        ) from error
    except ValidationError as error:
        raise UserError(
            f"{file} is damaged: {error.errors()[0]['msg']}\n"
            "Delete it, and `claw up` makes it anew; end processes that it named by hand."
        ) from error


def write_state(data: Path, state: StackState) -> None:
    temporary = data / f".{STATE_FILE}.{os.getpid()}"
    temporary.touch(0o600)  # a URL may hold a password
    temporary.write_text(state.model_dump_json(indent=1) + "\n", "utf-8")
    temporary.replace(data / STATE_FILE)


@contextlib.contextmanager
def exclusive(data: Path) -> Iterator[bool]:
    """Hold the lock of the data directory; yields False if another process holds it."""
    data.mkdir(parents=True, exist_ok=True)
    with holding(data / LOCK_FILE) as held:
        yield held


@contextlib.contextmanager
def holding(file: Path) -> Iterator[bool]:
    """Hold the lock of a file, which is made; yields False if another process holds it."""
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def end_orphans(state: StackState) -> list[str]:
    """Kill what a killed supervisor left running; the names of those that were."""
    ended = []
    for name, process in state.processes.items():
        if process.identity is None or (found := process.identity.find()) is None:
            continue
        found.kill()
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while process.identity.find() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        ended.append(name)
    return ended


def is_frozen(pid: int) -> bool:
    """Whether every thread of a process is stopped."""
    return _states(pid) == {"T"}


def is_dead(pid: int) -> bool:
    """Whether no thread of a process is left, but for what its parent has not looked at yet."""
    return _states(pid) <= {"Z", "X"}


def _states(pid: int) -> set[str]:
    """Of a process's threads, a letter each (of the process where the system does not tell of threads); none if it is gone."""
    if Path("/proc/self/task").is_dir():
        found = set()
        for task in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                found.add(task.read_text().rsplit(")", 1)[1].split()[0])
        return found
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return set()
    return {{psutil.STATUS_STOPPED: "T", psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_DEAD: "X"}.get(status, "R")}
