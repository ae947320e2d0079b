"""A bound on a wait that hardly ever waits: all bounds are looked at now and then, since a timer for each would cost more.

Invariants: what waits too long is ended, at most LOOK_EVERY late; what does not wait costs two entries in a table.
"""

import asyncio
from types import TracebackType
from typing import Final

LOOK_EVERY: Final = 1.0
"""Seconds between looks."""


class _Waits:
    """Those that wait in one event loop."""

    def __init__(self) -> None:
        self.all: dict[within, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, wait: "within", loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.all[wait] = None
        if self._loop is not loop:  # nobody looks, or the loop that did has ended
            self._loop = loop
            loop.call_later(min(LOOK_EVERY, seconds), self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        now = loop.time()
        for wait in [wait for wait in self.all if wait.loop is loop and wait.until <= now]:
            wait.end()
        if self.all:
            loop.call_later(LOOK_EVERY, self._look, loop)
        else:
            self._loop = None


_waits: Final = _Waits()


class within:  # used as `with within(seconds):`, like asyncio.timeout
    """Within it, TimeoutError is raised when `seconds` have passed, or a little later."""

    __slots__ = ("_over", "_task", "loop", "until")

    def __init__(self, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.until = self.loop.time() + seconds
        self._task = asyncio.current_task(self.loop)
        self._over = False
        _waits.add(self, self.loop, seconds)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _waits.all.pop(self, None)
        if self._over and self._task is not None and self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        """It is over."""
        if not self._over and self._task is not None:
            self._over = True
            self._task.cancel()
