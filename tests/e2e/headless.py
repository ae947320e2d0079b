"""`claw demo` as a process of its own, started by a test on a folder of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from claw_r1.local.state import StackState, read_state
from claw_r1.local.supervisor import GUARD


def command(data: Path, *options: str) -> list[str]:
    """Dies with the test's process, however that ends."""
    guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid())]
    return [*guard, sys.executable, "-P", "-m", "claw_r1.cli.entry", "demo", "--data", str(data), *options]


class Demo:
    """A demo that runs; leaving the block ends it, whatever happened."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        self.talk = data / "talk.txt"
        with self.talk.open("ab") as talk:
            self.process = subprocess.Popen(
                command(data, *options), stdout=subprocess.PIPE, stderr=talk, start_new_session=True
            )

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            finally:
                self.process.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def ledger(self) -> Path:
        return self.data / "demo" / "ledger.jsonl"

    @property
    def state(self) -> StackState:
        return read_state(self.data)

    def lines(self, name: str, event: str) -> int:
        """Lines of that event in one of the demo's files."""
        path = self.data / "demo" / f"{name}.jsonl"
        return path.read_bytes().count(b'"event":"%s"' % event.encode()) if path.exists() else 0

    def check_alive(self) -> None:
        assert self.process.poll() is None, f"the demo ended ({self.process.returncode}):\n{self.talk.read_text()}"

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        os.kill(self.process.pid, signal.SIGINT)

    def result(self, timeout: float = 300.0) -> dict[str, Any]:
        """Wait for the end; the one document on standard output."""
        output, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, f"exit {self.process.returncode}:\n{self.talk.read_text()}"
        document: dict[str, Any] = json.loads(output)
        return document
