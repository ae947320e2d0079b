"""A rollout goes to a process of its own and comes back as what the function gave: for functions that are heavy, or hang.

`python -P -m claw_r1.rewards.children REFERENCE` is such a process: it reads frames (4 bytes of length, then a pickle) from its
standard input until that ends, and writes frames back. Invariants: what the function prints goes to standard error; a call
that is late ends with its process; one that dies takes no other call with it; no such process outlives the one that started it.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import struct
import sys
import threading
import time
from typing import Any, BinaryIO, Final

from claw_r1.rewards.finding import resolve
from claw_r1.rewards.function import Missing
from claw_r1.rewards.rollout import Rollout

_HEAD: Final = struct.Struct("<I")
READY: Final = "ready"
START_DEADLINE: Final = 60.0
WATCH_EVERY: Final = 0.5
Answer = tuple[Any, tuple[str, str, bool] | None]
"""The result, or the parts of a Missing."""


class Child:
    """One such process, for one call at a time; started with its first call, and again after one that was late."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._process: asyncio.subprocess.Process | None = None

    async def call(self, rollout: Rollout, timeout: float) -> Any:
        """What the function gave. The time to start the process is not counted. Raises Missing: late, failed."""
        try:
            async with asyncio.timeout(START_DEADLINE):
                process = await self._ready()
            async with asyncio.timeout(timeout):
                answer: Answer = await self._exchange(process, pickle.dumps(rollout))
        except TimeoutError as error:
            await self.close()
            raise Missing("late", f"the function gave nothing for {timeout:g} s", retry=True) from error
        except asyncio.CancelledError:
            await self.close()
            raise
        except (OSError, asyncio.IncompleteReadError) as error:
            code = await self.close()
            raise Missing("failed", f"the function's process ended (exit code {code})", retry=True) from error
        result, missing = answer
        if missing is not None:
            reason, message, retry = missing
            raise Missing(reason, message, retry=retry)
        return result

    async def _ready(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "claw_r1.rewards.children",
                self._reference,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # It finds the function where this process found it.
                env=os.environ | {"PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)},
            )
            if await self._read(self._process) != READY:
                raise OSError("the function's process did not start")
        return self._process

    async def _exchange(self, process: asyncio.subprocess.Process, body: bytes) -> Any:
        assert process.stdin is not None
        process.stdin.write(_HEAD.pack(len(body)) + body)
        await process.stdin.drain()
        return await self._read(process)

    async def _read(self, process: asyncio.subprocess.Process) -> Any:
        assert process.stdout is not None
        (size,) = _HEAD.unpack(await process.stdout.readexactly(_HEAD.size))
        return pickle.loads(await process.stdout.readexactly(size))

    async def close(self) -> int | None:
        """End the process at once; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # Not by the process object, which would take the exit code of one that ended by itself from asyncio.
                os.kill(process.pid, signal.SIGKILL)
        return await process.wait()


def serve(reference: str, source: BinaryIO, target: BinaryIO) -> None:
    """Answer every frame of `source`, until it ends."""
    function = resolve(reference)
    _write(target, READY)
    while len(head := source.read(_HEAD.size)) == _HEAD.size:
        rollout = pickle.loads(source.read(*_HEAD.unpack(head)))
        _write(target, _answer(function, rollout))


def _answer(function: Any, rollout: Rollout) -> Answer:
    try:
        return function.score(function(rollout)), None
    except Missing as error:
        return None, (error.reason, str(error), error.retry)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a plug-in raises is told to its caller
        return None, ("failed", f"{type(error).__name__}: {str(error)[:500]}", True)


def _write(target: BinaryIO, what: Any) -> None:
    body = pickle.dumps(what)
    target.write(_HEAD.pack(len(body)) + body)
    target.flush()


def watch_parent(parent: int) -> None:
    """End when the process that started this one is gone, also in the middle of a call."""
    while os.getppid() == parent:
        time.sleep(WATCH_EVERY)
    os._exit(1)


def main() -> None:
    threading.Thread(target=watch_parent, args=(os.getppid(),), daemon=True).start()
    with os.fdopen(os.dup(1), "wb") as target:
        os.dup2(2, 1)
        serve(sys.argv[1], sys.stdin.buffer, target)


if __name__ == "__main__":
    main()
