"""Programs of the project as processes that begin warm: forked from a process that has imported what they import.

`Started("streams", …)` is to a test what `subprocess.Popen([sys.executable, "-m", "streams", …])` is, and `run` is what
`subprocess.run` is: a process of its own with its environment, its output and its exit code, killed and stopped as any. It
is spared the second or more that an interpreter takes to read its modules.

Invariants: what is forked has run nothing of the project and holds no thread, loop or connection; every module is imported at
most once for all tests of a session, when a program first asks for it; the server ends with the process that it serves.
"""

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[1]
CLI: Final = "claw_r1.cli.entry"
FIRST_IMPORTS: Final = {
    "gateway": ["gateway.workers"],
    "streams": ["streams.app"],
    "streams.workers": ["streams.workers.app"],
    "sinks": ["sinks.app"],
    "tests.kill.streams.stoppable": ["streams.app"],
    "tests.kill.sinks.stoppable": ["sinks.app"],
    "tests.kill.trainer.program": ["trainer_adapter"],
}
"""What a program's module imports: itself it must not be imported, since some begin at once."""

ELSEWHERE: Final = """
import runpy, sys, types
tests = sys.modules["tests"] = types.ModuleType("tests")
tests.__path__ = [sys.argv[1] + "/tests"]  # a package of the environment may have this name
sys.path[0] = sys.argv[1]
runpy.run_module("tests.warm", run_name="__main__")
"""
"""Begins the server by the Python of another environment."""

_servers: dict[str, socket.socket] = {}
_starting = threading.Lock()


def _connect(python: str, env: Mapping[str, str]) -> socket.socket:
    """The server of this process and of that Python, begun by the first who asks, in its environment; all who ask for another
    Python than ours have the same. It ends when its other end is closed, and so with us."""
    if python not in _servers:
        ours, theirs = socket.socketpair()
        with theirs:
            ours_too = python == sys.executable
            begin = ["-m", "tests.warm"] if ours_too else ["-c", ELSEWHERE, str(ROOT)]
            server = subprocess.Popen(
                [python, *begin, str(theirs.fileno())],
                cwd=ROOT,
                env=None if ours_too else dict(env),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        _servers[python] = ours
        atexit.register(_disconnect, ours, server)
    return _servers[python]


def _disconnect(control: socket.socket, server: "subprocess.Popen[bytes]") -> None:
    control.close()
    server.wait(30)


def leave(python: str) -> None:
    """End that Python's server, if there is one: what it has imported may be much."""
    if (control := _servers.pop(python, None)) is not None:
        control.close()


class Started:
    """A program that was started; of what `subprocess.Popen` has, what tests need. `python` may be that of another environment:
    then `imports` says what to import before."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        python: str = sys.executable,
        imports: Sequence[str] = (),
    ) -> None:
        self.args = [module, *arguments]
        self.returncode: int | None = None
        self._said = b""
        self._reading = threading.Lock()
        request: dict[str, Any] = {
            "module": module,
            "arguments": arguments,
            "imports": [*imports, *_imports_of(module, arguments)],
            "env": dict(os.environ if env is None else env),
            "cwd": str(cwd or Path.cwd()),
        }
        with contextlib.ExitStack() as until_sent:
            self._talk, theirs = socket.socketpair()
            until_sent.enter_context(theirs)
            if stdin is None:
                stdin = until_sent.enter_context(Path(os.devnull).open("rb"))
            files = [stdin, sys.__stdout__ if stdout is None else stdout, sys.__stderr__ if stderr is None else stderr]
            numbers = [file if isinstance(file, int) else file.fileno() for file in files if file is not None]
            with _starting:
                socket.send_fds(_connect(python, request["env"]), [b"."], [theirs.fileno(), *numbers])
        self._talk.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self._line())

    def _line(self) -> bytes:
        """What the server says next; all of it is in lines."""
        while b"\n" not in self._said:
            more = self._talk.recv(100)
            assert more, f"nobody says what became of {self.args}"
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line

    def _ended(self, timeout: float | None) -> bool:
        if self.returncode is None and select.select([self._talk], [], [], timeout)[0]:
            with self._reading:
                if self.returncode is None:
                    self.returncode = int(self._line())
                    self._talk.close()
        return self.returncode is not None

    def poll(self) -> int | None:
        self._ended(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or the number of the signal that ended it, below zero. Raises subprocess.TimeoutExpired."""
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        if hasattr(self, "_talk"):
            self._talk.close()


def _imports_of(module: str, arguments: tuple[str, ...]) -> list[str]:
    if module != CLI:
        return FIRST_IMPORTS.get(module, [])
    from claw_r1.cli.entry import COMMANDS

    command = COMMANDS.get(arguments[0]) if arguments else None
    return [CLI, *([command.target.split(":")[0]] if command else [])]


def run(
    module: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str = "",
    timeout: float = 120.0,
    python: str = sys.executable,
    imports: Sequence[str] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end. Raises subprocess.TimeoutExpired, and then it is killed."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input)
        given.seek(0)
        where: dict[str, Any] = {"env": env, "cwd": cwd, "python": python, "imports": imports}
        process = Started(module, *arguments, stdin=given, stdout=out, stderr=err, **where)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
        return subprocess.CompletedProcess(process.args, code, *said)


def claw(
    *arguments: str, env: Mapping[str, str] | None = None, input: str = "", timeout: float = 120.0
) -> "subprocess.CompletedProcess[str]":
    """Run `claw` with these arguments to its end."""
    return run(CLI, *arguments, env=env, input=input, timeout=timeout)


# ---------------------------------------------------------------------------------------------------------- the server


def _serve(control: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in a process that was forked, with what it is to be; else never."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what was started hears it, and who started it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        said, files, _, _ = socket.recv_fds(control, 1, 4)
        if not said:
            os._exit(0)
        talk = socket.socket(fileno=files[0])
        request: dict[str, Any] = json.loads(talk.makefile("rb").readline())
        for name in request["imports"]:
            with contextlib.suppress(ImportError):  # the program itself says so
                importlib.import_module(name)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if _is_forked(talk):
                talk.close()
                return request | {"files": files[1:]}
        talk.close()
        for number in files[1:]:
            os.close(number)


def _is_forked(talk: socket.socket) -> bool:
    """Fork once more: True in the program to be. Who waits for it tells its id and its end, and ends."""
    pid = os.fork()
    if pid == 0:
        return True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # nobody wants to know any more
        talk.sendall(b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        talk.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Be the program, from its environment to its `__main__`."""
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    sys.argv = [request["module"], *request["arguments"]]
    sys.modules.pop(request["module"], None)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _become(_serve(socket.socket(fileno=int(sys.argv[-1]))))
