"""Stages as processes of a test: started with settings, killed, paused, and ended with the test."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.warm import ROOT, Started


class Worker:
    """`python -m STAGE` with CLAW_* settings; its stderr goes to a file that a failed test can show."""

    def __init__(self, stage: str, log: Path, **settings: object) -> None:
        self.stage = stage
        self.log = log
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("CLAW_")}
        self._env |= {f"CLAW_{name.upper()}": str(value) for name, value in settings.items()}
        self._process: Started | None = None
        self.starts = 0

    def start(self) -> Self:
        with self.log.open("ab") as stderr:
            self._process = Started(self.stage, cwd=ROOT, env=self._env, stdout=stderr, stderr=stderr)
        self.starts += 1
        return self

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(60)

    def logged(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@contextlib.contextmanager
def workers(*many: Worker) -> Iterator[None]:
    """Start them; whatever happens, none outlives the block."""
    try:
        for worker in many:
            worker.start()
        yield
    finally:
        for worker in many:
            worker.signal(signal.SIGCONT) if worker.alive else None
            worker.kill()
